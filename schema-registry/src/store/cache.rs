//! Parsed schemas, so that a subject's versions are not parsed for every comparison.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::avro::Avro;
use crate::content::{Guid, parse};
use crate::error::Refusal;
use crate::registry::Source;

/// Bounded by what parsed schemas weigh, about.
#[derive(Debug, Default)]
pub(super) struct Cache {
    parsed: Mutex<Parsed>,
}

#[derive(Debug, Default)]
struct Parsed {
    by_content: HashMap<Guid, Arc<Avro>>,
    weight: usize,
}

/// Room for a hundred versions of a table with a thousand columns.
const MOST: usize = 48 << 20;

impl Cache {
    pub(super) fn parse(&self, source: &Source) -> Result<Arc<Avro>, Refusal> {
        // What a schema's references mean never changes while it is there, but
        // another context may have other subjects of the same names.
        let key = source.references.is_empty().then(|| source.content.guid());
        if let Some(key) = key
            && let Some(known) = self.lock().by_content.get(&key)
        {
            return Ok(known.clone());
        }
        let parsed = Arc::new(parse(&source.content.text, &source.references, false)?);
        if let Some(key) = key {
            let weight = parsed.weight();
            let mut cached = self.lock();
            // Whole at once: cheap, and a working set that does not fit gains nothing anyway.
            if cached.weight + weight > MOST {
                *cached = Parsed::default();
            }
            if weight <= MOST && cached.by_content.insert(key, parsed.clone()).is_none() {
                cached.weight += weight;
            }
        }
        Ok(parsed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Parsed> {
        self.parsed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

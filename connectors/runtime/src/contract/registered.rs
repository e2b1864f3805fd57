//! Rules that stand in the registry: in the metadata of the last version of a
//! table's subject, under `highwater.contract` and `highwater.contract.COLUMN`.
//!
//! What was read last stands in the log's state (`contract/<stream>`), so that
//! it holds while the registry is away, over restarts too. It is read when a
//! shape is registered, before a row under it is looked at, and again now and
//! then (`clerk.rs`). Rules that cannot be followed are no reason to deliver
//! rows as if there were none: the gate holds their table back until somebody
//! mends them.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use config::{Contract, Rule};
use connector::{Error, Result, Shape, Shapes, Table};
use schema_registry::Told;
use serde::{Deserialize, Serialize};
use storage::{State, StateChange};

use super::Check;
use crate::hold::{put, remove};

/// Entries in the log's state.
const PREFIX: &str = "contract/";
/// Properties of a version's metadata.
const PROPERTY: &str = "highwater.contract";

/// The registered rules of a source's tables.
#[derive(Debug, Default)]
pub(crate) struct Registered {
    all: Mutex<All>,
    /// Grows with every change.
    generation: AtomicU64,
}

#[derive(Debug, Default)]
struct All {
    /// Whether the log's state was read.
    read: bool,
    by_stream: HashMap<String, Arc<Of>>,
}

#[derive(Debug, PartialEq)]
struct Of {
    entry: Entry,
    schema: String,
    table: String,
    rules: Vec<Rule>,
    /// Why they cannot be followed.
    wrong: Option<String>,
}

/// As the log's state has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    subject: String,
    version: u32,
    properties: BTreeMap<String, String>,
}

/// A table whose rules cannot be followed.
#[derive(Clone, Debug)]
pub(crate) struct Wrong {
    pub(crate) stream: String,
    pub(crate) schema: String,
    pub(crate) table: String,
    pub(crate) why: String,
}

impl Registered {
    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes when anything of it does.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all().by_stream.is_empty()
    }

    pub(super) fn rules(&self, stream: &str) -> Vec<Rule> {
        self.all().by_stream.get(stream).map(|of| of.rules.clone()).unwrap_or_default()
    }

    /// Tables whose rules cannot be followed.
    pub(crate) fn wrong(&self) -> Vec<Wrong> {
        let all = self.all();
        let wrong = all.by_stream.iter().filter_map(|(stream, of)| {
            let why = of.wrong.clone()?;
            Some(Wrong { stream: stream.clone(), schema: of.schema.clone(), table: of.table.clone(), why })
        });
        wrong.collect()
    }

    /// What the log's state knows, the first time; later it is the other way round.
    pub(crate) fn read(&self, state: &State) -> Result<()> {
        let mut all = self.all();
        if std::mem::replace(&mut all.read, true) {
            return Ok(());
        }
        let unreadable = |error: serde_json::Error| {
            Error::halt("could not read in the log's state what the registry demands")
                .because(error)
                .hint("the log may be of a newer version: start that version again")
        };
        let shapes = Shapes::from_state(state.iter()).map_err(unreadable)?;
        let mut tables: BTreeMap<String, &Shape> = BTreeMap::new();
        for shape in shapes.iter() {
            let last = tables.entry(shape.table.stream()).or_insert(shape);
            if last.number < shape.number {
                *last = shape;
            }
        }
        for (key, value) in state.prefix(PREFIX.as_bytes()) {
            let entry: Entry = serde_json::from_slice(value).map_err(unreadable)?;
            let stream = String::from_utf8_lossy(&key[PREFIX.len()..]).into_owned();
            if let Some(shape) = tables.get(&stream) {
                all.by_stream.insert(stream, Arc::new(Of::new(entry, &shape.table)));
            }
        }
        self.generation.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Takes over what is said about the last version of a table's subject;
    /// whether that is news. None: there is no version.
    pub(crate) fn learn(&self, table: &Table, subject: &str, told: Option<Told>) -> bool {
        let stream = table.stream();
        let Told { version, mut properties } = told.unwrap_or_default();
        properties.retain(|name, _| column_of(name).is_some());
        let of = (!properties.is_empty())
            .then(|| Arc::new(Of::new(Entry { subject: subject.into(), version, properties }, table)));
        let mut all = self.all();
        let before = all.by_stream.get(&stream);
        if before == of.as_ref() {
            return false;
        }
        if before.map(|of| &of.entry) != of.as_ref().map(|of| &of.entry) {
            match of.as_ref().map(|of| of.rules.len()) {
                Some(rules) => tracing::info!(stream, subject, version, rules, "rules of the registry"),
                None => tracing::info!(stream, subject, "no rules of the registry any more"),
            }
        }
        match of {
            Some(of) => all.by_stream.insert(stream, of),
            None => all.by_stream.remove(&stream),
        };
        self.generation.fetch_add(1, Ordering::Release);
        true
    }

    /// What the log's state does not have yet, to go with what comes next.
    pub(crate) fn unwritten(&self, state: &State) -> Vec<StateChange> {
        let all = self.all();
        let known = all.by_stream.iter().map(|(stream, of)| put(format!("{PREFIX}{stream}"), &of.entry));
        let mut changes: Vec<_> = known.filter(|change| state.get(&change.key) != change.value.as_deref()).collect();
        for (key, _) in state.prefix(PREFIX.as_bytes()) {
            let stream = String::from_utf8_lossy(&key[PREFIX.len()..]);
            if !all.by_stream.contains_key(&*stream) {
                changes.push(remove(format!("{PREFIX}{stream}")));
            }
        }
        changes
    }
}

impl Of {
    fn new(entry: Entry, table: &Table) -> Self {
        let (mut contract, mut wrong) = (Contract::default(), Vec::new());
        for (name, text) in &entry.properties {
            let Some(column) = column_of(name) else { continue };
            let place = format!("subject {}, version {}, property {name}", entry.subject, entry.version);
            match Contract::from_json(&place, column, text) {
                Ok(more) => contract.rules.extend(more.rules),
                Err(faults) => wrong.extend(faults),
            }
        }
        for unfitting in Check::compile(&contract, table).1 {
            // As where an ALTER takes a column away: its rows break what they
            // must have, and no other rule.
            if unfitting.no_column {
                tracing::warn!(place = unfitting.place, what = unfitting.what, "a rule of the registry has no column");
            } else {
                wrong.push(format!("{}: {}", unfitting.place, unfitting.what));
            }
        }
        let wrong = (!wrong.is_empty()).then(|| wrong.join("; "));
        Self { entry, schema: table.schema.clone(), table: table.name.clone(), rules: contract.rules, wrong }
    }
}

/// The column that a property is about, if it is one of ours; the inner None:
/// it is about the table.
#[expect(clippy::option_option, reason = "not ours, or without a column")]
fn column_of(name: &str) -> Option<Option<&str>> {
    match name.strip_prefix(PROPERTY)? {
        "" => Some(None),
        rest => rest.strip_prefix('.').map(Some),
    }
}

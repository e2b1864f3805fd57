//! What is worked out before a change: parsing and comparing, on threads of
//! their own and without a lock.

use std::sync::Arc;
use std::time::Instant;

use super::{Inner, Limits};
use crate::avro::Form;
use crate::change::Change;
use crate::compatibility::{Earlier, Level, messages};
use crate::content::{NewSchema, Parsed};
use crate::error::{Code, Error, Refusal, Result};
use crate::registry::{Demand, Found, Mode, Registered, Registry, Shown, Which};
use crate::store::cache::Cache;
use crate::subject::Subject;

/// Whom a registration serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A client: compared at the subject's level, under its mode.
    Register,
    /// Our own sources: compatibility was decided before.
    Own,
    /// With id and version, unchecked, whatever the mode.
    Import,
}

/// What a comparison came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Violations and what surrounds them; empty: compatible.
    pub(crate) messages: Vec<String>,
    /// The schema does not even parse: the reason is the only message.
    pub(crate) invalid: bool,
}

/// Texts up to here are parsed where the request is.
const SMALL: usize = 16 << 10;

impl Inner {
    pub(super) async fn register(
        self: &Arc<Self>,
        subject: Subject,
        new: NewSchema,
        normalize: bool,
        purpose: Purpose,
    ) -> Result<Registered> {
        let came = Arc::new(new);
        loop {
            let (new, mut demand) = {
                let ahead = self.ahead.lock().await;
                let filled = match purpose {
                    Purpose::Register => ahead.registry.filled(&subject, &came)?,
                    Purpose::Own | Purpose::Import => None,
                };
                let new = filled.map_or_else(|| came.clone(), Arc::new);
                let demand = ahead.registry.demand(&subject, &new, normalize)?;
                (new, demand)
            };
            if purpose != Purpose::Register {
                if purpose == Purpose::Import {
                    (demand.strict, demand.additions) = (false, None);
                }
                (demand.level, demand.earlier) = (Level::None, Vec::new());
            }
            let demand = Arc::new(demand);
            let parsed = {
                let (new, demand) = (new.clone(), demand.clone());
                self.work(weight(&new, &demand, false), move |_, _| parse(&new, &demand)).await?
            };
            // As a client's it is another schema without what settings give;
            // our own sources' stays what it is until it changes.
            let completed = purpose == Purpose::Register && demand.additions.is_some();
            let parsed = if completed { Parsed { bare: false, ..demand.completed(parsed) } } else { parsed };
            // The most frequent by far: it is there already, and durable.
            let known = demand.last.as_ref();
            let known = known.and_then(|_| self.read(|registry| registry.find(&subject, &parsed, Shown::Live)));
            if let Some(registered) = known.and_then(|found| new.is_answered_by(&found, purpose == Purpose::Import)) {
                return Ok(registered);
            }
            // What is imported is taken as it is.
            let parsed = if demand.strict && !completed { demand.completed(parsed) } else { parsed };
            let parsed = if demand.strict { demand.numbered(parsed) } else { parsed };
            if !demand.earlier.is_empty() {
                let (compared, of) = (parsed.clone(), demand.clone());
                let weight = weight(&new, &demand, true);
                let told = self.work(weight, move |cache, limits| compare(&compared, &of, cache, limits)).await?;
                if !told.is_empty() {
                    // Not if it came in meanwhile, or needs no leave of anybody.
                    let ahead = self.ahead.lock().await;
                    let there = ahead.registry.find(&subject, &parsed, Shown::Live).is_some();
                    if !there {
                        let mode = ahead.registry.mode(&subject);
                        ahead.registry.plan_register(&subject, &new, &parsed, mode)?;
                        if mode != Mode::Import {
                            return Err(incompatible(&subject, &told).into());
                        }
                    }
                }
            }
            let plan = |registry: &Registry| {
                if registry.stamp(&subject) != demand.stamp {
                    return Ok((None, Vec::new()));
                }
                let mode = match (purpose, registry.mode(&subject)) {
                    (Purpose::Import, _) => Mode::Import,
                    (Purpose::Own, Mode::Import) => Mode::Readwrite,
                    (_, mode) => mode,
                };
                let (registered, changes) = registry.plan_register(&subject, &new, &parsed, mode)?;
                let still = |change: &Change| match change {
                    Change::Schema { content, .. } => registry.references_are_there(&subject, content, mode),
                    _ => true,
                };
                // A reference may have gone since it was looked at.
                if !changes.iter().all(still) {
                    return Ok((None, Vec::new()));
                }
                Ok((Some(registered), changes))
            };
            if let Some(registered) = self.change(plan).await? {
                return Ok(registered);
            }
        }
    }

    pub(super) async fn compare(
        self: &Arc<Self>,
        subject: Subject,
        against: Option<Which>,
        new: NewSchema,
        normalize: bool,
    ) -> Result<Verdict> {
        let demand = self.read(|registry| match against {
            None => registry.demand(&subject, &new, normalize),
            Some(which) => registry.demand_against(&subject, which, &new, normalize),
        });
        let invalid = |refusal: Refusal| match refusal.code {
            Code::InvalidSchema => Ok(Verdict { messages: vec![refusal.message], invalid: true }),
            _ => Err(Error::Refused(refusal)),
        };
        let demand = match demand {
            Ok(demand) => demand,
            Err(refusal) => return invalid(refusal),
        };
        let work = move |cache: &Cache, limits: &Limits| {
            let parsed = parse(&new, &demand)?;
            compare(&parsed, &demand, cache, limits)
        };
        match self.work(usize::MAX, work).await {
            Ok(messages) => Ok(Verdict { messages, invalid: false }),
            Err(Error::Refused(refusal)) => invalid(refusal),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn lookup(
        self: &Arc<Self>,
        subject: Subject,
        new: NewSchema,
        normalize: bool,
        shown: Shown,
    ) -> Result<Found> {
        let demand = self.read(|registry| registry.demand(&subject, &new, normalize))?;
        let bare = new.references.as_ref().is_none_or(Vec::is_empty);
        let weight = weight(&new, &demand, false);
        let look = move |_: &Cache, _: &Limits| {
            let demand = Demand { strict: false, ..demand };
            Ok((parse(&new, &demand)?, demand))
        };
        let (parsed, demand) = self.work(weight, look).await?;
        let (found, versions) = self.read(|registry| {
            let found = registry.find(&subject, &parsed, shown);
            (found, registry.versions(&subject, shown))
        });
        let versions = versions?;
        if let Some(found) = found {
            return Ok(found);
        }
        // It may be one that was registered with more than it came with.
        let completed = demand.completed(parsed.clone());
        if completed.guid != parsed.guid
            && let Some(found) = self.read(|registry| registry.find(&subject, &completed, shown))
        {
            return Ok(found);
        }
        // With what it refers to put in, it may be one that refers.
        if bare {
            for version in versions.iter().rev() {
                let which = Which::Number(version.version);
                let found = self.read(|registry| registry.version(&subject, which, shown));
                let Ok(found) = found else { continue };
                if !found.content.references.is_empty() && *self.resolved(found.clone()).await? == *parsed.content.text
                {
                    return Ok(found);
                }
            }
        }
        Err(Refusal::new(Code::SchemaNotFound, "Schema not found").into())
    }

    pub(super) async fn resolved(self: &Arc<Self>, found: Found) -> Result<String> {
        if found.content.references.is_empty() {
            return Ok(found.content.text.to_string());
        }
        let source = self.read(|registry| registry.source(&found))?;
        let put_in = move |cache: &Cache, _: &Limits| {
            let text = cache.parse(&source)?.text(Form::Resolved);
            text.ok_or_else(|| Refusal::new(Code::InvalidSchema, "its types nest too deep to be put together"))
        };
        self.work(usize::MAX, put_in).await
    }

    /// Work that may take a while: small work where we are, other work on its
    /// own thread, few at once, so that memory and others' time stay bounded.
    async fn work<T: Send + 'static>(
        self: &Arc<Self>,
        weight: usize,
        work: impl FnOnce(&Cache, &Limits) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T> {
        if weight <= SMALL {
            return Ok(work(&self.cache, &self.limits)?);
        }
        let _worker = self.workers.acquire().await.map_err(|_| Error::Closed)?;
        let this = self.clone();
        let worked = tokio::task::spawn_blocking(move || work(&this.cache, &this.limits)).await;
        Ok(worked.map_err(|_| Error::Closed)??)
    }
}

/// Bytes that must be parsed for a request.
fn weight(new: &NewSchema, demand: &Demand, with_earlier: bool) -> usize {
    let references: usize = demand.references.iter().map(|content| content.text.len()).sum();
    let earlier = |source: &crate::registry::Source| {
        source.content.text.len() + source.references.iter().map(|content| content.text.len()).sum::<usize>()
    };
    let earlier: usize = if with_earlier { demand.earlier.iter().map(earlier).sum() } else { 0 };
    new.schema.as_ref().map_or(0, String::len) + references + earlier
}

fn parse(new: &NewSchema, demand: &Demand) -> Result<Parsed, Refusal> {
    Parsed::new(new, demand.resolved.clone(), &demand.references, demand.normalize, demand.strict)
}

fn compare(parsed: &Parsed, demand: &Demand, cache: &Cache, limits: &Limits) -> Result<Vec<String>, Refusal> {
    let deadline = Instant::now().checked_add(limits.patience);
    let too_costly = || {
        let seconds = limits.patience.as_secs_f32();
        let message = format!("the schemas are too large or too deep to be compared within {seconds} s");
        Refusal::new(Code::TooCostly, message)
    };
    let mut earlier = Vec::with_capacity(demand.earlier.len());
    for source in &demand.earlier {
        if deadline.is_some_and(|deadline| Instant::now() > deadline) {
            return Err(too_costly());
        }
        let (version, text) = (source.version, source.content.text.clone());
        earlier.push(Earlier { version, text, schema: cache.parse(source)? });
    }
    messages(&parsed.schema, &earlier, demand.level, demand.validate_fields, deadline).map_err(|_| too_costly())
}

fn incompatible(subject: &Subject, told: &[String]) -> Refusal {
    let details = told.join(", ");
    let message = format!(
        "Schema being registered is incompatible with an earlier schema for subject \"{subject}\", details: [{details}]"
    );
    Refusal::new(Code::Incompatible, message)
}

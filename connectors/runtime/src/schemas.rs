//! Numbers shapes for a log, and decides whether they may go on.
//!
//! A shape gets its number at once. Its compatibility is decided here, before
//! a byte is written under it: what may follow the subject's last version is
//! registered; what may not is *parked*, unless the configuration says
//! otherwise. A parked shape stands in the log's state apart from the others
//! (`parked/…`, not `schema/…`), so no reader can take it for one that was
//! approved. That the rows under it are held back is the gate's (`gate.rs`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use config::OnIncompatible;
use connector::{
    Difference, Error, Resolved, Result, SchemaNumber, Schemas, Shape, Shapes, Table, key_schema, value_schema,
};
use schema_registry::Registrar;
use serde::{Deserialize, Serialize};
use storage::{EventLog, Log, State};
use tokio::runtime::Handle;

use crate::hold::put;
use crate::status::now_micros;

/// What is done with a shape that its subject's level forbids.
pub type Policy = Arc<dyn Fn(&Table) -> OnIncompatible + Send + Sync>;

/// The shapes of one log.
pub struct SchemaBook {
    log: Log,
    registry: Registrar,
    runtime: Handle,
    policy: Policy,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// By the table's JSON: every difference counts.
    by_table: HashMap<String, Entry>,
    last: SchemaNumber,
}

#[derive(Clone)]
struct Entry {
    shape: Arc<Shape>,
    parked: Option<Arc<Parked>>,
}

/// A shape that waits for somebody's approval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parked {
    /// Its number and table; the registry's ids are none yet.
    pub shape: Shape,
    /// Microseconds since the Unix epoch.
    pub since: i64,
    /// The number of the last approved shape of the stream.
    pub good: Option<SchemaNumber>,
    /// The subject's level that forbids it.
    pub level: Option<String>,
    /// What changed since the last approved shape, in words.
    pub changes: Vec<String>,
    /// All that forbids it, in words.
    pub violations: Vec<String>,
}

impl Parked {
    /// The state key that parked shapes stand under.
    pub const STATE_PREFIX: &'static str = "parked/";

    pub(crate) fn state_key(number: SchemaNumber) -> String {
        format!("{}{number:010}", Self::STATE_PREFIX)
    }

    /// All that a log's state holds.
    pub fn from_state(state: &State) -> Result<Vec<Self>> {
        let entries = state.prefix(Self::STATE_PREFIX.as_bytes());
        entries.map(|(_, value)| serde_json::from_slice(value).map_err(unreadable)).collect()
    }
}

/// What a judgement came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Judged {
    /// The level that decided.
    pub level: Option<String>,
    /// What changed since the last approved shape, in words.
    pub changes: Vec<String>,
    /// All that forbids it, in words; empty: it may go on.
    pub violations: Vec<String>,
}

impl SchemaBook {
    /// Reads what the log's state holds. `runtime` drives the registry's
    /// answers; `resolve` must not be called on one of its threads.
    pub fn open(log: Log, registry: Registrar, runtime: Handle, policy: Policy) -> Result<Self> {
        let mut known = Known::default();
        let shapes = shapes_of(&log)?;
        let approved = shapes.iter().map(|shape| Entry { shape: shape.clone(), parked: None });
        let parked = Parked::from_state(&log.state())?;
        let parked = parked.into_iter().map(|p| Entry { shape: Arc::new(p.shape.clone()), parked: Some(Arc::new(p)) });
        for entry in approved.chain(parked) {
            known.last = known.last.max(entry.shape.number);
            known.by_table.insert(fingerprint(&entry.shape.table), entry);
        }
        Ok(Self { log, registry, runtime, policy, known: Mutex::new(known) })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn by_number(&self, number: SchemaNumber) -> Option<Entry> {
        self.known().by_table.values().find(|entry| entry.shape.number == number).cloned()
    }

    /// The stream of a shape, and why it is parked, if it is.
    pub(crate) fn standing(&self, number: SchemaNumber) -> Option<(String, Option<Arc<Parked>>)> {
        let entry = self.by_number(number)?;
        Some((entry.shape.table.stream(), entry.parked))
    }

    /// The last approved shape of a stream.
    pub fn good(&self, stream: &str) -> Option<Arc<Shape>> {
        let known = self.known();
        let approved = known.by_table.values().filter(|entry| entry.parked.is_none());
        let of_stream = approved.filter(|entry| entry.shape.table.stream() == stream);
        of_stream.max_by_key(|entry| entry.shape.number).map(|entry| entry.shape.clone())
    }

    /// Whether a table's shape may follow what its subjects hold; changes nothing.
    pub async fn judge(&self, table: &Table) -> Result<Judged> {
        let stream = table.stream();
        let good = self.good(&stream);
        let old = good.as_ref().map(|shape| &shape.table);
        let differences = old.map(|old| Difference::between(old, table)).unwrap_or_default();
        let changes = differences.iter().map(ToString::to_string).collect();
        let mut judged = Judged { level: None, changes, violations: Vec::new() };
        for (part, text) in texts(table) {
            let check = self.registry.check(&format!("{stream}.{part}"), &text).await;
            let check = check.map_err(|error| failed(&stream, error))?;
            judged.level = judged.level.or(check.level);
            judged.violations.extend(check.violations.iter().map(|told| in_words(part, told, old, table)));
        }
        Ok(judged)
    }

    async fn register(&self, table: &Table) -> Result<(Option<u32>, u32), schema_registry::Error> {
        let stream = table.stream();
        let (mut key, mut value) = (None, 0);
        for (part, text) in texts(table) {
            let id = self.registry.register(&format!("{stream}.{part}"), &text).await?;
            if part == "Key" { key = Some(id) } else { value = id }
        }
        Ok((key, value))
    }

    /// Decides over a shape that was never seen: the registry's ids, or why it is parked.
    async fn decide(&self, table: &Table) -> Result<std::result::Result<(Option<u32>, u32), Judged>> {
        let stream = table.stream();
        let mut judged = self.judge(table).await?;
        if !judged.violations.is_empty() {
            let told = judged.violations.join("; ");
            match (self.policy)(table) {
                OnIncompatible::Park => return Ok(Err(judged)),
                OnIncompatible::Halt => return Err(forbidden(table, &judged)),
                OnIncompatible::Evolve => tracing::warn!(
                    stream,
                    level = judged.level,
                    violations = told,
                    "its new shape is incompatible and becomes a new version all the same: on_incompatible = \"evolve\""
                ),
            }
        }
        match self.register(table).await {
            Ok(ids) => Ok(Ok(ids)),
            // One elsewhere has the last word, and may have changed its mind meanwhile.
            Err(schema_registry::Error::Answered { status: 409, message, .. }) => {
                judged.violations.push(format!("the registry refuses it: {message}"));
                match (self.policy)(table) {
                    OnIncompatible::Halt => Err(forbidden(table, &judged)),
                    _ => Ok(Err(judged)),
                }
            }
            Err(error) => Err(failed(&stream, error)),
        }
    }

    /// Registers parked shapes, in order; without `force` each only if the
    /// subject's level, as it is now, allows it. Nothing of the log changes.
    pub(crate) async fn approve(&self, numbers: &[SchemaNumber], force: bool) -> Result<Vec<Shape>> {
        let mut approved = Vec::new();
        for &number in numbers {
            let Some(Entry { shape, .. }) = self.by_number(number) else { continue };
            let table = &shape.table;
            if !force {
                let judged = self.judge(table).await?;
                if !judged.violations.is_empty() {
                    return Err(forbidden(table, &judged));
                }
            }
            let (key_id, value_id) = self.register(table).await.map_err(|error| failed(&table.stream(), error))?;
            approved.push(Shape::new(number, table.clone(), key_id, value_id));
        }
        Ok(approved)
    }

    /// These are approved, and the log knows it.
    pub(crate) fn approved(&self, shapes: &[Shape]) {
        let mut known = self.known();
        for shape in shapes {
            let entry = Entry { shape: Arc::new(shape.clone()), parked: None };
            known.by_table.insert(fingerprint(&shape.table), entry);
        }
    }
}

impl Schemas for SchemaBook {
    fn shapes(&self, stream: &str) -> Vec<(SchemaNumber, Table)> {
        let known = self.known();
        let shapes = known.by_table.values().map(|entry| &entry.shape);
        let mut shapes: Vec<_> = shapes.filter(|shape| shape.table.stream() == stream).collect();
        shapes.sort_by_key(|shape| std::cmp::Reverse(shape.number));
        shapes.into_iter().map(|shape| (shape.number, shape.table.clone())).collect()
    }

    fn resolve(&self, table: &Table) -> Result<Resolved> {
        let fingerprint = fingerprint(table);
        let known = self.known().by_table.get(&fingerprint).cloned();
        let entry = match known {
            Some(entry) => entry,
            None => {
                // Without the lock: a registry that is away must not hold up known tables.
                let decided = self.runtime.block_on(self.decide(table))?;
                let good = self.good(&table.stream()).map(|shape| shape.number);
                let mut known = self.known();
                let Known { by_table, last } = &mut *known;
                let make = || {
                    *last += 1;
                    match decided {
                        Ok((key, value)) => {
                            Entry { shape: Arc::new(Shape::new(*last, table.clone(), key, value)), parked: None }
                        }
                        Err(judged) => {
                            let shape = Shape::new(*last, table.clone(), None, 0);
                            let Judged { level, changes, violations } = judged;
                            let parked =
                                Parked { shape: shape.clone(), since: now_micros(), good, level, changes, violations };
                            Entry { shape: Arc::new(shape), parked: Some(Arc::new(parked)) }
                        }
                    }
                };
                by_table.entry(fingerprint).or_insert_with(make).clone()
            }
        };
        let number = entry.shape.number;
        let change = match &entry.parked {
            None => put(Shape::state_key(number), &*entry.shape),
            Some(parked) => put(Parked::state_key(number), &**parked),
        };
        // A number that was given out need not have reached the log: the
        // source may have failed before its batch was appended.
        let change = self.log.state().get(&change.key).is_none().then_some(change);
        Ok(Resolved { number, change })
    }
}

/// The schemas of a table with the parts of their subjects' names.
fn texts(table: &Table) -> impl Iterator<Item = (&'static str, String)> {
    let key = key_schema(table).map(|text| ("Key", text));
    key.into_iter().chain([("Value", value_schema(table))])
}

/// A violation with the column that its path leads to.
fn in_words(part: &str, told: &str, old: Option<&Table>, new: &Table) -> String {
    let lower = told.to_ascii_lowercase();
    let reads_new = match (lower.find("new schema"), lower.find("old schema")) {
        (Some(new), Some(old)) => new < old,
        (new, _) => new.is_some(),
    };
    let column = told.split_once("/fields/").and_then(|(_, rest)| {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        let index: usize = digits.parse().ok()?;
        let table = if reads_new { Some(new) } else { old }?;
        let index = if part == "Key" { *table.key.get(index)? } else { index };
        table.columns.get(index)
    });
    let Some(column) = column else { return format!("{part}: {told}") };
    let of = |table: &Table| table.columns.iter().find(|c| c.id == column.id).map(|c| c.db_type.clone());
    let was = old.and_then(of).unwrap_or_else(|| "not there".into());
    let is = of(new).unwrap_or_else(|| "not there".into());
    let types = if was == is { is } else { format!("was {was}, is {is}") };
    format!("{part}, column {:?} ({types}): {told}", column.name)
}

fn forbidden(table: &Table, judged: &Judged) -> Error {
    let (source, name) = (&table.source, format!("{}.{}", table.schema, table.name));
    let level = judged.level.as_deref().unwrap_or("its level");
    let mut told = format!("the new shape of {name} is incompatible at {level}");
    for line in judged.changes.iter().map(|c| format!("changed: {c}")).chain(judged.violations.iter().cloned()) {
        told.push_str("\n  ");
        told.push_str(&line);
    }
    let stream = table.stream();
    Error::halt(told).hint(format!(
        "look at it with `highwater schemas diff {source} {name}`; then let it become a new version all the same: \
         `highwater schemas approve {source} {name} --as-new-version`; or lower the level of subjects \"{stream}.Key\" \
         and \"{stream}.Value\" in the registry and approve without the flag; or read the table anew: --reset-table; \
         or set on_incompatible = \"park\" or \"evolve\" for it and start again"
    ))
}

/// A registry that is away for a while holds up a new shape, not the known
/// ones: those are in the log's state, and are not asked for again.
fn failed(stream: &str, error: schema_registry::Error) -> Error {
    use schema_registry::Error as Registry;
    let message = format!("could not register the schema of {stream}");
    match &error {
        Registry::Unreachable { .. } | Registry::Answered { status: 429 | 500.., .. } => Error::retry(message)
            .because(error)
            .hint("look at the registry of `[registry] url`; tables whose schemas are known need it no more"),
        Registry::Answered { status: 401 | 403, .. } => {
            Error::halt(message).because(error).hint("check `user`, `password` or `token` in `[registry]`")
        }
        Registry::Answered { status: 409, .. } => Error::halt(message).because(error).hint(
            "the registry elsewhere has the last word: lower the subject's level there (PUT /config/SUBJECT), and try again",
        ),
        _ => Error::halt(message).because(error),
    }
}

/// The shapes that a log's state holds now.
pub(crate) fn shapes_of(log: &Log) -> Result<Shapes> {
    let state = log.state();
    let entries = state.prefix(Shape::STATE_PREFIX.as_bytes());
    Shapes::from_state(entries).map_err(unreadable)
}

fn unreadable(error: serde_json::Error) -> Error {
    Error::halt("could not read the schemas in the log's state")
        .because(error)
        .hint("the log may be of a newer version: start that version again")
}

fn fingerprint(table: &Table) -> String {
    serde_json::to_string(table).expect("a table serialises")
}

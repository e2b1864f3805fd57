//! Numbers shapes for a log, and decides whether they may go on.
//!
//! A shape gets its number at once. Its compatibility is decided here, before
//! a byte is written under it: what may follow the subject's last version is
//! registered; what may not is *parked*, unless the configuration says
//! otherwise. A parked shape stands in the log's state apart from the others
//! (`parked/…`, not `schema/…`), so no reader can take it for one that was
//! approved. That the rows under it are held back is the gate's (`gate.rs`).
//!
//! A registry elsewhere may be away. A new shape is *undecided* then: parked
//! too, so that only its table waits, and settled by itself once the registry
//! answers (`clerk.rs`), in order: a shape behind an undecided one of its
//! stream is undecided with it. While no table at all has a shape that was
//! approved, there is nothing that could go on, and the source waits instead.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use config::OnIncompatible;
use connector::{
    Difference, Error, Resolved, Result, SchemaNumber, Schemas, Shape, Shapes, Table, TableKind, key_schema,
    value_schema,
};
use schema_registry::Registrar;
use serde::{Deserialize, Serialize};
use storage::{EventLog, Log, State};
use tokio::runtime::Handle;

use crate::contract::{Contracts, Registered};
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
    contracts: Contracts,
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
    /// Nothing forbids it yet: the registry cannot be reached.
    #[serde(default)]
    pub undecided: bool,
}

impl Parked {
    /// The state key that parked shapes stand under.
    pub const STATE_PREFIX: &'static str = "parked/";

    pub(crate) fn state_key(number: SchemaNumber) -> String {
        format!("{}{number:010}", Self::STATE_PREFIX)
    }

    fn new(shape: Shape, good: Option<SchemaNumber>, judged: Judged, undecided: bool) -> Self {
        let Judged { level, changes, violations } = judged;
        Self { shape, since: now_micros(), good, level, changes, violations, undecided }
    }

    /// Those that wait for the registry, by stream and in order.
    pub(crate) fn undecided(state: &State) -> Result<BTreeMap<String, Vec<Self>>> {
        let mut all: BTreeMap<String, Vec<Self>> = BTreeMap::new();
        for parked in Self::from_state(state)?.into_iter().filter(|parked| parked.undecided) {
            all.entry(parked.shape.table.stream()).or_default().push(parked);
        }
        Ok(all)
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

/// What is decided over a shape.
enum Verdict {
    /// It goes on, under these ids of the registry.
    Registered(Option<u32>, u32),
    /// It waits for a person.
    Parked(Judged),
    /// It waits for the registry.
    Undecided(Judged),
}

/// What became of shapes of a stream that waited for the registry.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    pub(crate) stream: String,
    pub(crate) approved: Vec<Shape>,
    pub(crate) parked: Vec<Parked>,
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
        Ok(Self { log, registry, runtime, policy, contracts: Contracts::none(), known: Mutex::new(known) })
    }

    /// With contracts, which must fit the tables that it comes to know.
    #[must_use]
    pub fn with_contracts(self, contracts: Contracts) -> Self {
        Self { contracts, ..self }
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
        self.compare(table).await.map_err(|error| failed(&table.stream(), error))
    }

    /// What changed since the last approved shape.
    fn changed(&self, table: &Table) -> (Option<Arc<Shape>>, Judged) {
        let good = self.good(&table.stream());
        let differences = good.as_ref().map(|good| Difference::between(&good.table, table)).unwrap_or_default();
        let changes = differences.iter().map(ToString::to_string).collect();
        (good, Judged { level: None, changes, violations: Vec::new() })
    }

    async fn compare(&self, table: &Table) -> Result<Judged, schema_registry::Error> {
        let stream = table.stream();
        let (good, mut judged) = self.changed(table);
        let old = good.as_ref().map(|shape| &shape.table);
        for (part, text) in texts(table) {
            let check = self.registry.check(&format!("{stream}.{part}"), &text).await?;
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
        // Before a row under it is looked at.
        self.learn(table).await?;
        Ok((key, value))
    }

    /// Reads the rules that the registry has for a table; whether they are news.
    async fn learn(&self, table: &Table) -> Result<bool, schema_registry::Error> {
        if table.kind != TableKind::Table {
            return Ok(false);
        }
        let subject = format!("{}.Value", table.stream());
        let told = self.registry.last(&subject).await?;
        Ok(self.contracts.registered().learn(table, &subject, told))
    }

    /// As `learn`, for every table. Our own registry is looked at only if it has
    /// changed since `seen`.
    pub(crate) async fn learn_all(&self, seen: &mut Option<u64>) -> Result<bool, schema_registry::Error> {
        let now = self.registry.changes();
        if now.is_some() && *seen == now {
            return Ok(false);
        }
        let mut last: BTreeMap<String, Arc<Shape>> = BTreeMap::new();
        for entry in self.known().by_table.values().filter(|entry| entry.parked.is_none()) {
            let newest = last.entry(entry.shape.table.stream()).or_insert_with(|| entry.shape.clone());
            if newest.number < entry.shape.number {
                *newest = entry.shape.clone();
            }
        }
        let mut news = false;
        for shape in last.values() {
            news |= self.learn(&shape.table).await?;
        }
        *seen = now;
        Ok(news)
    }

    /// Whether the registry is another one, which is to be asked gently.
    pub(crate) fn is_elsewhere(&self) -> bool {
        self.registry.changes().is_none()
    }

    /// Rules of the registry.
    pub(crate) fn registered(&self) -> &Registered {
        self.contracts.registered()
    }

    /// Decides over a shape that was never seen.
    async fn decide(&self, table: &Table) -> Result<Verdict> {
        let stream = table.stream();
        let judged = match self.compare(table).await {
            Ok(judged) => judged,
            Err(error) => return self.unanswered(table, self.changed(table).1, error),
        };
        if !judged.violations.is_empty() {
            let told = judged.violations.join("; ");
            match (self.policy)(table) {
                OnIncompatible::Park => return Ok(Verdict::Parked(judged)),
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
            Ok((key, value)) => Ok(Verdict::Registered(key, value)),
            Err(error) => self.unanswered(table, judged, error),
        }
    }

    /// One elsewhere has the last word, and may have changed its mind
    /// meanwhile; or it says nothing at all.
    fn unanswered(&self, table: &Table, mut judged: Judged, error: schema_registry::Error) -> Result<Verdict> {
        use schema_registry::Error as Registry;
        match &error {
            Registry::Answered { status: 409, message, .. } => {
                judged.violations.push(format!("the registry refuses it: {message}"));
            }
            // Its mode, its quota: of one table, as far as we know.
            Registry::Answered { status: 413 | 422, message, .. } if self.has_tables() => {
                judged.violations.push(format!("the registry refuses it: {message}"));
            }
            _ if is_away(&error) && self.has_tables() => {
                return Ok(Verdict::Undecided(away(judged, &schema_registry::chain(&error))));
            }
            _ => return Err(failed(&table.stream(), error)),
        }
        match (self.policy)(table) {
            OnIncompatible::Halt => Err(forbidden(table, &judged)),
            _ => Ok(Verdict::Parked(judged)),
        }
    }

    /// Whether some table has a shape under which it goes on.
    fn has_tables(&self) -> bool {
        let known = self.known();
        known.by_table.values().any(|entry| entry.parked.is_none() && entry.shape.table.kind == TableKind::Table)
    }

    /// A shape that need not be asked about: another of its stream waits for
    /// the registry, or the registry is known to be away.
    fn waits_unasked(&self, table: &Table) -> Option<Verdict> {
        let stream = table.stream();
        let before = self.known().by_table.values().any(|entry| {
            entry.shape.table.stream() == stream && entry.parked.as_ref().is_some_and(|parked| parked.undecided)
        });
        let why = match self.registry.trouble() {
            Some(why) if self.has_tables() => why,
            _ if before => "a shape before it waits for the registry".to_owned(),
            _ => return None,
        };
        Some(Verdict::Undecided(away(self.changed(table).1, &why)))
    }

    /// Decides over shapes of one stream that wait for the registry, as far as
    /// it answers. None: it does not. Nothing of the log changes.
    pub(crate) async fn settle(&self, undecided: &[Parked]) -> Result<Option<Settled>> {
        let mut settled = Settled::default();
        for before in undecided {
            let (table, number) = (&before.shape.table, before.shape.number);
            settled.stream = table.stream();
            match self.decide(table).await? {
                Verdict::Registered(key, value) => {
                    settled.approved.push(Shape::new(number, table.clone(), key, value));
                }
                Verdict::Parked(judged) => {
                    let parked = Parked::new(before.shape.clone(), before.good, judged, false);
                    settled.parked.push(Parked { since: before.since, ..parked });
                }
                Verdict::Undecided(_) => break,
            }
        }
        Ok((!settled.approved.is_empty() || !settled.parked.is_empty()).then_some(settled))
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

    /// These are forbidden, and the log knows it.
    pub(crate) fn forbidden(&self, all: &[Parked]) {
        let mut known = self.known();
        for parked in all {
            let entry = Entry { shape: Arc::new(parked.shape.clone()), parked: Some(Arc::new(parked.clone())) };
            known.by_table.insert(fingerprint(&parked.shape.table), entry);
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
        self.contracts.fit(table)?;
        let fingerprint = fingerprint(table);
        let known = self.known().by_table.get(&fingerprint).cloned();
        let entry = match known {
            Some(entry) => entry,
            None => {
                // Without the lock: a registry that is away must not hold up known tables.
                let verdict = match self.waits_unasked(table) {
                    Some(verdict) => verdict,
                    None => self.runtime.block_on(self.decide(table))?,
                };
                let good = self.good(&table.stream()).map(|shape| shape.number);
                let mut known = self.known();
                let Known { by_table, last } = &mut *known;
                let make = || {
                    *last += 1;
                    let undecided = matches!(verdict, Verdict::Undecided(_));
                    match verdict {
                        Verdict::Registered(key, value) => {
                            Entry { shape: Arc::new(Shape::new(*last, table.clone(), key, value)), parked: None }
                        }
                        Verdict::Parked(judged) | Verdict::Undecided(judged) => {
                            let parked =
                                Parked::new(Shape::new(*last, table.clone(), None, 0), good, judged, undecided);
                            Entry { shape: Arc::new(parked.shape.clone()), parked: Some(Arc::new(parked)) }
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

fn is_away(error: &schema_registry::Error) -> bool {
    use schema_registry::Error as Registry;
    matches!(error, Registry::Unreachable { .. } | Registry::Answered { status: 429 | 500.., .. })
}

fn away(judged: Judged, why: &str) -> Judged {
    Judged { violations: vec![format!("the registry cannot be asked: {why}")], ..judged }
}

/// A registry that is away for a while holds up a new shape, not the known
/// ones: those are in the log's state, and are not asked for again.
fn failed(stream: &str, error: schema_registry::Error) -> Error {
    use schema_registry::Error as Registry;
    let message = format!("could not register the schema of {stream}");
    match &error {
        _ if is_away(&error) => Error::retry(message)
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

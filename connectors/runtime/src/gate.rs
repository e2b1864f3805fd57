//! The gate: a table whose new shape its subject's level forbids is held
//! back, and nothing else waits for it.
//!
//! ```text
//!              ┌─ no stream is held: on, untouched ──────────────► Data
//!  captured ───┤
//!              └─ some are: by runs ──┬─ of other streams ───────► Data    ┐ one transaction
//!                                     └─ of a held stream ───────► Pending ┘
//! ```
//!
//! It lies between source and log, so that every source has it and none knows
//! of it: a batch costs one branch while nothing is held.
//!
//! A stream's hold begins with the first row (or mark) under a parked shape;
//! from then on all that comes of the stream is held, whatever its shape, also
//! a shape that is compatible again, until it is let go: what was written
//! later must not arrive earlier. Rows before that shape pass, even if the
//! shape is known already: the catalog is often further than the stream.
//!
//! The log's state has `gate/<stream>`: a [`Hold`]. It is written with the
//! first batch that is held and then once a second at most, with how much
//! waits and up to which offset that was counted; a restart counts the rest.
//!
//! *Approved*, all shapes that rows wait under are registered first, outside
//! of here; then all held rows are appended again at the head (`hold.rs`)
//! while the source's new batches wait. All or nothing: with several shapes
//! waiting (ALTER after ALTER), one that cannot be approved keeps them all,
//! for releasing half of a table's rows would show a state that never was for
//! as long as the person thinks about the second shape.
//!
//! A shape may wait for a registry that is away, not for a person: it is
//! settled by itself (`clerk.rs`), and let go likewise.
//!
//! A stream may be held for the rules that the registry has for it and nobody
//! can follow (`contract/registered.rs`): from the moment that is known, until
//! they are mended, and then it is let go by itself.
//!
//! *Reset*, the source reads the table anew. What was held goes with the mark
//! that begins the new generation, not before: rows of the stream that come
//! until then would meet a table that lacks what was given up.

mod approval;

pub use approval::{Approval, Approved, approve_stopped};
pub(crate) use approval::{Attempt, Let};

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use connector::{Batch, Change, Error, Halves, Malformed, Mark, Result, Run, SchemaNumber, Side, Sieve, Splitter};
use serde::{Deserialize, Serialize};
use storage::{EventLog, Kind, Log, LogBatch, Offset, State, StateChange};

use crate::contract::Wrong;
use crate::hold::{Pick, count, put, remove};
use crate::schemas::{Parked, SchemaBook};
use crate::status::now_micros;

/// Entries in the log's state.
const PREFIX: &str = "gate/";
/// How much waits is written so often at most.
const EVERY: Duration = Duration::from_secs(1);

/// A stream that is held, as the log's state and `status` tell it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Its stream.
    pub stream: String,
    /// Its table.
    pub schema: String,
    /// Its table.
    pub table: String,
    /// Microseconds since the Unix epoch.
    pub since: i64,
    /// Where the source stood.
    pub position: Option<Vec<u8>>,
    /// No held row lies below; None: none has come yet.
    pub from: Option<u64>,
    /// Rows and marks that wait, below `counted`.
    pub events: u64,
    /// Their bytes.
    pub bytes: u64,
    /// See `events`.
    pub counted: u64,
    /// Shapes that rows wait under.
    pub shapes: Vec<SchemaNumber>,
    /// The last shape that was seen.
    pub last: SchemaNumber,
    /// It is read anew; what waits goes when that begins.
    #[serde(default)]
    pub reset: bool,
    /// Rules of the registry that cannot be followed.
    #[serde(default)]
    pub rules: Option<String>,
}

impl Hold {
    /// All that a log's state holds.
    pub fn from_state(state: &State) -> Result<Vec<Self>> {
        let entries = state.prefix(PREFIX.as_bytes());
        let read = entries.map(|(_, value)| serde_json::from_slice(value));
        read.collect::<std::result::Result<_, _>>().map_err(|error| {
            Error::halt("could not read in the log's state what is held back")
                .because(error)
                .hint("the log may be of a newer version: start that version again")
        })
    }

    fn new(stream: String, [schema, table]: [&str; 2], last: SchemaNumber, position: Option<Vec<u8>>) -> Self {
        Self {
            stream,
            schema: schema.into(),
            table: table.into(),
            since: now_micros(),
            position,
            from: None,
            events: 0,
            bytes: 0,
            counted: 0,
            shapes: Vec::new(),
            last,
            reset: false,
            rules: None,
        }
    }

    fn key(&self) -> String {
        format!("{PREFIX}{}", self.stream)
    }

    /// The shapes without which nothing can be let go, the oldest first.
    fn needs(&self, book: &SchemaBook, only_last: bool) -> Vec<SchemaNumber> {
        let mut numbers = if only_last { Vec::new() } else { self.shapes.clone() };
        numbers.push(self.last);
        numbers.sort_unstable();
        numbers.dedup();
        numbers.retain(|number| book.standing(*number).is_some_and(|(_, parked)| parked.is_some()));
        numbers
    }
}

/// What passes, and what does not.
pub(crate) struct Gate {
    book: Arc<SchemaBook>,
    holds: BTreeMap<String, Hold>,
    /// Shapes that were asked for: their stream, and whether they are parked.
    numbers: HashMap<SchemaNumber, (String, Option<Arc<Parked>>)>,
    /// Some shape is parked, whether rows came under it or not.
    parked: bool,
    splitter: Splitter,
    sides: Vec<Side>,
    written: Instant,
    /// The offset of the next record.
    next: u64,
    /// Holds have begun or ended since this was asked.
    news: bool,
}

/// A batch after the gate: the second part ends its transaction, if there is one.
pub(crate) type Parts = (LogBatch, Option<LogBatch>);

impl Gate {
    /// As the log knows it, of which everything appended must be durable; the
    /// rows that were not counted are counted.
    pub(crate) async fn open(book: Arc<SchemaBook>, log: &Log) -> Result<Self> {
        let state = log.state();
        let mut holds = BTreeMap::new();
        for mut hold in Hold::from_state(&state)? {
            let end = log.high_water();
            if hold.from.is_some() && hold.counted < end.0 {
                let mut pick = OfStream { stream: hold.stream.clone(), book: book.clone(), seen: Vec::new() };
                let more = count(log, Offset(hold.counted), &mut pick).await?;
                (hold.events, hold.bytes, hold.counted) =
                    (hold.events + more.events, hold.bytes + more.bytes, log.high_water().0);
                for number in pick.seen {
                    if !hold.shapes.contains(&number) {
                        hold.shapes.push(number);
                    }
                    hold.last = number;
                }
            }
            holds.insert(hold.stream.clone(), hold);
        }
        let parked = !holds.is_empty() || state.prefix(Parked::STATE_PREFIX.as_bytes()).next().is_some();
        let next = log.high_water().0;
        let (numbers, splitter, sides) = Default::default();
        Ok(Self { book, holds, numbers, parked, splitter, sides, written: Instant::now(), next, news: true })
    }

    /// Whether a batch must be looked at: the one branch that it costs.
    #[inline]
    pub(crate) fn concerns(&self, batch: &LogBatch) -> bool {
        self.parked || (!batch.state.is_empty() && batch.state.iter().any(is_parked))
    }

    /// So many records were appended past the gate.
    #[inline]
    pub(crate) fn passed(&mut self, records: u32) {
        self.next += u64::from(records);
    }

    /// All holds, for people.
    pub(crate) fn holds(&self) -> Vec<Hold> {
        self.holds.values().cloned().collect()
    }

    /// Whether something waits that goes on by itself.
    pub(crate) fn waits_for_registry(&self, log: &Log) -> bool {
        !self.holds.is_empty() && Parked::undecided(&log.state()).is_ok_and(|all| !all.is_empty())
    }

    /// Whether a hold has begun or ended.
    pub(crate) fn has_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// Whether the batch ends a hold: what was appended must be durable before.
    pub(crate) fn ends_hold(&self, batch: &LogBatch) -> bool {
        batch.kind == Kind::Control
            && Mark::from_payload(&batch.payload)
                .is_some_and(|mark| mark.op == Mark::BEGIN && self.holds.get(&mark.stream).is_some_and(|h| h.reset))
    }

    /// Takes a batch that it concerns apart. Its records count as appended.
    pub(crate) fn take(&mut self, mut batch: LogBatch, log: &Log) -> Result<Parts> {
        let position = batch.position.as_ref().map(|position| position.as_bytes().to_vec());
        // Told twice, and approved in between: it is parked no more.
        batch.state.retain(|change| !is_parked(change) || self.is_still_parked(change));
        for change in batch.state.iter().filter(|change| is_parked(change)) {
            let parked = change.value.as_ref().and_then(|value| serde_json::from_slice::<Parked>(value).ok());
            if let Some(parked) = parked {
                self.begins(&parked, position.clone());
            }
        }
        let records = batch.records;
        let held = match batch.kind {
            Kind::Control => {
                if let Some(mark) = Mark::from_payload(&batch.payload)
                    && self.holds_mark(&mark, batch.payload.len() as u64, log, &mut batch.state)
                {
                    batch.kind = Kind::Pending;
                }
                None
            }
            Kind::Data if records > 0 => self.split(&mut batch).map_err(|error| {
                Error::halt("a captured batch cannot be read").because(error).hint("this is a fault of the program")
            })?,
            _ => None,
        };
        self.next += u64::from(records);
        let due = self.written.elapsed() >= EVERY;
        if self.news || due {
            for hold in self.holds.values_mut().filter(|hold| hold.from.is_some() || self.news) {
                hold.counted = self.next;
                batch.state.push(put(hold.key(), hold));
            }
            self.written = Instant::now();
        }
        let Some((payload, records)) = held else { return Ok((batch, None)) };
        let second = LogBatch {
            kind: Kind::Pending,
            position: batch.position.take(),
            records,
            event_time: batch.event_time,
            payload,
            state: Vec::new(),
            ends_transaction: batch.ends_transaction,
        };
        Ok((LogBatch { ends_transaction: false, ..batch }, Some(second)))
    }

    /// Holds back what has rules that cannot be followed, from here on.
    pub(crate) fn heed(&mut self) {
        let next = self.next;
        for Wrong { stream, schema, table, why } in self.book.registered().wrong() {
            let hold = self.holds.entry(stream.clone()).or_insert_with(|| {
                tracing::error!(
                    stream,
                    why,
                    "the registry has rules for it that cannot be followed: its changes are held back from here on, \
                     all other tables go on"
                );
                Hold::new(stream, [&schema, &table], 0, None)
            });
            if hold.rules.as_ref() != Some(&why) {
                hold.from.get_or_insert(next);
                hold.rules = Some(why);
                (self.parked, self.news) = (true, true);
            }
        }
    }

    /// What is counted, to be written once more at the end.
    pub(crate) fn counted(&mut self) -> Vec<StateChange> {
        let next = self.next;
        self.holds
            .values_mut()
            .filter(|hold| hold.from.is_some())
            .map(|hold| {
                hold.counted = next;
                put(hold.key(), hold)
            })
            .collect()
    }

    fn is_still_parked(&self, change: &StateChange) -> bool {
        let parked = change.value.as_ref().and_then(|value| serde_json::from_slice::<Parked>(value).ok());
        parked.is_none_or(|parked| self.book.standing(parked.shape.number).is_none_or(|(_, why)| why.is_some()))
    }

    fn begins(&mut self, parked: &Parked, position: Option<Vec<u8>>) {
        self.parked = true;
        if let Entry::Vacant(vacant) = self.holds.entry(parked.shape.table.stream()) {
            let stream = vacant.key();
            let (changed, why) = (parked.changes.join("; "), parked.violations.join("; "));
            if parked.undecided {
                tracing::warn!(
                    stream,
                    changed,
                    why,
                    "its changes are held back until the registry answers, all other tables go on"
                );
            } else {
                tracing::error!(
                    stream,
                    level = parked.level,
                    changed,
                    violations = why,
                    "its new shape is incompatible: its changes are held back from here on, all other tables go on. \
                     `highwater schemas diff` shows it, `highwater schemas approve` lets it go on"
                );
            }
            let (table, number) = (&parked.shape.table, parked.shape.number);
            let hold = Hold::new(stream.clone(), [&table.schema, &table.name], number, position);
            vacant.insert(hold);
        }
        self.news = true;
    }

    fn number(&mut self, number: SchemaNumber) -> Option<&(String, Option<Arc<Parked>>)> {
        if !self.numbers.contains_key(&number) {
            let standing = self.book.standing(number)?;
            self.numbers.insert(number, standing);
        }
        self.numbers.get(&number)
    }

    /// Whether so much under this shape is held.
    fn is_held(&mut self, number: SchemaNumber, position: &[u8], events: u64, bytes: u64) -> bool {
        let Some((stream, parked)) = self.number(number) else { return false };
        let (stream, parked) = (stream.clone(), parked.clone());
        if let Some(parked) = &parked
            && !self.holds.contains_key(&stream)
        {
            self.begins(parked, Some(position.to_vec()));
        }
        let next = self.next;
        let Some(hold) = self.holds.get_mut(&stream) else { return false };
        hold.last = number;
        if hold.from.is_none() && parked.is_none() {
            return false;
        }
        if hold.from.is_none() {
            hold.from = Some(next);
            self.news = true;
        }
        hold.events += events;
        hold.bytes += bytes;
        if !hold.shapes.contains(&number) {
            hold.shapes.push(number);
            self.news = true;
        }
        true
    }

    fn holds_mark(&mut self, mark: &Mark, bytes: u64, log: &Log, state: &mut Vec<StateChange>) -> bool {
        if mark.op == Mark::BEGIN
            && let Some(hold) = self.holds.get_mut(&mark.stream).filter(|hold| hold.reset)
        {
            // What waited is given up here.
            (hold.from, hold.events, hold.bytes, hold.reset) = (None, 0, 0, false);
            hold.shapes.clear();
            self.news = true;
            let key = hold.key();
            if self.number(mark.shape).is_none_or(|(_, parked)| parked.is_none()) {
                self.holds.remove(&mark.stream);
                tracing::info!(stream = mark.stream, "is read anew, and held back no more");
                state.push(remove(key.clone()));
            }
            let floor = crate::hold::floor_without(&log.state(), &[key.as_bytes()]);
            state.push(floor);
        }
        self.is_held(mark.shape, &mark.position, 1, bytes)
    }

    /// The half that is held, if it is not all or nothing.
    fn split(&mut self, batch: &mut LogBatch) -> std::result::Result<Option<(bytes::Bytes, u32)>, Malformed> {
        let view = Batch::captured(batch);
        let mut sides = std::mem::take(&mut self.sides);
        sides.clear();
        for run in view.runs() {
            let run = run?;
            let (events, bytes) = (run.len() as u64, run.bytes() as u64);
            let held = self.is_held(run.schema, run.transaction.position, events, bytes);
            sides.push(if held { Side::Hold } else { Side::Pass });
        }
        let mut held = None;
        if sides.iter().all(|side| *side == Side::Hold) {
            batch.kind = Kind::Pending;
        } else if sides.contains(&Side::Hold) {
            let mut each = sides.iter();
            let mut sieve = |_: &Run<'_>| each.next().copied().unwrap_or(Side::Pass);
            let halves: Halves = self.splitter.split(&view, &mut sieve)?;
            let (payload, records) = halves.passed.unwrap_or_default();
            (batch.payload, batch.records, held) = (payload, records, halves.held);
        }
        self.sides = sides;
        Ok(held)
    }
}

fn is_parked(change: &StateChange) -> bool {
    change.value.is_some() && change.key.starts_with(Parked::STATE_PREFIX.as_bytes())
}

/// Everything of one stream.
struct OfStream {
    stream: String,
    book: Arc<SchemaBook>,
    /// The shapes that it came under.
    seen: Vec<SchemaNumber>,
}

impl OfStream {
    fn side(&mut self, number: SchemaNumber) -> Side {
        if self.seen.last() == Some(&number) {
            return Side::Hold;
        }
        match self.book.standing(number) {
            Some((stream, _)) if stream == self.stream => {
                self.seen.push(number);
                Side::Hold
            }
            _ => Side::Drop,
        }
    }
}

impl Sieve for OfStream {
    fn run(&mut self, run: &Run<'_>) -> Option<Side> {
        Some(self.side(run.schema))
    }

    fn row(&mut self, _: &Run<'_>, _: &Change<'_>) -> Side {
        Side::Drop
    }
}

impl Pick for OfStream {
    fn mark(&mut self, mark: &Mark) -> Side {
        self.side(mark.shape)
    }
}

//! Rows that wait for a person, and what must wait behind them.
//!
//! ```text
//!  source ──► sift ──► rows that pass ─────────────► Kind::Data ────► sinks
//!              │ └──► what broke a rule, cannot be
//!              │      carried, or waits behind one ─► Kind::Pending
//!              │                                          │
//!              └─ fences: the keys that wait              ▼
//!                                  redrive, discard ──► at the head, in order
//! ```
//!
//! A row that waits fences its key: what comes after it under the same key
//! waits too, and nothing else. An update that changes the key fences both.
//! Where there is no key, or it cannot be carried, the whole stream waits. A
//! truncate, and a new generation, give up what waits: what comes next tells
//! the table anew.
//!
//! The pending frames are all there is: each has an entry in the log's state
//! (`fence/<offset>`) that tells which of its rows still wait and why; what is
//! fenced is read from those rows at a start. Only a stream with a fence, a
//! contract, or a row that cannot be carried has its rows looked at; all other
//! batches pass as they are.

mod act;
mod fence;
mod held;
mod list;
mod pending;
mod reshape;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use config::OnFull;
use connector::{
    Batch, BatchWriter, Change, Error, Malformed, Mark, Op, Result, Run, SchemaNumber, Shape, Shapes, Side, Sieve,
    Splitter, Table, Unfit, UnfitReason,
};
use storage::{EventLog, Kind, Log, LogBatch, Offset, PENDING_KEY, State, StateChange};

use crate::contract::Contracts;
use crate::quarantine::fence::{Fences, Keys, Known};
use crate::quarantine::held::{HeldFrame, frames_of, parked_change, parked_of};
use crate::quarantine::pending::Pending;
use crate::schemas::shapes_of;
use crate::status::{Quarantined, now_micros};

pub use act::{Deed, Done, Filter};
pub use held::{Discard, Discarded};
pub use list::{HeldRow, held_rows};

/// Encodes a row that came under the second table's shape anew under the
/// first's, at the end of a batch; else says why not.
pub type Recode = fn(
    &Table,
    SchemaNumber,
    &Table,
    Op,
    &Unfit<'_>,
    &mut BatchWriter,
) -> std::result::Result<(), (usize, &'static str)>;

/// How a source's quarantine is kept.
#[derive(Clone, Debug)]
pub struct Rules {
    /// What rows must be.
    pub contracts: Contracts,
    /// Bytes of rows that wait, at most.
    pub max_bytes: u64,
    /// What comes when that is reached.
    pub on_full: OnFull,
    /// A larger row waits.
    pub max_row: u64,
    /// The source's own encoder.
    pub recode: Recode,
}

/// A source's quarantine.
pub(crate) struct Quarantine {
    log: Log,
    rules: Rules,
    known: HashMap<SchemaNumber, Arc<Known>>,
    /// Of the registered rules that `known` has.
    generation: u64,
    frames: BTreeMap<u64, HeldFrame>,
    fences: Fences,
    discarded: Discarded,
    rows: u64,
    bytes: u64,
    /// Where the next record of the log will be.
    next: u64,
    splitter: Splitter,
    keys: Keys,
    /// Which runs of the batch in hand were looked at, and what was decided
    /// over their rows.
    looked: Vec<bool>,
    sides: Vec<Side>,
    news: bool,
}

impl Quarantine {
    /// As the log's state has it. Nothing may be under way in the log.
    pub(crate) async fn open(log: Log, rules: Rules) -> Result<Self> {
        let state = log.state();
        rules.contracts.registered().read(&state)?;
        let next = log.high_water().0;
        let (frames, discarded) = (frames_of(&state)?, Discarded::of(&state));
        let mut this = Self {
            log,
            rules,
            known: HashMap::new(),
            generation: 0,
            frames,
            fences: Fences::default(),
            discarded,
            rows: 0,
            bytes: 0,
            next,
            splitter: Splitter::default(),
            keys: Keys::default(),
            looked: Vec::new(),
            sides: Vec::new(),
            news: true,
        };
        this.build_fences(&parked_of(&state)).await?;
        if !this.frames.is_empty() {
            let counted = this.counted();
            tracing::warn!(rows = counted.rows, keys = counted.keys, bytes = counted.bytes, "rows wait in quarantine");
        }
        Ok(this)
    }

    /// From the rows that wait.
    async fn build_fences(&mut self, parked: &[String]) -> Result<()> {
        self.fences = Fences::default();
        for stream in parked {
            self.fences.park(&Arc::from(stream.as_str()));
        }
        let frames: Vec<HeldFrame> = self.frames.values().cloned().collect();
        self.count();
        let mut pending = Pending::new(self.log.clone());
        for held in frames {
            let batch = pending.read(held.from).await?;
            let mut row = 0;
            for run in batch.runs() {
                let run = run.map_err(|error| broken(held.from, error))?;
                let known = self.known(run.schema)?;
                for change in run.changes() {
                    let change = change.map_err(|error| broken(held.from, error))?;
                    if held.waits(row) {
                        self.keys.read(&known.shape.table, &change).map_err(|error| broken(held.from, error))?;
                        self.fences.touch(&known, &self.keys);
                    }
                    row += 1;
                }
            }
        }
        Ok(())
    }

    /// Counts what waits.
    fn count(&mut self) {
        self.rows = self.frames.values().map(HeldFrame::rows).sum();
        self.bytes = self.frames.values().map(HeldFrame::bytes).sum();
    }

    fn known(&mut self, number: SchemaNumber) -> Result<Arc<Known>> {
        if let Some(known) = self.known.get(&number) {
            return Ok(known.clone());
        }
        let shape = shapes_of(&self.log)?.get(number).cloned().ok_or_else(|| {
            Error::halt(format!("the log's state does not know schema {number}, which a batch uses"))
                .hint("run `highwater log check`")
        })?;
        Ok(self.learn(shape))
    }

    fn learn(&mut self, shape: Arc<Shape>) -> Arc<Known> {
        let number = shape.number;
        let known = Arc::new(Known::new(shape, &self.rules.contracts));
        self.known.insert(number, known.clone());
        known
    }

    /// So many records are appended that are others' to hold.
    pub(crate) fn passed(&mut self, records: u32) {
        self.next += u64::from(records);
    }

    /// Whether what waits has changed since this was asked.
    pub(crate) fn has_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// Where the log stands, after somebody else has appended to it.
    pub(crate) fn stands_at(&mut self, next: Offset) {
        self.next = next.0;
    }

    /// What waits, for people.
    pub(crate) fn counted(&self) -> Quarantined {
        Quarantined {
            rows: self.rows,
            keys: Some(self.fences.count()),
            bytes: self.bytes,
            max_bytes: self.rules.max_bytes,
            parked: self.fences.parked().map(|stream| stream.to_string()).collect(),
            discarded: self.discarded.rows,
        }
    }

    /// Whether nothing waits, and nothing can come to wait by a rule.
    fn is_idle(&self) -> bool {
        self.fences.is_empty() && self.rules.contracts.bind_nobody()
    }

    /// Looks at rows by the rules that the registry has now.
    fn refresh(&mut self) {
        let generation = self.rules.contracts.registered().generation();
        if std::mem::replace(&mut self.generation, generation) == generation {
            return;
        }
        for known in self.known.values_mut() {
            *known = Arc::new(Known::new(known.shape.clone(), &self.rules.contracts));
        }
    }

    /// What a batch becomes: what passes, then what waits, as one transaction
    /// or as its next piece. `unfit`: rows in it that are as they came.
    pub(crate) fn sift(&mut self, mut batch: LogBatch, unfit: u32) -> Result<(LogBatch, Option<LogBatch>)> {
        let (start, records) = (self.next, u64::from(batch.records));
        self.next += records;
        self.refresh();
        if !batch.state.is_empty() {
            // A shape that is new comes with the first batch that uses it, and
            // stands in the log's state only when its transaction has ended.
            let news = batch.state.iter().filter_map(|change| Some((&change.key[..], change.value.as_deref()?)));
            let news =
                Shapes::from_state(news).map_err(|error| Error::halt("a new schema cannot be read").because(error))?;
            for shape in news.iter() {
                self.learn(shape.clone());
            }
        }
        if self.is_idle() && unfit == 0 {
            return Ok((batch, None));
        }
        if batch.kind == Kind::Control
            && let Some(mark) = Mark::from_payload(&batch.payload)
            && mark.op == Mark::BEGIN
            && mark.sinks.is_empty()
        {
            self.give_up(&mark.stream, 0, "new generation", &mut batch.state);
        }
        if batch.kind != Kind::Data || batch.records == 0 {
            return Ok((batch, None));
        }
        let whole = Batch::captured(&batch);
        let mut held = HeldFrame::default();
        let mut state = Vec::new();
        self.decide(&whole, unfit > 0, &mut held, &mut state)?;
        if held.runs.is_empty() {
            batch.state.append(&mut state);
            return Ok((batch, None));
        }
        self.news = true;
        let mut replay = Replay { looked: self.looked.iter(), sides: self.sides.iter() };
        let halves = self.splitter.split(&whole, &mut replay).map_err(|error| broken(start, error))?;
        let passed = halves.passed;
        held.from = start + passed.as_ref().map_or(0, |(_, records)| u64::from(*records));
        let nothing_waits = held.left.is_empty();
        if !nothing_waits {
            self.rows += held.rows();
            self.bytes += held.bytes();
            state.push(held.change());
            self.frames.insert(held.from, held);
        }
        state.push(self.floor());
        let (payload, records) = halves.held.unwrap_or_default();
        let pending = LogBatch { kind: Kind::Pending, payload, records, state, ..batch.clone() };
        let passed = match passed {
            Some((payload, passed)) if nothing_waits => {
                // Its table was emptied in the same batch: nobody needs it any more.
                self.next -= u64::from(pending.records);
                batch.state.extend(pending.state);
                return Ok((LogBatch { payload, records: passed, ..batch }, None));
            }
            passed => passed,
        };
        Ok(match passed {
            Some((payload, records)) => {
                let passed = LogBatch { payload, records, position: None, ends_transaction: false, ..batch };
                (passed, Some(pending))
            }
            None => {
                batch.state.extend(pending.state);
                (LogBatch { state: batch.state, ..pending }, None)
            }
        })
    }

    /// Decides over every row of the runs that are of interest.
    fn decide(&mut self, batch: &Batch, unfit: bool, held: &mut HeldFrame, state: &mut Vec<StateChange>) -> Result<()> {
        let at = batch.offsets.start.0;
        let fail = |error| broken(at, error);
        self.looked.clear();
        self.sides.clear();
        let mut keys = std::mem::take(&mut self.keys);
        // Bytes that come to wait.
        let mut here = 0;
        for run in batch.runs() {
            let run = run.map_err(fail)?;
            let known = self.known(run.schema)?;
            let concerns = self.concerns(&known, &run, unfit);
            self.looked.push(concerns);
            if !concerns {
                continue;
            }
            for change in run.changes() {
                let change = change.map_err(fail)?;
                let reason = match self.verdict(&known, &change, &mut keys).map_err(fail)? {
                    Verdict::Pass => {
                        self.sides.push(Side::Pass);
                        continue;
                    }
                    Verdict::Empty => {
                        let here = held.forget(&known.stream);
                        self.give_up(&known.stream, here, "truncate", state);
                        self.sides.push(Side::Pass);
                        continue;
                    }
                    Verdict::Bad(reason) => reason,
                    Verdict::Behind => None,
                };
                let size = size_of(&change);
                here += size;
                self.make_room(&known, here, change.ordinal, reason.as_deref(), state)?;
                self.fences.touch(&known, &keys);
                held.count(&known.stream);
                held.wait(size, reason.as_deref());
                self.sides.push(Side::Hold);
            }
        }
        self.keys = keys;
        Ok(())
    }

    fn concerns(&self, known: &Known, run: &Run<'_>, unfit: bool) -> bool {
        known.is_table() && (known.check.is_some() || self.fences.has(&known.stream) || (unfit && run.has_unfit()))
    }

    fn verdict(&self, known: &Known, change: &Change<'_>, keys: &mut Keys) -> Result<Verdict, Malformed> {
        if change.op == Op::Truncate {
            return Ok(if self.fences.has(&known.stream) { Verdict::Empty } else { Verdict::Pass });
        }
        let fenced = self.fences.has(&known.stream);
        if change.unfit {
            keys.read(&known.shape.table, change)?;
            // Behind another it is still what it is: its own bytes tell.
            return Ok(Verdict::Bad(None));
        }
        if fenced {
            keys.read(&known.shape.table, change)?;
            if self.fences.blocks(known, keys) {
                return Ok(Verdict::Behind);
            }
        }
        let Some(check) = &known.check else { return Ok(Verdict::Pass) };
        let Some(reason) = check.broken(change.op, change.value, change.absent_bits())? else {
            return Ok(Verdict::Pass);
        };
        let reason = format!("contract: {reason}");
        if !fenced {
            keys.read(&known.shape.table, change)?;
        }
        Ok(Verdict::Bad(Some(reason)))
    }

    /// Makes sure that a row may wait: there is room, or its table is parked.
    fn make_room(
        &mut self,
        known: &Known,
        bytes: u64,
        ordinal: u64,
        reason: Option<&str>,
        state: &mut Vec<StateChange>,
    ) -> Result<()> {
        if self.bytes + bytes <= self.rules.max_bytes || self.fences.is_parked(&known.stream) {
            return Ok(());
        }
        let table = &known.shape.table;
        if self.rules.on_full == OnFull::Park {
            tracing::error!(stream = %known.stream, max_bytes = self.rules.max_bytes, "the quarantine is full: all of this table waits from now on");
            self.fences.park(&known.stream);
            state.push(parked_change(&known.stream, true));
            return Ok(());
        }
        let why = reason.unwrap_or("it waits behind another, or cannot be carried");
        Err(Error::halt(format!(
            "the quarantine of source {:?} is full: {} bytes wait, and a row of {}.{} (ordinal {ordinal} of its transaction) has to: {why}",
            table.source, self.bytes, table.schema, table.name
        ))
        .hint(format!(
            "see what waits with `highwater quarantine list {0}`, mend its cause, then `highwater quarantine redrive {0}` \
             or `discard`, which a stopped daemon can do too; or raise [quarantine] max_bytes; \
             on_full = \"park\" has the table wait instead",
            table.source
        )))
    }

    /// All that waits of a stream is given up; `rows` of it are not in a frame yet.
    fn give_up(&mut self, stream: &str, mut rows: u64, cause: &str, state: &mut Vec<StateChange>) {
        if !self.fences.has(stream) {
            return;
        }
        self.news = true;
        for frame in self.frames.values_mut().filter(|frame| frame.runs.iter().any(|run| run.0 == stream)) {
            let gone = frame.forget(stream);
            if gone > 0 {
                rows += gone;
                state.push(frame.change());
            }
        }
        self.frames.retain(|_, frame| !frame.left.is_empty());
        self.count();
        if self.fences.is_parked(stream) {
            state.push(parked_change(stream, false));
        }
        self.fences.remove(stream);
        if rows > 0 {
            tracing::warn!(stream, rows, cause, "rows in quarantine were given up");
            state.push(self.discarded.add(now_micros(), stream, rows, cause));
        }
        state.push(self.floor());
    }

    /// The first frame that anybody holds back.
    fn floor(&self) -> StateChange {
        let ours = self.frames.keys().next().copied();
        let from = crate::hold::least_of(&self.log.state(), "gate/").into_iter().chain(ours).min();
        StateChange { key: PENDING_KEY.into(), value: from.map(|from| from.to_string().into()) }
    }
}

impl Quarantined {
    /// What a log's state tells; None: it cannot be read.
    pub fn of_state(state: &State, max_bytes: u64) -> Option<Self> {
        let frames = frames_of(state).ok()?;
        Some(Self {
            rows: frames.values().map(HeldFrame::rows).sum(),
            keys: None,
            bytes: frames.values().map(HeldFrame::bytes).sum(),
            max_bytes,
            parked: parked_of(state),
            discarded: Discarded::of(state).rows,
        })
    }
}

/// As `act`, in the log of a stopped daemon, which whoever calls has opened.
pub async fn act_stopped(log: &Log, rules: Rules, deed: Deed, filter: &Filter) -> Result<Done> {
    log.abort().await.map_err(crate::ingest::log_failed)?;
    Quarantine::open(log.clone(), rules).await?.act(deed, filter).await
}

enum Verdict {
    Pass,
    /// The table is emptied: what waits of it is given up.
    Empty,
    /// None: the row's own bytes tell why.
    Bad(Option<String>),
    Behind,
}

/// Repeats what was decided.
struct Replay<'a> {
    looked: std::slice::Iter<'a, bool>,
    sides: std::slice::Iter<'a, Side>,
}

impl Sieve for Replay<'_> {
    fn run(&mut self, _: &Run<'_>) -> Option<Side> {
        (!self.looked.next().copied().unwrap_or(false)).then_some(Side::Pass)
    }

    fn row(&mut self, _: &Run<'_>, _: &Change<'_>) -> Side {
        self.sides.next().copied().unwrap_or(Side::Hold)
    }
}

/// A row counts for more than it has: what is kept of it in memory.
const ROW: usize = 512;

fn size_of(change: &Change<'_>) -> u64 {
    let extra = change.old_key.map_or(0, <[u8]>::len) + change.before.map_or(0, <[u8]>::len);
    (change.value.len() + extra + ROW) as u64
}

/// Why a row is not carried, as people name it.
fn reason_of(unfit: &Unfit<'_>, table: &Table) -> String {
    let code = match unfit.reason {
        UnfitReason::Value => "value",
        UnfitReason::TooLarge => "too_large",
    };
    match unfit.column.and_then(|column| table.columns.get(usize::from(column))) {
        Some(column) => format!("{code}: column {:?} of type {}: {}", column.name, column.db_type, unfit.why),
        None => format!("{code}: {} bytes, {}", unfit.size, unfit.why),
    }
}

fn broken(at: u64, error: Malformed) -> Error {
    Error::halt(format!("the batch at offset {at} cannot be read")).because(error).hint("run `highwater log check`")
}

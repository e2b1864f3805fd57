//! Lets rows go, or gives them up.
//!
//! All that waits is walked in order. A row that was picked is looked at as if
//! it came now: encoded anew if it is as it came, under the shape that its
//! table has now, and checked against the contract as it is now. What passes
//! is appended at the log's head with the position, commit time and ordinal it
//! had; what does not pass stays, and so does all behind it. What waited
//! behind rows that are gone goes along without being picked.
//!
//! Everything that is appended and every entry that changes is one transaction
//! of the log: killed anywhere in it, nothing of it was done. Memory is bounded
//! by one frame and by what the log takes at once.
//!
//! A row that is given up may have told columns that a later row did not
//! repeat (an unchanged large value). Such a later row would leave the
//! destination with another value than it ever had: it stays, as `incomplete`,
//! until it is given up too or its table is read again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use config::Patterns;
use connector::{Batch, BatchWriter, Change, Op, Result, RowExtras, Run, Table, Unfit, fault};
use serde::{Deserialize, Serialize};
use storage::{EventLog, Kind, LogBatch, Micros};

use super::fence::{Fences, Keys, Known};
use super::held::{HeldFrame, parked_change};
use super::pending::Pending;
use super::reshape::{Refused, Reshaped, reshape, same_bytes};
use super::{Quarantine, broken, list, reason_of, size_of};
use crate::hold::batch as transaction;
use crate::ingest::log_failed;
use crate::schemas::shapes_of;
use crate::status::now_micros;

/// A batch is appended at this size.
const PIECE: usize = 1 << 20;

/// What is to be done with rows that were picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Look at them again, and let them go if they pass.
    Redrive,
    /// Give them up.
    Discard,
}

/// Picks rows; what is None picks all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// By `schema.table`.
    pub tables: Option<Patterns>,
    /// By key: an object, or the value of a key of one column.
    pub key: Option<serde_json::Value>,
    /// By reason: `contract`, `value`, `too_large`, `incomplete`, `shape`.
    pub reason: Option<String>,
}

impl Filter {
    pub(crate) fn takes_table(&self, table: &Table) -> bool {
        self.tables.as_ref().is_none_or(|tables| tables.matches(&format!("{}.{}", table.schema, table.name)))
    }

    /// Whether a row is picked that is here for this reason.
    pub(crate) fn picks(&self, table: &Table, reason: &str, key: impl FnOnce() -> serde_json::Value) -> bool {
        let code = reason.split(':').next().unwrap_or(reason);
        self.takes_table(table)
            && self.reason.as_ref().is_none_or(|wanted| wanted == code)
            && self.key.as_ref().is_none_or(|wanted| list::key_is(&key(), wanted))
    }
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Rows that went into the log.
    pub released: u64,
    /// Rows that were given up.
    pub discarded: u64,
    /// Rows that wait still.
    pub left: u64,
    /// Why picked rows stay, each reason once, with how many rows it keeps.
    pub still: BTreeMap<String, u64>,
}

/// What is being done.
struct Work<'a> {
    quarantine: &'a mut Quarantine,
    deed: Deed,
    filter: &'a Filter,
    fences: Fences,
    /// The last shape of each stream.
    newest: HashMap<Arc<str>, Arc<Known>>,
    /// Columns, by id, that rows given up have told, by stream and key.
    told: HashMap<(Arc<str>, Vec<u8>), Vec<i32>>,
    discarded: BTreeMap<Arc<str>, u64>,
    scratch: BatchWriter,
    out: BatchWriter,
    /// Where the row appended last stood: what follows it needs no new part.
    last: Option<(Vec<u8>, u64)>,
    done: Done,
}

enum Fate {
    Stays(Option<String>),
    Released,
    Discarded,
}

impl Quarantine {
    /// Does it. Nothing may be under way in the log; after an error the log's
    /// `abort` makes void what was appended, and this must be opened again.
    pub(crate) async fn act(&mut self, deed: Deed, filter: &Filter) -> Result<Done> {
        self.refresh();
        let newest = self.newest()?;
        let frames: Vec<HeldFrame> = self.frames.values().cloned().collect();
        let (mut fences, mut state) = (Fences::default(), Vec::new());
        for stream in self.fences.parked() {
            // It may go on if anything of it is looked at.
            match newest.get(stream) {
                Some(known) if filter.takes_table(&known.shape.table) => {
                    state.push(parked_change(stream, false));
                }
                _ => fences.park(stream),
            }
        }
        let mut work = Work {
            quarantine: self,
            deed,
            filter,
            fences,
            newest,
            told: HashMap::new(),
            discarded: BTreeMap::new(),
            scratch: BatchWriter::new(),
            out: BatchWriter::new(),
            last: None,
            done: Done::default(),
        };
        let mut after = BTreeMap::new();
        let mut pending = Pending::new(work.quarantine.log.clone());
        for held in frames {
            let batch = pending.read(held.from).await?;
            let mut left = HeldFrame::new(held.from);
            let mut row = 0;
            for run in batch.runs() {
                let run = run.map_err(|error| broken(held.from, error))?;
                let known = work.quarantine.known(run.schema)?;
                for change in run.changes() {
                    let change = change.map_err(|error| broken(held.from, error))?;
                    left.count(&known.stream);
                    if held.waits(row) {
                        match work.row(&known, &run, &change, held.reason(row))? {
                            Fate::Stays(reason) => {
                                left.wait(size_of(&change), reason.as_deref());
                                work.done.left += 1;
                            }
                            Fate::Released => work.done.released += 1,
                            Fate::Discarded => {
                                work.done.discarded += 1;
                                *work.discarded.entry(known.stream.clone()).or_default() += 1;
                            }
                        }
                    }
                    row += 1;
                    if work.out.len() >= PIECE {
                        work.append().await?;
                    }
                }
            }
            if left.differs(&held) {
                state.push(left.change());
            }
            if !left.left.is_empty() {
                after.insert(held.from, left);
            }
        }
        work.append().await?;
        let Work { fences, discarded, done, .. } = work;
        for (stream, rows) in discarded {
            state.push(self.discarded.add(now_micros(), &stream, rows, "asked"));
        }
        self.frames = after;
        self.count();
        self.fences = fences;
        state.push(self.floor());
        // Readers are not shown what is only state: another frame ends the
        // transaction, or they would wait for its end for ever.
        let changes = transaction(Kind::Control, Bytes::new(), 0, Micros(i64::MIN), state);
        self.log.append(LogBatch { ends_transaction: false, ..changes }).await.map_err(log_failed)?;
        let last = transaction(Kind::Control, Bytes::new(), 0, Micros(i64::MIN), Vec::new());
        let commit = self.log.append(last).await.map_err(log_failed)?;
        fault::point("quarantine-release");
        let appended = commit.await.map_err(log_failed)?;
        self.stands_at(appended.offsets.end);
        Ok(done)
    }

    /// The last shape of each stream that rows may go on under.
    fn newest(&mut self) -> Result<HashMap<Arc<str>, Arc<Known>>> {
        let mut newest: HashMap<Arc<str>, Arc<Known>> = HashMap::new();
        let numbers: Vec<u32> = shapes_of(&self.log)?.iter().map(|shape| shape.number).collect();
        for number in numbers {
            let known = self.known(number)?;
            let last = newest.entry(known.stream.clone()).or_insert_with(|| known.clone());
            if last.shape.number < number {
                *last = known;
            }
        }
        Ok(newest)
    }
}

impl Work<'_> {
    /// One row's fate.
    fn row(&mut self, known: &Arc<Known>, run: &Run<'_>, change: &Change<'_>, reason: Option<&str>) -> Result<Fate> {
        let at = change.offset.0;
        let mut keys = std::mem::take(&mut self.quarantine.keys);
        keys.read(&known.shape.table, change).map_err(|error| broken(at, error))?;
        let own = match reason {
            None if change.unfit => {
                let unfit = Unfit::read(change.value).map_err(|error| broken(at, error))?;
                Some(reason_of(&unfit, &known.shape.table))
            }
            reason => reason.map(str::to_owned),
        };
        let fate = self.decide(known, run, change, own, &keys);
        if let Ok(Fate::Stays(_)) = fate {
            self.fences.touch(known, &keys);
        }
        self.quarantine.keys = keys;
        fate
    }

    fn decide(
        &mut self,
        known: &Arc<Known>,
        run: &Run<'_>,
        change: &Change<'_>,
        own: Option<String>,
        keys: &Keys,
    ) -> Result<Fate> {
        let table = &known.shape.table;
        if self.fences.has(&known.stream) && self.fences.blocks(known, keys) {
            return Ok(Fate::Stays(own.filter(|_| !change.unfit)));
        }
        if let Some(own) = &own {
            if !self.filter.picks(table, own, || list::key_of(&known.shape, change)) {
                return Ok(Fate::Stays((!change.unfit).then(|| own.clone())));
            }
            if self.deed == Deed::Discard {
                self.tell(known, change, keys).map_err(|error| broken(change.offset.0, error))?;
                return Ok(Fate::Discarded);
            }
        } else if !self.filter.takes_table(table) {
            return Ok(Fate::Stays(None));
        }
        match self.release(known, run, change, keys)? {
            None => Ok(Fate::Released),
            Some(reason) => {
                *self.done.still.entry(reason.clone()).or_default() += 1;
                Ok(Fate::Stays(Some(reason)))
            }
        }
    }

    /// Puts a row among what goes to the head, or says why it stays.
    fn release(
        &mut self,
        known: &Arc<Known>,
        run: &Run<'_>,
        change: &Change<'_>,
        keys: &Keys,
    ) -> Result<Option<String>> {
        let at = change.offset.0;
        let now = self.newest.get(&known.stream).unwrap_or(known).clone();
        let (from, to) = (&known.shape.table, &now.shape.table);
        if change.unfit {
            let unfit = Unfit::read(change.value).map_err(|error| broken(at, error))?;
            if unfit.size > self.quarantine.rules.max_row {
                return Ok(Some(format!("too_large: {} bytes, larger than `max_row` of the source", unfit.size)));
            }
            self.scratch.begin(&[], Micros(0), "", 0);
            let recode = self.quarantine.rules.recode;
            if let Err((column, why)) = recode(to, now.shape.number, from, change.op, &unfit, &mut self.scratch) {
                self.scratch.take();
                let column = to.columns.get(column).map_or(("?", "?"), |c| (c.name.as_str(), c.db_type.as_str()));
                return Ok(Some(format!("value: column {:?} of type {}: {why}", column.0, column.1)));
            }
            let (payload, records) = self.scratch.take().unwrap_or_default();
            let anew = Batch::captured(&transaction(Kind::Data, payload, records, Micros(0), Vec::new()));
            let Some(written) = anew.runs().next() else { return Ok(Some("value: nothing is left of it".into())) };
            let written = written.map_err(|error| broken(at, error))?;
            let Some(row) = written.changes().next() else { return Ok(Some("value: nothing is left of it".into())) };
            let row = row.map_err(|error| broken(at, error))?;
            return self.put(&now, run, row, change.ordinal, keys);
        }
        if same_bytes(from, to) {
            return self.put(&now, run, *change, change.ordinal, keys);
        }
        match reshape(from, to, change) {
            Ok(Reshaped { value, old_key, before, absent }) => {
                self.scratch.begin(&[], Micros(0), "", 0);
                self.scratch.open_row(now.shape.number).extend_from_slice(&value);
                let extras =
                    RowExtras { old_key: old_key.as_deref(), before: before.as_deref(), absent: absent.as_deref() };
                self.scratch.close_row(change.op, extras);
                let (payload, records) = self.scratch.take().unwrap_or_default();
                let anew = Batch::captured(&transaction(Kind::Data, payload, records, Micros(0), Vec::new()));
                let mut runs = anew.runs();
                let written = runs.next().transpose().map_err(|error| broken(at, error))?;
                let row = written.and_then(|written| written.changes().next()).transpose();
                match row.map_err(|error| broken(at, error))? {
                    Some(row) => self.put(&now, run, row, change.ordinal, keys),
                    None => Ok(Some("shape: nothing is left of it".into())),
                }
            }
            Err(Refused::Words(why)) => Ok(Some(format!("shape: {why}"))),
            Err(Refused::Malformed(error)) => Err(broken(at, error)),
        }
    }

    /// A row as it would be: checked, and written with the place it had.
    fn put(
        &mut self,
        now: &Known,
        run: &Run<'_>,
        row: Change<'_>,
        ordinal: u64,
        keys: &Keys,
    ) -> Result<Option<String>> {
        let fail = |error| broken(row.offset.0, error);
        if let Some(check) = &now.check
            && let Some(reason) = check.broken(row.op, row.value, row.absent_bits()).map_err(fail)?
        {
            return Ok(Some(format!("contract: {reason}")));
        }
        if let Some(column) = self.lacks(now, &row, keys) {
            return Ok(Some(format!(
                "incomplete: column {column:?} did not change, and was told only by a row that was discarded"
            )));
        }
        let of = run.transaction;
        let goes_on = self.last.as_ref().is_some_and(|(position, next)| position == of.position && *next == ordinal);
        if !goes_on {
            self.out.begin(of.position, of.commit_time, of.tx, ordinal);
        }
        self.last = Some((of.position.to_vec(), ordinal + 1));
        self.out.open_row(now.shape.number).extend_from_slice(row.value);
        let extras = RowExtras { old_key: row.old_key, before: row.before, absent: row.absent_bits() };
        self.out.close_row(row.op, extras);
        Ok(None)
    }

    /// Notes which columns a row told that is given up.
    fn tell(
        &mut self,
        known: &Known,
        change: &Change<'_>,
        keys: &Keys,
    ) -> std::result::Result<(), connector::Malformed> {
        if !keys.known || change.op == Op::Delete {
            return Ok(());
        }
        let columns = &known.shape.table.columns;
        let ids: Vec<i32> = match change.unfit {
            true => columns.iter().map(|column| column.id).collect(),
            false => (0..columns.len()).filter(|&i| !change.is_absent(i)).map(|i| columns[i].id).collect(),
        };
        let mut told = ids;
        if let Some(old) = &keys.old {
            told.extend(self.told.remove(&(known.stream.clone(), old.clone())).unwrap_or_default());
        }
        self.told.entry((known.stream.clone(), keys.key.clone())).or_default().extend(told);
        Ok(())
    }

    /// The first column that a row does not tell, and one that is given up did.
    fn lacks(&mut self, now: &Known, row: &Change<'_>, keys: &Keys) -> Option<String> {
        if self.told.is_empty() || !keys.known {
            return None;
        }
        let stream = &now.stream;
        let old = keys.old.as_ref().and_then(|old| self.told.get(&(stream.clone(), old.clone())));
        let told: Vec<i32> =
            old.into_iter().chain(self.told.get(&(stream.clone(), keys.key.clone()))).flatten().copied().collect();
        let columns = &now.shape.table.columns;
        if row.op != Op::Delete {
            let lacking = (0..columns.len()).find(|&i| row.is_absent(i) && told.contains(&columns[i].id));
            if let Some(i) = lacking {
                return Some(columns[i].name.clone());
            }
        }
        // All that was told has been told anew, or the row is gone.
        self.told.remove(&(stream.clone(), keys.key.clone()));
        if let Some(old) = &keys.old {
            self.told.remove(&(stream.clone(), old.clone()));
        }
        None
    }

    async fn append(&mut self) -> Result<()> {
        self.last = None;
        let Some((payload, records)) = self.out.take() else { return Ok(()) };
        let piece = transaction(Kind::Data, payload, records, Micros(i64::MIN), Vec::new());
        let piece = LogBatch { ends_transaction: false, ..piece };
        self.quarantine.log.append(piece).await.map_err(log_failed)?;
        fault::point("quarantine-release");
        Ok(())
    }
}

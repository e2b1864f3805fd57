//! Messages of the stream to batches for the log.

use std::collections::HashMap;

use bytes::Bytes;
use connector::{BatchWriter, Captured, Error, Fresh, Op, Result, RowExtras, SchemaNumber, Schemas, Table};
use storage::{Kind, LogBatch, Micros, StateChange};

use crate::catalog::CatalogTable;
use crate::lsn::Lsn;
use crate::pgoutput::{Cell, Malformed, Message, OldTuple, Relation, Tuple, decode};
use crate::plan::{Plan, ValueError};
use crate::shape::{Compiled, Compiler};
use crate::snapshot::{Generation, Progress};
use crate::spool::Spool;
use crate::unfit::{Cause, Row};

mod messages;
mod streamed;

use streamed::Streamed;

/// A batch of whole transactions is handed on at this size.
pub(crate) const FULL: usize = 512 << 10;
/// A transaction that grows beyond this goes on in pieces.
const PIECE: usize = 1 << 20;
/// Whole transactions of this size do not wait for a larger one.
const ALONE: usize = 64 << 10;

/// What the thread must see to, besides going on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Nothing.
    On,
    /// A transaction begins whose commit record stands here.
    Begun(Lsn),
    /// A batch should be handed on.
    Hand,
}

enum Known {
    Skipped,
    Captured(Compiled),
}

struct Transaction {
    xid: String,
    time: Micros,
    ordinal: u64,
    /// A part is begun in the writer.
    begun: bool,
    /// A piece was handed on before.
    torn: bool,
    /// The log has it already.
    held: bool,
    /// Where it ends, if that is known before its last row.
    end: Option<Lsn>,
    /// Parts that were written before are in the writer.
    spliced: bool,
}

impl Transaction {
    fn new(xid: u32, commit: Lsn, time: i64, resume: Lsn) -> Self {
        Self {
            xid: xid.to_string(),
            time: Micros(time),
            ordinal: 0,
            begun: false,
            torn: false,
            // A record that begins below where we resume ends there at the latest.
            held: commit < resume,
            end: None,
            spliced: false,
        }
    }
}

/// One stream's state.
pub(crate) struct Capture<S> {
    pub(crate) compiler: Compiler<S>,
    pub(crate) progress: Progress,
    writer: BatchWriter,
    state: Vec<StateChange>,
    known: HashMap<u32, Known>,
    messages: Option<SchemaNumber>,
    transaction: Option<Transaction>,
    streamed: Streamed,
    /// Everything up to here is in the log.
    resume: Lsn,
    /// The end of the last whole transaction written, or idle position.
    last: Lsn,
    /// Of that which was handed on.
    handed: Lsn,
    /// Every commit up to then is written, or was before.
    time: Micros,
    /// Of that which was handed on.
    told: Micros,
    absent: Vec<u8>,
    before: Vec<u8>,
    keys: (Vec<u8>, Vec<u8>),
    /// A table is to be read again.
    again: bool,
    /// Rows in the writer that are as they came.
    unfit: u32,
    max_row: usize,
}

impl<S: Schemas> Capture<S> {
    pub(crate) fn new(compiler: Compiler<S>, progress: Progress, spool: Spool, resume: Lsn) -> Self {
        let max_row = usize::try_from(compiler.config.max_row).unwrap_or(usize::MAX);
        Self {
            max_row,
            compiler,
            progress,
            writer: BatchWriter::new(),
            state: Vec::new(),
            known: HashMap::new(),
            messages: None,
            transaction: None,
            streamed: Streamed::new(spool),
            resume,
            last: resume,
            handed: resume,
            time: Micros(0),
            told: Micros(0),
            absent: Vec::new(),
            before: Vec::new(),
            keys: Default::default(),
            again: false,
            unfit: 0,
        }
    }

    /// Takes one message of pgoutput.
    #[inline]
    pub(crate) fn message(&mut self, message: &[u8]) -> Result<Flow> {
        if self.streamed.is_inside() {
            return self.chunk(message);
        }
        if message.len() > self.max_row
            && let Some(flow) = self.too_large(message)?
        {
            return Ok(flow);
        }
        match decode(message).map_err(malformed)? {
            Message::Insert { relation, new } => self.insert(relation, new),
            Message::Update { relation, old, new } => self.update(relation, old, new),
            Message::Delete { relation, old } => self.delete(relation, old),
            Message::Begin { commit, time, xid } => {
                self.transaction = Some(Transaction::new(xid, commit, time, self.resume));
                Ok(Flow::Begun(commit))
            }
            Message::Commit { end } => self.commit(end),
            Message::Relation(relation) => {
                self.streamed.tells(relation.id);
                self.relation(relation)
            }
            Message::Truncate { relations } => self.truncate(&relations),
            Message::Logical { transactional, lsn, prefix, content } => {
                self.logical(transactional, lsn, prefix, content)
            }
            Message::StreamStart { xid, first } => self.streamed.start(xid, first).map(|()| Flow::On),
            Message::StreamCommit { xid, commit, end, time } => self.stream_commit(xid, commit, end, time),
            Message::StreamAbort { xid, sub } => {
                self.streamed.abort(xid, sub);
                Ok(Flow::On)
            }
            Message::Ignored | Message::StreamStop => Ok(Flow::On),
            Message::Refused(what) => Err(refused(what)),
        }
    }

    /// A captured row that is larger than rows may be goes on as it came.
    #[cold]
    fn too_large(&mut self, message: &[u8]) -> Result<Option<Flow>> {
        let (op, relation, old, new) = match decode(message).map_err(malformed)? {
            Message::Insert { relation, new } => (Op::Insert, relation, None, Some(new)),
            Message::Update { relation, old, new } => (Op::Update, relation, old, Some(new)),
            Message::Delete { relation, old } => (Op::Delete, relation, Some(old), None),
            _ => return Ok(None),
        };
        if !self.begin_row(relation)? {
            return Ok(Some(Flow::On));
        }
        for tuple in [old.map(|old| old.tuple), new].into_iter().flatten() {
            if let Some(Known::Captured(table)) = self.known.get(&relation) {
                check_width(&table.plan, tuple)?;
            }
        }
        self.unfit(relation, op, old, new, &Cause::TooLarge).map(Some)
    }

    /// A row that cannot be carried: in its place, as it came.
    #[cold]
    fn unfit(
        &mut self,
        relation: u32,
        op: Op,
        old: Option<OldTuple<'_>>,
        new: Option<Tuple<'_>>,
        cause: &Cause,
    ) -> Result<Flow> {
        self.writer.drop_row();
        let Some(Known::Captured(table)) = self.known.get(&relation) else { return Ok(Flow::On) };
        let plan = &table.plan;
        let size = old.map_or(0, |old| old.tuple.bytes()) + new.map_or(0, |new| new.bytes());
        Row::streamed(plan, op, old, new, size).put(plan, table.number, cause, &mut self.writer);
        self.unfit += 1;
        if let Some(new) = new
            && new.cells().any(|cell| cell == Cell::Unchanged)
            && self.progress.is_under_way(&table.stream)
        {
            self.state.extend(self.progress.owe(&table.stream, plan.key_texts(new)));
        }
        Ok(self.end_row())
    }

    fn insert(&mut self, relation: u32, new: Tuple<'_>) -> Result<Flow> {
        if !self.begin_row(relation)? {
            return Ok(Flow::On);
        }
        let Some(Known::Captured(table)) = self.known.get(&relation) else { return Ok(Flow::On) };
        check_width(&table.plan, new)?;
        let body = self.writer.open_row(table.number);
        let absent = match table.plan.value(new, None, body, &mut self.absent) {
            Ok(absent) => absent.then_some(&self.absent[..]),
            Err(error) => return self.unfit(relation, Op::Insert, None, Some(new), &Cause::Value(error)),
        };
        self.writer.close_row(Op::Insert, RowExtras { absent, ..Default::default() });
        Ok(self.end_row())
    }

    fn update(&mut self, relation: u32, old: Option<OldTuple<'_>>, new: Tuple<'_>) -> Result<Flow> {
        if !self.begin_row(relation)? {
            return Ok(Flow::On);
        }
        let Some(Known::Captured(table)) = self.known.get(&relation) else { return Ok(Flow::On) };
        let plan = &table.plan;
        check_width(plan, new)?;
        let mut extras = RowExtras::default();
        if let Some(old) = old {
            check_width(plan, old.tuple)?;
            let (old_key, new_key) = &mut self.keys;
            match keys_differ(plan, old, new, old_key, new_key) {
                Ok(differ) => extras.old_key = differ.then_some(&old_key[..]),
                Err(error) => return self.unfit(relation, Op::Update, Some(old), Some(new), &Cause::Value(error)),
            }
            if old.whole {
                self.before.clear();
                if let Err(error) = plan.value(old.tuple, None, &mut self.before, &mut self.absent) {
                    return self.unfit(relation, Op::Update, Some(old), Some(new), &Cause::Value(error));
                }
                extras.before = Some(&self.before);
            }
        }
        let body = self.writer.open_row(table.number);
        let absent = match plan.value(new, old, body, &mut self.absent) {
            Ok(absent) => absent,
            Err(error) => return self.unfit(relation, Op::Update, old, Some(new), &Cause::Value(error)),
        };
        if absent {
            extras.absent = Some(&self.absent);
            // A table whose reading is under way may have read this row before
            // it moved: what the stream does not tell is read again by key.
            if self.progress.is_under_way(&table.stream) {
                self.state.extend(self.progress.owe(&table.stream, plan.key_texts(new)));
            }
        }
        self.writer.close_row(Op::Update, extras);
        Ok(self.end_row())
    }

    fn delete(&mut self, relation: u32, old: OldTuple<'_>) -> Result<Flow> {
        if !self.begin_row(relation)? {
            return Ok(Flow::On);
        }
        let Some(Known::Captured(table)) = self.known.get(&relation) else { return Ok(Flow::On) };
        let plan = &table.plan;
        check_width(plan, old.tuple)?;
        let body = self.writer.open_row(table.number);
        let absent = if old.whole {
            plan.value(old.tuple, None, body, &mut self.absent)
        } else {
            plan.key_only(old.tuple, body, &mut self.absent)
        };
        let absent = match absent {
            Ok(absent) => absent,
            Err(error) => return self.unfit(relation, Op::Delete, Some(old), None, &Cause::Value(error)),
        };
        let mut extras = RowExtras::default();
        if absent {
            extras.absent = Some(&self.absent);
        }
        if old.whole {
            self.before.clear();
            if let Err(error) = plan.value(old.tuple, None, &mut self.before, &mut self.keys.0) {
                return self.unfit(relation, Op::Delete, Some(old), None, &Cause::Value(error));
            }
            extras.before = Some(&self.before);
        }
        self.writer.close_row(Op::Delete, extras);
        Ok(self.end_row())
    }

    fn truncate(&mut self, relations: &[u32]) -> Result<Flow> {
        let mut flow = Flow::On;
        for relation in relations {
            if !self.begin_row(*relation)? {
                continue;
            }
            let Some(Known::Captured(table)) = self.known.get(relation) else { continue };
            self.writer.open_row(table.number);
            self.writer.close_row(Op::Truncate, RowExtras::default());
            flow = self.end_row();
        }
        Ok(flow)
    }

    /// Whether a row of this relation is to be written.
    #[inline]
    fn begin_row(&mut self, relation: u32) -> Result<bool> {
        match self.known.get(&relation) {
            Some(Known::Captured(_)) => self.begin_part(),
            Some(Known::Skipped) => Ok(false),
            None => Err(Error::retry(format!("the stream has a row of relation {relation} that it did not describe"))),
        }
    }

    /// Whether changes of this transaction are to be written.
    #[inline]
    fn begin_part(&mut self) -> Result<bool> {
        let Some(transaction) = &mut self.transaction else {
            return Err(Error::retry("the stream has a row outside a transaction"));
        };
        if transaction.held {
            return Ok(false);
        }
        if !transaction.begun {
            let Transaction { time, xid, ordinal, end, .. } = &*transaction;
            match end {
                None => self.writer.begin_open(8, *time, xid, *ordinal),
                Some(end) => self.writer.begin(&end.to_bytes(), *time, xid, *ordinal),
            }
            transaction.begun = true;
        }
        Ok(true)
    }

    #[inline]
    fn end_row(&mut self) -> Flow {
        if let Some(transaction) = &mut self.transaction {
            transaction.ordinal += 1;
        }
        if self.writer.len() >= PIECE { Flow::Hand } else { Flow::On }
    }

    fn commit(&mut self, end: Lsn) -> Result<Flow> {
        let Some(transaction) = self.transaction.take() else {
            return Err(Error::retry("the stream has a commit without its begin"));
        };
        if transaction.held && end > self.resume {
            return Err(Error::halt(format!(
                "a transaction ends at {end}, beyond {} where the log stands, and began before it",
                self.resume
            ))
            .hint("the server's WAL is not the one that the log was filled from: was a backup restored?"));
        }
        if transaction.held {
            return Ok(Flow::On);
        }
        self.writer.set_position(&end.to_bytes());
        self.writer.end();
        self.last = end;
        self.time = self.time.max(transaction.time);
        Ok(if transaction.torn || self.writer.len() >= FULL { Flow::Hand } else { Flow::On })
    }

    fn relation(&mut self, relation: Relation) -> Result<Flow> {
        let id = relation.id;
        let known = if self.compiler.wants(id, &relation.namespace, &relation.name) {
            let shapes: Vec<Table> = self.shapes_before(&relation).into_iter().map(|(_, table)| table).collect();
            let compiled = self.compiler.of_relation(&relation, &shapes)?;
            if compiled.plan.width() != relation.columns.len() {
                return Err(Error::retry(format!("relation {id} has other columns than its plan")));
            }
            self.state.extend(compiled.change.clone());
            self.look_at_values(id, &compiled)?;
            Known::Captured(compiled)
        } else {
            Known::Skipped
        };
        self.known.insert(id, known);
        Ok(Flow::On)
    }

    /// The shapes that this very table had, the newest first.
    fn shapes_before(&self, relation: &Relation) -> Vec<(SchemaNumber, Table)> {
        let stream = self.compiler.stream_of(&relation.namespace, &relation.name);
        // A table made anew under the name counts its columns anew.
        match self.progress.get(&stream).generation {
            Some(generation) if generation.oid == relation.id => self.compiler.schemas.shapes(&stream),
            _ => match self.known.get(&relation.id) {
                Some(Known::Captured(compiled)) => vec![(compiled.number, compiled.plan.table.clone())],
                _ => Vec::new(),
            },
        }
    }

    /// A table that was read is read again if a new shape gave its rows values
    /// that the stream has not told.
    fn look_at_values(&mut self, oid: u32, compiled: &Compiled) -> Result<()> {
        let Some(read) = self.progress.get(&compiled.stream).generation else { return Ok(()) };
        if !read.finished || read.oid != oid || compiled.number <= read.shape {
            return Ok(());
        }
        let shapes = self.compiler.schemas.shapes(&compiled.stream);
        let old = shapes.into_iter().find(|(number, _)| *number == read.shape);
        let changed = match old {
            Some((_, old)) => self.compiler.changes_values(oid, &read, &old, &compiled.plan.table)?,
            None => true,
        };
        if changed {
            tracing::warn!(
                stream = compiled.stream,
                "its shape has changed, and with it values of rows that were there: it is read again"
            );
            self.read_again(&compiled.stream);
        } else {
            self.state.extend(self.progress.set(&compiled.stream, Generation { shape: compiled.number, ..read }));
        }
        Ok(())
    }

    /// Begins a new generation of a table with the next round.
    pub(crate) fn read_again(&mut self, stream: &str) {
        self.state.extend(self.progress.again(stream));
        self.again = true;
    }

    /// Begins a generation of tables for one sink alone with the next round;
    /// whether there is any that was not begun before.
    pub(crate) fn read_for(&mut self, fresh: &Fresh) -> bool {
        let changes: Vec<StateChange> = fresh
            .streams
            .iter()
            .flat_map(|stream| self.progress.again_for(stream, &fresh.sink, fresh.serial))
            .collect();
        if changes.is_empty() {
            return false;
        }
        tracing::info!(sink = fresh.sink, tables = fresh.streams.len(), "reading tables for it alone");
        self.state.extend(changes);
        self.again = true;
        true
    }

    /// Whether a table has to be read again, since this was asked last.
    pub(crate) fn takes_again(&mut self) -> bool {
        std::mem::take(&mut self.again)
    }

    /// Shapes that changed while nobody looked.
    pub(crate) fn look_at_shapes(&mut self) -> Result<()> {
        for table in self.compiler.tables.clone() {
            let stream = self.compiler.stream_of(&table.schema, &table.name);
            if self.progress.get(&stream).generation.is_some_and(|read| read.finished && read.is_of(&table)) {
                let compiled = self.compiler.compile(&table)?;
                self.state.extend(compiled.change.clone());
                self.look_at_values(table.oid, &compiled)?;
                self.look_at_partitions(&table, &stream)?;
            }
        }
        Ok(())
    }

    fn look_at_partitions(&mut self, table: &CatalogTable, stream: &str) -> Result<()> {
        let read = self.progress.get(stream).generation.filter(|read| read.finished && table.kind == 'p');
        let Some(read) = read else { return Ok(()) };
        let (changed, file_nodes) = self.compiler.partitions(table, &read)?;
        if changed {
            tracing::warn!(stream, "partitions were attached, detached, emptied or rewritten: it is read again");
            self.read_again(stream);
        } else if file_nodes != read.file_nodes {
            self.state.extend(self.progress.set(stream, Generation { file_nodes, ..read }));
        }
        Ok(())
    }

    /// Notes an idle position: everything before it was received.
    pub(crate) fn idle(&mut self, end: Lsn) {
        if self.is_between() {
            self.last = self.last.max(end);
        }
    }

    /// No transaction is under way, and no chunk of one.
    pub(crate) fn is_between(&self) -> bool {
        self.transaction.is_none() && !self.streamed.is_inside()
    }

    /// Whether rows or state wait to be handed on.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.writer.is_empty() || !self.state.is_empty()
    }

    /// Everything up to here is written, or was before.
    pub(crate) fn upto(&self) -> Lsn {
        self.last
    }

    /// Every commit up to a time is written, or was before.
    pub(crate) fn pass(&mut self, time: Micros) {
        self.time = self.time.max(time);
    }

    /// Whether a position or a time is known that the log was not given.
    pub(crate) fn has_idle_news(&self) -> bool {
        self.last > self.handed || self.time > self.told
    }

    /// What waits is large enough not to wait for the transaction that begins; of a
    /// fast stream that is more, and a larger batch is worth more than its moment.
    pub(crate) fn stands_alone(&self, fast: bool) -> bool {
        self.writer.len() >= if fast { FULL / 2 } else { ALONE }
    }

    /// State to go with the next batch.
    pub(crate) fn remember(&mut self, changes: impl IntoIterator<Item = StateChange>) {
        self.state.extend(changes);
    }

    /// Everything written so far. In the middle of a transaction it is a piece,
    /// and the log shows nothing of it before the last piece is there.
    pub(crate) fn hand(&mut self) -> Option<Captured> {
        let begun = self.transaction.as_ref().is_some_and(|t| t.begun || t.spliced);
        let (payload, records) = self.writer.take().unwrap_or((Bytes::new(), 0));
        let unfit = std::mem::take(&mut self.unfit);
        let state = std::mem::take(&mut self.state);
        if begun && let Some(transaction) = &mut self.transaction {
            (transaction.begun, transaction.spliced) = (false, false);
            transaction.torn = true;
        }
        let whole = !self.transaction.as_ref().is_some_and(|t| t.torn);
        if whole && records == 0 && state.is_empty() && !self.has_idle_news() {
            return None;
        }
        if whole {
            (self.handed, self.told) = (self.last, self.time);
        }
        let position = whole.then(|| self.last.position());
        let batch = LogBatch {
            kind: Kind::Data,
            position,
            records,
            event_time: self.time,
            payload,
            state,
            ends_transaction: whole,
        };
        Some(Captured { batch, unfit })
    }
}

fn check_width(plan: &Plan, tuple: Tuple<'_>) -> Result<()> {
    if plan.width() == tuple.len() {
        return Ok(());
    }
    let stream = plan.table.stream();
    Err(Error::retry(format!("a row of {stream} has {} columns, {} were described", tuple.len(), plan.width())))
}

fn malformed(error: Malformed) -> Error {
    Error::halt("the stream cannot be read").because(error).hint("is this a PostgreSQL server of version 13 or later?")
}

fn refused(what: &str) -> Error {
    Error::halt(format!("the stream holds {what}, which was not asked for"))
}

/// Whether an update changes the key; both keys, where they are known.
fn keys_differ(
    plan: &Plan,
    old: OldTuple<'_>,
    new: Tuple<'_>,
    old_key: &mut Vec<u8>,
    new_key: &mut Vec<u8>,
) -> Result<bool, ValueError> {
    old_key.clear();
    new_key.clear();
    Ok(!plan.table.key.is_empty() && plan.key(old.tuple, old_key)? && plan.key(new, new_key)? && old_key != new_key)
}

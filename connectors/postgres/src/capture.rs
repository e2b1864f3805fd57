//! Messages of the stream to batches for the log.

use std::collections::HashMap;

use bytes::Bytes;
use connector::{BatchWriter, Captured, Error, Op, Result, RowExtras, SchemaNumber, Schemas, Table, put_bytes};
use storage::{Kind, LogBatch, Micros, StateChange};

use crate::catalog::CatalogTable;
use crate::lsn::Lsn;
use crate::pgoutput::{Malformed, Message, OldTuple, Relation, Tuple, decode};
use crate::plan::{Plan, ValueError};
use crate::shape::{Compiled, Compiler};
use crate::snapshot::{Generation, Progress};
use crate::spool::Spool;

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
    time: Micros,
    absent: Vec<u8>,
    before: Vec<u8>,
    keys: (Vec<u8>, Vec<u8>),
    /// A table is to be read again.
    again: bool,
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
            absent: Vec::new(),
            before: Vec::new(),
            keys: Default::default(),
            again: false,
        }
    }

    /// Takes one message of pgoutput.
    #[inline]
    pub(crate) fn message(&mut self, message: &[u8]) -> Result<Flow> {
        if self.streamed.is_inside() {
            return self.chunk(message);
        }
        if message.len() > self.max_row
            && let Some(error) = self.too_large(message)
        {
            return Err(error);
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

    /// A captured row that is larger than rows may be.
    #[cold]
    fn too_large(&self, message: &[u8]) -> Option<Error> {
        let (relation, tuple) = match decode(message).ok()? {
            Message::Insert { relation, new } | Message::Update { relation, new, .. } => (relation, new),
            Message::Delete { relation, old } => (relation, old.tuple),
            _ => return None,
        };
        match self.known.get(&relation)? {
            Known::Captured(table) => Some(oversize(&table.plan, &told_by_key(&table.plan, tuple), message.len())),
            Known::Skipped => None,
        }
    }

    fn insert(&mut self, relation: u32, new: Tuple<'_>) -> Result<Flow> {
        if !self.begin_row(relation)? {
            return Ok(Flow::On);
        }
        let Some(Known::Captured(table)) = self.known.get(&relation) else { return Ok(Flow::On) };
        check_width(&table.plan, new)?;
        let body = self.writer.open_row(table.number);
        let absent = table.plan.value(new, None, body, &mut self.absent).map_err(|e| unfit(&table.plan, new, &e))?;
        let absent = absent.then_some(&self.absent[..]);
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
            let unfit = |error| unfit(plan, old.tuple, &error);
            let (old_key, new_key) = &mut self.keys;
            old_key.clear();
            new_key.clear();
            if !plan.table.key.is_empty()
                && plan.key(old.tuple, old_key).map_err(unfit)?
                && plan.key(new, new_key).map_err(unfit)?
                && old_key != new_key
            {
                extras.old_key = Some(old_key);
            }
            if old.whole {
                self.before.clear();
                plan.value(old.tuple, None, &mut self.before, &mut self.absent).map_err(unfit)?;
                extras.before = Some(&self.before);
            }
        }
        let body = self.writer.open_row(table.number);
        let absent = plan.value(new, old, body, &mut self.absent).map_err(|e| unfit(plan, new, &e))?;
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
        let absent = absent.map_err(|error| unfit(plan, old.tuple, &error))?;
        let mut extras = RowExtras::default();
        if absent {
            extras.absent = Some(&self.absent);
        }
        if old.whole {
            self.before.clear();
            plan.value(old.tuple, None, &mut self.before, &mut self.keys.0).map_err(|e| unfit(plan, old.tuple, &e))?;
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

    fn logical(&mut self, transactional: bool, lsn: Lsn, prefix: &str, content: &[u8]) -> Result<Flow> {
        let ours = prefix.starts_with("highwater.");
        if transactional {
            if ours || !self.begin_part()? {
                return Ok(Flow::On);
            }
        } else {
            if lsn <= self.resume {
                return Ok(Flow::On);
            }
            self.last = self.last.max(lsn);
            if ours {
                return Ok(Flow::On);
            }
            self.writer.begin(&lsn.to_bytes(), self.time, "", 0);
        }
        let number = self.messages_schema()?;
        let body = self.writer.open_row(number);
        for part in [Some(prefix.as_bytes()), std::str::from_utf8(content).ok().map(str::as_bytes)] {
            match part {
                Some(text) => {
                    body.push(2);
                    put_bytes(body, text);
                }
                None => body.push(0),
            }
        }
        if std::str::from_utf8(content).is_ok() {
            body.push(0);
        } else {
            body.push(2);
            put_bytes(body, content);
        }
        body.extend_from_slice(&[2, u8::from(transactional)]);
        self.writer.close_row(Op::Message, RowExtras::default());
        if transactional {
            return Ok(self.end_row());
        }
        self.writer.end();
        Ok(Flow::On)
    }

    fn messages_schema(&mut self) -> Result<SchemaNumber> {
        if let Some(number) = self.messages {
            return Ok(number);
        }
        let (number, change) = self.compiler.messages()?;
        self.state.extend(change);
        self.messages = Some(number);
        Ok(number)
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

    /// Whether a position is known that the log was not given.
    pub(crate) fn has_idle_position(&self) -> bool {
        self.last > self.handed
    }

    /// What waits is large enough not to wait for the transaction that begins.
    pub(crate) fn stands_alone(&self) -> bool {
        self.writer.len() >= ALONE
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
        let state = std::mem::take(&mut self.state);
        if begun && let Some(transaction) = &mut self.transaction {
            (transaction.begun, transaction.spliced) = (false, false);
            transaction.torn = true;
        }
        let whole = !self.transaction.as_ref().is_some_and(|t| t.torn);
        if whole && records == 0 && state.is_empty() && self.last == self.handed {
            return None;
        }
        if whole {
            self.handed = self.last;
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
        Some(Captured { batch })
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

fn unfit(plan: &Plan, tuple: Tuple<'_>, error: &ValueError) -> Error {
    unfit_value(plan, &told_by_key(plan, tuple), error)
}

fn told_by_key(plan: &Plan, tuple: Tuple<'_>) -> String {
    let key: Vec<String> = plan.key_texts(tuple).into_iter().map(|k| k.unwrap_or_else(|| "?".into())).collect();
    format!("key ({})", key.join(", "))
}

/// Until there is a quarantine, a row larger than `max_row` stops the source.
pub(crate) fn oversize(plan: &Plan, row: &str, bytes: usize) -> Error {
    let (schema, table) = (&plan.table.schema, &plan.table.name);
    Error::halt(format!(
        "a row of {schema}.{table}, {row}, has {bytes} bytes, more than `max_row` of the source allows"
    ))
    .hint("raise `max_row` of the source, or leave the large column out with `columns` of the table")
}

/// A row that cannot be carried stops the source: nothing of it is bent or dropped.
pub(crate) fn unfit_value(plan: &Plan, row: &str, error: &ValueError) -> Error {
    let table = &plan.table;
    let column = table.columns.get(error.column).map_or("?", |column| column.name.as_str());
    let db_type = table.columns.get(error.column).map_or("?", |column| column.db_type.as_str());
    let name = format!("{}.{}", table.schema, table.name);
    Error::halt(format!(
        "a value of {name}, {row}, column {column:?} of type {db_type} cannot be carried: {}",
        error.why
    ))
    .hint(format!(
        "carry the column as text: [sources.{}.table.{name:?}] as = {{ {column:?} = \"text\" }}, and start again",
        table.source
    ))
}

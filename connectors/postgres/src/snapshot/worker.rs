//! Reads chunks, each in a short transaction of its own under the round's
//! snapshot: a long one would make an ALTER wait, and all traffic behind it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use connector::{BatchWriter, Error, Op, RawCell, Result, RowExtras, SchemaNumber};
use storage::Micros;

use crate::catalog::CatalogTable;
use crate::connection::{Closer, Connection};
use crate::error::WireError;
use crate::plan::{Plan, copied_cells, literal, quote};
use crate::printed::printed;
use crate::snapshot::copied_body;
use crate::target::Target;
use crate::unfit::{Cause, Row};

/// A chunk may wait in memory up to this; a greater one is handed on as it comes.
const HELD: usize = 16 << 20;
const BATCH: usize = 1 << 20;

/// Part of a table: blocks of one relation, or keys that are owed.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    /// Index into the round's tables.
    pub(crate) table: usize,
    pub(crate) leaf: u32,
    pub(crate) number: u64,
    pub(crate) sql: String,
    /// Zero: not compared.
    pub(crate) file_node: u32,
    pub(crate) locked: String,
    /// What the table's columns are, and how to ask for it.
    pub(crate) types: ColumnTypes,
    pub(crate) plan: Arc<Plan>,
    pub(crate) schema: SchemaNumber,
    /// The sinks that it is read for, with commas between; empty: all.
    pub(crate) audience: String,
    /// Keys, not blocks.
    pub(crate) owed: Option<BTreeSet<Vec<String>>>,
}

/// The types that a plan reads columns as.
#[derive(Clone, Debug, Default)]
pub(crate) struct ColumnTypes {
    pub(crate) oids: String,
    pub(crate) sql: String,
}

impl ColumnTypes {
    /// A stream tells of an ALTER before the catalog shows it to others: a plan
    /// may be older than the table. COPY reads by the catalog as it is now, and
    /// so does this.
    pub(crate) fn new(table: &CatalogTable, plan: &Plan, from: &str) -> Self {
        let read = |name: &str| plan.table.columns.iter().any(|column| column.name == name);
        let columns: Vec<_> = table.columns.iter().filter(|column| read(&column.name)).collect();
        let oids: Vec<String> = columns.iter().map(|column| column.type_oid.to_string()).collect();
        let names: Vec<String> = columns.iter().map(|column| quote(&column.name)).collect();
        let typed: Vec<String> = names.iter().map(|name| format!("pg_typeof(x.{name})::oid")).collect();
        let sql = format!(
            "(SELECT array_to_string(ARRAY[{}]::oid[], ' ') FROM (VALUES (1)) one LEFT JOIN (SELECT {} FROM {from} LIMIT 0) x ON true)",
            typed.join(", "),
            names.join(", ")
        );
        Self { oids: oids.join(" "), sql }
    }
}

/// Some of a chunk's rows.
pub(crate) struct Rows {
    pub(crate) payload: Vec<u8>,
    pub(crate) records: u32,
    pub(crate) unfit: u32,
}

/// What a worker hands on.
pub(crate) enum Piece {
    /// Of one chunk without another's between. All that was held goes at once:
    /// a worker that waited for the log with each batch would let its server wait too.
    Rows(Vec<Rows>),
    /// The chunk is whole.
    Done { chunk: Chunk, rows: u64 },
    /// Its table was rewritten or altered since the round began.
    Changed { chunk: Chunk },
    /// It failed; nothing of it counts.
    Failed(Error),
}

/// What workers share.
pub(crate) struct Work {
    pub(crate) target: Target,
    pub(crate) snapshot: String,
    pub(crate) position: [u8; 8],
    pub(crate) time: Micros,
    pub(crate) chunks: Mutex<VecDeque<Chunk>>,
    /// Held by the one whose chunk goes through.
    pub(crate) lane: Mutex<()>,
    pub(crate) stop: AtomicBool,
    pub(crate) closers: Mutex<Vec<Closer>>,
    /// Rows a second for each worker; 0: no limit.
    pub(crate) rate: u64,
    pub(crate) max_row: usize,
}

impl Work {
    fn next(&self) -> Option<Chunk> {
        if self.stop.load(Ordering::Relaxed) {
            return None;
        }
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

/// A worker's life.
pub(crate) fn run(work: &Work, out: &SyncSender<Piece>) {
    let connect = || -> Result<Connection, WireError> {
        let connection = Connection::connect(&work.target, false)?;
        let closer = connection.closer()?;
        work.closers.lock().unwrap_or_else(PoisonError::into_inner).push(closer);
        Ok(connection)
    };
    let mut connection = match connect() {
        Ok(connection) => connection,
        Err(error) => {
            // Nobody listens any more if the round has ended.
            let _ = out.send(Piece::Failed(error.during("could not connect to read tables")));
            return;
        }
    };
    let mut writer = BatchWriter::new();
    while let Some(chunk) = work.next() {
        let piece = match read(&mut connection, &mut writer, work, &chunk, out) {
            Ok(None) => return,
            Ok(Some(())) => continue,
            Err(Failure::Changed) => {
                writer = BatchWriter::new();
                Piece::Changed { chunk }
            }
            Err(Failure::Error(error)) => Piece::Failed(error),
        };
        let failed = matches!(piece, Piece::Failed(_));
        if out.send(piece).is_err() || failed {
            return;
        }
    }
}

enum Failure {
    Changed,
    Error(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Error(error)
    }
}

/// None: nobody listens any more.
fn read(
    connection: &mut Connection,
    writer: &mut BatchWriter,
    work: &Work,
    chunk: &Chunk,
    out: &SyncSender<Piece>,
) -> Result<Option<()>, Failure> {
    let plan = &chunk.plan;
    let name = || format!("could not read {}.{}", plan.table.schema, plan.table.name);
    let failed = |error: WireError| match &error {
        // The column or table is gone, or is another: its generation ends.
        WireError::Server(server) if matches!(server.code.as_str(), "42703" | "42P01" | "42804" | "42883") => {
            Failure::Changed
        }
        _ => Failure::Error(error.during(name())),
    };
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}; LOCK TABLE {} IN ACCESS SHARE MODE; \
         SELECT coalesce(pg_relation_filenode({leaf}), 0), (SELECT relfilenode FROM pg_class WHERE oid = {leaf}), {types}",
        literal(&work.snapshot),
        chunk.locked,
        leaf = chunk.leaf,
        types = chunk.types.sql
    );
    let rows = connection.query(&begin).map_err(failed)?;
    let found = |i: usize| rows.first().and_then(|row| row.get(i)).and_then(|value| value.as_deref());
    // Its file as it is now, and as the snapshot has it: one that was rewritten
    // in between would show the snapshot no rows at all.
    let is_of = |node: Option<&str>| chunk.file_node == 0 || node.and_then(|n| n.parse().ok()) == Some(chunk.file_node);
    if !is_of(found(0)) || !is_of(found(1)) || found(2) != Some(&chunk.types.oids) {
        connection.query("ROLLBACK").map_err(failed)?;
        return Err(Failure::Changed);
    }
    connection.copy_out(&chunk.sql).map_err(failed)?;
    let mut held: Vec<Rows> = Vec::new();
    let mut unfit = 0u32;
    let mut held_bytes = 0;
    let mut lane = None;
    let (mut rows, started) = (0u64, Instant::now());
    writer.begin_for(&chunk.audience, &work.position, work.time, "", 0);
    while let Some(data) = connection.copy_row().map_err(failed)? {
        let data = copied_body(data);
        if data.is_empty() {
            continue;
        }
        let copied = match data.len() > work.max_row {
            true => Err(Cause::TooLarge),
            false => plan.copied(data, writer.open_row(chunk.schema)).map_err(Cause::Value),
        };
        match copied {
            Ok(()) => writer.close_row(Op::Read, RowExtras::default()),
            Err(cause) => {
                writer.drop_row();
                put_as_it_came(chunk, data, &cause, writer);
                unfit += 1;
            }
        }
        rows += 1;
        if writer.len() >= BATCH {
            if let Some((payload, records)) = writer.take() {
                held_bytes += payload.len();
                held.push(Rows { payload: payload.into(), records, unfit: std::mem::take(&mut unfit) });
            }
            writer.begin_for(&chunk.audience, &work.position, work.time, "", 0);
            if held_bytes > HELD || lane.is_some() {
                lane.get_or_insert_with(|| work.lane.lock().unwrap_or_else(PoisonError::into_inner));
                if out.send(Piece::Rows(std::mem::take(&mut held))).is_err() {
                    return Ok(None);
                }
                held_bytes = 0;
            }
        }
        if work.rate > 0 && rows % 256 == 0 {
            let due = Duration::from_secs_f64(rows as f64 / work.rate as f64);
            while due > started.elapsed() && !work.stop.load(Ordering::Relaxed) {
                std::thread::sleep((due - started.elapsed().min(due)).min(Duration::from_millis(100)));
            }
        }
    }
    connection.query("COMMIT").map_err(failed)?;
    if let Some((payload, records)) = writer.take() {
        held.push(Rows { payload: payload.into(), records, unfit });
    }
    lane.get_or_insert_with(|| work.lane.lock().unwrap_or_else(PoisonError::into_inner));
    let done = Piece::Done { chunk: chunk.clone(), rows };
    Ok((out.send(Piece::Rows(held)).is_ok() && out.send(done).is_ok()).then_some(()))
}

/// Puts a copied row that cannot be carried, as text, its columns in the table's order.
#[cold]
fn put_as_it_came(chunk: &Chunk, data: &[u8], cause: &Cause, writer: &mut BatchWriter) {
    let plan = &chunk.plan;
    let texts: Vec<Option<Vec<u8>>> = plan
        .columns
        .iter()
        .zip(copied_cells(data))
        .map(|(column, value)| match &column.output {
            Some(_) => value.map(<[u8]>::to_vec),
            None => value.and_then(|value| printed(&column.codec, value)),
        })
        .collect();
    let cells = texts.iter().map(|text| text.as_deref().map_or(RawCell::Null, RawCell::Text)).collect();
    let row = Row { op: Op::Read, old: None, new: Some(cells), size: data.len() };
    row.put(plan, chunk.schema, cause, writer);
}

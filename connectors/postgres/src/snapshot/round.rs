//! One round: its point, its chunks, and their way into the log.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use connector::{Captured, Error, Mark, Result, Schemas, StepEnd, fault, patch_first_ordinal};
use storage::{Kind, LogBatch, Micros, StateChange};

use crate::catalog::{self, CatalogTable, Leaf};
use crate::lsn::Lsn;
use crate::plan::{Plan, literal, quote};
use crate::replication::Replication;
use crate::shape::{Compiled, Compiler};
use crate::snapshot::progress::{Generation, Progress};
use crate::snapshot::worker::{self, Chunk, ColumnTypes, Piece, Rows, Work};
use crate::target::Target;

/// Blocks of a chunk: 8 MiB of heap.
const CHUNK_BLOCKS: u64 = 1024;
/// A round ends after so long, so that the permanent slot pins no more WAL than that.
const ROUND_TIME: Duration = Duration::from_secs(300);
/// Keys that one chunk of debts reads.
const OWED: usize = 1_000;

/// A slot with its snapshot, ready for a round. The snapshot lives with the
/// connection, which lives as long as anyone holds this.
#[derive(Clone)]
pub(crate) struct Prepared {
    pub(crate) point: Lsn,
    /// The server's, before it looked for the point: every commit up to then is in the snapshot.
    pub(crate) time: Micros,
    pub(crate) snapshot: String,
    _slot: Arc<Replication>,
}

impl Prepared {
    /// Of a slot that was just made on this connection.
    pub(crate) fn new(point: Lsn, time: Micros, snapshot: String, slot: Replication) -> Self {
        Self { point, time, snapshot, _slot: Arc::new(slot) }
    }
}

/// Makes the temporary slot in a thread of its own: it waits for transactions
/// in progress, and the stream must go on meanwhile.
pub(crate) fn prepare(target: &Target, slot: &str) -> mpsc::Receiver<Result<Prepared>> {
    /// Of the process, not of the stream: one that is opened anew may be faster
    /// than the server lets go of the slot before.
    static SERIAL: AtomicU64 = AtomicU64::new(1);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let (out, prepared) = mpsc::channel();
    let target = target.clone();
    let mut name = format!("{slot}_r{}_{serial}", std::process::id());
    name.replace_range(..name.len().saturating_sub(63), "");
    // The receiver gets an error if the thread cannot be made: its sender is gone.
    let _ = std::thread::Builder::new().name("snapshot-slot".into()).spawn(move || {
        let attempt = || {
            let mut replication = Replication::connect(&target)?;
            let time = replication.clock()?;
            let (point, snapshot) = replication.temporary_slot(&name)?;
            Ok(Prepared::new(point, time, snapshot, replication))
        };
        let made = attempt()
            .map_err(|error: crate::error::WireError| error.during("could not make a temporary slot for the snapshot"));
        let _ = out.send(made);
    });
    prepared
}

/// A table in a round.
struct Job {
    table: CatalogTable,
    compiled: Compiled,
    generation: Generation,
    left: u64,
    changed: bool,
}

/// A round that runs.
pub(crate) struct Round<'a, S> {
    pub(crate) compiler: &'a Compiler<S>,
    pub(crate) progress: &'a Progress,
    pub(crate) target: &'a Target,
    pub(crate) stop: &'a AtomicBool,
    pub(crate) prepared: Prepared,
}

impl<S: Schemas> Round<'_, S> {
    /// Runs it. `hand` takes batches for the log; `tick` is called at least
    /// every 100 ms. Returns whether anything is left for another round.
    pub(crate) fn run(
        self,
        tables: &[CatalogTable],
        mut hand: impl FnMut(Captured) -> Result<()>,
        mut tick: impl FnMut() -> Result<()>,
    ) -> Result<bool> {
        let point = self.prepared.point;
        let mut ordinal = 0u64;
        let mut jobs = Vec::new();
        let mut chunks = VecDeque::new();
        for table in tables {
            let before = self.progress.get(&self.compiler.stream_of(&table.schema, &table.name));
            if before.generation.as_ref().is_some_and(|g| g.finished && g.is_of(table)) {
                continue;
            }
            let compiled = self.compiler.compile(table)?;
            let leaves = self.compiler.handle.block_on(catalog::leaves(&self.compiler.client, table))?;
            let nodes: BTreeMap<u32, u32> = leaves.iter().map(|leaf| (leaf.oid, leaf.file_node)).collect();
            // What has no key cannot be read in parts: a row that moved would come twice.
            let goes_on = before.generation.as_ref().is_some_and(|g| {
                !g.finished
                    && g.next_for.is_none()
                    && g.is_of(table)
                    && g.file_nodes == nodes
                    && g.shape == compiled.number
                    && !compiled.plan.table.key.is_empty()
            });
            let generation = match before.generation {
                Some(generation) if goes_on => generation,
                before => {
                    let generation = Generation {
                        oid: table.oid,
                        published: table.published,
                        publication: table.publication,
                        sinks: before.as_ref().map_or_else(Vec::new, |g| g.sinks_of_next(table)),
                        next_for: None,
                        heard: before.as_ref().map(|g| g.heard.clone()).unwrap_or_default(),
                        generation: self.progress.next_generation(&compiled.stream),
                        finished: false,
                        file_nodes: nodes,
                        shape: compiled.number,
                        chunk_blocks: CHUNK_BLOCKS,
                        rows: 0,
                    };
                    let mut changes = self.progress.set(&compiled.stream, generation.clone());
                    changes.extend(compiled.change.clone());
                    let mark = self.mark(Mark::BEGIN, &compiled, &generation, ordinal);
                    ordinal += 1;
                    hand(mark_batch(&mark, changes, self.prepared.time))?;
                    generation
                }
            };
            let before = self.progress.get(&compiled.stream);
            let mut left = 0;
            let job = jobs.len();
            let mut add = |chunk: Chunk| {
                left += 1;
                chunks.push_back(chunk);
            };
            let mut total = 0;
            for leaf in &leaves {
                for number in 0..leaf.blocks.div_ceil(generation.chunk_blocks).max(1) {
                    total += 1;
                    if !before.chunks.contains(&(leaf.oid, number)) {
                        let chunk = chunk_of(job, table, &compiled, leaf, number, generation.chunk_blocks);
                        add(Chunk { audience: generation.sinks.join(","), ..chunk });
                    }
                }
            }
            self.progress.set_total(&compiled.stream, total);
            let owed: Vec<&Vec<String>> = before.owed.iter().collect();
            for keys in owed.chunks(OWED) {
                let chunk = owed_chunk(job, table, &compiled, keys);
                add(Chunk { audience: generation.sinks.join(","), ..chunk });
            }
            tracing::info!(table = table.qualified(), generation = generation.generation, chunks = left, point = %point, "reading");
            jobs.push(Job { table: table.clone(), compiled, generation, left, changed: false });
        }
        // Broken off between its last chunk and its end.
        for job in jobs.iter_mut().filter(|job| job.left == 0) {
            self.finish(job, &mut ordinal, &mut hand)?;
        }
        let workers = (self.compiler.config.snapshot_connections as usize).min(chunks.len());
        let work = Work {
            target: self.target.clone(),
            snapshot: self.prepared.snapshot.clone(),
            position: point.to_bytes(),
            time: self.prepared.time,
            chunks: Mutex::new(chunks),
            lane: Mutex::new(()),
            stop: AtomicBool::new(false),
            closers: Mutex::new(Vec::new()),
            rate: self.compiler.config.snapshot_rows_per_second.div_ceil(workers.max(1) as u64),
            max_row: self.compiler.config.max_row as usize,
        };
        let started = Instant::now();
        let (out, pieces) = sync_channel(4);
        std::thread::scope(|scope| {
            for _ in 0..workers {
                let (work, out) = (&work, out.clone());
                scope.spawn(move || worker::run(work, &out));
            }
            drop(out);
            let drained = (|| {
                let mut inside = false;
                loop {
                    tick()?;
                    if self.stop.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    // A table without a key must be read in one go, however long it takes.
                    let breakable = jobs.iter().all(|job| !job.compiled.plan.table.key.is_empty());
                    if started.elapsed() > ROUND_TIME && breakable {
                        work.stop.store(true, Ordering::Relaxed);
                    }
                    let piece = match pieces.recv_timeout(Duration::from_millis(100)) {
                        Ok(piece) => piece,
                        Err(RecvTimeoutError::Timeout) => continue,
                        Err(RecvTimeoutError::Disconnected) if inside => {
                            return Err(Error::retry("a chunk of the snapshot was left unfinished"));
                        }
                        Err(RecvTimeoutError::Disconnected) => return Ok(()),
                    };
                    match piece {
                        Piece::Rows(held) => {
                            for Rows { mut payload, records, unfit } in held {
                                patch_first_ordinal(&mut payload, ordinal)
                                    .map_err(|error| Error::halt("a batch of the snapshot is broken").because(error))?;
                                ordinal += u64::from(records);
                                inside = true;
                                hand(Captured { unfit, ..rows_batch(payload.into(), records, self.prepared.time) })?;
                            }
                        }
                        Piece::Done { chunk, rows } => {
                            inside = false;
                            let job = &mut jobs[chunk.table];
                            let stream = job.compiled.stream.clone();
                            let mut changes = Vec::new();
                            if let Some(paid) = &chunk.owed {
                                changes.extend(self.progress.paid(&stream, paid));
                            } else {
                                changes.push(self.progress.done(&stream, chunk.leaf, chunk.number, rows));
                            }
                            hand(end_of_chunk(changes, self.prepared.time))?;
                            fault::point("snapshot-chunk");
                            job.generation.rows += rows;
                            job.left -= 1;
                            if job.left == 0 && !job.changed {
                                self.finish(job, &mut ordinal, &mut hand)?;
                            }
                        }
                        Piece::Changed { chunk } => {
                            let job = &mut jobs[chunk.table];
                            tracing::warn!(
                                table = job.table.qualified(),
                                "rewritten or altered while it was read: it is read again"
                            );
                            job.changed = true;
                            job.left -= 1;
                        }
                        Piece::Failed(error) => return Err(error),
                    }
                }
            })();
            // Whoever waits to hand on must not wait for ever.
            work.stop.store(true, Ordering::Relaxed);
            drop(pieces);
            for closer in work.closers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                if drained.is_err() || self.stop.load(Ordering::Relaxed) {
                    closer.close();
                }
            }
            drained
        })?;
        let mut again = false;
        for job in &jobs {
            again |= job.left > 0 || job.changed;
            if job.changed {
                // For whom it was it is again.
                hand(end_of_chunk(self.progress.anew(&job.compiled.stream), self.prepared.time))?;
            }
        }
        Ok(again)
    }

    fn finish(&self, job: &mut Job, ordinal: &mut u64, hand: &mut impl FnMut(Captured) -> Result<()>) -> Result<()> {
        let rows = self.progress.get(&job.compiled.stream).generation.map_or(0, |g| g.rows);
        job.generation.finished = true;
        job.generation.rows = rows;
        let changes = self.progress.set(&job.compiled.stream, job.generation.clone());
        let mark = self.mark(Mark::END, &job.compiled, &job.generation, *ordinal);
        *ordinal += 1;
        tracing::info!(table = job.table.qualified(), rows, "read");
        hand(mark_batch(&mark, changes, self.prepared.time))
    }

    fn mark(&self, op: &str, compiled: &Compiled, generation: &Generation, ordinal: u64) -> Mark {
        let table = &compiled.plan.table;
        Mark {
            op: op.into(),
            schema: table.schema.clone(),
            table: table.name.clone(),
            stream: compiled.stream.clone(),
            shape: compiled.number,
            generation: generation.generation,
            sinks: generation.sinks.clone(),
            position: self.prepared.point.to_bytes().to_vec(),
            ordinal,
            commit_time: self.prepared.time.0,
        }
    }
}

fn chunk_of(job: usize, table: &CatalogTable, compiled: &Compiled, leaf: &Leaf, number: u64, blocks: u64) -> Chunk {
    let (low, high) = (number * blocks, (number + 1) * blocks);
    // The last chunk is open: rows may lie behind what was measured.
    let until = if high < leaf.blocks { format!(" AND ctid < '({high},0)'::tid") } else { String::new() };
    let sql = format!(
        "COPY (SELECT {} FROM ONLY {} WHERE ctid >= '({low},0)'::tid{until}) TO STDOUT (FORMAT binary)",
        compiled.plan.select_list(),
        leaf.name
    );
    Chunk {
        table: job,
        leaf: leaf.oid,
        number,
        sql,
        file_node: leaf.file_node,
        locked: leaf.name.clone(),
        types: ColumnTypes::new(table, &compiled.plan, &format!("ONLY {}", leaf.name)),
        plan: compiled.plan.clone(),
        schema: compiled.number,
        audience: String::new(),
        owed: None,
    }
}

fn owed_chunk(job: usize, table: &CatalogTable, compiled: &Compiled, keys: &[&Vec<String>]) -> Chunk {
    let sql = rows_sql(&compiled.plan, &table.quoted(), keys);
    Chunk {
        table: job,
        leaf: table.oid,
        number: 0,
        sql,
        file_node: 0,
        locked: table.quoted(),
        types: ColumnTypes::new(table, &compiled.plan, &table.quoted()),
        plan: compiled.plan.clone(),
        schema: compiled.number,
        audience: String::new(),
        owed: Some(keys.iter().map(|key| (*key).clone()).collect()),
    }
}

/// A key, which is the database's text, as a row of its types.
pub(crate) fn key_sql(plan: &Plan, key: &[String]) -> String {
    let shape = &plan.table;
    let typed = |(value, &i): (&String, &usize)| format!("{}::{}", literal(value), shape.columns[i].db_type);
    let values: Vec<String> = key.iter().zip(&shape.key).map(typed).collect();
    format!("({})", values.join(", "))
}

/// Copies the rows of keys, which are the database's text.
pub(crate) fn rows_sql(plan: &Plan, table: &str, keys: &[&Vec<String>]) -> String {
    let shape = &plan.table;
    let names: Vec<String> = shape.key.iter().map(|&i| quote(&shape.columns[i].name)).collect();
    let list: Vec<String> = keys.iter().map(|key| key_sql(plan, key)).collect();
    format!(
        "COPY (SELECT {} FROM {table} WHERE ({}) IN ({})) TO STDOUT (FORMAT binary)",
        plan.select_list(),
        names.join(", "),
        list.join(", ")
    )
}

/// Rows of a point, as a transaction of their own.
pub(crate) fn whole_batch(payload: Bytes, records: u32, state: Vec<StateChange>, time: Micros) -> Captured {
    batch(Kind::Data, payload, records, state, true, time)
}

/// The place at which a step ends.
pub(crate) fn step_end_batch(end: &StepEnd, time: Micros) -> Captured {
    batch(Kind::Control, end.to_payload().into(), 1, Vec::new(), true, time)
}

fn rows_batch(payload: Bytes, records: u32, time: Micros) -> Captured {
    batch(Kind::Data, payload, records, Vec::new(), false, time)
}

fn end_of_chunk(state: Vec<StateChange>, time: Micros) -> Captured {
    batch(Kind::Data, Bytes::new(), 0, state, true, time)
}

fn mark_batch(mark: &Mark, state: Vec<StateChange>, time: Micros) -> Captured {
    batch(Kind::Control, mark.to_payload().into(), 1, state, true, time)
}

/// Without a position: rows of a round lie at its point, and the log resumes
/// where the stream stood, which may be further.
fn batch(kind: Kind, payload: Bytes, records: u32, state: Vec<StateChange>, ends: bool, time: Micros) -> Captured {
    let batch = LogBatch { kind, position: None, records, event_time: time, payload, state, ends_transaction: ends };
    Captured { batch, unfit: 0 }
}

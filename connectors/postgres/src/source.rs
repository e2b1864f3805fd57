//! The PostgreSQL source as the runtime sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use config::{Postgres, SnapshotMode};
use connector::{Captured, Error, Fresh, Result, Schemas, Source};
use serde::Serialize;
use storage::{Durable, Kind, LogBatch, Micros, Position, State};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_postgres::Client;

use crate::capture::Capture;
use crate::catalog::Types;
use crate::connection::Closer;
use crate::control;
use crate::error::control_failed;
use crate::lsn::Lsn;
use crate::points::{PointState, Points, Want};
use crate::replication::{Replication, SystemIdentity};
use crate::shape::Compiler;
use crate::slot::{self, Identity, SlotState};
use crate::snapshot::{Prepared, Progress, TableProgress};
use crate::spool::Spool;
use crate::stream::{Feedback, Shared, Stream};
use crate::tables::{self, LeftOut, Selection};
use crate::target::{Servers, Target};

/// Batches between the stream's thread and the log.
const HANDED: usize = 4;

/// Tails one database through one slot.
pub struct PostgresSource<S> {
    name: String,
    config: Arc<Postgres>,
    servers: Servers,
    /// The one that was reached last.
    target: Option<Target>,
    schemas: Arc<S>,
    spool: PathBuf,
    watch: Watch,
    running: Option<Running>,
    goal: Option<Lsn>,
}

struct Running {
    batches: mpsc::Receiver<Result<Captured>>,
    closer: Closer,
    thread: JoinHandle<()>,
    shared: Arc<Shared>,
    watcher: tokio::task::JoinHandle<()>,
}

/// Where a source is, for whoever asks.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    now: Arc<Mutex<Now>>,
    points: Points,
}

#[derive(Clone, Debug, Default)]
struct Now {
    shared: Arc<Shared>,
    progress: Progress,
    left_out: Vec<LeftOut>,
    server: Option<String>,
    /// For what only the primary can give.
    waits: bool,
}

/// A table's reading.
#[derive(Clone, Debug, Serialize)]
pub struct TableReading {
    /// Its stream.
    pub stream: String,
    /// Counts its readings.
    pub generation: u64,
    /// All was read.
    pub finished: bool,
    /// Chunks read.
    pub chunks: u64,
    /// Chunks in all; 0: not counted yet.
    pub total: u64,
    /// Rows read.
    pub rows: u64,
}

impl Watch {
    fn get(&self) -> Now {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How far the server's WAL reaches, and what of it is durable here.
    pub fn positions(&self) -> (Lsn, Lsn) {
        let Now { shared, .. } = self.get();
        (Lsn(shared.received.load(Ordering::Relaxed)), shared.durable())
    }

    /// Bytes of transactions in progress that wait on disk for their commit.
    pub fn spooled(&self) -> u64 {
        self.get().shared.spooled.load(Ordering::Relaxed)
    }

    /// The server that it reads from, or read from last.
    pub fn server(&self) -> Option<String> {
        self.get().server
    }

    /// What a source that has not begun waits for, and what to do.
    pub fn waits_for(&self) -> Option<(&'static str, &'static str)> {
        self.get().waits.then_some((WAITS_FOR_PRIMARY, SNAPSHOT_AT_PRIMARY))
    }

    /// The slot, as its server last showed it; None: not known.
    pub fn slot(&self) -> Option<SlotState> {
        self.get().shared.slot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For so many seconds the server has said nothing, though it was asked to.
    pub fn silent_seconds(&self) -> u64 {
        self.get().shared.silent.load(Ordering::Relaxed)
    }

    /// Whether a round is under way.
    pub fn is_reading(&self) -> bool {
        self.get().shared.reading.load(Ordering::Relaxed)
    }

    /// Tables that match and are not captured.
    pub fn left_out(&self) -> Vec<LeftOut> {
        self.get().left_out
    }

    /// Has tables read again that pass `wanted`, by stream; which they are.
    pub fn read_again(&self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let Now { shared, progress, .. } = self.get();
        let streams: Vec<String> = progress.all().into_keys().filter(|stream| wanted(stream)).collect();
        shared.want(streams.iter().cloned());
        streams
    }

    /// Asks for a point at which a step of the sink ends; `id` is the asker's own.
    pub fn end_step(&self, id: &str, sink: &str) {
        self.points.want(id, Want::StepEnd(sink.into()));
    }

    /// Asks for rows to be read again by key, at a point.
    pub fn mend(&self, id: &str, keys: BTreeMap<String, Vec<Vec<String>>>) {
        self.points.want(id, Want::Mend(keys));
    }

    /// How far a point is; None: it is not known.
    pub fn point(&self, id: &str) -> Option<PointState> {
        self.points.look(id)
    }

    /// The point's snapshot was taken over.
    pub fn snapshot_taken(&self, id: &str) {
        self.points.taken(id);
    }

    /// Nobody asks for the point any more.
    pub fn forget_point(&self, id: &str) {
        self.points.forget(id);
    }

    /// Every table's reading.
    pub fn tables(&self) -> Vec<TableReading> {
        let reading = |(stream, table): (String, TableProgress)| {
            let generation = table.generation?;
            Some(TableReading {
                stream,
                generation: generation.generation,
                finished: generation.finished,
                chunks: if generation.finished { table.total } else { table.chunks.len() as u64 },
                total: table.total,
                rows: generation.rows,
            })
        };
        self.get().progress.all().into_iter().filter_map(reading).collect()
    }
}

/// The database's oid, which a database dropped and made anew does not keep.
pub(crate) async fn identity(
    client: &Client,
    system: &SystemIdentity,
    standby: bool,
    config: &Postgres,
) -> Result<Identity> {
    let sql = "SELECT current_database()::text, oid FROM pg_database WHERE datname = current_database()";
    let row = client.query_one(sql, &[]).await;
    let row = row.map_err(|error| control_failed(error, "could not ask which database this is"))?;
    Ok(Identity {
        system_identifier: system.system_identifier.clone(),
        timeline: system.timeline,
        database: row.get(0),
        database_oid: row.get(1),
        slot: config.slot.clone(),
        standby,
        kept_from: 0,
    })
}

/// What a slot on a standby waits for, and who brings it.
pub(crate) const WAITS_FOR_PRIMARY: &str = "the slot is made on a standby as soon as the primary logs which transactions run there, which it does by itself only while it writes";
pub(crate) const SNAPSHOT_AT_PRIMARY: &str = "have a superuser run on the primary: SELECT pg_log_standby_snapshot()";

/// Ends a connection if nobody waits for it any more.
struct Abandoned(Option<Closer>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some(closer) = &self.0 {
            closer.close();
        }
    }
}

/// Makes the slot that stays; another connection for its stream, as the slot's
/// own must rest while its snapshot is in use.
async fn make_slot(
    config: &Postgres,
    target: &Target,
    mut replication: Replication,
    standby: bool,
) -> Result<(Replication, Prepared)> {
    // The slots of a standby are its own.
    let (name, failover) = (config.slot.clone(), config.failover && !standby);
    let attempt = format!("could not make slot {name:?}");
    let closer = replication.closer().map_err(|error| Error::retry(attempt.clone()).because(error))?;
    let mut abandoned = Abandoned(Some(closer));
    let to = target.clone();
    let made = tokio::task::spawn_blocking(move || {
        let stream = Replication::connect(&to)?;
        let time = replication.clock()?;
        let (point, snapshot) = replication.permanent_slot(&name, failover)?;
        Ok((stream, Prepared::new(point, time, snapshot, replication)))
    });
    let made = made.await.map_err(|error| Error::retry(attempt.clone()).because(error))?;
    let made = made.map_err(|error: crate::error::WireError| {
        let level = standby && matches!(&error, crate::error::WireError::Server(server) if server.code == "55000");
        let failed = error.during(attempt);
        if level { failed.hint("set wal_level = logical at the primary too, and restart it") } else { failed }
    })?;
    // It lives on.
    abandoned.0 = None;
    Ok(made)
}

impl<S: Schemas> PostgresSource<S> {
    /// Touches nothing yet. Transactions in progress wait in the folder `spool`,
    /// which is its own and need not be kept.
    pub fn new(name: &str, config: Arc<Postgres>, schemas: Arc<S>, spool: PathBuf) -> Result<Self> {
        let (name, servers) = (name.into(), Servers::of(&config)?);
        Ok(Self {
            name,
            config,
            servers,
            target: None,
            schemas,
            spool,
            watch: Watch::default(),
            running: None,
            goal: None,
        })
    }

    /// For status.
    pub fn watch(&self) -> Watch {
        self.watch.clone()
    }

    /// Says that the slot is not made yet, and what it waits for.
    fn waits(&self, is: bool) {
        self.watch.now.lock().unwrap_or_else(PoisonError::into_inner).waits = is;
    }

    async fn halt_running(&mut self) {
        self.waits(false);
        let Some(running) = self.running.take() else { return };
        running.watcher.abort();
        running.shared.stop.store(true, Ordering::Relaxed);
        drop(running.batches);
        let stopped = tokio::task::spawn_blocking(move || {
            // A moment for the last word to the server; then the line is cut.
            let deadline = std::time::Instant::now() + std::time::Duration::from_millis(1500);
            while !running.thread.is_finished() && std::time::Instant::now() < deadline {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            running.closer.close();
            running.thread.join()
        });
        // A panic of the thread was told by the panic itself.
        let _ = stopped.await;
    }
}

/// A server that was chosen, both connections to it, and which it is.
pub(crate) struct Reached {
    pub(crate) target: Target,
    pub(crate) client: Client,
    pub(crate) replication: Replication,
    pub(crate) system: SystemIdentity,
    /// In recovery: nothing can be written there.
    pub(crate) standby: bool,
}

/// A replication connection, and which server it is to.
pub(crate) async fn system(target: &Target) -> Result<(Replication, SystemIdentity)> {
    let to = target.clone();
    let attempt = format!("could not open a replication connection to {target}");
    let connected = tokio::task::spawn_blocking(move || {
        let mut replication = Replication::connect(&to)?;
        let system = replication.identify_system()?;
        Ok((replication, system))
    });
    let connected = connected.await.map_err(|error| Error::retry(attempt.clone()).because(error))?;
    connected.map_err(|error: crate::error::WireError| {
        let refused = matches!(&error, crate::error::WireError::Server(server) if server.code == "42501");
        let failed = error.during(attempt);
        let role = crate::plan::quote(&target.user);
        if refused { failed.hint(format!("ALTER ROLE {role} REPLICATION;")) } else { failed }
    })
}

/// Connects. Where there is nothing to choose our own wire comes first: it tells
/// best what is no PostgreSQL, or has no TLS.
pub(crate) async fn connect(servers: &Servers) -> Result<Reached> {
    let (target, client) = match servers.only() {
        Some(only) => (only.clone(), None),
        None => {
            let (target, client) = servers.connect().await?;
            tracing::info!(server = %target, "the first server that fits");
            (target, Some(client))
        }
    };
    let (replication, system) = system(&target).await?;
    let client = match client {
        Some(client) => client,
        None => control::connect(&target).await?,
    };
    let standby = control::is_standby(&client).await?;
    if standby && replication.server_version() < 160_000 {
        return Err(Error::halt(format!(
            "{target} is a standby, and one can be captured from in PostgreSQL 16 and later"
        ))
        .hint("name the primary in `url`"));
    }
    let level = control::scalar(&client, "SHOW wal_level").await?;
    if level != "logical" {
        return Err(Error::halt(format!("the server has wal_level = {level}, capture needs logical"))
            .hint("ALTER SYSTEM SET wal_level = 'logical'; then restart the server"));
    }
    Ok(Reached { target, client, replication, system, standby })
}

/// Whether no table is left for a round.
fn tables_read<S: Schemas>(compiler: &Compiler<S>, progress: &Progress) -> bool {
    compiler.tables.iter().all(|table| {
        let generation = progress.get(&compiler.stream_of(&table.schema, &table.name)).generation;
        generation.is_some_and(|generation| generation.finished && generation.is_of(table))
    })
}

impl<S: Schemas> Source for PostgresSource<S> {
    async fn open(&mut self, resume: Option<&Position>, state: Arc<State>) -> Result<()> {
        // Of a table that was altered in a savepoint, rolled back, and altered again in
        // the same transaction, the server loses sight while that is in progress
        // ("could not map filenode …", seen on 15 and 18), and never if it is whole.
        let undecodable = |running: &Running| running.shared.undecodable.load(Ordering::Relaxed);
        let streaming = !self.running.as_ref().is_some_and(undecodable);
        self.halt_running().await;
        let resume = match resume {
            None => None,
            Some(position) => Some(Lsn::from_bytes(position.as_bytes()).ok_or_else(|| {
                Error::halt("the log's position is not one of PostgreSQL's").hint("the log belongs to another source")
            })?),
        };
        let Reached { target, client, mut replication, system, standby } = connect(&self.servers).await?;
        self.target = Some(target.clone());
        let known = Identity::of(&state);
        let mut identity = identity(&client, &system, standby, &self.config).await?;
        let found = slot::read(&client, &self.config.slot).await?;
        if let Some(known) = &known {
            slot::same_server((&*self.config).into(), known, &identity, &system, found.as_ref(), resume)?;
            if known.timeline == identity.timeline {
                identity.kept_from = known.kept_from;
            }
        }
        let (selection, standing) = tables::prepare(&client, &self.config, resume.is_some()).await?;
        let Selection { tables, left_out } = selection;
        for out in &left_out {
            tracing::error!(table = out.table, why = out.why, sql = out.sql, "is not captured");
        }
        let publications = tables::publications(&self.config, &tables);
        slot::fits((&*self.config).into(), found.as_ref(), resume)?;
        let mut first_round = None;
        let from = match (resume, &found) {
            (Some(resume), _) => resume,
            (None, Some(found)) => {
                if let Some(pid) = found.active_pid {
                    let what = format!("slot {:?} is in use by the server's process {pid}", self.config.slot);
                    return Err(Error::retry(what).hint("is another daemon running? Two must not share a slot"));
                }
                tracing::warn!(slot = self.config.slot, from = %found.confirmed, "the slot is there and the log is new: it is taken over");
                found.confirmed
            }
            (None, None) => {
                if standby {
                    tracing::warn!(slot = self.config.slot, remedy = SNAPSHOT_AT_PRIMARY, "{WAITS_FOR_PRIMARY}");
                    self.waits(true);
                }
                let made = make_slot(&self.config, &target, replication, standby).await;
                self.waits(false);
                connector::fault::point("slot-made");
                let (stream, made) = made?;
                replication = stream;
                let from = made.point;
                tracing::info!(slot = self.config.slot, from = %from, "slot made");
                first_round = Some(made);
                from
            }
        };
        let progress = Progress::from_state(&state);
        let types = Types::read(&client).await?;
        if !streaming {
            tracing::warn!(
                "the server failed to decode a transaction in progress: for now they come whole, at their commit"
            );
        }
        let protocol = match replication.server_version() {
            _ if !streaming => 1,
            160_000.. => 4,
            150_000.. => 3,
            140_000.. => 2,
            _ => 1,
        };
        let start = format!("could not start to stream from slot {:?} at {from}", self.config.slot);
        let slot = self.config.slot.clone();
        let started = tokio::task::spawn_blocking(move || {
            let started = replication.start(&slot, from, &publications, protocol);
            (replication, started)
        });
        let (replication, started) = started.await.map_err(|error| Error::retry(start.clone()).because(error))?;
        started.map_err(|error| error.during(start))?;

        let shared = Arc::new(Shared::default());
        shared.durable.store(from.0, Ordering::Release);
        let compiler = Compiler {
            source: self.name.clone(),
            config: self.config.clone(),
            schemas: self.schemas.clone(),
            client,
            handle: Handle::current(),
            types,
            tables,
            left_out: left_out.iter().map(|out| out.oid).collect(),
        };
        let captured: BTreeSet<String> =
            compiler.tables.iter().map(|table| compiler.stream_of(&table.schema, &table.name)).collect();
        let mut capture = Capture::new(compiler, progress.clone(), Spool::open(&self.spool)?, from);
        // Who comes back later is read anew: nobody followed it meanwhile.
        for stream in progress.all().into_keys().filter(|stream| !captured.contains(stream)) {
            capture.remember(progress.forget(&stream));
        }
        if known.as_ref() != Some(&identity) {
            capture.remember([identity.change()]);
        }
        // A round takes a slot and a walsender more, and waits for transactions:
        // not at every start.
        let all_read = self.config.snapshot == SnapshotMode::Never || tables_read(&capture.compiler, &progress);
        shared.snapshot_done.store(all_read, Ordering::Relaxed);
        Fresh::all(&state).into_iter().for_each(|fresh| shared.want_for(fresh));
        let (out, batches) = mpsc::channel(HANDED);
        if resume.is_none() {
            // The log knows from its first frame on whose it is and where it begins.
            let state = capture.hand().map(|captured| captured.batch.state).unwrap_or_default();
            let first = LogBatch {
                kind: Kind::Data,
                position: Some(from.position()),
                records: 0,
                event_time: Micros(0),
                payload: Bytes::new(),
                state,
                ends_transaction: true,
            };
            out.try_send(Ok(Captured { batch: first, unfit: 0 }))
                .map_err(|_| Error::retry("no room for the first batch"))?;
        }
        let closer =
            replication.closer().map_err(|error| Error::retry("could not share the connection").because(error))?;
        let out_of_step = out.clone();
        let stream = Stream {
            replication: Feedback::new(replication, shared.clone()),
            capture,
            shared: shared.clone(),
            out,
            target: target.clone(),
            slot: self.config.slot.clone(),
            heartbeat: self.config.heartbeat,
            points: self.watch.points.clone(),
            identity,
            first_round: first_round.filter(|_| self.config.snapshot != SnapshotMode::Never),
        };
        *self.watch.now.lock().unwrap_or_else(PoisonError::into_inner) = Now {
            shared: shared.clone(),
            progress,
            left_out,
            server: Some(format!("{}:{}", target.host, target.port)),
            waits: false,
        };
        let watching = tables::watch(target, self.config.clone(), standing, shared.clone(), out_of_step);
        let thread = std::thread::Builder::new()
            .name(format!("stream-{}", self.name))
            .spawn(move || stream.run())
            .map_err(|error| Error::retry("could not start the stream's thread").because(error))?;
        let watcher = tokio::spawn(watching);
        self.running = Some(Running { batches, closer, thread, shared, watcher });
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Captured>> {
        match &mut self.running {
            Some(running) => running.batches.recv().await.transpose(),
            None => Err(Error::retry("the source is not open")),
        }
    }

    async fn acknowledge(&mut self, upto: Durable<Position>) -> Result<()> {
        if let (Some(running), Some(lsn)) = (&self.running, Lsn::from_bytes(upto.get().as_bytes())) {
            running.shared.durable.fetch_max(lsn.0, Ordering::AcqRel);
        }
        Ok(())
    }

    async fn caught_up(&mut self, durable: Option<&Position>) -> Result<bool> {
        let goal = match self.goal {
            Some(goal) => goal,
            None => {
                let target = self.target.as_ref().ok_or_else(|| Error::retry("the source is not open"))?;
                let client = control::connect(target).await?;
                let goal = if control::is_standby(&client).await? {
                    // Nothing can be written there: all that it has received.
                    let sql = "SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())";
                    control::scalar(&client, sql).await?
                } else {
                    // A message of our own comes behind everything that is committed now.
                    // In a transaction, whose commit has it flushed: by itself a server
                    // does that by a clock, and would not for as long as that was set back.
                    let sql =
                        "SET synchronous_commit = 'local'; SELECT pg_logical_emit_message(true, 'highwater.goal', '')";
                    match control::scalar(&client, sql).await {
                        Ok(goal) => goal,
                        Err(_) => control::scalar(&client, "SELECT pg_current_wal_flush_lsn()").await?,
                    }
                };
                let goal = goal
                    .parse()
                    .map_err(|error| Error::retry("the server's position cannot be read").because(error))?;
                *self.goal.insert(goal)
            }
        };
        let done = self.running.as_ref().is_some_and(|r| r.shared.all_read());
        let durable = durable.and_then(|position| Lsn::from_bytes(position.as_bytes()));
        Ok(done && durable.is_some_and(|durable| durable >= goal))
    }

    fn read_for(&mut self, fresh: &Fresh) {
        // One that is not open reads it in the state when it is.
        if let Some(running) = &self.running {
            running.shared.want_for(fresh.clone());
        }
    }

    async fn close(&mut self) {
        self.halt_running().await;
    }
}

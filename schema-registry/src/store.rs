//! The registry on a log: an answer leaves only once it is durable.
//!
//! ```text
//!  request ─► prepare (parse, compare; no lock) ─► plan on `ahead` ─► log ─► apply to `shown` ─► answer
//! ```
//!
//! Two registries, which share all texts: `ahead` knows what was appended, so
//! that the next request builds on it; `shown` knows what is durable, and is
//! all that anyone sees. Between the two any number of requests wait for one
//! sync, which the log makes for all of them. What a request was judged by is
//! compared again under the lock: if the subject or the settings have changed
//! meanwhile, it is judged anew.

mod cache;
mod prepare;
mod snapshot;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Map, Value};
use storage::outside::LogFiles;
use storage::{Commit, EventLog, Kind, Log, LogBatch, Micros, Offset, Options};
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use self::cache::Cache;
use self::prepare::Purpose;
use crate::change::Change;
use crate::content::NewSchema;
use crate::error::{Code, Error, Refusal, Result};
use crate::registry::{Config, Found, Mode, Registered, Registry, Shown, Which};
use crate::rules;
use crate::subject::Subject;

pub(crate) use self::prepare::Verdict;

/// What the registry takes at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Versions of all subjects, softly deleted ones too.
    pub versions: usize,
    /// How long a comparison may take.
    pub patience: Duration,
    /// A new snapshot is written when so many bytes of log came since the last, and
    /// half as many as that one has. A start reads them, 300 MB a second.
    pub tail: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { versions: 1_000_000, patience: Duration::from_secs(1), tail: 128 << 20 }
    }
}

/// A durable registry.
#[derive(Debug)]
pub struct Store {
    inner: Arc<Inner>,
    applier: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Inner {
    log: Log,
    limits: Limits,
    shown: RwLock<Registry>,
    /// Taken for a plan and its append; never while something is parsed or compared.
    ahead: Mutex<Ahead>,
    cache: Cache,
    /// Threads that may parse and compare at once.
    workers: Semaphore,
    closing: AtomicBool,
}

#[derive(Debug)]
struct Ahead {
    registry: Registry,
    /// To whoever makes it shown; None once closed.
    appended: Option<mpsc::Sender<Appended>>,
}

#[derive(Debug)]
struct Appended {
    /// None: nothing new, but what came before must be durable.
    commit: Option<Commit>,
    changes: Vec<Change>,
    done: oneshot::Sender<storage::Result<()>>,
}

/// Appended and not yet applied, at most.
const IN_FLIGHT: usize = 4_096;
/// Of the log's segments: a start looks at the last one byte by byte.
const SEGMENT_BYTES: u64 = 4 << 20;
/// A start that had to read more behind the snapshot writes a new one beside its work.
const TAIL_AT_START: u64 = 4 << 20;

impl Store {
    /// Opens the registry in a folder, or makes it: reads the newest snapshot,
    /// and what was written since.
    pub async fn open(folder: impl AsRef<Path>, limits: Limits) -> Result<Self> {
        let folder = folder.as_ref().to_path_buf();
        let opened = folder.clone();
        let loaded = tokio::task::spawn_blocking(move || {
            let options = Options { segment_bytes: SEGMENT_BYTES, ..Options::default() };
            let (log, _) = Log::open(&opened, options)?;
            let mut registry = Registry::default();
            let from = snapshot::load(&opened, Some(log.id()), &mut |change| registry.apply(&change))?;
            Ok::<_, Error>((log, registry, from))
        });
        let (log, mut registry, from) = loaded.await.map_err(|_| Error::Closed)??;
        let from = from.unwrap_or(log.start());
        let mut since = 0;
        let mut frames = std::pin::pin!(log.read(from));
        let (mut next, end) = (from, log.high_water());
        while next < end {
            let Some(frame) = frames.next().await else { break };
            let frame = frame?;
            next = frame.offsets.end;
            since += frame.payload.len() as u64;
            decode(&folder, &frame.payload, frame.offsets.start)?.iter().for_each(|change| registry.apply(change));
        }
        let workers = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
        let (appended, taken) = mpsc::channel(IN_FLIGHT);
        let inner = Arc::new(Inner {
            log,
            limits,
            shown: RwLock::new(registry.clone()),
            ahead: Mutex::new(Ahead { registry, appended: Some(appended) }),
            cache: Cache::default(),
            workers: Semaphore::new(workers),
            closing: AtomicBool::new(false),
        });
        let applier = tokio::spawn(apply_in_order(inner.clone(), taken, folder, next, since));
        Ok(Self { inner, applier: Mutex::new(Some(applier)) })
    }

    /// The registry in a folder as far as it is durable, beside whoever writes it.
    pub fn peek(folder: &Path) -> Result<Registry> {
        let mut tries = 0;
        loop {
            tries += 1;
            match peek(folder) {
                Ok(registry) => return Ok(registry),
                // A new snapshot may have taken away what was to be read.
                Err(Error::Log(_)) if tries < 3 => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Registers a schema of our own making, or finds it: compatibility is
    /// decided before, by whoever makes it.
    pub async fn register(&self, subject: &str, text: &str) -> Result<Registered> {
        let subject = Subject::parse(subject)?;
        self.inner.register(subject, NewSchema::avro(text), false, Purpose::Own).await
    }

    /// Registers a schema as somebody sends it: parsed, compared at the
    /// subject's level, and durable when this returns.
    pub async fn register_new(&self, subject: Subject, new: NewSchema, normalize: bool) -> Result<Registered> {
        new.rule_set.as_ref().map_or(Ok(()), rules::check)?;
        self.inner.register(subject, new, normalize, Purpose::Register).await
    }

    /// Takes a schema with its id and version, whatever the mode.
    pub async fn import(&self, subject: Subject, new: NewSchema) -> Result<Registered> {
        self.inner.register(subject, new, false, Purpose::Import).await
    }

    /// Whether a schema could be registered; None: against the versions that
    /// the level asks for.
    pub(crate) async fn compare(
        &self,
        subject: Subject,
        against: Option<Which>,
        new: NewSchema,
        normalize: bool,
    ) -> Result<Verdict> {
        self.inner.compare(subject, against, new, normalize).await
    }

    /// Where a schema is a version of a subject.
    pub(crate) async fn lookup(
        &self,
        subject: Subject,
        new: NewSchema,
        normalize: bool,
        shown: Shown,
    ) -> Result<Found> {
        self.inner.lookup(subject, new, normalize, shown).await
    }

    /// A version's text with what it refers to put in.
    pub(crate) async fn resolved(&self, found: Found) -> Result<String> {
        self.inner.resolved(found).await
    }

    /// Deletes all versions of a subject, softly or for good; their numbers.
    pub async fn delete_subject(&self, subject: Subject, permanent: bool) -> Result<Vec<u32>> {
        self.inner.change(|registry| registry.plan_delete_subject(&subject, permanent)).await
    }

    /// Deletes a version, softly or for good; its number.
    pub async fn delete_version(&self, subject: Subject, which: Which, permanent: bool) -> Result<u32> {
        self.inner.change(|registry| registry.plan_delete_version(&subject, which, permanent)).await
    }

    /// Changes settings by a request's members; gives those understood. The
    /// inner text: a member of the wrong type.
    pub async fn set_config(
        &self,
        scope: Option<Subject>,
        request: Map<String, Value>,
    ) -> Result<Result<Map<String, Value>, String>> {
        let plan = |registry: &Registry| match registry.plan_config(scope.as_ref(), &request) {
            Ok(planned) => planned.map(|(echo, changes)| (Ok(echo), changes)),
            Err(wrong) => Ok((Err(wrong.0), Vec::new())),
        };
        self.inner.change(plan).await
    }

    /// Takes settings away; those that were.
    pub async fn remove_config(&self, scope: Option<Subject>) -> Result<Config> {
        self.inner.change(|registry| registry.plan_no_config(scope.as_ref())).await
    }

    /// Sets a mode by its name; None takes it away.
    pub async fn set_mode(&self, scope: Option<Subject>, mode: Option<String>, force: bool) -> Result<()> {
        let plan = |registry: &Registry| {
            registry.plan_mode(scope.as_ref(), mode.as_deref(), force).map(|changes| ((), changes))
        };
        self.inner.change(plan).await
    }

    /// Takes a mode away; the one that was.
    pub async fn remove_mode(&self, scope: Option<Subject>, recursive: bool) -> Result<Option<Mode>> {
        self.inner.change(|registry| registry.plan_no_mode(scope.as_ref(), recursive)).await
    }

    /// Takes a context without subjects from the list.
    pub async fn delete_context(&self, context: String) -> Result<()> {
        let plan = |registry: &Registry| registry.plan_delete_context(&context).map(|changes| ((), changes));
        self.inner.change(plan).await
    }

    /// Looks at what is durable.
    pub fn read<T>(&self, look: impl FnOnce(&Registry) -> T) -> T {
        self.inner.read(look)
    }

    /// Syncs made by this process.
    pub fn syncs(&self) -> u64 {
        self.inner.log.stats().syncs
    }

    /// Resolves with the error that ended the log, if one does.
    pub async fn failed(&self) -> Error {
        Error::Log(self.inner.log.failed().await)
    }

    /// Ends it, once all that was appended is applied.
    pub async fn close(&self) {
        self.inner.closing.store(true, Ordering::Relaxed);
        self.inner.ahead.lock().await.appended = None;
        if let Some(applier) = self.applier.lock().await.take() {
            // It ends with its channel.
            let _ = applier.await;
        }
        self.inner.log.close().await;
    }
}

impl Inner {
    fn read<T>(&self, look: impl FnOnce(&Registry) -> T) -> T {
        look(&self.shown.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Plans under the lock, appends, and waits until it is durable and shown.
    /// Cancel-safe: from the log's taking it to its place in the line nothing is awaited.
    async fn change<T>(&self, plan: impl FnOnce(&Registry) -> Result<(T, Vec<Change>), Refusal>) -> Result<T> {
        let mut ahead = self.ahead.lock().await;
        let (answer, changes) = plan(&ahead.registry)?;
        let applied = self.append(&mut ahead, changes).await?;
        drop(ahead);
        applied.await.map_err(|_| Error::Closed)??;
        Ok(answer)
    }

    /// The log's own wait is for room and comes before it takes anything: whoever
    /// goes away is either not in the log, or in it and in the line of what is applied.
    async fn append(&self, ahead: &mut Ahead, changes: Vec<Change>) -> Result<oneshot::Receiver<storage::Result<()>>> {
        let sender = ahead.appended.as_ref().ok_or(Error::Closed)?.clone();
        // Room first: once it is in the log, it must be applied.
        let room = sender.reserve().await.map_err(|_| Error::Closed)?;
        let commit = match changes.is_empty() {
            true => None,
            false => {
                let versions = changes.iter().filter(|change| matches!(change, Change::Version { deleted: false, .. }));
                if versions.count() > 0 && ahead.registry.count() >= self.limits.versions {
                    let message = format!("the registry is full: it may hold {} versions", self.limits.versions);
                    return Err(Refusal::new(Code::Full, message).into());
                }
                let mut payload = Vec::with_capacity(changes.iter().map(|change| weight(change) as usize).sum());
                changes.iter().for_each(|change| change.encode(&mut payload));
                let batch = LogBatch {
                    kind: Kind::Data,
                    position: None,
                    records: 1,
                    event_time: Micros(0),
                    payload: payload.into(),
                    state: Vec::new(),
                    ends_transaction: true,
                };
                Some(self.log.append(batch).await?)
            }
        };
        changes.iter().for_each(|change| ahead.registry.apply(change));
        let (done, applied) = oneshot::channel();
        room.send(Appended { commit, changes, done });
        Ok(applied)
    }
}

/// Shows what becomes durable, in order; and writes a snapshot now and then.
async fn apply_in_order(
    inner: Arc<Inner>,
    mut taken: mpsc::Receiver<Appended>,
    folder: PathBuf,
    mut next: Offset,
    mut since: u64,
) {
    let write = |next: Offset| {
        let snapshot = snapshot::Snapshot { offset: next, changes: inner.read(Registry::dump) };
        tokio::spawn(write_snapshot(inner.clone(), folder.clone(), snapshot))
    };
    let mut writing: Option<JoinHandle<u64>> = None;
    let mut last = 0;
    if since > TAIL_AT_START {
        (since, writing) = (0, Some(write(next)));
    }
    while let Some(Appended { commit, changes, done }) = taken.recv().await {
        let durable = match commit {
            Some(commit) => commit.await.map(|appended| next = appended.offsets.end),
            None => Ok(()),
        };
        if durable.is_ok() && !changes.is_empty() {
            let mut shown = inner.shown.write().unwrap_or_else(PoisonError::into_inner);
            changes.iter().for_each(|change| shown.apply(change));
            since += changes.iter().map(weight).sum::<u64>();
        }
        // Nobody may wait any more.
        let _ = done.send(durable);
        if writing.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(written) = writing.take()
        {
            last = written.await.unwrap_or(last);
        }
        if writing.is_none() && since > (last / 2).max(inner.limits.tail) {
            (since, writing) = (0, Some(write(next)));
        }
    }
    if let Some(writing) = writing {
        let _ = writing.await;
    }
}

/// Writes it, then takes away what it makes superfluous; its size.
async fn write_snapshot(inner: Arc<Inner>, folder: PathBuf, snapshot: snapshot::Snapshot) -> u64 {
    let (log, offset) = (inner.log.clone(), snapshot.offset);
    let id = log.id();
    let written = tokio::task::spawn_blocking(move || snapshot.write(&folder, id, &inner.closing)).await;
    match written {
        Ok(Ok(bytes)) => {
            tracing::info!(offset = offset.0, bytes, "registry snapshot written");
            if let Err(error) = log.trim(offset).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "registry's log not trimmed");
            }
            bytes
        }
        // Nothing is lost: the log has it all, and a later one may succeed.
        Ok(Err(error)) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "registry snapshot not written");
            0
        }
        Err(_) => 0,
    }
}

fn weight(change: &Change) -> u64 {
    match change {
        Change::Schema { content, .. } => content.text.len() as u64 + 128,
        _ => 64,
    }
}

fn decode(folder: &Path, payload: &[u8], at: Offset) -> Result<Vec<Change>> {
    Change::decode_all(payload)
        .ok_or_else(|| Error::Unreadable { folder: folder.into(), what: format!("offset {at} holds no changes") })
}

fn peek(folder: &Path) -> Result<Registry> {
    let mut registry = Registry::default();
    let from = snapshot::load(folder, None, &mut |change| registry.apply(&change))?;
    let files = LogFiles::open(folder)?;
    let Some(standing) = files.standing()? else { return Ok(Registry::default()) };
    let mut cursor = files.read(from.unwrap_or(standing.start))?;
    while let Some(frame) = cursor.next()? {
        decode(folder, &frame.payload, frame.offsets.start)?.iter().for_each(|change| registry.apply(change));
    }
    Ok(registry)
}

#[cfg(test)]
mod tests;

//! The log as its owner sees it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures_util::Stream;
use tokio::sync::{Semaphore, oneshot, watch};

use crate::batch::{Frame, LogBatch, StateChange};
use crate::error::{Error, Result};
use crate::files::{Disk, Files, LogFile, SyncPoint, segment_path};
use crate::index::{Index, Sealed};
use crate::newtypes::{Epoch, LogId, Micros, Offset, Position};
use crate::reader::Reader;
use crate::recovery::{Found, Recovery, Standing, recover};
use crate::segment::MAX_PAYLOAD;
use crate::state::State;
use crate::writer::{Commit, Request, Writer, new_segment};

/// An ordered, durable sequence of batches.
pub trait EventLog: Clone + Send + Sync + 'static {
    /// Resolves when a batch is durable.
    type Commit: Future<Output = Result<crate::batch::Appended>> + Send + Unpin;

    /// Takes a batch; waits while too much is under way. The commit resolves
    /// when it is durable. Batches of one transaction must follow each other.
    fn append(&self, batch: LogBatch) -> impl Future<Output = Result<Self::Commit>> + Send;
    /// Makes void what was appended of a transaction that was not ended: its
    /// source failed, and will send it again from the start.
    fn abort(&self) -> impl Future<Output = Result<()>> + Send;
    /// Where a restarted source resumes: that of the last whole durable transaction that had one.
    fn position(&self) -> impl Future<Output = Result<Option<Position>>> + Send;
    /// The end of the last whole durable transaction.
    fn high_water(&self) -> Offset;
    /// Tells of every move of the high-water mark.
    fn subscribe(&self) -> watch::Receiver<Offset>;
    /// Whole transactions from an offset on, never beyond the high-water mark;
    /// waits for more at the end.
    fn read(&self, from: Offset) -> impl Stream<Item = Result<Frame>> + Send + 'static;
    /// Removes what lies below, as far as it is whole segments, and neither
    /// needed by a sink nor held back.
    fn trim(&self, upto: Offset) -> impl Future<Output = Result<()>> + Send;
    /// The state as appended so far.
    fn state(&self) -> Arc<State>;
    /// Writes what was appended, and ends.
    fn close(&self) -> impl Future<Output = ()> + Send;
}

/// What is kept beyond the floor, whichever is reached first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retain {
    /// By commit time against the clock.
    pub age: Option<Duration>,
    /// In all.
    pub bytes: Option<u64>,
}

/// How a log is kept.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// A segment is sealed at the first transaction's end beyond this.
    pub segment_bytes: u64,
    /// Old segments.
    pub retain: Retain,
    /// Bytes appended and not yet durable, at most.
    pub in_flight: usize,
    /// Zeros written ahead of small groups at a time; 0: none.
    pub ahead: u64,
    /// Where a new log begins: beyond every checkpoint of one before it.
    pub first_offset: Offset,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 256 << 20,
            retain: Retain { age: None, bytes: None },
            in_flight: 8 << 20,
            ahead: 1 << 20,
            first_offset: Offset(0),
        }
    }
}

/// What opening found.
pub type Recovered = Recovery;

/// Numbers about a log.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Stats {
    /// In all segments.
    pub bytes: u64,
    /// How many there are.
    pub segments: u64,
    /// Syncs by this process.
    pub syncs: u64,
    /// Nothing can be written for want of room.
    pub disk_full: bool,
    /// Commit time up to which the oldest segment reaches; None while there is only one.
    pub oldest: Option<Micros>,
}

/// What readers may see.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) offset: Offset64,
    pub(crate) segment: u64,
    pub(crate) length: u64,
    pub(crate) position: Option<Position>,
    pub(crate) event_time: Micros,
}

type Offset64 = u64;

pub(crate) struct Shared<F: Files> {
    pub(crate) files: F,
    pub(crate) folder: PathBuf,
    pub(crate) id: LogId,
    pub(crate) epoch: Epoch,
    shown: RwLock<Shown>,
    high_water: watch::Sender<Offset>,
    state: RwLock<Arc<State>>,
    /// Sealed segments by first offset; None: not looked at by this process.
    pub(crate) sealed: RwLock<BTreeMap<u64, Option<Arc<Sealed>>>>,
    /// The least checkpoint, once it was told.
    pub(crate) floor: Mutex<Option<u64>>,
    pub(crate) syncs: AtomicU64,
    /// That follow the log in this process.
    pub(crate) readers: AtomicUsize,
    pub(crate) disk_full: AtomicBool,
    pub(crate) closing: AtomicBool,
    failure: watch::Sender<Option<Error>>,
}

impl<F: Files> Shared<F> {
    pub(crate) fn state(&self) -> Arc<State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn apply(&self, changes: Vec<StateChange>) {
        if changes.is_empty() {
            return;
        }
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let state = Arc::make_mut(&mut state);
        changes.into_iter().for_each(|change| state.apply(change));
    }

    pub(crate) fn shown(&self) -> Shown {
        self.shown.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn show(&self, shown: Shown) {
        let offset = Offset(shown.offset);
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = shown;
        // Sent each time: an empty transaction moves no offset and yet is news.
        self.high_water.send_replace(offset);
    }

    pub(crate) fn add_segment(&self, base: u64, sealed: Sealed) {
        let mut all = self.sealed.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut last) = all.last_entry() {
            last.insert(Some(Arc::new(sealed)));
        }
        all.insert(base, None);
    }

    pub(crate) fn fail(&self, error: Error) {
        self.failure.send_replace(Some(error));
    }

    pub(crate) fn close(&self) {
        self.failure.send_if_modified(|failure| {
            failure.get_or_insert(Error::Closed);
            true
        });
    }

    /// A sealed segment's end and index.
    pub(crate) fn sealed(&self, base: u64) -> Result<Option<Arc<Sealed>>> {
        let known = self.sealed.read().unwrap_or_else(PoisonError::into_inner).get(&base).cloned();
        match known {
            None => Ok(None),
            Some(Some(sealed)) => Ok(Some(sealed)),
            Some(None) => {
                let path = segment_path(&self.folder, base);
                let loaded = Sealed::load(&self.files, &path)?;
                let bad = |(at, offset, bad)| crate::recovery::bad_frame(path.clone(), at, offset, bad);
                let loaded = loaded.map_err(bad)?;
                loaded.write(&self.files, &path);
                let loaded = Arc::new(loaded);
                let mut all = self.sealed.write().unwrap_or_else(PoisonError::into_inner);
                all.insert(base, Some(loaded.clone()));
                Ok(Some(loaded))
            }
        }
    }

    /// Bytes that a segment takes; of the newest, those of its frames.
    pub(crate) fn length(&self, base: u64) -> u64 {
        let shown = self.shown();
        if base == shown.segment {
            return shown.length;
        }
        let path = segment_path(&self.folder, base);
        self.files.open(&path).and_then(|file| file.length()).unwrap_or(0)
    }

    /// First offsets of all segments, the newest last.
    pub(crate) fn bases(&self) -> Vec<u64> {
        self.sealed.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }
}

/// The segmented log in a folder.
pub struct Log<F: Files = Disk> {
    shared: Arc<Shared<F>>,
    requests: Sender<Request>,
    room: Arc<Semaphore>,
    in_flight: usize,
    writer: Arc<Mutex<Option<std::thread::JoinHandle<()>>>>,
}

impl<F: Files> Clone for Log<F> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            requests: self.requests.clone(),
            room: self.room.clone(),
            in_flight: self.in_flight,
            writer: self.writer.clone(),
        }
    }
}

impl<F: Files> std::fmt::Debug for Log<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("folder", &self.shared.folder).field("id", &self.shared.id).finish()
    }
}

impl Log {
    /// Opens the log in a folder, for writing; makes it if there is none.
    /// Reads the newest segment, so it may take a second.
    pub fn open(folder: impl AsRef<Path>, options: Options) -> Result<(Self, Recovered)> {
        Self::open_on(Disk, folder, options)
    }
}

impl<F: Files> Log<F> {
    /// As `open`, on a file system of choice.
    pub fn open_on(files: F, folder: impl AsRef<Path>, options: Options) -> Result<(Self, Recovered)> {
        let folder = folder.as_ref().to_path_buf();
        let io = |what, error| Error::io(what, &folder, error);
        files.create_folder(&folder).map_err(|error| io("make the folder", error))?;
        let lock = files.lock(&folder.join("log.lock")).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => Error::Locked(folder.clone()),
            _ => io("lock", error),
        })?;
        let found = match recover(&files, &folder)? {
            Some(found) => found,
            None => make(&files, &folder, options)?,
        };
        let Found { mut standing, state, bases, file, mut length, mut index, recovery } = found;
        let epoch = Epoch(standing.epoch + 1);
        let segment = *bases.last().expect("a log that was found or made has a segment");
        // The new epoch is durable before anything is written under it.
        index.note(standing.offset, length, standing.event_time);
        let path = segment_path(&folder, segment);
        length += write_epoch(&file, &path, length, &mut standing, epoch)?;
        let shown = Shown {
            offset: standing.offset,
            segment,
            length,
            position: standing.position.clone(),
            event_time: standing.event_time,
        };
        let (requests, taken) = channel();
        let shared = Arc::new(Shared {
            files: files.clone(),
            folder: folder.clone(),
            id: standing.id,
            epoch,
            high_water: watch::Sender::new(Offset(standing.offset)),
            shown: RwLock::new(shown.clone()),
            state: RwLock::new(Arc::new(state)),
            sealed: RwLock::new(bases.into_iter().map(|base| (base, None)).collect()),
            floor: Mutex::new(None),
            syncs: AtomicU64::new(0),
            readers: AtomicUsize::new(0),
            disk_full: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            failure: watch::Sender::new(None),
        });
        let writer = Writer {
            shared: shared.clone(),
            requests: taken,
            files,
            folder: folder.clone(),
            options,
            synced: standing.sequence,
            standing,
            epoch,
            segment,
            file,
            length,
            ahead_to: 0,
            forgotten: length,
            index,
            joined: Vec::new(),
            inside: false,
            waiting: Default::default(),
            unsynced: 0,
            oldest: None,
            changes: Vec::new(),
            untold: false,
            whole: shown,
            _lock: lock,
        };
        let thread = std::thread::Builder::new()
            .name("log-writer".into())
            .spawn(move || writer.run())
            .map_err(|error| io("start the writer of", error))?;
        let log = Self {
            shared,
            requests,
            room: Arc::new(Semaphore::new(options.in_flight.max(1))),
            in_flight: options.in_flight.max(1),
            writer: Arc::new(Mutex::new(Some(thread))),
        };
        Ok((log, recovery))
    }

    /// Which log this is.
    pub fn id(&self) -> LogId {
        self.shared.id
    }

    /// Of this opening.
    pub fn epoch(&self) -> Epoch {
        self.shared.epoch
    }

    /// The first offset still held.
    pub fn start(&self) -> Offset {
        Offset(self.shared.bases().first().copied().unwrap_or(0))
    }

    /// Commit time up to which all is shown.
    pub fn event_time(&self) -> Micros {
        self.shared.shown().event_time
    }

    /// Everything below may be removed, by age and size.
    pub fn retain_from(&self, floor: Offset) {
        *self.shared.floor.lock().unwrap_or_else(PoisonError::into_inner) = Some(floor.0);
        // A writer that has ended removes nothing.
        let _ = self.requests.send(Request::Retain);
    }

    /// The first offset of a transaction whose commit time may be at or after
    /// `time`; the high-water mark if none is shown yet.
    pub fn offset_at(&self, time: Micros) -> Result<Offset> {
        let end = self.high_water();
        let files = crate::outside::LogFiles::open_on(self.shared.files.clone(), &self.shared.folder)?;
        Ok(files.first_at(time)?.map_or(end, |found| found.min(end)))
    }

    /// The first offset of the transaction that an offset lies in.
    pub fn transaction_at(&self, offset: Offset) -> Result<Offset> {
        let files = crate::outside::LogFiles::open_on(self.shared.files.clone(), &self.shared.folder)?;
        files.transaction_at(offset)
    }

    /// Bytes of the log from an offset on, to the MiB; in the newest segment
    /// as if its events were all of a size.
    pub fn bytes_from(&self, offset: Offset) -> Result<u64> {
        let shown = self.shared.shown();
        let mut bytes = 0;
        for pair in self.shared.bases().windows(2).filter(|pair| pair[1] > offset.0) {
            let Some(sealed) = self.shared.sealed(pair[0])? else { continue };
            let from = if offset.0 > pair[0] { sealed.index.before_offset(offset.0) } else { 0 };
            bytes += sealed.length - from.min(sealed.length);
        }
        let (begin, end) = (shown.segment.max(offset.0), shown.offset);
        let share = end.saturating_sub(begin) as f64 / end.saturating_sub(shown.segment).max(1) as f64;
        Ok(bytes + (shown.length as f64 * share) as u64)
    }

    /// Resolves with the error that ended the log, if one does.
    pub async fn failed(&self) -> Error {
        let mut failure = self.shared.failure.subscribe();
        let failed = failure.wait_for(|error| error.as_ref().is_some_and(|e| !matches!(e, Error::Closed))).await;
        failed.ok().and_then(|error| error.clone()).unwrap_or(Error::Closed)
    }

    /// Numbers.
    pub fn stats(&self) -> Stats {
        let bases = self.shared.bases();
        Stats {
            bytes: bases.iter().map(|&base| self.shared.length(base)).sum(),
            segments: bases.len() as u64,
            syncs: self.shared.syncs.load(Ordering::Relaxed),
            disk_full: self.shared.disk_full.load(Ordering::Relaxed),
            oldest: bases
                .first()
                .filter(|_| bases.len() > 1)
                .and_then(|base| Some(self.shared.sealed(*base).ok()??.time)),
        }
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Arc<Shared<F>> {
        &self.shared
    }

    fn error(&self) -> Error {
        self.shared.failure.borrow().clone().unwrap_or(Error::Closed)
    }
}

fn make<F: Files>(files: &F, folder: &Path, options: Options) -> Result<Found<F>> {
    let mut standing = Standing {
        id: random_id()?,
        epoch: 0,
        sequence: 0,
        offset: options.first_offset.0,
        chain: 0,
        event_time: Micros(i64::MIN),
        position: None,
    };
    let base = standing.offset;
    sync_names(files, folder).map_err(|error| Error::io("sync the folders above", folder, error))?;
    let (file, length) = new_segment(files, folder, &mut standing, Epoch(0), &State::default())?;
    let (index, recovery) = (Index::default(), Recovery::default());
    Ok(Found { standing, state: State::default(), bases: vec![base], file, length, index, recovery })
}

/// Makes the names of all folders above durable: who made them, and whether
/// that process lived to sync them, is not known. It comes before the first
/// segment: where one is found, this was done.
fn sync_names<F: Files>(files: &F, folder: &Path) -> io::Result<()> {
    let whole = std::path::absolute(folder)?;
    for (i, above) in whole.ancestors().skip(1).enumerate() {
        match files.sync_folder(above, SyncPoint::NewFolder) {
            // Where nothing may be read, nothing was made by us.
            Err(error) if i > 0 && error.kind() == io::ErrorKind::PermissionDenied => break,
            synced => synced?,
        }
    }
    Ok(())
}

fn write_epoch<F: LogFile>(file: &F, path: &Path, at: u64, standing: &mut Standing, epoch: Epoch) -> Result<u64> {
    let mut header = crate::segment::Header {
        kind: crate::segment::FrameKind::Idle,
        ends_transaction: true,
        epoch,
        sequence: standing.sequence,
        base: standing.offset,
        event_time: standing.event_time,
        synced: standing.sequence,
        records: 0,
        position: None,
        payload_length: 0,
        payload_crc: crate::segment::crc(&[]),
        chain: 0,
    };
    header.chain = header.chain_after(standing.chain);
    let written = file.write_at(&header.encode(Some(standing.id)), at).and_then(|()| file.sync(SyncPoint::Epoch));
    written.map_err(|error| Error::fatal("writing the epoch to", path, error))?;
    standing.sequence += 1;
    standing.chain = header.chain;
    standing.epoch = epoch.0;
    Ok(header.frame_length())
}

fn random_id() -> Result<LogId> {
    use std::io::Read;
    let path = "/dev/urandom";
    let mut id = [0; 16];
    std::fs::File::open(path)
        .and_then(|mut file| file.read_exact(&mut id))
        .map_err(|error| Error::io("read", path, error))?;
    Ok(LogId(id))
}

impl<F: Files> EventLog for Log<F> {
    type Commit = Commit;

    async fn append(&self, batch: LogBatch) -> Result<Commit> {
        let state: usize = batch.state.iter().map(|c| c.key.len() + c.value.as_ref().map_or(0, |v| v.len()) + 9).sum();
        let size = batch.payload.len() + state + 256;
        if batch.payload.len() > MAX_PAYLOAD || state > MAX_PAYLOAD {
            return Err(Error::TooLarge(size));
        }
        // A batch greater than the bound takes all the room there is.
        let permits = size.min(self.in_flight).min(u32::MAX as usize) as u32;
        let room = match self.room.clone().try_acquire_many_owned(permits) {
            Ok(room) => room,
            Err(_) => {
                let mut failure = self.shared.failure.subscribe();
                tokio::select! {
                    room = self.room.clone().acquire_many_owned(permits) => room.map_err(|_| Error::Closed)?,
                    _ = failure.wait_for(Option::is_some) => return Err(self.error()),
                }
            }
        };
        let (done, commit) = oneshot::channel();
        let request = Request::Append { batch, done, room: Some(room) };
        self.requests.send(request).map_err(|_| self.error())?;
        Ok(Commit(commit))
    }

    async fn abort(&self) -> Result<()> {
        let (done, aborted) = oneshot::channel();
        self.requests.send(Request::Abort { done }).map_err(|_| self.error())?;
        aborted.await.unwrap_or_else(|_| Err(self.error()))
    }

    async fn position(&self) -> Result<Option<Position>> {
        Ok(self.shared.shown().position)
    }

    fn high_water(&self) -> Offset {
        Offset(self.shared.shown().offset)
    }

    fn subscribe(&self) -> watch::Receiver<Offset> {
        self.shared.high_water.subscribe()
    }

    fn read(&self, from: Offset) -> impl Stream<Item = Result<Frame>> + Send + 'static {
        Reader::new(self.shared.clone(), from.0).stream(self.subscribe())
    }

    async fn trim(&self, upto: Offset) -> Result<()> {
        let (done, trimmed) = oneshot::channel();
        self.requests.send(Request::Trim { upto, done }).map_err(|_| self.error())?;
        trimmed.await.unwrap_or_else(|_| Err(self.error()))
    }

    fn state(&self) -> Arc<State> {
        self.shared.state()
    }

    async fn close(&self) {
        self.shared.closing.store(true, Ordering::Relaxed);
        let (done, closed) = oneshot::channel();
        if self.requests.send(Request::Close { done }).is_ok() {
            // An error means that the writer has ended before.
            let _ = closed.await;
        }
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        }
    }
}

//! The one thread that writes: frames, group commits, new segments.
//!
//! A group is synced when 2 MiB wait, or the input is drained, or its oldest
//! frame has waited for 5 ms while more keeps coming. While a sync runs, the
//! next group gathers in the channel.
//!
//! A sync of a file that grew writes its length and blocks too. So zeros are
//! written ahead of small groups, once for many, and frames then stand in place
//! of zeros.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::batch::{Appended, Kind, LogBatch, StateChange};
use crate::error::{Error, Result};
use crate::fault;
use crate::files::{Files, LogFile, SyncPoint, segment_path};
use crate::index::{Index, Sealed};
use crate::log::{Options, Shared, Shown};
use crate::newtypes::{Durable, Epoch, Micros, Offset, OffsetRange};
use crate::recovery::Standing;
use crate::retention;
use crate::segment::{FrameKind, Header, crc};
use crate::state::encode_changes;

const GROUP_BYTES: usize = 2 << 20;
/// Memory is given back in pieces of this size, which is one of pages.
pub(crate) const FORGOTTEN: u64 = 1 << 20;
/// Copying so much costs less than a second call.
const SMALL: usize = 16 << 10;
/// Written ahead, a piece at a time.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
const LINGER: Duration = Duration::from_millis(5);
const IDLE: Duration = Duration::from_millis(50);

/// The state key of the first pending frame that was not released.
pub const PENDING_KEY: &[u8] = b"log/pending";

/// Resolves when a batch is durable. Cancel-safe: dropping it does not take the batch back.
#[derive(Debug)]
pub struct Commit(pub(crate) oneshot::Receiver<Result<Appended>>);

impl Future for Commit {
    type Output = Result<Appended>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or(Err(Error::Closed)))
    }
}

pub(crate) enum Request {
    Append { batch: LogBatch, done: oneshot::Sender<Result<Appended>>, room: Option<OwnedSemaphorePermit> },
    Abort { done: oneshot::Sender<Result<()>> },
    Trim { upto: Offset, done: oneshot::Sender<Result<()>> },
    Retain,
    Close { done: oneshot::Sender<()> },
}

pub(crate) struct Writer<F: Files> {
    pub(crate) shared: Arc<Shared<F>>,
    pub(crate) requests: Receiver<Request>,
    pub(crate) files: F,
    pub(crate) folder: PathBuf,
    pub(crate) options: Options,
    pub(crate) standing: Standing,
    pub(crate) epoch: Epoch,
    pub(crate) segment: u64,
    pub(crate) file: F::File,
    pub(crate) length: u64,
    /// No zeros are written ahead before the length reaches this.
    pub(crate) ahead_to: u64,
    /// Of the file, what memory need not hold.
    pub(crate) forgotten: u64,
    pub(crate) index: Index,
    /// Head and payload of a small frame.
    pub(crate) joined: Vec<u8>,
    pub(crate) synced: u64,
    pub(crate) inside: bool,
    pub(crate) waiting: VecDeque<Waiting>,
    pub(crate) unsynced: usize,
    pub(crate) oldest: Option<Instant>,
    /// Changes of the transaction under way.
    pub(crate) changes: Vec<StateChange>,
    /// The newest frame tells less than is synced.
    pub(crate) untold: bool,
    /// At the last transaction's end.
    pub(crate) whole: Shown,
    /// Given back when nothing more is written, whoever still reads.
    pub(crate) _lock: F::Lock,
}

pub(crate) struct Waiting {
    done: oneshot::Sender<Result<Appended>>,
    appended: Appended,
    _room: Option<OwnedSemaphorePermit>,
}

enum Next {
    More,
    Drained,
    Idle,
    Close(Option<oneshot::Sender<()>>),
}

impl<F: Files> Writer<F> {
    pub(crate) fn run(mut self) {
        let closing = loop {
            match self.turn() {
                Ok(None) => {}
                Ok(Some(closing)) => break closing,
                Err(error) => return self.poison(error),
            }
        };
        if let Err(error) = self.end() {
            return self.poison(error);
        }
        self.shared.close();
        if let Some(done) = closing {
            let _ = done.send(());
        }
    }

    /// Leaves a file that ends with its last frame.
    fn end(&mut self) -> Result<()> {
        self.sync()?;
        self.idle()?;
        self.options.ahead = 0;
        if self.ahead_to > self.length {
            self.end_here()?;
        }
        self.sync()
    }

    fn turn(&mut self) -> Result<Option<Option<oneshot::Sender<()>>>> {
        match self.take()? {
            Next::More => {
                if self.unsynced >= GROUP_BYTES || self.oldest.is_some_and(|oldest| oldest.elapsed() >= LINGER) {
                    self.sync()?;
                }
            }
            Next::Drained => self.sync()?,
            Next::Idle => {
                if self.untold {
                    self.idle()?;
                }
            }
            Next::Close(done) => return Ok(Some(done)),
        }
        // Nothing but state was written since: there is no offset to name the next one by.
        let named = self.standing.offset > self.segment;
        if self.length >= self.options.segment_bytes && !self.inside && named {
            self.sync()?;
            self.roll()?;
            self.retain();
        }
        Ok(None)
    }

    /// What cannot be removed now is tried again later: the log goes on. The
    /// state that says what may go must be durable before.
    fn retain(&self) {
        if let Err(error) = retention::apply(&self.shared, &self.files, &self.folder, &self.options) {
            tracing::error!(error = &error as &dyn std::error::Error, "old segments stay");
        }
    }

    fn take(&mut self) -> Result<Next> {
        let request = if self.waiting.is_empty() {
            match self.requests.recv_timeout(IDLE) {
                Ok(request) => request,
                Err(RecvTimeoutError::Timeout) => return Ok(Next::Idle),
                Err(RecvTimeoutError::Disconnected) => return Ok(Next::Close(None)),
            }
        } else {
            match self.requests.try_recv() {
                Ok(request) => request,
                Err(TryRecvError::Empty) => return Ok(Next::Drained),
                Err(TryRecvError::Disconnected) => return Ok(Next::Close(None)),
            }
        };
        match request {
            Request::Append { batch, done, room } => match self.append(batch) {
                Ok(appended) => {
                    self.waiting.push_back(Waiting { done, appended, _room: room });
                    self.oldest.get_or_insert_with(Instant::now);
                }
                Err(error) => {
                    let _ = done.send(Err(error.clone()));
                    return Err(error);
                }
            },
            Request::Abort { done } => {
                let aborted = self.abort();
                let _ = done.send(aborted.clone());
                aborted?;
            }
            Request::Trim { upto, done } => {
                let synced = self.sync();
                let trim = |()| retention::trim(&self.shared, &self.files, &self.folder, upto.0);
                let _ = done.send(synced.clone().and_then(trim));
                synced?;
            }
            Request::Retain => {
                self.sync()?;
                self.retain();
            }
            Request::Close { done } => return Ok(Next::Close(Some(done))),
        }
        Ok(Next::More)
    }

    fn append(&mut self, mut batch: LogBatch) -> Result<Appended> {
        if !batch.ends_transaction {
            // It may be aborted yet: nothing can be resumed from here.
            batch.position = None;
        }
        if batch.kind == Kind::Pending && !self.is_pending(&batch) {
            let value = self.standing.offset.to_string().into();
            batch.state.push(StateChange { key: PENDING_KEY.into(), value: Some(value) });
        }
        if !self.inside {
            self.index.note(self.standing.offset, self.length, self.standing.event_time);
        }
        let start = Offset(self.standing.offset);
        let only_state = batch.records == 0 && batch.payload.is_empty() && !batch.state.is_empty();
        if !batch.state.is_empty() {
            let payload = encode_changes(&batch.state).into();
            let changes = std::mem::take(&mut batch.state);
            let frame = LogBatch { payload, records: 0, state: Vec::new(), ..batch.clone() };
            if only_state {
                self.frame(FrameKind::State, &frame)?;
            } else {
                self.frame(FrameKind::State, &LogBatch { position: None, ends_transaction: false, ..frame })?;
            }
            self.changes.extend(changes);
        }
        if !only_state {
            self.frame(FrameKind::Log(batch.kind), &batch)?;
        }
        fault::point("after-frame");
        self.inside = !batch.ends_transaction;
        if batch.ends_transaction {
            self.shared.apply(std::mem::take(&mut self.changes));
            self.end_of_transaction();
        }
        let offsets = OffsetRange { start, end: Offset(self.standing.offset) };
        Ok(Appended { offsets, position: Durable(batch.position) })
    }

    /// Whether a frame before is held back: in the state, or in the transaction under way.
    fn is_pending(&self, batch: &LogBatch) -> bool {
        let mut changes = self.changes.iter().chain(&batch.state).rev();
        match changes.find(|change| change.key == PENDING_KEY) {
            Some(change) => change.value.is_some(),
            None => self.shared.state().get(PENDING_KEY).is_some(),
        }
    }

    /// The transaction under way will not be finished: what was written of it
    /// is made void, and its offsets stay a hole.
    fn abort(&mut self) -> Result<()> {
        if !self.inside {
            // Whoever asks for the position next must not be sent again what
            // is whole and only waits for its sync.
            return self.sync();
        }
        self.changes.clear();
        self.empty_frame(FrameKind::Abort)?;
        self.inside = false;
        self.end_of_transaction();
        self.sync()
    }

    fn end_of_transaction(&mut self) {
        self.whole = Shown {
            offset: self.standing.offset,
            segment: self.segment,
            length: self.length,
            position: self.standing.position.clone(),
            event_time: self.standing.event_time,
        };
    }

    fn frame(&mut self, kind: FrameKind, batch: &LogBatch) -> Result<()> {
        let mut header = Header {
            kind,
            ends_transaction: batch.ends_transaction,
            epoch: self.epoch,
            sequence: self.standing.sequence,
            base: self.standing.offset,
            event_time: self.standing.event_time.max(batch.event_time),
            synced: self.synced,
            records: batch.records,
            position: batch.position.clone(),
            payload_length: batch.payload.len() as u32,
            payload_crc: crc(&batch.payload),
            chain: 0,
        };
        header.chain = header.chain_after(self.standing.chain);
        let head = header.encode(Some(self.standing.id));
        self.write(&head, &batch.payload)?;
        self.length += header.frame_length();
        self.unsynced += header.frame_length() as usize;
        self.standing.sequence += 1;
        self.standing.offset = header.end();
        self.standing.chain = header.chain;
        self.standing.event_time = header.event_time;
        if batch.position.is_some() {
            self.standing.position = header.position;
        }
        self.untold = true;
        Ok(())
    }

    /// Writes a frame whole; a full disk is waited for.
    fn write(&mut self, head: &[u8], payload: &[u8]) -> Result<()> {
        let mut pause = Duration::from_millis(5);
        loop {
            let written = if payload.len() <= SMALL {
                self.joined.clear();
                self.joined.extend_from_slice(head);
                self.joined.extend_from_slice(payload);
                self.file.write_at(&self.joined, self.length)
            } else {
                let behind = self.length + head.len() as u64;
                self.file.write_at(head, self.length).and_then(|()| self.file.write_at(payload, behind))
            };
            let Err(error) = written else {
                self.shared.disk_full.store(false, Ordering::Relaxed);
                return Ok(());
            };
            let path = segment_path(&self.folder, self.segment);
            if !is_full(&error) {
                return Err(Error::fatal("writing", path, error));
            }
            // This part was never synced or shown: what of it was written is cut off again.
            self.end_here()?;
            if !self.shared.disk_full.swap(true, Ordering::Relaxed) {
                tracing::error!(segment = %path.display(), "disk full: nothing more is read from the source until there is room");
            }
            // What was written before needs no room any more, and is waited for.
            self.sync()?;
            if self.shared.closing.load(Ordering::Relaxed) {
                return Err(Error::fatal("writing", path, error));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    /// Zeros behind a small group, for those that follow: a sync that finds the
    /// file's length and blocks as they were writes nothing else. It never goes
    /// beyond where a segment is sealed, so that a sealed one has none.
    fn write_ahead(&mut self) -> Result<()> {
        if self.length < self.ahead_to || self.unsynced > SMALL {
            return Ok(());
        }
        let to = (self.length + self.options.ahead).min(self.options.segment_bytes);
        let mut at = self.length;
        while at < to {
            let zeros = &ZEROS[..ZEROS.len().min((to - at) as usize)];
            match self.file.write_at(zeros, at) {
                Ok(()) => at += zeros.len() as u64,
                // It goes without. What there was room for is left to the frames.
                Err(error) if is_full(&error) => {
                    self.end_here()?;
                    break;
                }
                Err(error) => return Err(Error::fatal("writing", segment_path(&self.folder, self.segment), error)),
            }
        }
        self.ahead_to = to;
        Ok(())
    }

    /// Cuts off what stands behind the last frame.
    fn end_here(&mut self) -> Result<()> {
        self.ahead_to = 0;
        let path = || segment_path(&self.folder, self.segment);
        self.file.truncate(self.length).map_err(|error| Error::fatal("cutting", path(), error))
    }

    fn sync(&mut self) -> Result<()> {
        self.oldest = None;
        if self.synced < self.standing.sequence {
            self.write_ahead()?;
            fault::point("before-fsync");
            let path = || segment_path(&self.folder, self.segment);
            self.file.sync(SyncPoint::Group).map_err(|error| Error::fatal("sync of", path(), error))?;
            fault::point("after-fsync");
            self.shared.syncs.fetch_add(1, Ordering::Relaxed);
            self.synced = self.standing.sequence;
            self.unsynced = 0;
            self.forget();
            // Its time stamp is the instant at which all below became durable.
            tracing::trace!(offset = self.whole.offset, "durable");
        }
        self.shared.show(self.whole.clone());
        // The first last: whoever waits for all in order is woken once, and finds the others there.
        for waiting in self.waiting.drain(..).rev() {
            // Nobody waits any more: the batch is there all the same.
            let _ = waiting.done.send(Ok(waiting.appended));
        }
        Ok(())
    }

    /// What is durable and read by nobody gives its memory back, for the frames
    /// that come: pages that are used again are written five times as fast as
    /// fresh ones where a hypervisor has to find those first (0.1 against
    /// 0.55 us a row of 225 bytes), and the database beside us keeps its cache.
    fn forget(&mut self) {
        let to = self.length / FORGOTTEN * FORGOTTEN;
        if to > self.forgotten {
            if self.shared.readers.load(Ordering::Relaxed) == 0 {
                self.file.forget(self.forgotten, to);
            }
            self.forgotten = to;
        }
    }

    /// Tells readers in other processes how far all is durable.
    fn idle(&mut self) -> Result<()> {
        if self.inside {
            return Ok(());
        }
        self.empty_frame(FrameKind::Idle)?;
        self.end_of_transaction();
        self.untold = false;
        Ok(())
    }

    fn empty_frame(&mut self, kind: FrameKind) -> Result<()> {
        let empty = LogBatch {
            kind: Kind::Control,
            position: None,
            records: 0,
            event_time: Micros(i64::MIN),
            payload: bytes::Bytes::new(),
            state: Vec::new(),
            ends_transaction: true,
        };
        self.frame(kind, &empty)
    }

    /// Seals the segment and begins the next one; later, if there is no room for it now.
    fn roll(&mut self) -> Result<()> {
        let sealed = Sealed {
            length: self.length,
            end: self.standing.offset,
            sequence: self.standing.sequence,
            chain: self.standing.chain,
            time: self.standing.event_time,
            index: self.index.clone(),
        };
        let made = new_segment(&self.files, &self.folder, &mut self.standing, self.epoch, &self.shared.state());
        let (file, length) = match made {
            Ok(made) => made,
            // It has no name yet, and this one can go on.
            Err(Error::Io { source, .. }) if is_full(&source) => return Ok(()),
            Err(Error::Io { what, path, source }) => return Err(Error::Fatal { what, path, source }),
            Err(error) => return Err(error),
        };
        sealed.write(&self.files, &segment_path(&self.folder, self.segment));
        self.index = Index::default();
        self.synced = self.standing.sequence;
        self.segment = self.standing.offset;
        (self.file, self.length, self.ahead_to, self.forgotten) = (file, length, 0, 0);
        self.whole.segment = self.segment;
        self.whole.length = length;
        self.untold = false;
        self.shared.add_segment(self.segment, sealed);
        self.shared.show(self.whole.clone());
        Ok(())
    }

    fn poison(&mut self, error: Error) {
        tracing::error!(error = &error as &dyn std::error::Error, "the log has failed");
        self.shared.fail(error.clone());
        for waiting in self.waiting.drain(..) {
            let _ = waiting.done.send(Err(error.clone()));
        }
        while let Ok(request) = self.requests.recv_timeout(Duration::from_secs(1)) {
            match request {
                Request::Append { done, .. } => drop(done.send(Err(error.clone()))),
                Request::Abort { done } | Request::Trim { done, .. } => drop(done.send(Err(error.clone()))),
                Request::Retain => {}
                Request::Close { .. } => return,
            }
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Makes a segment: written under another name, synced, renamed, and the name
/// synced, so that a segment is never there without its head.
pub(crate) fn new_segment<F: Files>(
    files: &F,
    folder: &std::path::Path,
    standing: &mut Standing,
    epoch: Epoch,
    state: &crate::State,
) -> Result<(F::File, u64)> {
    let path = segment_path(folder, standing.offset);
    let temporary = path.with_extension("tmp");
    let mut payload = standing.id.0.to_vec();
    state.encode(&mut payload);
    let mut header = Header {
        kind: FrameKind::Head,
        ends_transaction: true,
        epoch,
        sequence: standing.sequence,
        base: standing.offset,
        event_time: standing.event_time,
        synced: standing.sequence,
        records: 0,
        position: standing.position.clone(),
        payload_length: payload.len() as u32,
        payload_crc: crc(&payload),
        chain: 0,
    };
    header.chain = header.chain_after(standing.chain);
    let mut bytes = header.encode(None);
    bytes.append(&mut payload);
    let made = (|| {
        let file = files.create(&temporary)?;
        file.write_at(&bytes, 0)?;
        file.sync(SyncPoint::NewSegment)?;
        files.rename(&temporary, &path)?;
        Ok(file)
    })();
    let file = made.map_err(|error| {
        // Another try must not write to the file whose sync has failed. If it
        // stays, the next start removes it.
        let _ = files.remove(&temporary);
        Error::io("make the segment", &path, error)
    })?;
    // From here on it has its name, and whether for ever is not known.
    let named = files.sync_folder(folder, SyncPoint::NewSegmentName);
    named.map_err(|error| Error::fatal("sync of the name of", &path, error))?;
    standing.sequence += 1;
    standing.chain = header.chain;
    Ok((file, bytes.len() as u64))
}

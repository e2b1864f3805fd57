//! Follows the writer inside its own process: whole, durable transactions only.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::{Stream, stream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::batch::Frame;
use crate::error::{Error, Result};
use crate::files::{Files, LogFile, segment_path};
use crate::log::{Shared, Shown};
use crate::newtypes::{Offset, OffsetRange, Position};
use crate::recovery::bad_frame;
use crate::segment::{Bad, FrameKind, Header, Scanner};
use crate::writer::FORGOTTEN;

/// What is wrong with a whole frame that stands where another should.
pub(crate) const NO_SUCCESSOR: &str = "it does not continue the frame before it";

/// Whether a frame is the one of this sequence, behind one of this chain.
pub(crate) fn follows(header: &Header, sequence: u64, chain: u32) -> bool {
    header.sequence == sequence && header.chain_after(chain) == header.chain
}

/// Read at a time, about.
const PIECE: usize = 1 << 20;

pub(crate) struct Reader<F: Files> {
    shared: Arc<Shared<F>>,
    next: u64,
    /// The segment being read; None: to be found.
    open: Option<Open<F::File>>,
    ready: VecDeque<Frame>,
}

impl<F: Files> Drop for Reader<F> {
    fn drop(&mut self) {
        self.shared.readers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Frames that were read, and a reader that reads the next ones while these are
/// taken: about a piece waits, and another is being read.
struct Ahead<F: Files> {
    ready: VecDeque<Frame>,
    reader: Reading<F>,
    high_water: watch::Receiver<Offset>,
}

enum Reading<F: Files> {
    Idle(Box<Reader<F>>),
    /// Reading is disk work, even if it is mostly memory.
    Busy(JoinHandle<(Box<Reader<F>>, Result<bool>)>),
    Ended,
}

impl<F: Files> Ahead<F> {
    async fn next(&mut self) -> Option<Result<Frame>> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                if let Reading::Idle(reader) = &self.reader
                    && reader.next < self.high_water.borrow().0
                {
                    self.begin();
                }
                return Some(Ok(frame));
            }
            self.begin();
            let Reading::Busy(busy) = &mut self.reader else { return None };
            // Kept where it is until it has ended: whoever asks may go away.
            let Ok((mut reader, filled)) = busy.await else {
                self.reader = Reading::Ended;
                return None;
            };
            self.ready.append(&mut reader.ready);
            self.reader = Reading::Idle(reader);
            match filled {
                Ok(true) => {}
                Ok(false) => {
                    if self.high_water.changed().await.is_err() {
                        return None;
                    }
                }
                Err(error) => {
                    self.reader = Reading::Ended;
                    return Some(Err(error));
                }
            }
        }
    }

    /// Has the reader read on, unless it does.
    fn begin(&mut self) {
        self.reader = match std::mem::replace(&mut self.reader, Reading::Ended) {
            Reading::Idle(mut reader) => {
                self.high_water.mark_unchanged();
                Reading::Busy(tokio::task::spawn_blocking(move || {
                    let filled = reader.fill();
                    (reader, filled)
                }))
            }
            other => other,
        };
    }
}

struct Open<F> {
    base: u64,
    scanner: Scanner<F>,
    /// Of the file, what memory need not hold.
    forgotten: u64,
    /// Of the transaction under way.
    commit: Commit,
    inside: bool,
    /// Sequence and chain that the next frame must continue; None behind a jump.
    follows: Option<(u64, u32)>,
}

/// What a transaction's last frame tells.
#[derive(Clone, Debug, Default)]
pub(crate) struct Commit {
    pub(crate) position: Option<Position>,
    pub(crate) aborted: bool,
    /// Sequence of the last frame.
    pub(crate) last: u64,
}

impl<F: Files> Reader<F> {
    pub(crate) fn new(shared: Arc<Shared<F>>, next: u64) -> Self {
        shared.readers.fetch_add(1, Ordering::Relaxed);
        Self { shared, next, open: None, ready: VecDeque::new() }
    }

    pub(crate) fn stream(
        self,
        high_water: watch::Receiver<Offset>,
    ) -> impl Stream<Item = Result<Frame>> + Send + 'static {
        let ahead = Ahead { ready: VecDeque::new(), reader: Reading::Idle(Box::new(self)), high_water };
        stream::unfold(ahead, |mut ahead| async move { ahead.next().await.map(|frame| (frame, ahead)) })
    }

    #[cfg(test)]
    pub(crate) fn take(&mut self) -> impl Iterator<Item = Frame> {
        self.ready.drain(..)
    }

    /// Reads some frames ahead; false if there are no more now.
    pub(crate) fn fill(&mut self) -> Result<bool> {
        let shown = self.shared.shown();
        let mut bytes = 0;
        while bytes < PIECE {
            if self.open.is_none() {
                self.open = Some(self.find(&shown)?);
            }
            let Some(open) = &mut self.open else { break };
            let limit = if open.base == shown.segment {
                shown.length
            } else {
                match self.shared.sealed(open.base)? {
                    Some(sealed) => sealed.length,
                    None => return Err(self.out_of_range(shown.offset)),
                }
            };
            if open.scanner.at >= limit {
                if open.base == shown.segment {
                    break;
                }
                let (base, follows) = (open.base, open.follows);
                let next = self.shared.bases().into_iter().find(|&other| other > base);
                let next = next.ok_or_else(|| self.out_of_range(shown.offset))?;
                self.open = Some(Open { follows, ..self.begin(next, 0)? });
                continue;
            }
            open.scanner.length = limit;
            let (at, path) = (open.scanner.at, open.scanner.path.clone());
            let expected = self.next;
            let (_, header, payload) =
                open.scanner.next()?.map_err(|bad| bad_frame(path.clone(), at, expected, bad))?;
            if let Some((sequence, chain)) = open.follows
                && !follows(&header, sequence, chain)
            {
                return Err(bad_frame(path, at, expected, Bad::Frame(NO_SUCCESSOR)));
            }
            open.follows = Some((header.sequence + 1, header.chain));
            if !open.inside {
                let bad = |(at, _, bad)| bad_frame(path.clone(), at, expected, bad);
                open.commit = commit_of(&open.scanner, &header)?.map_err(bad)?;
            }
            open.inside = !header.ends_transaction;
            if let FrameKind::Log(kind) = header.kind
                && !open.commit.aborted
                && (header.end() > self.next || (header.records == 0 && header.base >= self.next))
            {
                bytes += payload.len();
                self.next = header.end();
                self.ready.push_back(Frame {
                    offsets: OffsetRange { start: Offset(header.base), end: Offset(header.end()) },
                    kind,
                    ends_transaction: header.ends_transaction,
                    event_time: header.event_time,
                    payload,
                    position: open.commit.position.clone(),
                });
            }
        }
        self.forget();
        if let (true, Some(open)) = (self.ready.is_empty(), &mut self.open) {
            open.scanner.rest();
        }
        Ok(!self.ready.is_empty())
    }

    /// Who reads alone is the last to need it: see the writer's.
    fn forget(&mut self) {
        let Some(open) = &mut self.open else { return };
        let to = open.scanner.at / FORGOTTEN * FORGOTTEN;
        if to > open.forgotten {
            if self.shared.readers.load(Ordering::Relaxed) == 1 {
                open.scanner.file.forget(open.forgotten, to);
            }
            open.forgotten = to;
        }
    }

    fn find(&self, shown: &Shown) -> Result<Open<F::File>> {
        let mut bases = self.shared.bases();
        // A segment may have begun that nothing was shown of yet.
        bases.retain(|&base| base <= shown.segment);
        let base = holds(&bases, self.next).ok_or_else(|| self.out_of_range(shown.offset))?;
        let at = if base == shown.segment {
            0
        } else {
            self.shared.sealed(base)?.map_or(0, |sealed| sealed.index.before_offset(self.next))
        };
        self.begin(base, at)
    }

    fn begin(&self, base: u64, at: u64) -> Result<Open<F::File>> {
        let path = segment_path(&self.shared.folder, base);
        let file = self.shared.files.open(&path).map_err(|error| Error::io("open", &path, error))?;
        let mut scanner = Scanner::open(file, &path)?;
        scanner.at = at;
        Ok(Open { base, scanner, forgotten: at, commit: Commit::default(), inside: false, follows: None })
    }

    fn out_of_range(&self, end: u64) -> Error {
        let start = self.shared.bases().first().copied().unwrap_or(0);
        Error::OutOfRange { offset: self.next, start, end }
    }
}

/// The segment where what lies at or behind an offset begins: the one before
/// that of this base may end with frames without records at it.
pub(crate) fn holds(bases: &[u64], offset: u64) -> Option<u64> {
    let first = *bases.first().filter(|first| **first <= offset)?;
    let below = bases.partition_point(|&base| base < offset);
    Some(below.checked_sub(1).map_or(first, |i| bases[i]))
}

/// How the transaction ends that begins with `first`, which the scanner has
/// just passed; else where its end is missing, with the sequence of what should
/// be there.
pub(crate) fn commit_of<F: crate::files::LogFile>(
    scanner: &Scanner<F>,
    first: &Header,
) -> Result<std::result::Result<Commit, (u64, u64, Bad)>> {
    let mut at = scanner.at;
    let mut header = first.clone();
    while !header.ends_transaction {
        match scanner.header(at)? {
            Ok(next) if follows(&next, header.sequence + 1, header.chain) => {
                at += next.frame_length();
                header = next;
            }
            Ok(_) => return Ok(Err((at, header.sequence + 1, Bad::Frame(NO_SUCCESSOR)))),
            Err(bad) => return Ok(Err((at, header.sequence + 1, bad))),
        }
    }
    let aborted = header.kind == FrameKind::Abort;
    Ok(Ok(Commit { position: header.position, aborted, last: header.sequence }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulated::Simulated;
    use crate::{EventLog, Kind, Log, LogBatch, Micros, Options};

    #[tokio::test]
    async fn a_reader_that_begins_as_a_segment_is_sealed_sees_nothing_early() {
        let options = Options { segment_bytes: 100, ..Options::default() };
        let (log, _) = Log::open_on(Simulated::new(), "/log", options).unwrap();
        let batch = LogBatch {
            kind: Kind::Data,
            position: None,
            records: 1,
            event_time: Micros(0),
            payload: Default::default(),
            state: Vec::new(),
            ends_transaction: true,
        };
        let before = log.shared().shown();
        log.append(batch).await.unwrap().await.unwrap();
        // Taken in order, so the segment is sealed when it is answered.
        log.abort().await.unwrap();
        let bases = log.shared().bases();
        assert_eq!(bases.len(), 2);
        // It waits for what is not there yet.
        let reader = Reader::new(log.shared().clone(), bases[1] + 1);
        assert_eq!(reader.find(&before).unwrap().base, before.segment);
    }
}

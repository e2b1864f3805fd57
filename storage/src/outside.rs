//! The log's files, read by a process that does not write them: beside a
//! running daemon, or what a stopped or broken one left behind.
//!
//! Nothing above the greatest `synced` that the files tell is given out.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::batch::Frame;
use crate::error::{Error, Result};
use crate::files::{Disk, Files, segment_bases, segment_path};
use crate::index::Sealed;
use crate::newtypes::{LogId, Micros, Offset, OffsetRange, Position};
use crate::reader::{Commit, commit_of, holds};
use crate::recovery::{Walk, bad_frame};
use crate::segment::{Bad, Scanner};
use crate::state::State;

pub use crate::segment::{FrameKind, Header};

/// A daemon that starts cuts off what is durable of a transaction that never
/// ended. Whoever reads there at that moment finds less than it was told: what
/// is broken counts only if it is found as often as this.
const CUTS: u32 = 4;

/// A log's folder.
#[derive(Clone, Debug)]
pub struct LogFiles<F: Files = Disk> {
    files: F,
    folder: PathBuf,
}

/// A frame as it stands on disk.
#[derive(Clone, Debug)]
pub struct RawFrame {
    /// The segment's file.
    pub segment: PathBuf,
    /// Byte position in it.
    pub at: u64,
    /// Its header.
    pub header: Header,
}

/// What a whole check found.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Report {
    /// Segments read.
    pub segments: u64,
    /// Frames whose CRCs and chain are right.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes read.
    pub bytes: u64,
    /// First offset held.
    pub start: u64,
    /// End of the last whole transaction known to be durable.
    pub end: u64,
    /// Bytes of a torn tail, which the next start cuts.
    pub torn_bytes: u64,
}

impl LogFiles {
    /// Of a log in a folder.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        Self::open_on(Disk, folder)
    }
}

impl<F: Files> LogFiles<F> {
    /// As `open`, on a file system of choice.
    pub fn open_on(files: F, folder: impl AsRef<Path>) -> Result<Self> {
        Ok(Self { files, folder: folder.as_ref().to_path_buf() })
    }

    fn bases(&self) -> Result<Vec<u64>> {
        let names = self.files.list(&self.folder).map_err(|error| Error::io("list", &self.folder, error))?;
        Ok(segment_bases(&names))
    }

    fn scanner(&self, base: u64) -> Result<Scanner<F::File>> {
        let path = segment_path(&self.folder, base);
        let file = self.files.open(&path).map_err(|error| Error::io("open", &path, error))?;
        Scanner::open(file, &path)
    }

    /// First offset held; None if there is no log.
    pub fn start(&self) -> Result<Option<Offset>> {
        Ok(self.bases()?.first().copied().map(Offset))
    }

    /// Where the log stands: its id, state, and the end of what is shown.
    pub fn standing(&self) -> Result<Option<Standing>> {
        let mut tries = 0;
        loop {
            match self.look() {
                Err(Error::Corrupt { .. }) if tries < CUTS => tries += 1,
                seen => return seen,
            }
        }
    }

    fn look(&self) -> Result<Option<Standing>> {
        let bases = self.bases()?;
        let Some(&newest) = bases.last() else { return Ok(None) };
        // In this order: what is durable by now is in the file by then.
        let limit = self.synced(newest, 0)?;
        let mut walk = Walk::new(self.scanner(newest)?, newest)?;
        while walk.next_sequence < limit {
            match walk.step()? {
                Ok(_) => {}
                Err(Bad::Frame(what)) => {
                    walk.synced = limit;
                    return Err(walk.corrupt(what));
                }
                Err(Bad::End) => break,
                Err(bad) => return Err(bad_frame(walk.scanner.path, walk.scanner.at, walk.kept.offset, bad)),
            }
        }
        Ok(Some(Standing {
            id: walk.kept.id,
            epoch: walk.kept.epoch,
            start: Offset(bases[0]),
            end: Offset(walk.kept.offset),
            position: walk.kept.position,
            event_time: walk.kept.event_time,
            state: walk.state,
        }))
    }

    /// The greatest `synced` that a segment's frames from a place on tell.
    fn synced(&self, base: u64, from: u64) -> Result<u64> {
        let scanner = self.scanner(base)?;
        let (mut at, mut synced) = (from, 0);
        loop {
            match scanner.header(at)? {
                Ok(header) => {
                    synced = synced.max(header.synced);
                    at += header.frame_length();
                }
                Err(Bad::End) => return Ok(synced),
                // Behind a bad frame there may be good ones that know more.
                Err(_) => return Ok(synced.max(scanner.synced_behind(at)?)),
            }
        }
    }

    /// The first offset of a transaction whose commit time may be at or after
    /// `time`; the end of what is durable if none is.
    pub fn offset_at(&self, time: Micros) -> Result<Offset> {
        match self.first_at(time)? {
            Some(offset) => Ok(offset),
            None => Ok(self.standing()?.map_or(Offset(0), |standing| standing.end)),
        }
    }

    /// The first offset of the transaction that an offset lies in; the offset
    /// itself where none does.
    pub fn transaction_at(&self, offset: Offset) -> Result<Offset> {
        let bases = self.bases()?;
        let Some(base) = holds(&bases, offset.0) else {
            let (start, end) = self.standing()?.map_or((0, 0), |standing| (standing.start.0, standing.end.0));
            return Err(Error::OutOfRange { offset: offset.0, start, end });
        };
        let mut scanner = self.scanner(base)?;
        let mut begin = None;
        loop {
            let header = match scanner.header(scanner.at)? {
                Ok(header) => header,
                // Whoever reads there is told what is wrong, if anything is.
                Err(_) => return Ok(offset),
            };
            scanner.at += header.frame_length();
            let first = *begin.get_or_insert(header.base);
            if header.end() > offset.0 {
                return Ok(Offset(first.min(offset.0)));
            }
            if header.ends_transaction {
                begin = None;
            }
        }
    }

    pub(crate) fn first_at(&self, time: Micros) -> Result<Option<Offset>> {
        let bases = self.bases()?;
        for (i, &base) in bases.iter().enumerate() {
            let path = segment_path(&self.folder, base);
            let mut scanner = self.scanner(base)?;
            if i + 1 < bases.len() {
                let sealed = Sealed::load(&self.files, &path)?;
                let sealed = sealed.map_err(|(at, offset, bad)| bad_frame(path.clone(), at, offset, bad))?;
                if sealed.time < time {
                    continue;
                }
                scanner.at = sealed.index.before_time(time);
            }
            let mut begin = None;
            loop {
                let header = match scanner.header(scanner.at)? {
                    Ok(header) => header,
                    Err(Bad::End) => break,
                    // Of the newest this is the torn tail, or `standing` tells what else.
                    Err(_) if i + 1 == bases.len() => break,
                    Err(bad) => return Err(bad_frame(path, scanner.at, begin.unwrap_or(base), bad)),
                };
                scanner.at += header.frame_length();
                let first = *begin.get_or_insert(header.base);
                if header.event_time >= time && matches!(header.kind, FrameKind::Log(_)) {
                    return Ok(Some(Offset(first)));
                }
                if header.ends_transaction {
                    begin = None;
                }
            }
        }
        Ok(None)
    }

    /// Whole transactions from an offset on, up to what is durable. The cursor
    /// starts at the head of the offset's segment, so that it knows the state.
    pub fn read(&self, from: Offset) -> Result<Cursor<F>> {
        let bases = self.bases()?;
        let Some(start) = holds(&bases, from.0) else {
            let (start, end) = self.standing()?.map_or((0, 0), |standing| (standing.start.0, standing.end.0));
            return Err(Error::OutOfRange { offset: from.0, start, end });
        };
        let walk = Walk::new(self.scanner(start)?, start)?;
        Ok(Cursor { log: self.clone(), walk, synced: 0, from: from.0, commit: Commit::default(), inside: false })
    }

    /// Every frame as it stands, without its payload; ends at the first that is not whole.
    pub fn frames(&self, mut each: impl FnMut(RawFrame)) -> Result<()> {
        for base in self.bases()? {
            let scanner = self.scanner(base)?;
            let (mut at, mut tries) = (0, 0);
            loop {
                match scanner.header(at)? {
                    Ok(header) => {
                        let length = header.frame_length();
                        each(RawFrame { segment: scanner.path.clone(), at, header });
                        (at, tries) = (at + length, 0);
                    }
                    Err(Bad::End) => break,
                    // It may only be being written.
                    Err(_) if tries < CUTS => tries += 1,
                    Err(bad) => return Err(bad_frame(scanner.path.clone(), at, base, bad)),
                }
            }
        }
        Ok(())
    }

    /// Reads everything: CRCs, chain, sequence, the borders of segments.
    /// `progress` gets bytes read so far.
    pub fn check(&self, mut progress: impl FnMut(u64)) -> Result<Report> {
        let bases = self.bases()?;
        let mut report = Report { start: bases.first().copied().unwrap_or(0), ..Report::default() };
        let mut before: Option<(u64, u32, u64)> = None;
        for (i, &base) in bases.iter().enumerate() {
            let newest = i + 1 == bases.len();
            let mut walk = Walk::new(self.scanner(base)?, base)?;
            let head = walk.scanner.header(0)?;
            let path = walk.scanner.path.clone();
            if let (Some((sequence, chain, end)), Ok(head)) = (before, head)
                && (head.sequence != sequence || head.base < end || head.chain_after(chain) != head.chain)
            {
                let what = format!("frames {sequence} to {} do not meet", head.sequence);
                return Err(Error::Gap { path, what });
            }
            // What the frames behind a bad one tell to be durable.
            let mut behind = 0;
            let stop = loop {
                match walk.step()? {
                    Ok((_, header, _)) => {
                        report.frames += 1;
                        report.records += u64::from(header.records);
                        progress(report.bytes + walk.scanner.at);
                    }
                    Err(Bad::Frame(_)) if newest && behind <= walk.next_sequence => {
                        behind = walk.scanner.synced_behind(walk.scanner.at)?;
                        if behind <= walk.next_sequence {
                            report.torn_bytes = walk.scanner.written()?.saturating_sub(walk.kept_at);
                            break Bad::End;
                        }
                        // What is durable by now is whole by now, if it only was being written.
                    }
                    Err(bad) => break bad,
                }
            };
            report.segments += 1;
            report.frames += 1;
            report.bytes += walk.scanner.at;
            match stop {
                Bad::End => {}
                Bad::Frame(what) => {
                    walk.synced = walk.scanner.synced_behind(walk.scanner.at)?.max(walk.synced);
                    return Err(walk.corrupt(what));
                }
                bad => return Err(bad_frame(path, walk.scanner.at, walk.kept.offset, bad)),
            }
            report.end = walk.kept.offset;
            before = Some((walk.next_sequence, walk.kept.chain, walk.kept.offset));
        }
        Ok(report)
    }
}

/// Where a log stands, seen from outside.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Which log it is.
    pub id: LogId,
    /// Of the last opening.
    pub epoch: u64,
    /// First offset held.
    pub start: Offset,
    /// End of what is durable and whole.
    pub end: Offset,
    /// Where the source resumes.
    pub position: Option<Position>,
    /// Commit time up to which all is there.
    pub event_time: Micros,
    /// The state.
    pub state: State,
}

/// Reads on and on.
pub struct Cursor<F: Files = Disk> {
    log: LogFiles<F>,
    walk: Walk<F::File>,
    synced: u64,
    from: u64,
    commit: Commit,
    inside: bool,
}

/// What is to be found where a transaction may begin.
enum Begins {
    /// One that is whole and durable.
    Whole,
    /// One that is not yet.
    Later,
    /// None: the segment ends. A step may find one all the same, written since.
    Elsewhere,
}

impl<F: Files> Cursor<F> {
    /// The state as of the frame given last, or later.
    pub fn state(&self) -> &State {
        &self.walk.state
    }

    /// The next frame; None if there is none now: ask again after a while.
    /// After an error nothing more comes.
    #[expect(clippy::should_implement_trait, reason = "None is not the end")]
    pub fn next(&mut self) -> Result<Option<Frame>> {
        loop {
            if self.walk.next_sequence >= self.synced {
                self.refresh()?;
                if self.walk.next_sequence >= self.synced {
                    return Ok(None);
                }
            }
            if !self.inside {
                match self.begin()? {
                    Begins::Whole => {}
                    Begins::Later => return Ok(None),
                    Begins::Elsewhere => {
                        if !self.next_segment()? {
                            return Ok(None);
                        }
                        continue;
                    }
                }
            }
            let frame = match self.walk.step()? {
                Ok((_, header, payload)) => {
                    self.inside = !header.ends_transaction;
                    (header, payload)
                }
                Err(Bad::End) if !self.inside => {
                    // A start has cut it off since.
                    self.synced = 0;
                    return Ok(None);
                }
                Err(Bad::End) => return Err(self.walk.corrupt("the rest of a transaction is gone")),
                Err(Bad::Frame(what)) => return Err(self.walk.corrupt(what)),
                Err(bad) => return Err(bad_frame(self.walk.scanner.path.clone(), self.walk.scanner.at, 0, bad)),
            };
            let (header, payload) = frame;
            if !self.commit.aborted {
                // All of the transaction counts: its state with its first rows, not behind its last.
                self.walk.apply();
            }
            let wanted = header.end() > self.from || (header.records == 0 && header.base >= self.from);
            if let FrameKind::Log(kind) = header.kind
                && wanted
                && !self.commit.aborted
            {
                return Ok(Some(Frame {
                    offsets: OffsetRange { start: Offset(header.base), end: Offset(header.end()) },
                    kind,
                    ends_transaction: header.ends_transaction,
                    event_time: header.event_time,
                    payload,
                    position: self.commit.position.clone(),
                }));
            }
        }
    }

    /// Looks at the transaction that begins here.
    fn begin(&mut self) -> Result<Begins> {
        for tries in 0.. {
            if tries > 0 {
                self.refresh()?;
            }
            let scanner = &self.walk.scanner;
            let first = match scanner.header(scanner.at)? {
                Ok(first) if self.walk.wrong(&first).is_none() => first,
                Err(Bad::End) => return Ok(Begins::Elsewhere),
                _ if self.walk.next_sequence >= self.synced => break,
                _ if tries < CUTS => continue,
                // Told as the corruption it is by the next step.
                _ => return Ok(Begins::Whole),
            };
            match commit_of(&scanner.at(scanner.at + first.frame_length()), &first)? {
                Ok(commit) if commit.last < self.synced => {
                    self.commit = commit;
                    return Ok(Begins::Whole);
                }
                Err((at, sequence, bad)) if sequence < self.synced => {
                    if tries >= CUTS {
                        return Err(bad_frame(scanner.path.clone(), at, first.base, bad));
                    }
                }
                _ => break,
            }
        }
        // Asks again how far all is durable by then.
        self.synced = 0;
        Ok(Begins::Later)
    }

    /// How long to wait before asking again.
    pub const PAUSE: Duration = Duration::from_millis(50);

    /// Learns how far this segment is durable by now. In this order: what is
    /// durable is in the file when its length is asked for.
    fn refresh(&mut self) -> Result<()> {
        let base = self.walk.scanner_base();
        self.synced = if self.log.bases()?.last() == Some(&base) {
            self.log.synced(base, self.walk.scanner.at)?.max(self.walk.synced)
        } else {
            // A segment with one behind it is durable to its end.
            u64::MAX
        };
        self.walk.scanner.length = self.log.scanner(base)?.length;
        Ok(())
    }

    fn next_segment(&mut self) -> Result<bool> {
        let base = self.walk.scanner_base();
        let Some(next) = self.log.bases()?.into_iter().find(|&other| other > base) else {
            // Reached the end of the newest, which is all durable.
            self.synced = 0;
            return Ok(false);
        };
        let walk = Walk::new(self.log.scanner(next)?, next)?;
        let head = walk.scanner.header(0)?.map_err(|bad| bad_frame(walk.scanner.path.clone(), 0, next, bad))?;
        if let Some(what) = self.walk.wrong(&head) {
            return Err(Error::Gap { path: walk.scanner.path.clone(), what: what.into() });
        }
        self.walk = walk;
        self.synced = 0;
        Ok(true)
    }
}

impl<F: crate::files::LogFile> Walk<F> {
    fn scanner_base(&self) -> u64 {
        let name = self.scanner.path.file_stem().and_then(|name| name.to_str());
        name.and_then(|name| name.parse().ok()).unwrap_or(0)
    }
}

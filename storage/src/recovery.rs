//! What a log is found to hold when it is opened.
//!
//! Only the newest segment can have a torn tail: all others were synced before
//! it got its name. It is read whole. Below the greatest `synced` that any of
//! its frames tells, a bad frame is corruption and nothing is touched. Above,
//! the first bad frame and everything after is a torn tail, cut back to the
//! last whole transaction; nobody has seen it. So is a transaction that has no end
//! and begins below, a group at a time.
//!
//! What is kept above `synced` may come from the page cache of a failed sync,
//! whose pages are clean and not on the disk: it is written once more over
//! itself, which makes them dirty again, and synced before anyone sees it.
//!
//! In place, and not as was planned first, copied to a new file that is synced
//! and renamed: that costs a segment's writing at every start (256 MiB, half a
//! second here), this the tail alone. Is it as safe?
//! - Power fails in the middle: each byte is written over with itself, so it is
//!   what it was, or what it would be. A frame that was acknowledged and is on
//!   the disk stays; one that is only in the cache may become torn, and was not
//!   acknowledged, for then its sync would not have failed. That a write spoils
//!   nothing outside its own bytes is taken for granted by every append, too.
//! - Power fails after the cut and before its sync: the old tail is back, or a
//!   part of it, and is cut again: none of it was said to be durable, so that no
//!   part of it proves another. Nothing is written behind the cut before it
//!   is durable: else a frame of the old tail, whose `synced` tells of frames
//!   that were cut, could stand behind a torn one of the new, and be taken for
//!   proof of corruption.
//! - This sync fails: opening does, and the next one does it all again.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use crate::batch::StateChange;
use crate::error::{Error, Result};
use crate::files::{Files, LogFile, SyncPoint, segment_bases, segment_path};
use crate::index::{Index, Sealed};
use crate::newtypes::{LogId, Micros, Position};
use crate::segment::{Bad, FrameKind, Header, Scanner, VERSION};
use crate::state::{State, decode_changes};

/// Where a log stands at a transaction's end.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) id: LogId,
    pub(crate) epoch: u64,
    pub(crate) sequence: u64,
    pub(crate) offset: u64,
    pub(crate) chain: u32,
    pub(crate) event_time: Micros,
    pub(crate) position: Option<Position>,
}

/// What recovery found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Bytes of a torn tail that were cut; zeros at its end do not count.
    pub cut_bytes: u64,
    /// Bytes above `synced` that were kept, and synced again.
    pub kept_bytes: u64,
}

/// A log that was read and is ready to be written.
pub(crate) struct Found<F: Files> {
    pub(crate) standing: Standing,
    pub(crate) state: State,
    pub(crate) bases: Vec<u64>,
    pub(crate) file: F::File,
    pub(crate) length: u64,
    pub(crate) index: Index,
    pub(crate) recovery: Recovery,
}

/// None: there is no log yet.
pub(crate) fn recover<F: Files>(files: &F, folder: &Path) -> Result<Option<Found<F>>> {
    let names = files.list(folder).map_err(|error| Error::io("list", folder, error))?;
    let bases = segment_bases(&names);
    // Segments that were never finished, and indexes whose segment was removed.
    let left = |name: &&String| {
        name.ends_with(".tmp") || name.strip_suffix(".idx").is_some_and(|base| !names.contains(&format!("{base}.log")))
    };
    for name in names.iter().filter(left) {
        let path = folder.join(name);
        files.remove(&path).map_err(|error| Error::io("remove", path, error))?;
    }
    let Some(&newest) = bases.last() else { return Ok(None) };
    let synced = files.sync_folder(folder, SyncPoint::RecoveredNames);
    synced.map_err(|error| Error::io("sync the names in", folder, error))?;
    for pair in bases.windows(2) {
        follows(files, folder, pair[0], pair[1])?;
    }
    let path = segment_path(folder, newest);
    let file = files.open_to_write(&path).map_err(|error| Error::io("open", &path, error))?;
    let mut walk = Walk::new(Scanner::open(file.clone(), &path)?, newest)?;
    let stop = walk.finish()?;
    // What any header says, of a torn frame too.
    let mut told = walk.synced;
    if let Bad::Frame(what) = stop {
        told = walk.scanner.synced_behind(walk.scanner.at)?.max(told);
        if told > walk.next_sequence {
            return Err(walk.corrupt(what));
        }
    }
    let length = walk.kept_at;
    let mut recovery = Recovery { cut_bytes: walk.scanner.written()?.saturating_sub(length), kept_bytes: 0 };
    if told > walk.kept.sequence {
        cut_groups(&walk, &file)?;
    }
    let unsynced = walk.unsynced.front().map_or(length, |&(_, at)| at).min(length);
    if unsynced < length || walk.scanner.length > length {
        recovery.kept_bytes = length - unsynced;
        write_again(&mut walk.scanner, unsynced, length)?;
        file.truncate(length).map_err(|error| Error::io("cut the torn tail of", &path, error))?;
        file.sync(SyncPoint::RecoveredTail).map_err(|error| Error::fatal("sync of", &path, error))?;
    }
    let Walk { kept, state, index, .. } = walk;
    Ok(Some(Found { standing: kept, state, bases, file, length, index, recovery }))
}

/// Cuts a transaction without an end off as far as frames of it are known to be
/// durable, a group of them at a time from the last: if the power fails in a cut,
/// any part of what it takes may be there, and a frame of that which says of an
/// earlier one that it was durable would be taken for proof of damage. Frames of
/// one group say nothing of each other.
fn cut_groups<F: LogFile>(walk: &Walk<F>, file: &F) -> Result<()> {
    let path = walk.scanner.path.clone();
    let cut = |at: u64| {
        file.truncate(at).map_err(|error| Error::io("cut the torn tail of", &path, error))?;
        file.sync(SyncPoint::RecoveredTail).map_err(|error| Error::fatal("sync of", &path, error))
    };
    // First what stands behind the last whole frame: it may say so of all of them.
    let mut from = walk.scanner.at;
    if from < walk.scanner.length {
        cut(from)?;
    }
    let mut told = 0;
    for frame in walk.open.iter().rev() {
        if told > frame.sequence {
            cut(from)?;
            told = 0;
        }
        told = frame.synced.max(told);
        from = frame.at;
    }
    Ok(())
}

/// A sealed segment must end where the next begins.
fn follows<F: Files>(files: &F, folder: &Path, base: u64, next: u64) -> Result<()> {
    let (path, next_path) = (segment_path(folder, base), segment_path(folder, next));
    let file = files.open(&next_path).map_err(|error| Error::io("open", &next_path, error))?;
    let scanner = Scanner::open(file, &next_path)?;
    let head = scanner.header(0)?.map_err(|bad| bad_frame(next_path.clone(), 0, next, bad))?;
    let bad = |(at, offset, bad)| bad_frame(path.clone(), at, offset, bad);
    let sealed = Sealed::load(files, &path)?.map_err(bad)?;
    if meets(&sealed, &head).is_ok() {
        return Ok(());
    }
    // The index may be an old one: the segment itself decides.
    let sealed = Sealed::make(files, &path)?.map_err(bad)?;
    sealed.write(files, &path);
    meets(&sealed, &head).map_err(|what| Error::Gap { path: next_path, what })
}

pub(crate) fn meets(sealed: &Sealed, head: &Header) -> std::result::Result<(), String> {
    if head.sequence != sealed.sequence {
        Err(format!("frames {} to {} are missing", sealed.sequence, head.sequence))
    } else if head.base < sealed.end {
        Err(format!("it begins at offset {} below the end {}", head.base, sealed.end))
    } else if head.chain_after(sealed.chain) != head.chain {
        Err("the chain does not continue".to_owned())
    } else {
        Ok(())
    }
}

pub(crate) fn bad_frame(path: PathBuf, at: u64, offset: u64, bad: Bad) -> Error {
    match bad {
        Bad::Version(version) => Error::Version { path, version, known: VERSION },
        Bad::Frame(what) => Error::Corrupt { path, at, offset, what: what.into() },
        Bad::End if at == 0 => Error::Corrupt { path, at, offset, what: "it has no head".into() },
        Bad::End => Error::Corrupt { path, at, offset, what: "it ends here, or holds zeros alone".into() },
    }
}

/// Writes frames over themselves, the very bytes that were checked: pages that
/// a failed sync left clean may be dropped, and read back as they were before
/// it, at any moment until they are dirty again.
fn write_again<F: LogFile>(scanner: &mut Scanner<F>, from: u64, to: u64) -> Result<()> {
    scanner.at = from;
    while scanner.at < to {
        let (at, header, payload) = match scanner.next()? {
            Ok(frame) => frame,
            Err(_) => {
                let what = "it changed while it was read".into();
                return Err(Error::Corrupt { path: scanner.path.clone(), at: scanner.at, offset: 0, what });
            }
        };
        let head = header.encode(scanner.log(at));
        let written = scanner.file.write_at(&head, at);
        let written = written.and_then(|()| scanner.file.write_at(&payload, at + head.len() as u64));
        written.map_err(|error| Error::fatal("writing", &scanner.path, error))?;
    }
    Ok(())
}

/// A walk through a segment that checks that each frame follows the one before.
pub(crate) struct Walk<F> {
    pub(crate) scanner: Scanner<F>,
    /// At the last transaction's end.
    pub(crate) kept: Standing,
    pub(crate) kept_at: u64,
    pub(crate) state: State,
    pub(crate) index: Index,
    /// Greatest seen.
    pub(crate) synced: u64,
    pub(crate) next_sequence: u64,
    next_offset: u64,
    chain: u32,
    pending: Vec<StateChange>,
    begins: bool,
    /// Frames not known to be synced: sequence and place.
    unsynced: VecDeque<(u64, u64)>,
    /// Of the transaction without an end so far.
    open: Vec<OpenFrame>,
}

/// A frame of a transaction whose end was not met.
struct OpenFrame {
    sequence: u64,
    at: u64,
    /// What its header says.
    synced: u64,
}

impl<F: LogFile> Walk<F> {
    /// Reads the head.
    pub(crate) fn new(mut scanner: Scanner<F>, base: u64) -> Result<Self> {
        let path = scanner.path.clone();
        let (_, header, payload) = scanner.next()?.map_err(|bad| bad_frame(path.clone(), 0, base, bad))?;
        let corrupt = |what: &str| Error::Corrupt { path: path.clone(), at: 0, offset: base, what: what.into() };
        if header.kind != FrameKind::Head || header.base != base {
            return Err(corrupt("its first frame is not its head"));
        }
        let (id, entries) = payload.split_first_chunk::<16>().ok_or_else(|| corrupt("its head is too short"))?;
        let mut state = State::default();
        for change in decode_changes(entries).ok_or_else(|| corrupt("its head cannot be read"))? {
            state.apply(change);
        }
        let kept = Standing {
            id: LogId(*id),
            epoch: header.epoch.0,
            sequence: header.sequence + 1,
            offset: header.base,
            chain: header.chain,
            event_time: header.event_time,
            position: header.position.clone(),
        };
        Ok(Self {
            kept_at: scanner.at,
            scanner,
            kept,
            state,
            index: Index::default(),
            synced: header.synced,
            next_sequence: header.sequence + 1,
            next_offset: header.base,
            chain: header.chain,
            pending: Vec::new(),
            begins: true,
            unsynced: VecDeque::new(),
            open: Vec::new(),
        })
    }

    /// Takes the changes of the transaction under way into the state.
    pub(crate) fn apply(&mut self) {
        for change in self.pending.drain(..) {
            self.state.apply(change);
        }
    }

    /// The next frame that follows; what is wrong with what stands there else.
    pub(crate) fn step(&mut self) -> Result<std::result::Result<(u64, Header, bytes::Bytes), Bad>> {
        let before = self.scanner.at;
        let (at, header, payload) = match self.scanner.next()? {
            Ok(frame) => frame,
            Err(bad) => return Ok(Err(bad)),
        };
        if let Some(what) = self.wrong(&header) {
            self.scanner.at = before;
            return Ok(Err(Bad::Frame(what)));
        }
        if header.kind == FrameKind::State {
            match decode_changes(&payload) {
                Some(changes) => self.pending.extend(changes),
                None => {
                    self.scanner.at = before;
                    return Ok(Err(Bad::Frame("its state changes cannot be read")));
                }
            }
        }
        if self.begins {
            self.index.note(header.base, at, self.kept.event_time);
        }
        self.begins = header.ends_transaction;
        self.synced = self.synced.max(header.synced);
        self.unsynced.push_back((header.sequence, at));
        while self.unsynced.front().is_some_and(|&(sequence, _)| sequence < self.synced) {
            self.unsynced.pop_front();
        }
        self.next_sequence += 1;
        self.next_offset = header.end();
        self.chain = header.chain;
        if header.kind == FrameKind::Abort {
            self.pending.clear();
        }
        if header.ends_transaction {
            self.apply();
            self.open.clear();
            self.kept.epoch = header.epoch.0.max(self.kept.epoch);
            self.kept.sequence = self.next_sequence;
            self.kept.offset = self.next_offset;
            self.kept.chain = self.chain;
            self.kept.event_time = header.event_time;
            self.kept.position = header.position.clone().or(self.kept.position.take());
            self.kept_at = self.scanner.at;
        } else {
            self.open.push(OpenFrame { sequence: header.sequence, at, synced: header.synced });
        }
        Ok(Ok((at, header, payload)))
    }

    /// Why a frame cannot be the next.
    pub(crate) fn wrong(&self, header: &Header) -> Option<&'static str> {
        if header.sequence != self.next_sequence {
            Some("its sequence does not follow")
        } else if header.base < self.next_offset {
            Some("its offset was used before")
        } else if header.chain_after(self.chain) != header.chain {
            Some("the chain does not continue")
        } else {
            None
        }
    }

    fn finish(&mut self) -> Result<Bad> {
        loop {
            match self.step()? {
                Ok(_) => {}
                Err(Bad::Version(version)) => {
                    return Err(bad_frame(self.scanner.path.clone(), 0, 0, Bad::Version(version)));
                }
                Err(bad) => return Ok(bad),
            }
        }
    }

    pub(crate) fn corrupt(&self, what: &str) -> Error {
        Error::Corrupt {
            path: self.scanner.path.clone(),
            at: self.scanner.at,
            offset: self.next_offset,
            what: format!("{what}; frames up to {} were durable", self.synced),
        }
    }
}

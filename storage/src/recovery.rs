//! What a log is found to hold when it is opened.
//!
//! Only the newest segment can have a torn tail: all others were synced before
//! it got its name. It is read whole. Below the greatest `synced` that any of
//! its frames tells, a bad frame is corruption and nothing is touched. Above,
//! the first bad frame and everything after is a torn tail, cut back to the
//! last whole transaction; nobody has seen it.
//!
//! What is kept above `synced` may come from the page cache of a failed sync:
//! it is written once more over itself, which makes its pages dirty again, and
//! synced before anyone sees it. (Copying the segment and renaming, as was
//! planned first, gives the same and costs a segment's writing at every start:
//! 256 MiB, half a second here; this costs the tail alone.)

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
    /// Bytes of a torn tail that were cut.
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
    for name in names.iter().filter(|name| name.ends_with(".tmp")) {
        let path = folder.join(name);
        files.remove(&path).map_err(|error| Error::io("remove", path, error))?;
    }
    let bases = segment_bases(&names);
    let Some(&newest) = bases.last() else { return Ok(None) };
    for pair in bases.windows(2) {
        follows(files, folder, pair[0], pair[1])?;
    }
    let path = segment_path(folder, newest);
    let file = files.open(&path).map_err(|error| Error::io("open", &path, error))?;
    let mut walk = Walk::new(Scanner::open(file.clone(), &path)?, newest)?;
    let stop = walk.to_the_end()?;
    let length = walk.kept_at;
    let mut recovery = Recovery { cut_bytes: walk.scanner.length - length, kept_bytes: 0 };
    if let Bad::Frame(what) = stop {
        let behind = walk.scanner.headers_behind(walk.scanner.at)?;
        let synced = behind.iter().map(|(_, header)| header.synced).max().unwrap_or(0).max(walk.synced);
        if synced > walk.next_sequence {
            return Err(walk.corrupt(what));
        }
    }
    let unsynced = walk.unsynced.front().map_or(length, |&(_, at)| at).min(length);
    if unsynced < length || recovery.cut_bytes > 0 {
        recovery.kept_bytes = length - unsynced;
        write_again(&file, &path, unsynced, length)?;
        file.truncate(length).map_err(|error| Error::io("cut the torn tail of", &path, error))?;
        file.sync(SyncPoint::RecoveredTail).map_err(|error| Error::fatal("sync of", &path, error))?;
    }
    let Walk { kept, state, index, .. } = walk;
    Ok(Some(Found { standing: kept, state, bases, file, length, index, recovery }))
}

/// A sealed segment must end where the next begins.
fn follows<F: Files>(files: &F, folder: &Path, base: u64, next: u64) -> Result<()> {
    let (path, next_path) = (segment_path(folder, base), segment_path(folder, next));
    let sealed = Sealed::load(files, &path)?.map_err(|(at, offset, bad)| bad_frame(path.clone(), at, offset, bad))?;
    let length = files.open(&path).and_then(|file| file.length());
    let length = length.map_err(|error| Error::io("read the length of", &path, error))?;
    if sealed.length != length {
        let what = format!("it has {length} bytes where {} were written", sealed.length);
        return Err(Error::Corrupt { path, at: sealed.length.min(length), offset: base, what });
    }
    let file = files.open(&next_path).map_err(|error| Error::io("open", &next_path, error))?;
    let scanner = Scanner::open(file, &next_path)?;
    let header = scanner.header(0)?.map_err(|bad| bad_frame(next_path.clone(), 0, next, bad))?;
    let what = if header.sequence != sealed.sequence {
        format!("frames {} to {} are missing", sealed.sequence, header.sequence)
    } else if header.base < sealed.end {
        format!("it begins at offset {} below the end {}", header.base, sealed.end)
    } else if header.chain_after(sealed.chain) != header.chain {
        "the chain does not continue".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::Gap { path: next_path, what })
}

pub(crate) fn bad_frame(path: PathBuf, at: u64, offset: u64, bad: Bad) -> Error {
    match bad {
        Bad::Version(version) => Error::Version { path, version, known: VERSION },
        Bad::Frame(what) => Error::Corrupt { path, at, offset, what: what.into() },
        Bad::End => Error::Corrupt { path, at, offset, what: "it has no head".into() },
    }
}

fn write_again<F: LogFile>(file: &F, path: &Path, from: u64, to: u64) -> Result<()> {
    let mut piece = vec![0; 1 << 20];
    let mut at = from;
    while at < to {
        let size = piece.len().min((to - at) as usize);
        let read = file.read_at(&mut piece[..size], at).map_err(|error| Error::io("read", path, error))?;
        if read < size {
            let what = "it became shorter while it was read".into();
            return Err(Error::Corrupt { path: path.into(), at, offset: 0, what });
        }
        file.write_at(&piece[..size], at).map_err(|error| Error::io("write", path, error))?;
        at += size as u64;
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
        })
    }

    /// The next frame that follows; what is wrong with what stands there else.
    #[expect(clippy::type_complexity, reason = "a frame, or why there is none")]
    pub(crate) fn step(&mut self) -> Result<std::result::Result<(u64, Header, bytes::Bytes), Bad>> {
        let before = self.scanner.at;
        let (at, header, payload) = match self.scanner.next()? {
            Ok(frame) => frame,
            Err(bad) => return Ok(Err(bad)),
        };
        let wrong = if header.sequence != self.next_sequence {
            Some("its sequence does not follow")
        } else if header.base < self.next_offset {
            Some("its offset was used before")
        } else if header.chain_after(self.chain) != header.chain {
            Some("the chain does not continue")
        } else {
            None
        };
        if let Some(what) = wrong {
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
            for change in self.pending.drain(..) {
                self.state.apply(change);
            }
            self.kept.epoch = header.epoch.0.max(self.kept.epoch);
            self.kept.sequence = self.next_sequence;
            self.kept.offset = self.next_offset;
            self.kept.chain = self.chain;
            self.kept.event_time = header.event_time;
            self.kept.position = header.position.clone().or(self.kept.position.take());
            self.kept_at = self.scanner.at;
        }
        Ok(Ok((at, header, payload)))
    }

    fn to_the_end(&mut self) -> Result<Bad> {
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

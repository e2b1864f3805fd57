//! The bytes of a frame, and how to walk a segment's.
//!
//! ```text
//!   0 magic "HWLF"    4 version u8   5 kind u8      6 flags u8    7 zero u8
//!   8 epoch u64      16 sequence u64               24 base offset u64
//!  32 event time i64 40 synced u64                 48 records u32
//!  52 position length u32            56 payload length u32
//!  60 payload CRC32C 64 chain CRC32C 68 header CRC32C
//!  72 position, payload
//! ```
//!
//! `sequence` counts frames over the log's whole life. `synced` is the sequence
//! below which all was durable when the frame was written: a sequence and not
//! an offset, because frames that carry only a position or state take no offset
//! and yet have been acknowledged.
//!
//! The header's CRC is that of the log's id, bytes 0..68 and the position; a
//! segment's head, which tells the id, does without it. So the bytes of another
//! log, which a row may well hold, are never taken for frames of this one.

use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, Digest, checksum};

use crate::batch::Kind;
use crate::error::{Error, Result};
use crate::files::LogFile;
use crate::newtypes::{Epoch, LogId, Micros, Position};
use crate::used::Used;

/// Of the fixed part.
pub(crate) const HEADER: usize = 72;
/// The only version so far.
pub(crate) const VERSION: u8 = 1;
/// A frame's payload is at most this: PostgreSQL's greatest message, and room.
pub(crate) const MAX_PAYLOAD: usize = (1 << 30) + (64 << 20);
const MAGIC: [u8; 4] = *b"HWLF";
const ENDS_TRANSACTION: u8 = 1;

/// What a frame is, on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// See [`Kind`].
    Log(Kind),
    /// Changes of the state.
    State,
    /// The whole state; every segment's first frame.
    Head,
    /// Nothing but `synced` and the epoch.
    Idle,
    /// Ends a transaction that will not be finished: its frames count for nothing.
    Abort,
}

impl FrameKind {
    fn code(self) -> u8 {
        match self {
            FrameKind::Log(Kind::Data) => 1,
            FrameKind::Log(Kind::Pending) => 2,
            FrameKind::Log(Kind::Control) => 3,
            FrameKind::State => 4,
            FrameKind::Head => 5,
            FrameKind::Idle => 6,
            FrameKind::Abort => 7,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => FrameKind::Log(Kind::Data),
            2 => FrameKind::Log(Kind::Pending),
            3 => FrameKind::Log(Kind::Control),
            4 => FrameKind::State,
            5 => FrameKind::Head,
            6 => FrameKind::Idle,
            7 => FrameKind::Abort,
            _ => return None,
        })
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            FrameKind::Log(Kind::Data) => "data",
            FrameKind::Log(Kind::Pending) => "pending",
            FrameKind::Log(Kind::Control) => "control",
            FrameKind::State => "state",
            FrameKind::Head => "head",
            FrameKind::Idle => "idle",
            FrameKind::Abort => "abort",
        }
    }
}

/// A frame's header.
#[derive(Clone, Debug)]
pub struct Header {
    /// What it is.
    pub kind: FrameKind,
    /// Whether a transaction ends with it.
    pub ends_transaction: bool,
    /// Of the daemon that wrote it.
    pub epoch: Epoch,
    /// Counts frames over the log's life.
    pub sequence: u64,
    /// The offset of its first record.
    pub base: u64,
    /// Greatest commit time so far.
    pub event_time: Micros,
    /// The sequence below which all was durable.
    pub synced: u64,
    /// Offsets it takes.
    pub records: u32,
    /// Where the source resumes.
    pub position: Option<Position>,
    /// Bytes of its payload.
    pub payload_length: u32,
    /// CRC32C of the payload.
    pub payload_crc: u32,
    /// CRC32C of this frame's content and the chain before it.
    pub chain: u32,
}

pub(crate) fn crc(bytes: &[u8]) -> u32 {
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

fn header_crc(log: Option<LogId>, fixed: &[u8], position: &[u8]) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(log.as_ref().map_or(&[], |log| &log.0[..]));
    digest.update(fixed);
    digest.update(position);
    digest.finalize() as u32
}

impl Header {
    /// One behind its last record.
    pub fn end(&self) -> u64 {
        self.base + u64::from(self.records)
    }

    /// Bytes of the whole frame.
    pub fn frame_length(&self) -> u64 {
        (HEADER + self.position_bytes().len()) as u64 + u64::from(self.payload_length)
    }

    fn position_bytes(&self) -> &[u8] {
        self.position.as_ref().map(Position::as_bytes).unwrap_or_default()
    }

    /// The chain after this frame: over the chain before it, everything of the
    /// header that is not about storage, and the CRC of the plain payload.
    pub(crate) fn chain_after(&self, before: u32) -> u32 {
        let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        digest.update(&before.to_le_bytes());
        digest.update(&[self.kind.code(), u8::from(self.ends_transaction)]);
        for number in [self.epoch.0, self.sequence, self.base, self.event_time.0 as u64, self.records.into()] {
            digest.update(&number.to_le_bytes());
        }
        digest.update(self.position_bytes());
        digest.update(&self.payload_crc.to_le_bytes());
        digest.finalize() as u32
    }

    /// Header and position, ready to be written before the payload.
    pub(crate) fn encode(&self, log: Option<LogId>) -> Vec<u8> {
        let position = self.position_bytes();
        let mut out = Vec::with_capacity(HEADER + position.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, self.kind.code(), u8::from(self.ends_transaction) * ENDS_TRANSACTION, 0]);
        for number in [self.epoch.0, self.sequence, self.base, self.event_time.0 as u64, self.synced] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for number in [self.records, position.len() as u32, self.payload_length, self.payload_crc, self.chain] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&header_crc(log, &out, position).to_le_bytes());
        out.extend_from_slice(position);
        out
    }
}

/// Why there is no frame here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Bad {
    /// The file ends here, between frames, or holds nothing but zeros from here
    /// on: those that are written ahead of small groups.
    End,
    /// What stands here is no whole frame.
    Frame(&'static str),
    /// A later version's frame.
    Version(u8),
}

/// Reads frames of one segment. Bounded memory: a frame's payload is only read
/// when it is asked for or checked.
pub(crate) struct Scanner<F> {
    pub(crate) file: F,
    pub(crate) path: PathBuf,
    /// Where the next frame is looked for.
    pub(crate) at: u64,
    pub(crate) length: u64,
    /// As the head tells; None if there is no head.
    log: Option<LogId>,
    used: Used,
}

impl<F: LogFile> Scanner<F> {
    pub(crate) fn open(file: F, path: &Path) -> Result<Self> {
        let length = file.length().map_err(|error| Error::io("read the length of", path, error))?;
        let mut scanner = Self { file, path: path.into(), at: 0, length, log: None, used: Used::default() };
        if let Ok(head) = scanner.header(0)?
            && head.kind == FrameKind::Head
            && let Some(id) = scanner.read(head.frame_length() - u64::from(head.payload_length), 16)?
        {
            scanner.log = id.first_chunk().map(|id| LogId(*id));
        }
        Ok(scanner)
    }

    /// What goes into the CRC of the header that stands at `at`.
    pub(crate) fn log(&self, at: u64) -> Option<LogId> {
        self.log.filter(|_| at > 0)
    }

    /// The same file, read from another place.
    pub(crate) fn at(&self, at: u64) -> Self {
        let (file, path) = (self.file.clone(), self.path.clone());
        Self { file, path, at, length: self.length, log: self.log, used: Used::default() }
    }

    fn read(&self, at: u64, length: usize) -> Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; length];
        Ok(self.fill(at, &mut bytes)?.then_some(bytes))
    }

    /// False if the file ends before.
    fn fill(&self, at: u64, bytes: &mut [u8]) -> Result<bool> {
        let read = self.file.read_at(bytes, at).map_err(|error| Error::io("read", &self.path, error))?;
        Ok(read == bytes.len())
    }

    /// The header at `at`, its own CRC checked.
    pub(crate) fn header(&self, at: u64) -> Result<std::result::Result<Header, Bad>> {
        if at >= self.length {
            return Ok(Err(Bad::End));
        }
        let look = || self.read(at, HEADER.min((self.length - at) as usize)).map(Option::unwrap_or_default);
        let mut fixed = look()?;
        if !fixed.starts_with(&MAGIC) {
            if self.written()? <= at {
                return Ok(Err(Bad::End));
            }
            // Between the two looks a frame may have come in place of the zeros.
            fixed = look()?;
        }
        if fixed.len() < HEADER {
            return Ok(Err(Bad::Frame("the file ends within a header")));
        }
        if fixed[..4] != MAGIC {
            return Ok(Err(Bad::Frame("no frame begins here")));
        }
        let u32_at = |i: usize| fixed[i..].first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
        let u64_at = |i: usize| fixed[i..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
        let position_length = u32_at(52) as usize;
        if position_length > Position::MAX {
            return Ok(Err(Bad::Frame("position length")));
        }
        let position = if position_length == 0 {
            Vec::new()
        } else {
            match self.read(at + HEADER as u64, position_length)? {
                Some(bytes) => bytes,
                None => return Ok(Err(Bad::Frame("the file ends within a position"))),
            }
        };
        if header_crc(self.log(at), &fixed[..68], &position) != u32_at(68) {
            return Ok(Err(Bad::Frame("header CRC")));
        }
        if fixed[4] != VERSION {
            return Ok(Err(Bad::Version(fixed[4])));
        }
        let Some(kind) = FrameKind::from_code(fixed[5]) else { return Ok(Err(Bad::Frame("kind"))) };
        if u32_at(56) as usize > MAX_PAYLOAD {
            return Ok(Err(Bad::Frame("payload length")));
        }
        let position = if position.is_empty() { None } else { Some(Position::new(position)?) };
        Ok(Ok(Header {
            kind,
            ends_transaction: fixed[6] & ENDS_TRANSACTION != 0,
            epoch: Epoch(u64_at(8)),
            sequence: u64_at(16),
            base: u64_at(24),
            event_time: Micros(u64_at(32) as i64),
            synced: u64_at(40),
            records: u32_at(48),
            position,
            payload_length: u32_at(56),
            payload_crc: u32_at(60),
            chain: u32_at(64),
        }))
    }

    /// The payload of the frame at `at`, its CRC checked; in memory that may be used again.
    fn payload(&self, mut bytes: BytesMut, at: u64, header: &Header) -> Result<std::result::Result<Bytes, Bad>> {
        let start = at + header.frame_length() - u64::from(header.payload_length);
        if start + u64::from(header.payload_length) > self.length {
            return Ok(Err(Bad::Frame("the file ends within a payload")));
        }
        bytes.resize(header.payload_length as usize, 0);
        match self.fill(start, &mut bytes)? {
            true if crc(&bytes) == header.payload_crc => Ok(Ok(bytes.freeze())),
            true => Ok(Err(Bad::Frame("payload CRC"))),
            false => Ok(Err(Bad::Frame("the file ends within a payload"))),
        }
    }

    /// Nothing comes for a while.
    pub(crate) fn rest(&mut self) {
        self.used = Used::default();
    }

    /// The next whole frame, its CRCs checked, with where it stands.
    pub(crate) fn next(&mut self) -> Result<std::result::Result<(u64, Header, Bytes), Bad>> {
        let at = self.at;
        let header = match self.header(at)? {
            Ok(header) => header,
            Err(bad) => return Ok(Err(bad)),
        };
        let memory = self.used.take();
        match self.payload(memory, at, &header)? {
            Ok(payload) => {
                self.used.give(&payload);
                self.at = at + header.frame_length();
                Ok(Ok((at, header, payload)))
            }
            Err(bad) => Ok(Err(bad)),
        }
    }

    /// Where the zeros begin that the file ends with.
    pub(crate) fn written(&self) -> Result<u64> {
        const WINDOW: usize = 64 << 10;
        let mut window = vec![0; WINDOW];
        let mut end = self.length;
        while end > 0 {
            let window = &mut window[..WINDOW.min(end as usize)];
            let from = end - window.len() as u64;
            let read = self.file.read_at(window, from).map_err(|error| Error::io("read", &self.path, error))?;
            if let Some(last) = window[..read].iter().rposition(|byte| *byte != 0) {
                return Ok(from + last as u64 + 1);
            }
            end = from;
        }
        Ok(0)
    }

    /// Headers that stand whole anywhere behind `at`: how something durable
    /// behind a bad frame is found out.
    fn headers_behind(&self, at: u64) -> Result<Vec<(u64, Header)>> {
        const WINDOW: usize = 1 << 20;
        let mut found = Vec::new();
        let mut from = at + 1;
        while from + HEADER as u64 <= self.length {
            let size = WINDOW.min((self.length - from) as usize);
            let mut window = vec![0; size];
            let read = self.file.read_at(&mut window, from).map_err(|error| Error::io("read", &self.path, error))?;
            window.truncate(read);
            for i in memchr_magic(&window) {
                if let Ok(header) = self.header(from + i as u64)? {
                    found.push((from + i as u64, header));
                }
            }
            if read < size || size < WINDOW {
                break;
            }
            // The magic may lie across two windows.
            from += (WINDOW - 3) as u64;
        }
        Ok(found)
    }

    /// The greatest `synced` that any of those tells; 0 if there are none.
    pub(crate) fn synced_behind(&self, at: u64) -> Result<u64> {
        Ok(self.headers_behind(at)?.iter().map(|(_, header)| header.synced).max().unwrap_or(0))
    }
}

fn memchr_magic(window: &[u8]) -> impl Iterator<Item = usize> {
    window.windows(4).enumerate().filter(|(_, bytes)| *bytes == MAGIC).map(|(i, _)| i)
}

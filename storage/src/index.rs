//! A sparse index of a segment, by offset and by time; kept in memory for the
//! newest, beside the file for sealed ones. It can always be made again, so it
//! is never synced and never trusted without its checksum.

use std::path::Path;

use crate::error::Result;
use crate::files::{Files, LogFile};
use crate::newtypes::Micros;
use crate::reader::{NO_SUCCESSOR, follows};
use crate::segment::{Bad, Scanner, crc};

/// An entry is made when so many bytes came since the last.
const SPACING: u64 = 1 << 20;
/// With the version, 1. Of another version the file is made anew.
const MAGIC: [u8; 8] = *b"HWLI\x01\0\0\0";

/// A place in a segment where a transaction begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) offset: u64,
    pub(crate) at: u64,
    pub(crate) time: Micros,
}

/// Where to begin to look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Index {
    entries: Vec<Entry>,
}

/// A sealed segment's end, and its index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sealed {
    pub(crate) length: u64,
    pub(crate) end: u64,
    pub(crate) sequence: u64,
    pub(crate) chain: u32,
    pub(crate) time: Micros,
    pub(crate) index: Index,
}

impl Index {
    /// Notes that a transaction begins here, if it is far enough from the last.
    pub(crate) fn note(&mut self, offset: u64, at: u64, time: Micros) {
        if self.entries.last().is_none_or(|last| at >= last.at + SPACING) {
            self.entries.push(Entry { offset, at, time });
        }
    }

    /// A byte position at or before the offset's frame; 0 if nothing better is known.
    pub(crate) fn before_offset(&self, offset: u64) -> u64 {
        // Frames without records share an offset with their neighbours, and may be
        // many: only what is strictly lower lies before all of them.
        let i = self.entries.partition_point(|entry| entry.offset < offset);
        i.checked_sub(1).map_or(0, |i| self.entries[i].at)
    }

    /// A byte position before which everything is older.
    pub(crate) fn before_time(&self, time: Micros) -> u64 {
        let i = self.entries.partition_point(|entry| entry.time < time);
        i.checked_sub(1).map_or(0, |i| self.entries[i].at)
    }
}

impl Sealed {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for number in [self.length, self.end, self.sequence, self.chain.into(), self.time.0 as u64] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for entry in &self.index.entries {
            for number in [entry.offset, entry.at, entry.time.0 as u64] {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
        out.extend_from_slice(&crc(&out).to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, sum) = bytes.split_last_chunk::<4>()?;
        if crc(body) != u32::from_le_bytes(*sum) {
            return None;
        }
        let (words, rest) = body.strip_prefix(&MAGIC)?.as_chunks::<8>();
        let numbers: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let (&[length, end, sequence, chain, time], entries) = numbers.split_first_chunk::<5>()?;
        let (entries, left) = entries.as_chunks::<3>();
        if !rest.is_empty() || !left.is_empty() {
            return None;
        }
        let entries =
            entries.iter().map(|&[offset, at, time]| Entry { offset, at, time: Micros(time as i64) }).collect();
        let chain = u32::try_from(chain).ok()?;
        Some(Self { length, end, sequence, chain, time: Micros(time as i64), index: Index { entries } })
    }

    /// From the file beside a segment, if there is one that fits; else made anew.
    pub(crate) fn load<F: Files>(files: &F, segment: &Path) -> Result<std::result::Result<Self, (u64, u64, Bad)>> {
        match Self::read(files, segment) {
            Some(sealed) => Ok(Ok(sealed)),
            None => Self::make(files, segment),
        }
    }

    /// From the file beside a segment. Its checksum does not say that it is of
    /// today: it is not synced, so a power cut may bring back what it held when
    /// the segment was about to be sealed, and then was not.
    fn read<F: Files>(files: &F, segment: &Path) -> Option<Self> {
        let file = files.open(&segment.with_extension("idx")).ok()?;
        let length = file.length().ok().filter(|length| *length < 64 << 20)?;
        let mut bytes = vec![0; length as usize];
        file.read_at(&mut bytes, 0).ok().filter(|read| *read == bytes.len())?;
        let written = files.open(segment).and_then(|file| file.length()).ok()?;
        Self::decode(&bytes).filter(|sealed| sealed.length == written)
    }

    /// By reading the segment; else what is wrong with it, where, and from which offset on.
    pub(crate) fn make<F: Files>(files: &F, segment: &Path) -> Result<std::result::Result<Self, (u64, u64, Bad)>> {
        let io = |error| crate::Error::io("open", segment, error);
        let mut scanner = Scanner::open(files.open(segment).map_err(io)?, segment)?;
        let mut sealed =
            Self { length: 0, end: 0, sequence: 0, chain: 0, time: Micros(i64::MIN), index: Index::default() };
        let mut begins = true;
        loop {
            match scanner.next()? {
                Ok((at, header, _)) => {
                    if at > 0 && !follows(&header, sealed.sequence, sealed.chain) {
                        return Ok(Err((at, sealed.end, Bad::Frame(NO_SUCCESSOR))));
                    }
                    if begins {
                        sealed.index.note(header.base, at, header.event_time);
                    }
                    begins = header.ends_transaction;
                    sealed.length = scanner.at;
                    sealed.end = header.end();
                    sealed.sequence = header.sequence + 1;
                    sealed.chain = header.chain;
                    sealed.time = header.event_time;
                }
                Err(Bad::End) => return Ok(Ok(sealed)),
                Err(bad) => return Ok(Err((scanner.at, sealed.end, bad))),
            }
        }
    }

    /// Beside the segment. Best effort: without it the next start reads the segment.
    pub(crate) fn write<F: Files>(&self, files: &F, segment: &Path) {
        if let Ok(file) = files.create(&segment.with_extension("idx")) {
            let _ = file.write_at(&self.encode(), 0);
        }
    }
}

//! A staged file as it is written.

use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::path::PathBuf;

use rustix::fs::{Advice, fadvise};

/// It is written in pieces of so many bytes, which begin and end where pages do: the
/// page cache takes one in a few large folios (a third less CPU than from any place to
/// any other; beyond 512 KiB such folios may have to be made room for first, at three
/// times the price).
const PIECE: usize = 256 << 10;
/// So much is worth telling the disk of.
const TOLD: u64 = 4 << 20;

/// Where a staged file is to be.
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    /// It is linked to its name, and must reach the disk; else it is gone again soon.
    pub(crate) stays: bool,
}

/// The file. It is whole once it is [finished](Self::finish).
pub(crate) struct Out {
    file: File,
    stays: bool,
    /// The end of it: less than a piece.
    rest: Vec<u8>,
    written: u64,
    told: u64,
}

impl Place {
    /// Makes it.
    pub(crate) fn create(&self) -> io::Result<Out> {
        Ok(Out { file: File::create_new(&self.path)?, stays: self.stays, rest: Vec::new(), written: 0, told: 0 })
    }
}

impl Out {
    /// Bytes in memory.
    pub(crate) fn memory(&self) -> usize {
        self.rest.capacity()
    }

    /// Writes what waits, so that its memory is free again.
    pub(crate) fn spill(&mut self) -> io::Result<()> {
        self.write_rest()?;
        self.rest = Vec::new();
        Ok(())
    }

    /// Writes what is left.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.write_rest()
    }

    fn write_rest(&mut self) -> io::Result<()> {
        self.file.write_all(&self.rest)?;
        self.written += self.rest.len() as u64;
        self.rest.clear();
        if self.stays && self.written - self.told >= TOLD {
            // Pages that are to be given back are written first, and without waiting:
            // the sync at the end finds little that is not on its way.
            // It is advice: what is wrong with it changes nothing.
            let _ = fadvise(&self.file, self.told, NonZeroU64::new(self.written - self.told), Advice::DontNeed);
            self.told = self.written;
        }
        Ok(())
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = PIECE - (self.written % PIECE as u64) as usize;
        let taken = bytes.len().min(piece - self.rest.len());
        self.rest.extend_from_slice(&bytes[..taken]);
        if self.rest.len() == piece {
            self.write_rest()?;
        }
        Ok(taken)
    }

    /// What waits for the end of its piece waits on: see [`Self::finish`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_was_written_is_there_once_it_is_finished() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let bytes: Vec<u8> = (0..TOLD as usize + 2 * PIECE + 1).map(|i| (i % 251) as u8).collect();
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, bytes.len()] {
            for (stays, at_a_time) in [(true, 1_000_003), (true, 4096), (false, 1_000_003)] {
                let mut out = Place { path: path.clone(), stays }.create().unwrap();
                for (i, part) in bytes[..length].chunks(at_a_time).enumerate() {
                    out.write_all(part).unwrap();
                    assert!(out.memory() <= PIECE);
                    if i % 7 == 1 {
                        out.spill().unwrap();
                        assert_eq!((out.memory(), out.written), (0, path.metadata().unwrap().len()));
                    }
                }
                out.finish().unwrap();
                assert!(std::fs::read(&path).unwrap() == bytes[..length], "{length} bytes, {at_a_time} at a time");
                std::fs::remove_file(&path).unwrap();
            }
        }
    }
}

//! A staged file as it is written.

use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::path::PathBuf;

use rustix::fs::{Advice, fadvise};

/// So much is worth telling the disk of.
const PIECE: u64 = 4 << 20;

/// Where a staged file is to be.
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    /// It is linked to its name, and must reach the disk; else it is gone again soon.
    pub(crate) stays: bool,
}

/// The file.
pub(crate) struct Out {
    file: File,
    stays: bool,
    written: u64,
    told: u64,
}

impl Place {
    /// Makes it.
    pub(crate) fn create(&self) -> io::Result<Out> {
        Ok(Out { file: File::create_new(&self.path)?, stays: self.stays, written: 0, told: 0 })
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.written += written as u64;
        if self.stays && self.written - self.told >= PIECE {
            // Pages that are to be given back are written first, and without waiting:
            // the sync at the end finds little that is not on its way.
            // It is advice: what is wrong with it changes nothing.
            let _ = fadvise(&self.file, self.told, NonZeroU64::new(self.written - self.told), Advice::DontNeed);
            self.told = self.written;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

//! Where transactions wait that are streamed while they are in progress: a file
//! for each, by its xid, in a folder beside the log.
//!
//! ```text
//! file    = record*
//! record  = kind u8, xid u32 of the (sub)transaction, length u32, body
//! ```
//!
//! Nothing here need survive: a transaction that is not in the log is sent
//! again by the server. So nothing is synced, and the folder is emptied at
//! every start.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use connector::{Error, Result};

const BUFFER: usize = 256 << 10;
const HEADER: usize = 9;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A relation message, behind the u32 that its description is known by.
    Relation,
    /// Any other message, as outside a stream.
    Message,
    /// A batch's payload with one part.
    Piece,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            b'R' => Self::Relation,
            b'M' => Self::Message,
            b'P' => Self::Piece,
            _ => return None,
        })
    }

    fn byte(self) -> u8 {
        match self {
            Self::Relation => b'R',
            Self::Message => b'M',
            Self::Piece => b'P',
        }
    }
}

/// All transactions in progress of a source.
pub(crate) struct Spool {
    folder: PathBuf,
    lengths: HashMap<u32, u64>,
    total: u64,
    /// The one that grows.
    writer: Option<(u32, BufWriter<File>)>,
}

impl Spool {
    /// Empties the folder, or makes it.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let emptied = match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => fs::create_dir_all(folder),
        };
        emptied.map_err(|error| {
            Error::retry(format!("could not empty the spool {}", folder.display()))
                .because(error)
                .hint("check that this user may write in `data_dir`")
        })?;
        Ok(Self { folder: folder.into(), lengths: HashMap::new(), total: 0, writer: None })
    }

    /// Bytes in it.
    pub(crate) fn bytes(&self) -> u64 {
        self.total
    }

    fn path(&self, xid: u32) -> PathBuf {
        self.folder.join(xid.to_string())
    }

    /// The next records are this transaction's.
    pub(crate) fn begin(&mut self, xid: u32) -> Result<()> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(self.path(xid));
        let file = file.map_err(|error| self.failed(xid, error))?;
        self.lengths.entry(xid).or_default();
        self.writer = Some((xid, BufWriter::with_capacity(BUFFER, file)));
        Ok(())
    }

    /// Adds a record; its body is in parts.
    pub(crate) fn append(&mut self, kind: Kind, sub: u32, body: [&[u8]; 2]) -> Result<()> {
        let Some((xid, writer)) = &mut self.writer else {
            return Err(Error::retry("the stream has a row outside a transaction"));
        };
        let xid = *xid;
        let length = body[0].len() + body[1].len();
        let mut header = [0; HEADER];
        header[0] = kind.byte();
        header[1..5].copy_from_slice(&sub.to_le_bytes());
        header[5..].copy_from_slice(&(length as u32).to_le_bytes());
        let parts: [&[u8]; 3] = [&header, body[0], body[1]];
        if let Err(error) = parts.into_iter().try_for_each(|part| writer.write_all(part)) {
            return Err(self.failed(xid, error));
        }
        let added = (HEADER + length) as u64;
        *self.lengths.entry(xid).or_default() += added;
        self.total += added;
        Ok(())
    }

    /// Puts down what is still held in memory.
    pub(crate) fn end(&mut self) -> Result<()> {
        let Some((xid, mut writer)) = self.writer.take() else { return Ok(()) };
        writer.flush().map_err(|error| self.failed(xid, error))
    }

    /// A transaction's records, from its first on.
    pub(crate) fn read(&self, xid: u32) -> Result<Records> {
        let path = self.path(xid);
        let file = File::open(&path).map_err(|error| unreadable(&path, error))?;
        let left = self.lengths.get(&xid).copied().unwrap_or(0);
        Ok(Records { path, left, file: BufReader::with_capacity(BUFFER, file), body: Vec::new() })
    }

    /// The transaction is over.
    pub(crate) fn remove(&mut self, xid: u32) {
        self.total -= self.lengths.remove(&xid).unwrap_or(0);
        if let Err(error) = fs::remove_file(self.path(xid)) {
            tracing::warn!(xid, %error, "could not remove a transaction from the spool; the next start does");
        }
    }

    fn failed(&self, xid: u32, error: io::Error) -> Error {
        let bytes = self.lengths.get(&xid).copied().unwrap_or(0);
        let folder = self.folder.display();
        let what = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                format!(
                    "disk full: transaction {xid}, in progress on the server and {bytes} bytes so far, has no room in {folder}"
                )
            }
            _ => format!("could not write transaction {xid}, in progress on the server, to {folder}"),
        };
        Error::retry(what).because(error).hint(
            "make room on the disk of `data_dir`; nothing is lost, the server sends the transaction again from its start",
        )
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // Room at once for whoever waits for it: the next start would come later.
        for xid in self.lengths.keys() {
            let _ = fs::remove_file(self.path(*xid));
        }
    }
}

/// Reads a transaction's records.
pub(crate) struct Records {
    path: PathBuf,
    /// Bytes that are still to come.
    left: u64,
    file: BufReader<File>,
    body: Vec<u8>,
}

impl Records {
    /// The next one; None at the end. Those that `skipped` says of by their
    /// xid are passed over. Also tells how many bytes were read or passed over.
    pub(crate) fn next(&mut self, skipped: impl Fn(u32) -> bool) -> Result<Option<(Kind, &[u8], u64)>> {
        let mut passed = 0;
        loop {
            if self.left == 0 {
                return Ok(None);
            }
            let mut header = [0; HEADER];
            self.file.read_exact(&mut header).map_err(|error| unreadable(&self.path, error))?;
            let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
            let (kind, xid, length) = (Kind::of(header[0]), word(1), word(5));
            let size = HEADER as u64 + u64::from(length);
            let (Some(kind), Some(left)) = (kind, self.left.checked_sub(size)) else {
                let broken = io::Error::new(io::ErrorKind::InvalidData, "not what was written");
                return Err(unreadable(&self.path, broken));
            };
            self.left = left;
            passed += size;
            if skipped(xid) {
                let seek = self.file.seek_relative(length.into());
                seek.map_err(|error| unreadable(&self.path, error))?;
                continue;
            }
            if self.body.capacity() > 4 << 20 {
                // One huge row must not keep its memory for ever.
                self.body = Vec::new();
            }
            self.body.resize(length as usize, 0);
            self.file.read_exact(&mut self.body).map_err(|error| unreadable(&self.path, error))?;
            return Ok(Some((kind, &self.body, passed)));
        }
    }
}

fn unreadable(path: &Path, error: io::Error) -> Error {
    Error::retry(format!("could not read the spool's {}", path.display()))
        .because(error)
        .hint("look at the disk of `data_dir`; nothing is lost, the server sends the transaction again")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("highwater-spool-{}-{name}", std::process::id()))
    }

    #[test]
    fn transactions_are_kept_apart_and_those_rolled_back_are_passed_over() {
        let folder = folder("apart");
        let mut spool = Spool::open(&folder).unwrap();
        for round in 0..2u8 {
            for xid in [7, 8] {
                spool.begin(xid).unwrap();
                spool.append(Kind::Message, xid, [b"m", &[round]]).unwrap();
                spool.append(Kind::Piece, xid + 100, [&[round; 400_000], &[]]).unwrap();
                spool.end().unwrap();
            }
        }
        assert_eq!(spool.bytes(), 4 * (11 + 400_009));
        let mut records = spool.read(8).unwrap();
        let mut seen = Vec::new();
        while let Some((kind, body, _)) = records.next(|xid| xid == 108).unwrap() {
            seen.push((kind, body.to_vec()));
        }
        assert_eq!(seen, [(Kind::Message, b"m\0".to_vec()), (Kind::Message, b"m\x01".to_vec())]);
        spool.remove(7);
        assert_eq!(spool.bytes(), 2 * (11 + 400_009));
        assert!(!folder.join("7").exists() && folder.join("8").exists());
        // What a crash leaves is not there at the next start.
        std::mem::forget(spool);
        let spool = Spool::open(&folder).unwrap();
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        drop(spool);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

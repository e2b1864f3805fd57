//! The whole registry in a file, so that a start does not read the log from
//! its beginning.
//!
//! `HWREG001`, log id (16), offset (u64): the first that is not in it; length
//! of the changes (u64), the changes, CRC-32C of all before it (u32). Numbers
//! are little endian. Written under another name, synced, renamed, the folder
//! synced; only then are older ones and the log before it removed.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crc_fast::{CrcAlgorithm, Digest};
use storage::{LogId, Offset, fault};

use crate::change::Change;
use crate::error::{Error, Result};

/// Everything up to an offset.
pub(super) struct Snapshot {
    pub(super) offset: Offset,
    pub(super) changes: Vec<Change>,
}

const MAGIC: &[u8; 8] = b"HWREG001";
const HEAD: usize = 8 + 16 + 8 + 8;
const PREFIX: &str = "snapshot-";
/// Written between two syncs.
const STRETCH: usize = 32 << 20;
/// Read at once; what is in memory of a file at least.
const PIECE: usize = 1 << 20;

impl Snapshot {
    /// Durable when this returns; its size. Ends early, with an error, once `stop` is set.
    pub(super) fn write(&self, folder: &Path, log: LogId, stop: &AtomicBool) -> Result<u64> {
        let path = folder.join(format!("{PREFIX}{:020}", self.offset.0));
        // The log removes what is left under such a name.
        let temporary = folder.join("snapshot.tmp");
        let bytes = self
            .put(&temporary, log, stop)
            .and_then(|bytes| {
                fault::point("registry-snapshot-written");
                std::fs::rename(&temporary, &path)?;
                File::open(folder)?.sync_all()?;
                Ok(bytes)
            })
            .map_err(|source| Error::File { what: "write", path: path.clone(), source })?;
        fault::point("registry-snapshot-named");
        for (offset, older) in all(folder)? {
            if offset < self.offset.0 {
                std::fs::remove_file(&older).map_err(|source| Error::File { what: "remove", path: older, source })?;
            }
        }
        Ok(bytes)
    }

    /// Change by change: the whole of it is never in memory a second time.
    fn put(&self, path: &Path, log: LogId, stop: &AtomicBool) -> io::Result<u64> {
        let mut one = Vec::new();
        let mut encode = |change: &Change, then: &mut dyn FnMut(&[u8]) -> io::Result<()>| {
            one.clear();
            change.encode(&mut one);
            then(&one)
        };
        let mut length = 0;
        for change in &self.changes {
            encode(change, &mut |bytes| {
                length += bytes.len() as u64;
                Ok(())
            })?;
        }
        let mut head = Vec::with_capacity(HEAD);
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&log.0);
        head.extend_from_slice(&self.offset.0.to_le_bytes());
        head.extend_from_slice(&length.to_le_bytes());
        let mut file = BufWriter::with_capacity(PIECE, File::create(path)?);
        let mut crc = Digest::new(CrcAlgorithm::Crc32Iscsi);
        crc.update(&head);
        file.write_all(&head)?;
        let mut unsynced = 0;
        for change in &self.changes {
            encode(change, &mut |bytes| {
                crc.update(bytes);
                unsynced += bytes.len();
                file.write_all(bytes)
            })?;
            // So that the sync at the end is short, and with it the wait for a stop.
            if unsynced > STRETCH {
                unsynced = 0;
                file.flush()?;
                file.get_ref().sync_data()?;
                if stop.load(Ordering::Relaxed) {
                    return Err(io::Error::other("the registry is being closed"));
                }
            }
        }
        file.write_all(&(crc.finalize() as u32).to_le_bytes())?;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        Ok(HEAD as u64 + length + 4)
    }
}

/// Gives the changes of the newest to `take`, and says where it ends; None if
/// there is none. What was taken counts only if this succeeds.
pub(super) fn load(folder: &Path, log: Option<LogId>, take: &mut dyn FnMut(Change)) -> Result<Option<Offset>> {
    let Some((offset, path)) = all(folder)?.pop() else { return Ok(None) };
    let failed = |source| Error::File { what: "read", path: path.clone(), source };
    let broken = |what: &str| Error::Unreadable { folder: folder.into(), what: format!("{} {what}", path.display()) };
    let mut file = File::open(&path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let mut left = size.checked_sub(HEAD as u64 + 4).ok_or_else(|| broken("is cut"))?;
    let mut head = [0; HEAD];
    file.read_exact(&mut head).map_err(failed)?;
    if !head.starts_with(MAGIC) {
        return Err(broken("is no snapshot of this version"));
    }
    if log.is_some_and(|log| head[8..24] != log.0) {
        return Err(broken("belongs to another log"));
    }
    let mut crc = Digest::new(CrcAlgorithm::Crc32Iscsi);
    crc.update(&head);
    // Behind `start`, what does not make a whole change yet.
    let (mut bytes, mut start) = (Vec::new(), 0);
    while left > 0 {
        bytes.drain(..start);
        let had = bytes.len();
        let more = left.min(PIECE.max(had) as u64);
        bytes.resize(had + more as usize, 0);
        file.read_exact(&mut bytes[had..]).map_err(failed)?;
        crc.update(&bytes[had..]);
        left -= more;
        let mut rest = &bytes[..];
        start = loop {
            let before = bytes.len() - rest.len();
            match Change::decode(&mut rest) {
                Some(change) => take(change),
                None => break before,
            }
        };
    }
    let mut stored = [0; 4];
    file.read_exact(&mut stored).map_err(failed)?;
    if crc.finalize() as u32 != u32::from_le_bytes(stored) {
        return Err(broken("is corrupt"));
    }
    if start < bytes.len() {
        return Err(broken("does not read back"));
    }
    Ok(Some(Offset(offset)))
}

/// Snapshots by offset, the newest last.
fn all(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let failed = |source| Error::File { what: "list", path: folder.into(), source };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let offset = entry.file_name().to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
        all.extend(offset.map(|offset| (offset, entry.path())));
    }
    all.sort();
    Ok(all)
}

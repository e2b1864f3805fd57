//! The whole registry in a file, so that a start does not read the log from
//! its beginning.
//!
//! `HWREG001`, log id (16), offset (u64): the first that is not in it; length
//! of the changes (u64), the changes, CRC-32C of all before it (u32). Numbers
//! are little endian. Written under another name, synced, renamed, the folder
//! synced; only then are older ones and the log before it removed.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use storage::{LogId, Offset};

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

impl Snapshot {
    /// Durable when this returns; its size.
    pub(super) fn write(&self, folder: &Path, log: LogId) -> Result<u64> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&log.0);
        bytes.extend_from_slice(&self.offset.0.to_le_bytes());
        bytes.extend_from_slice(&[0; 8]);
        self.changes.iter().for_each(|change| change.encode(&mut bytes));
        let length = (bytes.len() - HEAD) as u64;
        bytes[HEAD - 8..HEAD].copy_from_slice(&length.to_le_bytes());
        let crc = crc(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        let path = folder.join(format!("{PREFIX}{:020}", self.offset.0));
        // The log removes what is left under such a name.
        let temporary = folder.join("snapshot.tmp");
        let written = File::create(&temporary)
            .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()))
            .and_then(|()| std::fs::rename(&temporary, &path))
            .and_then(|()| File::open(folder)?.sync_all());
        written.map_err(|source| Error::File { what: "write", path: path.clone(), source })?;
        for (offset, older) in all(folder)? {
            if offset < self.offset.0 {
                std::fs::remove_file(&older).map_err(|source| Error::File { what: "remove", path: older, source })?;
            }
        }
        Ok(bytes.len() as u64)
    }
}

/// The newest; None if there is none.
pub(super) fn load(folder: &Path, log: Option<LogId>) -> Result<Option<Snapshot>> {
    let Some((offset, path)) = all(folder)?.pop() else { return Ok(None) };
    let bytes = std::fs::read(&path).map_err(|source| Error::File { what: "read", path: path.clone(), source })?;
    let broken = |what: &str| Error::Unreadable { folder: folder.into(), what: format!("{} {what}", path.display()) };
    let (content, stored) = bytes.split_last_chunk::<4>().ok_or_else(|| broken("is cut"))?;
    if content.len() < HEAD || !content.starts_with(MAGIC) {
        return Err(broken("is no snapshot of this version"));
    }
    if crc(content) != u32::from_le_bytes(*stored) {
        return Err(broken("is corrupt"));
    }
    if log.is_some_and(|log| content[8..24] != log.0) {
        return Err(broken("belongs to another log"));
    }
    let changes = Change::decode_all(&content[HEAD..]).ok_or_else(|| broken("does not read back"))?;
    Ok(Some(Snapshot { offset: Offset(offset), changes }))
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

fn crc(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

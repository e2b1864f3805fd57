//! The few file operations that the log makes, so that tests can put a disk
//! under it that loses what was not synced. Each sync has a name.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why something is synced. Taking any one away must make a test fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SyncPoint {
    /// A group of frames, before their commits resolve.
    Group,
    /// A new segment's head, before it gets its name.
    NewSegment,
    /// The folder, after a new segment got its name.
    NewSegmentName,
    /// What recovery keeps of an unsynced tail, before it is shown.
    RecoveredTail,
    /// The new epoch, before the first append under it.
    Epoch,
    /// The names of the folder and of those above it, before a log is made in it.
    NewFolder,
    /// The folder, before what recovery found in it is gone on with: the
    /// process before may have died between a rename and its sync.
    RecoveredNames,
    /// The folder, after a segment was removed and before the next one is: the
    /// later removal alone would be a hole.
    Removed,
}

impl SyncPoint {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Group,
        Self::NewSegment,
        Self::NewSegmentName,
        Self::RecoveredTail,
        Self::Epoch,
        Self::NewFolder,
        Self::RecoveredNames,
        Self::Removed,
    ];
}

/// A file system as far as the log needs one.
pub trait Files: Clone + Send + Sync + 'static {
    /// An open file; cheap to clone.
    type File: LogFile;
    /// Held for as long as the log is open for writing.
    type Lock: Send + Sync;

    /// Takes the folder's lock; WouldBlock if another has it.
    fn lock(&self, path: &Path) -> io::Result<Self::Lock>;
    /// Makes a folder and those above it.
    fn create_folder(&self, folder: &Path) -> io::Result<()>;
    /// Names in a folder.
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;
    /// A new, empty file; an old one of the name is emptied.
    fn create(&self, path: &Path) -> io::Result<Self::File>;
    /// An existing file, for reading.
    fn open(&self, path: &Path) -> io::Result<Self::File>;
    /// An existing file, for reading and writing.
    fn open_to_write(&self, path: &Path) -> io::Result<Self::File>;
    /// Atomically; replaces.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes names in the folder durable.
    fn sync_folder(&self, folder: &Path, point: SyncPoint) -> io::Result<()>;
}

/// An open file.
pub trait LogFile: Clone + Send + Sync + 'static {
    /// All bytes, at this place.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Fewer only at the end.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;
    /// Its length.
    fn length(&self) -> io::Result<u64>;
    /// Cuts or extends it.
    fn truncate(&self, length: u64) -> io::Result<()>;
    /// Makes its content durable.
    fn sync(&self, point: SyncPoint) -> io::Result<()>;
    /// Nobody is known to read this part soon: memory need not hold it.
    fn forget(&self, _from: u64, _to: u64) {}
}

/// The real one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk;

impl Files for Disk {
    type File = Arc<File>;
    type Lock = File;

    fn lock(&self, path: &Path) -> io::Result<File> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn create(&self, path: &Path) -> io::Result<Arc<File>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o640);
        options.open(path).map(Arc::new)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<File>> {
        File::open(path).map(Arc::new)
    }

    fn open_to_write(&self, path: &Path) -> io::Result<Arc<File>> {
        OpenOptions::new().read(true).write(true).open(path).map(Arc::new)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_folder(&self, folder: &Path, _point: SyncPoint) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }
}

impl LogFile for Arc<File> {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match FileExt::read_at(&**self, &mut buffer[done..], at + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn length(&self) -> io::Result<u64> {
        self.metadata().map(|m| m.len())
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&self, _point: SyncPoint) -> io::Result<()> {
        self.sync_data()
    }

    fn forget(&self, from: u64, to: u64) {
        if let Some(length) = std::num::NonZeroU64::new(to.saturating_sub(from)) {
            // It is advice: what is wrong with it changes nothing.
            let _ = rustix::fs::fadvise(&**self, from, Some(length), rustix::fs::Advice::DontNeed);
        }
    }
}

/// A segment's path.
pub(crate) fn segment_path(folder: &Path, base: u64) -> PathBuf {
    folder.join(format!("{base:020}.log"))
}

/// The segments' first offsets among these names, ascending.
pub(crate) fn segment_bases(names: &[String]) -> Vec<u64> {
    let mut bases: Vec<u64> = names
        .iter()
        .filter_map(|name| name.strip_suffix(".log").filter(|digits| digits.len() == 20))
        .filter_map(|digits| digits.parse().ok())
        .collect();
    bases.sort_unstable();
    bases
}

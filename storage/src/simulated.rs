//! A disk in memory that is as unkind as a real one may be.
//!
//! What was written is seen by all at once and is durable only after a sync:
//! content after that of the file, a name (made, moved or removed) after that
//! of its folder. A [power cut](Simulated::power_cut) leaves of the rest what
//! [`Survival`] says, sector by sector. A [killed process](Simulated::kill)
//! leaves everything, but whatever it still does has no effect. Operations can
//! be made to fail; after a failed sync nothing is dirty any more, so the
//! content is there to be read and not there after a power cut, as on Linux. A
//! folder's names stay unsynced after a failed sync: they are in the journal of
//! the file system, which goes read-only if that cannot be written.
//!
//! Every change is kept in a trace, from which the disk as of any of them is
//! [made again](Simulated::at).

mod surface;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::files::{Files, LogFile, SyncPoint};
pub use surface::{Chance, Survival};
use surface::{Change, Surface};

/// Operations that fail.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The first that fails: operations are counted from 0.
    pub at: u64,
    /// How many fail, one after another.
    pub times: u64,
    /// As the kernel numbers errors.
    pub code: i32,
    /// A write that fails has written half.
    pub short: bool,
    /// Others than these go well.
    pub only: Only,
}

/// Operations by what they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Only {
    /// All.
    Any,
    /// What needs room: writes, and new files.
    Writes,
    /// Syncs of files.
    Syncs,
}

impl Fault {
    /// The disk does not answer.
    pub const EIO: i32 = 5;
    /// The disk is full.
    pub const ENOSPC: i32 = 28;

    fn hits(&self, number: u64, change: &Change) -> bool {
        let kind = match self.only {
            Only::Any => true,
            Only::Writes => matches!(change, Change::Write { .. } | Change::Create { .. }),
            Only::Syncs => matches!(change, Change::Sync { .. }),
        };
        kind && (self.at..self.at.saturating_add(self.times)).contains(&number)
    }
}

/// The disk, as one process sees it.
#[derive(Clone)]
pub struct Simulated {
    disk: Arc<Disk>,
    life: u64,
}

struct Disk {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct State {
    surface: Surface,
    trace: Vec<Change>,
    operations: u64,
    syncs: u64,
    /// Of the process that lives.
    life: u64,
    locks: BTreeSet<PathBuf>,
    ignored: Option<SyncPoint>,
    fault: Option<Fault>,
    held: bool,
    failures: u64,
    /// Handles whose sync has failed.
    failed_syncs: BTreeSet<u64>,
    opened: u64,
    tried_again: u64,
}

impl Default for Simulated {
    fn default() -> Self {
        Self::of(State::default())
    }
}

impl Simulated {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    fn of(state: State) -> Self {
        Self { disk: Arc::new(Disk { state: Mutex::new(state), moved: Condvar::new() }), life: 0 }
    }

    /// Makes syncs of one point do nothing.
    pub fn ignoring(self, point: Option<SyncPoint>) -> Self {
        self.state().ignored = point;
        self
    }

    /// Makes operations fail.
    pub fn failing(self, fault: Option<Fault>) -> Self {
        self.state().fault = fault;
        self
    }

    /// Ends the process that has this: what it still does fails, without effect.
    /// What it gets back is the same disk for the next one.
    pub fn kill(&self) -> Self {
        let mut state = self.state();
        state.life += 1;
        state.locks.clear();
        state.held = false;
        self.disk.moved.notify_all();
        Self { disk: self.disk.clone(), life: state.life }
    }

    /// Ends the process and drops what was not synced, but for what survives.
    pub fn power_cut(&self, survival: Survival) -> Self {
        let next = self.kill();
        next.state().surface.cut(survival);
        next
    }

    /// Changes so far.
    pub fn changes(&self) -> usize {
        self.state().trace.len()
    }

    /// Operations so far, those that failed among them.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Syncs of files so far.
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// Syncs of an open file of which one had failed.
    pub fn syncs_tried_again(&self) -> u64 {
        self.state().tried_again
    }

    /// Returns when so many operations have failed.
    pub fn wait_for_failures(&self, failures: u64) {
        let mut state = self.state();
        while state.failures < failures {
            state = self.disk.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The disk as of its first changes. It must not have seen a power cut.
    pub fn at(&self, changes: usize) -> Self {
        let state = self.state();
        let mut surface = Surface::default();
        for change in &state.trace[..changes] {
            surface.apply(change).expect("it could be done the first time");
        }
        let ignored = state.ignored;
        Self::of(State { surface, ignored, ..State::default() })
    }

    /// Another disk as it is after the first changes of this one.
    pub fn after(&self, start: &Self, changes: usize) -> Self {
        let copy = start.copy();
        {
            let mut there = copy.state();
            for change in &self.state().trace[..changes] {
                there.surface.apply(change).expect("it could be done the first time");
            }
        }
        copy
    }

    /// A disk of its own with the same content, durable or not.
    pub fn copy(&self) -> Self {
        let state = self.state();
        Self::of(State { surface: state.surface.clone(), ignored: state.ignored, ..State::default() })
    }

    /// Lets every operation wait until [released](Self::release).
    pub fn hold(&self) {
        self.state().held = true;
    }

    /// Lets operations go on.
    pub fn release(&self) {
        self.state().held = false;
        self.disk.moved.notify_all();
    }

    /// A file's content.
    pub fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.state();
        let file = state.surface.find(path)?;
        Ok(state.surface.content(file).to_vec())
    }

    /// Changes durable bytes of a file behind everyone's back.
    pub fn damage(&self, path: &Path, damage: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut state = self.state();
        let file = state.surface.find(path)?;
        state.surface.damage(file, damage);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.disk.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alive(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.life == self.life { Ok(state) } else { Err(io::Error::other("this process was killed")) }
    }

    /// Counts an operation that changes something, and finds out whether it must fail.
    fn operation(&self, change: &Change) -> io::Result<(MutexGuard<'_, State>, Option<Fault>)> {
        let mut state = self.alive()?;
        while state.held && state.life == self.life {
            state = self.disk.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.life != self.life {
            return Err(io::Error::other("this process was killed"));
        }
        let number = state.operations;
        state.operations += 1;
        let fault = state.fault.filter(|fault| fault.hits(number, change));
        if fault.is_some() {
            state.failures += 1;
            self.disk.moved.notify_all();
        }
        Ok((state, fault))
    }

    fn change(&self, change: Change) -> io::Result<()> {
        let (mut state, fault) = self.operation(&change)?;
        let failed = fault.map_or(Ok(()), |fault| Err(io::Error::from_raw_os_error(fault.code)));
        match (change, fault) {
            (Change::Write { file, at, mut bytes }, Some(fault)) if fault.short && !bytes.is_empty() => {
                bytes.truncate(bytes.len().div_ceil(2));
                state.change(Change::Write { file, at, bytes })?;
            }
            (Change::Sync { file }, Some(_)) => {
                let seed = state.operations;
                state.change(Change::SyncFailed { file, seed })?;
            }
            (_, Some(_)) => {}
            (change, None) => state.change(change)?,
        }
        failed
    }
}

impl State {
    fn change(&mut self, change: Change) -> io::Result<()> {
        self.surface.apply(&change)?;
        self.trace.push(change);
        Ok(())
    }
}

/// Held until dropped, or until the process is killed.
pub struct Lock {
    files: Simulated,
    path: PathBuf,
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Ok(mut state) = self.files.alive() {
            state.locks.remove(&self.path);
        }
    }
}

/// An open file.
#[derive(Clone)]
pub struct SimulatedFile {
    files: Simulated,
    file: usize,
    handle: u64,
}

impl Files for Simulated {
    type File = SimulatedFile;
    type Lock = Lock;

    fn lock(&self, path: &Path) -> io::Result<Lock> {
        let taken = self.alive()?.locks.insert(path.into());
        if taken { Ok(Lock { files: self.clone(), path: path.into() }) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }

    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        let mut missing: Vec<&Path> = folder.ancestors().collect();
        missing.retain(|path| !self.state().surface.has_folder(path));
        missing.into_iter().rev().try_for_each(|path| self.change(Change::CreateFolder { path: path.into() }))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.alive()?.surface.names(folder)
    }

    fn create(&self, path: &Path) -> io::Result<SimulatedFile> {
        self.change(Change::Create { path: path.into() })?;
        self.open(path)
    }

    fn open(&self, path: &Path) -> io::Result<SimulatedFile> {
        let mut state = self.alive()?;
        let file = state.surface.find(path)?;
        state.opened += 1;
        let handle = state.opened;
        Ok(SimulatedFile { files: self.clone(), file, handle })
    }

    fn open_to_write(&self, path: &Path) -> io::Result<SimulatedFile> {
        self.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(Change::Rename { from: from.into(), to: to.into() })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.alive()?.surface.find(path)?;
        self.change(Change::Remove { path: path.into() })
    }

    fn sync_folder(&self, folder: &Path, point: SyncPoint) -> io::Result<()> {
        if self.alive()?.ignored == Some(point) {
            return Ok(());
        }
        self.change(Change::SyncFolder { path: folder.into() })
    }
}

impl LogFile for SimulatedFile {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.files.change(Change::Write { file: self.file, at: at as usize, bytes: bytes.into() })
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let state = self.files.alive()?;
        let content = state.surface.content(self.file);
        let from = content.get(at as usize..).unwrap_or_default();
        let read = from.len().min(buffer.len());
        buffer[..read].copy_from_slice(&from[..read]);
        Ok(read)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.files.alive()?.surface.content(self.file).len() as u64)
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.files.change(Change::Resize { file: self.file, length: length as usize })
    }

    fn sync(&self, point: SyncPoint) -> io::Result<()> {
        let mut state = self.files.alive()?;
        state.syncs += 1;
        if state.ignored == Some(point) {
            return Ok(());
        }
        state.tried_again += u64::from(state.failed_syncs.contains(&self.handle));
        drop(state);
        self.files.change(Change::Sync { file: self.file }).inspect_err(|_| {
            self.files.state().failed_syncs.insert(self.handle);
        })
    }
}

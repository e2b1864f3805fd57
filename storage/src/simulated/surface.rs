//! What a disk holds for certain, what only the cache holds, and what a power
//! cut leaves of that.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What survives a power cut beside that which was synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// Nothing.
    Nothing,
    /// All of it.
    Everything,
    /// Names, and no content: a rename without its data.
    Names,
    /// Content, and no names.
    Content,
    /// The first so many changes of each file and folder, the last of them torn
    /// at any byte.
    Prefix(u64),
    /// Any sector of this size in any state that it was in, any length that
    /// the file had, any name.
    Any {
        /// Chooses.
        seed: u64,
        /// 512 or 4096.
        sector: usize,
    },
}

/// A change of the disk, as it was asked for.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    CreateFolder {
        path: PathBuf,
    },
    Create {
        path: PathBuf,
    },
    Write {
        file: usize,
        at: usize,
        bytes: Vec<u8>,
    },
    Resize {
        file: usize,
        length: usize,
    },
    Sync {
        file: usize,
    },
    /// Some pages reached the disk, none is dirty any more.
    SyncFailed {
        file: usize,
        seed: u64,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Remove {
        path: PathBuf,
    },
    SyncFolder {
        path: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    File(usize),
    Folder,
}

/// A file: what a reader sees, what is durable, and the states in between.
#[derive(Clone, Debug, Default)]
struct Content {
    now: Arc<Vec<u8>>,
    durable: Arc<Vec<u8>>,
    unsynced: Vec<(Range<usize>, Arc<Vec<u8>>)>,
}

#[derive(Clone, Debug, Default)]
struct Folder {
    now: BTreeMap<String, Node>,
    durable: BTreeMap<String, Node>,
    unsynced: Vec<NameChange>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Added(String, Node),
    /// One change: either name, never both.
    Moved(String, String, Node),
    Removed(String),
}

/// A disk's whole content.
#[derive(Clone, Debug)]
pub(crate) struct Surface {
    files: Vec<Content>,
    folders: BTreeMap<PathBuf, Folder>,
}

impl Default for Surface {
    fn default() -> Self {
        Self { files: Vec::new(), folders: BTreeMap::from([(PathBuf::from("/"), Folder::default())]) }
    }
}

impl Surface {
    pub(crate) fn find(&self, path: &Path) -> io::Result<usize> {
        let (folder, name) = split(path)?;
        match self.folders.get(folder).and_then(|folder| folder.now.get(name)) {
            Some(Node::File(file)) => Ok(*file),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    pub(crate) fn has_folder(&self, path: &Path) -> bool {
        self.folders.contains_key(path)
    }

    pub(crate) fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        let folder = self.folders.get(folder).ok_or(io::ErrorKind::NotFound)?;
        Ok(folder.now.keys().cloned().collect())
    }

    pub(crate) fn content(&self, file: usize) -> &[u8] {
        self.files.get(file).map_or(&[], |content| &content.now)
    }

    pub(crate) fn apply(&mut self, change: &Change) -> io::Result<()> {
        match change {
            Change::CreateFolder { path } => {
                let (folder, name) = split(path)?;
                self.folder(folder)?.add(name, Node::Folder);
                self.folders.insert(path.clone(), Folder::default());
            }
            Change::Create { path } => match self.find(path) {
                Ok(file) => self.files[file].change(0..usize::MAX, Vec::clear),
                Err(_) => {
                    let (folder, name) = split(path)?;
                    let node = Node::File(self.files.len());
                    self.folder(folder)?.add(name, node);
                    self.files.push(Content::default());
                }
            },
            Change::Write { file, at, bytes } => {
                let range = *at..at + bytes.len();
                self.files[*file].change(range.clone(), |content| {
                    if content.len() < range.end {
                        content.resize(range.end, 0);
                    }
                    content[range].copy_from_slice(bytes);
                });
            }
            Change::Resize { file, length } => {
                self.files[*file].change(*length..usize::MAX, |content| content.resize(*length, 0));
            }
            Change::Sync { file } => self.files[*file].sync(),
            Change::SyncFailed { file, seed } => {
                let content = &mut self.files[*file];
                content.durable = Arc::new(content.survive(Survival::Any { seed: *seed, sector: 4096 }));
                content.unsynced.clear();
            }
            Change::Rename { from, to } => {
                let (folder, from) = split(from)?;
                let (_, to) = split(to)?;
                let folder = self.folder(folder)?;
                let node = folder.now.remove(from).ok_or(io::ErrorKind::NotFound)?;
                folder.now.insert(to.into(), node);
                folder.unsynced.push(NameChange::Moved(from.into(), to.into(), node));
            }
            Change::Remove { path } => {
                let (folder, name) = split(path)?;
                let folder = self.folder(folder)?;
                folder.now.remove(name).ok_or(io::ErrorKind::NotFound)?;
                folder.unsynced.push(NameChange::Removed(name.into()));
            }
            Change::SyncFolder { path } => self.folder(path)?.settle(Survival::Everything, 0),
        }
        Ok(())
    }

    /// What is there when the power comes back.
    pub(crate) fn cut(&mut self, survival: Survival) {
        for (i, content) in self.files.iter_mut().enumerate() {
            content.cut(survival.for_part(i as u64));
        }
        let paths: Vec<PathBuf> = self.folders.keys().cloned().collect();
        for (i, path) in paths.iter().enumerate() {
            // In order of paths: a folder's own name is settled before it.
            let above = path.parent().map(|above| self.folders.get(above));
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if above.is_some_and(|above| above.is_none_or(|above| !above.now.contains_key(name))) {
                self.folders.remove(path);
            } else if let Some(folder) = self.folders.get_mut(path) {
                folder.settle(survival.for_part(i as u64), i as u64);
            }
        }
    }

    /// Overwrites durable bytes, as a failing disk would.
    pub(crate) fn damage(&mut self, file: usize, damage: impl FnOnce(&mut Vec<u8>)) {
        let content = &mut self.files[file];
        damage(Arc::make_mut(&mut content.now));
        content.durable = content.now.clone();
        content.unsynced.clear();
    }

    fn folder(&mut self, path: &Path) -> io::Result<&mut Folder> {
        self.folders.get_mut(path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Content {
    fn change(&mut self, touched: Range<usize>, change: impl FnOnce(&mut Vec<u8>)) {
        change(Arc::make_mut(&mut self.now));
        self.unsynced.push((touched, self.now.clone()));
    }

    /// What an earlier failed sync dropped is not written by this one, and is
    /// there to be read all the same.
    fn sync(&mut self) {
        self.durable = Arc::new(self.survive(Survival::Everything));
        self.unsynced.clear();
    }

    fn cut(&mut self, survival: Survival) {
        self.now = Arc::new(self.survive(survival));
        self.durable = self.now.clone();
        self.unsynced.clear();
    }

    fn survive(&self, survival: Survival) -> Vec<u8> {
        let last = self.unsynced.len();
        match survival {
            Survival::Nothing | Survival::Names => self.version(0).to_vec(),
            Survival::Everything | Survival::Content => self.mix(512, last, |_| last),
            Survival::Prefix(seed) => {
                let mut chance = Chance(seed);
                let whole = chance.below(last + 1);
                let mut content = self.mix(512, whole, |_| whole);
                if let Some((touched, after)) = self.unsynced.get(whole) {
                    let end = touched.end.min(after.len());
                    let torn = touched.start + chance.below(end.saturating_sub(touched.start) + 1);
                    if torn <= after.len() && torn > touched.start {
                        content.resize(content.len().max(torn), 0);
                        content[touched.start..torn].copy_from_slice(&after[touched.start..torn]);
                    }
                }
                content
            }
            Survival::Any { seed, sector } => {
                let mut chance = Chance(seed);
                let length = chance.below(last + 1);
                // Mostly old, mostly new, or evenly mixed.
                let lean = chance.below(3);
                self.mix(sector, length, |_| match (lean, chance.below(8)) {
                    (0, 1..) => 0,
                    (1, 1..) => last,
                    _ => chance.below(last + 1),
                })
            }
        }
    }

    fn version(&self, n: usize) -> &[u8] {
        n.checked_sub(1).and_then(|n| self.unsynced.get(n)).map_or(&self.durable, |(_, after)| after)
    }

    /// A file of the n-th version's length, each of its sectors as of a version of choice.
    fn mix(&self, sector: usize, length: usize, mut choose: impl FnMut(usize) -> usize) -> Vec<u8> {
        let mut content = vec![0; self.version(length).len()];
        for (i, into) in content.chunks_mut(sector).enumerate() {
            let range = i * sector..i * sector + into.len();
            let chosen = choose(i);
            // The newest state, not after the chosen one, in which this sector was written.
            let touched = |n: &usize| {
                let (touched, _) = &self.unsynced[*n - 1];
                touched.start < range.end && touched.end > i * sector
            };
            let from = self.version((1..=chosen).rev().find(touched).unwrap_or(0));
            let end = range.end.min(from.len());
            if let Some(bytes) = from.get(range.start..end) {
                into[..bytes.len()].copy_from_slice(bytes);
            }
        }
        content
    }
}

impl Folder {
    fn add(&mut self, name: &str, node: Node) {
        self.now.insert(name.into(), node);
        self.unsynced.push(NameChange::Added(name.into(), node));
    }

    fn settle(&mut self, survival: Survival, salt: u64) {
        let mut chance = match survival {
            Survival::Prefix(seed) | Survival::Any { seed, .. } => Chance(seed ^ salt.rotate_left(32)),
            _ => Chance(salt),
        };
        let first = chance.below(self.unsynced.len() + 1);
        let mut names = std::mem::take(&mut self.durable);
        for (i, change) in self.unsynced.drain(..).enumerate() {
            let kept = match survival {
                Survival::Nothing | Survival::Content => false,
                Survival::Everything | Survival::Names => true,
                Survival::Prefix(_) => i < first,
                Survival::Any { .. } => chance.below(2) == 0,
            };
            match change {
                _ if !kept => {}
                NameChange::Added(name, node) => drop(names.insert(name, node)),
                NameChange::Removed(name) => drop(names.remove(&name)),
                NameChange::Moved(from, to, node) => {
                    names.remove(&from);
                    names.insert(to, node);
                }
            }
        }
        self.now = names.clone();
        self.durable = names;
    }
}

impl Survival {
    /// Each file and folder has its own luck.
    fn for_part(self, part: u64) -> Self {
        let mix = |seed: u64| Chance(seed.wrapping_add(part.wrapping_mul(0x9e37_79b9))).next();
        match self {
            Survival::Prefix(seed) => Survival::Prefix(mix(seed)),
            Survival::Any { seed, sector } => Survival::Any { seed: mix(seed), sector },
            other => other,
        }
    }
}

fn split(path: &Path) -> io::Result<(&Path, &str)> {
    let name = path.file_name().and_then(|name| name.to_str());
    path.parent().zip(name).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Repeatable chance (splitmix64).
#[derive(Clone, Debug)]
pub struct Chance(pub u64);

impl Chance {
    /// Any number.
    #[expect(clippy::should_implement_trait, reason = "there is no end to it")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

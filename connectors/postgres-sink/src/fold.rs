//! The changes of one table under one shape, folded in memory: the last image a
//! key, so that the warehouse is told once what a row has come to.
//!
//! A row that the database did not send whole is laid over the image that is
//! here; where there is none, over the row of the warehouse (`Patch`), which may
//! have had another key (`origin`). A table without a key is a bag: what counts
//! is how many rows of each image came and went, in whatever order.

use std::ops::Range;
use std::sync::Arc;

use connector::{Change, Malformed, Op};
use indexmap::IndexMap;

use crate::plan::Plan;

/// What a key's row has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Image {
    /// There is none.
    Gone,
    /// All columns are known.
    Whole(Range<usize>),
    /// Likewise, and as far as this fold knows the warehouse has no row of this key.
    New(Range<usize>),
    /// The warehouse's row of this key, or of another, with these columns set.
    Patch { row: Range<usize>, origin: Option<Box<[u8]>> },
}

/// Folded changes.
#[derive(Debug)]
pub(crate) struct Fold {
    pub(crate) plan: Arc<Plan>,
    /// The table was emptied before all that stands here.
    pub(crate) emptied: bool,
    /// Of every image; what was replaced stays until the fold goes.
    pub(crate) rows: Vec<u8>,
    /// By the key's fields.
    pub(crate) images: IndexMap<Box<[u8]>, Image>,
    /// How many of them are new.
    new: usize,
    /// Of a table without a key: how many came, by the row's fields.
    pub(crate) bag: IndexMap<Box<[u8]>, i64>,
    /// Likewise, of rows that a reading of the table brought.
    pub(crate) read: IndexMap<Box<[u8]>, i64>,
    /// A row could not be placed: why.
    pub(crate) refused: Option<&'static str>,
    /// Bytes of keys.
    keys: usize,
    scratch: Scratch,
}

#[derive(Debug, Default)]
struct Scratch {
    starts: Vec<usize>,
    key: Vec<u8>,
    old: Vec<u8>,
}

impl Fold {
    pub(crate) fn new(plan: Arc<Plan>) -> Self {
        Self {
            plan,
            emptied: false,
            rows: Vec::new(),
            images: IndexMap::new(),
            new: 0,
            bag: IndexMap::new(),
            read: IndexMap::new(),
            refused: None,
            keys: 0,
            scratch: Scratch::default(),
        }
    }

    /// Memory held, near enough.
    pub(crate) fn bytes(&self) -> usize {
        const ENTRY: usize = 128;
        self.rows.len() + self.keys + (self.images.len() + self.bag.len() + self.read.len()) * ENTRY
    }

    /// Whether it changes nothing.
    pub(crate) fn is_empty(&self) -> bool {
        !self.emptied && self.images.is_empty() && self.bag.is_empty() && self.read.is_empty()
    }

    /// Whether hardly any of its rows is likely to be changed by what comes next.
    pub(crate) fn is_settled(&self) -> bool {
        self.new >= self.images.len() / 4 * 3
    }

    /// Takes a change.
    pub(crate) fn change(&mut self, change: &Change<'_>) -> Result<(), Malformed> {
        if change.op == Op::Truncate {
            self.emptied = true;
            self.images.clear();
            self.new = 0;
            self.bag.clear();
            self.read.clear();
            self.rows.clear();
            self.keys = 0;
            return Ok(());
        }
        if self.plan.has_key() { self.keyed(change) } else { self.counted(change) }
    }

    fn keyed(&mut self, change: &Change<'_>) -> Result<(), Malformed> {
        let plan = self.plan.clone();
        let start = self.rows.len();
        plan.row(change.value, Some(change), &mut self.rows, &mut self.scratch.starts)?;
        let mut key = std::mem::take(&mut self.scratch.key);
        plan.key_of(&self.rows, &self.scratch.starts, &mut key);
        let row = start..self.rows.len();
        match change.op {
            Op::Delete => {
                self.rows.truncate(start);
                self.set(&key, Image::Gone);
            }
            Op::Read | Op::Insert | Op::Update => {
                let mut old = std::mem::take(&mut self.scratch.old);
                let moved = match change.old_key {
                    Some(body) => {
                        plan.key(body, &mut old)?;
                        old != key
                    }
                    None => false,
                };
                let from: &[u8] = if moved { &old } else { &key };
                let image = if change.has_absent() { self.over(from, row, moved) } else { Image::Whole(row) };
                let image = match (image, self.images.get(&key[..])) {
                    (Image::Whole(row), Some(Image::New(_))) if !moved => Image::New(row),
                    (Image::Whole(row), None) if change.op != Op::Update => Image::New(row),
                    (image, _) => image,
                };
                if moved {
                    self.set(&old, Image::Gone);
                }
                self.set(&key, image);
                self.scratch.old = old;
            }
            Op::Truncate | Op::Message => self.rows.truncate(start),
        }
        self.scratch.key = key;
        Ok(())
    }

    /// A row that is not whole, over what its former key has come to.
    fn over(&mut self, from: &[u8], row: Range<usize>, moved: bool) -> Image {
        match self.images.get(from).cloned() {
            Some(Image::Whole(under) | Image::New(under)) => {
                Image::Whole(self.plan.overlay(&mut self.rows, under, row))
            }
            Some(Image::Patch { row: under, origin }) => {
                let row = self.plan.overlay(&mut self.rows, under, row);
                if self.plan.is_whole(&self.rows[row.clone()]) {
                    return Image::Whole(row);
                }
                // The row of the warehouse stays the one it was, whatever its key is now.
                let origin = origin.or_else(|| moved.then(|| from.into()));
                Image::Patch { row, origin }
            }
            // There is no row that it could be laid over: one that is yet to be
            // read comes whole.
            Some(Image::Gone) => Image::Gone,
            None if self.emptied => Image::Gone,
            None => Image::Patch { row, origin: moved.then(|| from.into()) },
        }
    }

    fn set(&mut self, key: &[u8], image: Image) {
        self.new += usize::from(matches!(image, Image::New(_)));
        match self.images.get_mut(key) {
            Some(old) => {
                self.new -= usize::from(matches!(old, Image::New(_)));
                *old = image;
            }
            None => {
                self.keys += key.len();
                self.images.insert(key.into(), image);
            }
        }
    }

    fn counted(&mut self, change: &Change<'_>) -> Result<(), Malformed> {
        if change.has_absent() && change.op != Op::Delete {
            self.refused = Some("a row came without all of its columns");
            return Ok(());
        }
        let before = match change.op {
            Op::Update | Op::Delete => change.before,
            _ => None,
        };
        if matches!(change.op, Op::Update | Op::Delete) {
            match before {
                Some(before) => self.count(before, -1, false)?,
                None => {
                    self.refused = Some("an old row came without all of its columns");
                    return Ok(());
                }
            }
        }
        if change.op == Op::Delete {
            return Ok(());
        }
        self.count(change.value, 1, change.op == Op::Read)
    }

    fn count(&mut self, value: &[u8], by: i64, read: bool) -> Result<(), Malformed> {
        let plan = self.plan.clone();
        let start = self.rows.len();
        plan.row(value, None, &mut self.rows, &mut self.scratch.starts)?;
        let bag = if read { &mut self.read } else { &mut self.bag };
        match bag.get_mut(&self.rows[start..]) {
            Some(count) => *count += by,
            None => {
                self.keys += self.rows.len() - start;
                bag.insert(self.rows[start..].into(), by);
            }
        }
        self.rows.truncate(start);
        Ok(())
    }
}

#[cfg(test)]
mod tests;

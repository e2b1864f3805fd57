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
    /// Of every image, and what was replaced since it was last closed up.
    pub(crate) rows: Vec<u8>,
    /// Bytes of what was replaced.
    dead: usize,
    /// By the key's fields.
    pub(crate) images: IndexMap<Box<[u8]>, Image>,
    /// How many of them are new, and bytes of their rows.
    new: usize,
    new_bytes: usize,
    /// Of a table without a key: how many came, by the row's fields.
    pub(crate) bag: IndexMap<Box<[u8]>, i64>,
    /// Some went: then the table is read as a whole, however few they are.
    went: bool,
    /// Likewise how many came, of rows that a reading of the table brought.
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
    laid: Vec<u8>,
}

impl Image {
    pub(crate) fn row(&self) -> Option<&Range<usize>> {
        match self {
            Image::Gone => None,
            Image::Whole(row) | Image::New(row) | Image::Patch { row, .. } => Some(row),
        }
    }

    fn row_mut(&mut self) -> Option<&mut Range<usize>> {
        match self {
            Image::Gone => None,
            Image::Whole(row) | Image::New(row) | Image::Patch { row, .. } => Some(row),
        }
    }

    /// Bytes of its row.
    fn len(&self) -> usize {
        self.row().map_or(0, Range::len)
    }

    pub(crate) fn is_new(&self) -> bool {
        matches!(self, Image::New(_))
    }
}

/// So much of what was replaced is worth closing up; tests do with less.
const DEAD: usize = if cfg!(test) { 64 } else { 1 << 20 };

impl Fold {
    pub(crate) fn new(plan: Arc<Plan>) -> Self {
        Self {
            plan,
            emptied: false,
            rows: Vec::new(),
            dead: 0,
            images: IndexMap::new(),
            new: 0,
            new_bytes: 0,
            bag: IndexMap::new(),
            went: false,
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

    /// Whether it is as well written now as with what comes next: hardly any of its
    /// rows is likely to be changed by that.
    pub(crate) fn is_settled(&self) -> bool {
        !self.went && self.new >= self.images.len() / 4 * 3
    }

    /// Bytes of rows that are new, and likely to stay as they are.
    pub(crate) fn new_bytes(&self) -> usize {
        self.new_bytes
    }

    /// Whether all that is here is new.
    pub(crate) fn is_all_new(&self) -> bool {
        self.new == self.images.len()
    }

    /// Takes the new rows out. Written before what stays here they come to the
    /// same, whatever is taken in afterwards: no other row is of their keys, and
    /// no row that was moved has been at one (its former key is Gone or Whole here).
    pub(crate) fn take_new(&mut self) -> Self {
        let mut taken = Self::new(self.plan.clone());
        taken.emptied = std::mem::take(&mut self.emptied);
        taken.rows.reserve_exact(self.new_bytes);
        taken.images.reserve_exact(self.new);
        for (key, image) in self.images.extract_if(.., |_, image| image.is_new()) {
            let Some(row) = image.row() else { continue };
            let start = taken.rows.len();
            taken.rows.extend_from_slice(&self.rows[row.clone()]);
            taken.keys += key.len();
            taken.images.insert(key, Image::New(start..taken.rows.len()));
        }
        (taken.new, taken.new_bytes) = (self.new, self.new_bytes);
        (self.new, self.new_bytes) = (0, 0);
        self.keys -= taken.keys;
        self.dead += taken.rows.len();
        self.close_up();
        taken
    }

    /// Takes a change.
    pub(crate) fn change(&mut self, change: &Change<'_>) -> Result<(), Malformed> {
        if change.op == Op::Truncate {
            self.emptied = true;
            self.images.clear();
            (self.new, self.new_bytes) = (0, 0);
            self.bag.clear();
            self.went = false;
            self.read.clear();
            self.rows.clear();
            (self.dead, self.keys) = (0, 0);
            return Ok(());
        }
        if !self.plan.has_key() {
            return self.counted(change);
        }
        self.keyed(change)?;
        // Each time as much goes as is moved: so it costs what it is to write a row.
        if self.dead >= DEAD && self.dead >= self.rows.len() / 2 {
            self.close_up();
        }
        Ok(())
    }

    /// Moves the rows that count together, where they are: another buffer would
    /// take their memory twice.
    fn close_up(&mut self) {
        let mut places: Vec<&mut Range<usize>> = self.images.values_mut().filter_map(Image::row_mut).collect();
        places.sort_unstable_by_key(|row| row.start);
        let mut end = 0;
        for row in places {
            let moved = end..end + row.len();
            self.rows.copy_within(row.clone(), end);
            end = moved.end;
            *row = moved;
        }
        self.rows.truncate(end);
        self.dead = 0;
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

    /// A row that is not whole, and the last in `rows`, over what its former key has come to.
    fn over(&mut self, from: &[u8], row: Range<usize>, moved: bool) -> Image {
        match self.images.get(from).cloned() {
            Some(Image::Whole(under) | Image::New(under)) => Image::Whole(self.lay(under, row)),
            Some(Image::Patch { row: under, origin }) => {
                let row = self.lay(under, row);
                if self.plan.is_whole(&self.rows[row.clone()]) {
                    return Image::Whole(row);
                }
                // The row of the warehouse stays the one it was, whatever its key is now.
                let origin = origin.or_else(|| moved.then(|| from.into()));
                Image::Patch { row, origin }
            }
            // There is no row that it could be laid over: one that is yet to be
            // read comes whole.
            Some(Image::Gone) => self.none(row),
            None if self.emptied => self.none(row),
            None => Image::Patch { row, origin: moved.then(|| from.into()) },
        }
    }

    /// The last row over one before it, in its place.
    fn lay(&mut self, under: Range<usize>, over: Range<usize>) -> Range<usize> {
        let laid = &mut self.scratch.laid;
        self.plan.overlay(&self.rows[under], &self.rows[over.clone()], laid);
        self.rows.truncate(over.start);
        self.rows.extend_from_slice(laid);
        over.start..self.rows.len()
    }

    /// The last row is none.
    fn none(&mut self, row: Range<usize>) -> Image {
        self.rows.truncate(row.start);
        Image::Gone
    }

    /// The image's row, if it has one, is the last.
    fn set(&mut self, key: &[u8], mut image: Image) {
        if image.is_new() {
            self.new += 1;
            self.new_bytes += image.len();
        }
        match self.images.get_mut(key) {
            Some(old) => {
                if old.is_new() {
                    self.new -= 1;
                    self.new_bytes -= old.len();
                }
                match (old.row(), image.row_mut()) {
                    // Most updates leave a row as long as it was.
                    (Some(place), Some(row)) if place.len() == row.len() => {
                        self.rows.copy_within(row.clone(), place.start);
                        self.rows.truncate(row.start);
                        *row = place.clone();
                    }
                    _ => self.dead += old.len(),
                }
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
        self.went |= by < 0;
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

//! The changes of one table under one shape, folded in memory: the last image a
//! key, so that the warehouse is told once what a row has come to.
//!
//! A row that the database did not send whole is laid over the image that is
//! here; where there is none, over the row of the warehouse (`Patch`), which may
//! have had another key (`origin`). A table without a key is a bag: what counts
//! is how many rows of each image came and went, in whatever order.

use std::sync::Arc;

use connector::{Change, Malformed, Op};
use indexmap::IndexMap;

use crate::images::{ENTRY, Images};
use crate::plan::Plan;

/// What a key's row has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Image {
    /// There is none.
    Gone,
    /// All columns are known.
    Whole,
    /// The warehouse's row of this key, or of another, with these columns set.
    Patch { origin: Option<Box<[u8]>> },
}

/// How a row came of whose key, as far as this fold knows, the warehouse has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    /// An insert began it: the source had none either.
    Inserted,
    /// A reading of the table told of it: whether the source had it before nobody knows.
    Read,
}

/// Folded changes.
#[derive(Debug)]
pub(crate) struct Fold {
    pub(crate) plan: Arc<Plan>,
    /// The table was emptied before all that stands here.
    pub(crate) emptied: bool,
    /// Rows of keys that the warehouse does not have; whole.
    pub(crate) news: Images<Came>,
    /// All other keys that something happened to.
    pub(crate) images: Images<Image>,
    /// Of a table without a key: how many came, by the row's fields.
    pub(crate) bag: IndexMap<Box<[u8]>, i64>,
    /// Some went: then the table is read as a whole, however few they are.
    went: bool,
    /// Likewise how many came, of rows that a reading of the table brought.
    pub(crate) read: IndexMap<Box<[u8]>, i64>,
    /// A row could not be placed: why.
    pub(crate) refused: Option<&'static str>,
    /// Bytes of rows in bags.
    bagged: usize,
    /// Changes taken.
    turn: u32,
    scratch: Scratch,
}

#[derive(Debug, Default)]
struct Scratch {
    row: Vec<u8>,
    starts: Vec<usize>,
    key: Vec<u8>,
    old: Vec<u8>,
    laid: Vec<u8>,
}

impl Fold {
    pub(crate) fn new(plan: Arc<Plan>) -> Self {
        Self {
            plan,
            emptied: false,
            news: Images::default(),
            images: Images::default(),
            bag: IndexMap::new(),
            went: false,
            read: IndexMap::new(),
            refused: None,
            bagged: 0,
            turn: 0,
            scratch: Scratch::default(),
        }
    }

    /// Memory held, near enough.
    pub(crate) fn bytes(&self) -> usize {
        self.news.bytes() + self.images.bytes() + self.bagged + (self.bag.len() + self.read.len()) * ENTRY
    }

    /// Room for what is held at once.
    pub(crate) fn make_room(&mut self, held: usize) {
        self.news.make_room(held);
        self.images.make_room(held);
    }

    /// Keys that something happened to.
    pub(crate) fn keys(&self) -> usize {
        self.news.len() + self.images.len()
    }

    /// All of them in the order in which they were met, which is one that the
    /// source's own constraints bore; for few.
    pub(crate) fn in_turn(&self) -> Vec<(&[u8], &Image, &[u8])> {
        static WHOLE: Image = Image::Whole;
        let news = self.news.turns().map(|(turn, (key, _, row))| (turn, (key, &WHOLE, row)));
        let mut all: Vec<_> = self.images.turns().chain(news).collect();
        all.sort_by_key(|(turn, _)| *turn);
        all.into_iter().map(|(_, one)| one).collect()
    }

    /// Whether it changes nothing.
    pub(crate) fn is_empty(&self) -> bool {
        !self.emptied && self.keys() == 0 && self.bag.is_empty() && self.read.is_empty()
    }

    /// Whether it is as well written now as with what comes next: hardly any of its
    /// rows is likely to be changed by that.
    pub(crate) fn is_settled(&self) -> bool {
        !self.went && self.news.len() * 4 >= self.keys() * 3
    }

    /// Takes the new rows out. Written before what stays here they come to the
    /// same, whatever is taken in afterwards: no other row is of their keys, and
    /// none that is fetched from where it was has been at one (its former key is
    /// Gone or Whole here).
    pub(crate) fn take_new(&mut self) -> Self {
        let mut taken = Self::new(self.plan.clone());
        taken.emptied = std::mem::take(&mut self.emptied);
        taken.news = std::mem::take(&mut self.news);
        taken
    }

    /// Takes a change.
    pub(crate) fn change(&mut self, change: &Change<'_>) -> Result<(), Malformed> {
        if change.op == Op::Truncate {
            self.emptied = true;
            self.news.clear();
            self.images.clear();
            self.bag.clear();
            self.went = false;
            self.read.clear();
            self.bagged = 0;
            return Ok(());
        }
        if !self.plan.has_key() {
            return self.counted(change);
        }
        self.turn = self.turn.saturating_add(1);
        let mut scratch = std::mem::take(&mut self.scratch);
        let taken = self.keyed(change, &mut scratch);
        self.scratch = scratch;
        taken
    }

    fn keyed(&mut self, change: &Change<'_>, scratch: &mut Scratch) -> Result<(), Malformed> {
        let Scratch { row, starts, key, old, laid } = scratch;
        row.clear();
        self.plan.row(change.value, Some(change), row, starts)?;
        self.plan.key_of(row, starts, key);
        match change.op {
            Op::Delete => self.take_away(key),
            Op::Read | Op::Insert | Op::Update => {
                let moved = match change.old_key {
                    Some(body) => {
                        self.plan.key(body, old)?;
                        old != key
                    }
                    None => false,
                };
                let image = match change.has_absent() {
                    true => self.over(if moved { old } else { key }, moved, row, laid),
                    false => Image::Whole,
                };
                if moved {
                    self.take_away(old);
                }
                let there = self.news.get(key).map(|(came, _)| *came);
                let came = match (image == Image::Whole && !moved, there, change.op) {
                    (true, Some(Came::Inserted), Op::Insert | Op::Update) => Some(Came::Inserted),
                    (true, Some(_), _) => Some(Came::Read),
                    (true, None, Op::Insert) if !self.images.contains(key) => Some(Came::Inserted),
                    (true, None, Op::Read) if !self.images.contains(key) => Some(Came::Read),
                    _ => None,
                };
                match came {
                    Some(came) => self.news.put(key, came, row, self.turn),
                    None => {
                        if there.is_some() {
                            self.news.remove(key);
                        }
                        self.images.put(key, image, row, self.turn);
                    }
                }
            }
            Op::Truncate | Op::Message => {}
        }
        Ok(())
    }

    /// There is no row of this key any more. Of one that an insert began here the
    /// warehouse need not hear.
    fn take_away(&mut self, key: &[u8]) {
        if self.news.remove(key) != Some(Came::Inserted) {
            self.images.put(key, Image::Gone, &[], self.turn);
        }
    }

    /// A row that is not whole over what its former key has come to.
    fn over(&self, from: &[u8], moved: bool, row: &mut Vec<u8>, laid: &mut Vec<u8>) -> Image {
        let mut lay = |under: &[u8]| {
            self.plan.overlay(under, row, laid);
            std::mem::swap(row, laid);
        };
        if let Some((_, under)) = self.news.get(from) {
            lay(under);
            return Image::Whole;
        }
        match self.images.get(from) {
            Some((Image::Whole, under)) => {
                lay(under);
                Image::Whole
            }
            Some((Image::Patch { origin }, under)) => {
                lay(under);
                if self.plan.is_whole(row) {
                    return Image::Whole;
                }
                // The row of the warehouse stays the one it was, whatever its key is now.
                let origin = origin.clone().or_else(|| moved.then(|| from.into()));
                Image::Patch { origin }
            }
            // There is no row that it could be laid over: one that is yet to be
            // read comes whole.
            None if !self.emptied => Image::Patch { origin: moved.then(|| from.into()) },
            Some((Image::Gone, _)) | None => {
                row.clear();
                Image::Gone
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
        let Scratch { row, starts, .. } = &mut self.scratch;
        row.clear();
        self.plan.row(value, None, row, starts)?;
        self.went |= by < 0;
        let bag = if read { &mut self.read } else { &mut self.bag };
        match bag.get_mut(&row[..]) {
            Some(count) => *count += by,
            None => {
                self.bagged += row.len();
                bag.insert(row[..].into(), by);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

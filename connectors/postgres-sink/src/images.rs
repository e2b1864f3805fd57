//! Keys with what each has come to, and their rows in one buffer.

use std::ops::Range;

use indexmap::IndexMap;

use crate::room::make_room;

/// By the key's fields; `T` says what its row is.
#[derive(Debug)]
pub(crate) struct Images<T> {
    by_key: IndexMap<Box<[u8]>, Entry<T>>,
    /// Of every image, and what was replaced since it was last closed up.
    rows: Vec<u8>,
    /// Bytes of what was replaced.
    dead: usize,
    /// Bytes of keys.
    keys: usize,
}

#[derive(Debug)]
struct Entry<T> {
    image: T,
    row: Range<usize>,
    /// When its key was met first.
    turn: u32,
}

/// Memory of one beside its key and row, near enough.
pub(crate) const ENTRY: usize = 128;
/// So much of what was replaced is worth closing up; tests do with less.
const DEAD: usize = if cfg!(test) { 64 } else { 1 << 20 };

impl<T> Default for Images<T> {
    fn default() -> Self {
        Self { by_key: IndexMap::new(), rows: Vec::new(), dead: 0, keys: 0 }
    }
}

impl<T> Images<T> {
    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Memory held, near enough.
    pub(crate) fn bytes(&self) -> usize {
        self.rows.len() + self.keys + self.by_key.len() * ENTRY
    }

    /// Bytes of the rows that count.
    pub(crate) fn row_bytes(&self) -> usize {
        self.rows.len() - self.dead
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<(&T, &[u8])> {
        self.by_key.get(key).map(|entry| (&entry.image, self.row(entry)))
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        self.by_key.contains_key(key)
    }

    /// Key, image and row of each.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &T, &[u8])> {
        self.by_key.iter().map(|(key, entry)| (&key[..], &entry.image, self.row(entry)))
    }

    /// Likewise, with the turn in which its key was met.
    pub(crate) fn turns(&self) -> impl Iterator<Item = (u32, (&[u8], &T, &[u8]))> {
        self.by_key.iter().map(|(key, entry)| (entry.turn, (&key[..], &entry.image, self.row(entry))))
    }

    fn row(&self, entry: &Entry<T>) -> &[u8] {
        &self.rows[entry.row.clone()]
    }

    /// Room for what is held at once.
    pub(crate) fn make_room(&mut self, held: usize) {
        make_room(&mut self.rows, held);
    }

    /// A key's image from now on; one that has no row has an empty one.
    pub(crate) fn put(&mut self, key: &[u8], image: T, row: &[u8], turn: u32) {
        let place = self.rows.len()..self.rows.len() + row.len();
        match self.by_key.get_mut(key) {
            Some(entry) => {
                entry.image = image;
                // Most updates leave a row as long as it was.
                if entry.row.len() == row.len() {
                    self.rows[entry.row.clone()].copy_from_slice(row);
                    return;
                }
                self.dead += entry.row.len();
                entry.row = place;
            }
            None => {
                self.keys += key.len();
                self.by_key.insert(key.into(), Entry { image, row: place, turn });
            }
        }
        self.rows.extend_from_slice(row);
        self.close_up_in_time();
    }

    /// Forgets a key; what it had come to. The order of others changes.
    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<T> {
        let Entry { image, row, .. } = self.by_key.swap_remove(key)?;
        self.keys -= key.len();
        self.dead += row.len();
        self.close_up_in_time();
        Some(image)
    }

    /// Forgets all; what it took stays its own.
    pub(crate) fn clear(&mut self) {
        self.by_key.clear();
        self.rows.clear();
        (self.dead, self.keys) = (0, 0);
    }

    /// Each time as much goes as is moved: so it costs what it is to write a row.
    fn close_up_in_time(&mut self) {
        if self.dead >= DEAD && self.dead >= self.rows.len() / 2 {
            self.close_up();
        }
    }

    /// Moves the rows that count together, where they are: another buffer would
    /// take their memory twice.
    fn close_up(&mut self) {
        let mut places: Vec<&mut Range<usize>> = self.by_key.values_mut().map(|entry| &mut entry.row).collect();
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
}

#[cfg(test)]
impl<T> Images<T> {
    /// Every byte is a row's or was, and what was is closed up in time.
    pub(crate) fn is_sound(&self) -> bool {
        let live: usize = self.by_key.values().map(|entry| entry.row.len()).sum();
        let keys: usize = self.by_key.keys().map(|key| key.len()).sum();
        self.rows.len() == live + self.dead
            && self.keys == keys
            && (self.dead < DEAD || self.dead < self.rows.len() / 2)
    }
}

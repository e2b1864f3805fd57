//! What a stream's files come to: its rows as they were at an offset, folded by
//! key, to be compared with the source's.
//!
//! Of a row are held its key, a hash for each column (a change that did not send
//! all columns keeps the others) and where it was last touched. A table without
//! a key is a bag of hashes.

use std::collections::HashMap;

use arrow_array::ArrayRef;
use connector::{Error, Malformed, Reader, Result, Table};

use crate::columns::Column;
use crate::event::{Act, Event};
use crate::values;

/// Rows that are decoded at a time.
const ROWS: usize = 4096;
/// Memory that is held for rows: a larger table is not compared.
const MOST: usize = 2 << 30;

/// A row that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// At the source.
    pub there: bool,
    /// In the files.
    pub here: bool,
    /// The key's values as text; of a table without one, empty.
    pub key: Vec<String>,
    /// The columns that differ.
    pub columns: Vec<usize>,
}

struct Row {
    hashes: Box<[u64]>,
    touched: u64,
    /// The source has it too.
    met: bool,
    key: Box<[String]>,
}

/// The rows, and what was found of them.
pub struct State {
    table: Table,
    rows: HashMap<u64, Vec<Row>>,
    bag: HashMap<u64, i64>,
    /// Where the reading began that is under way.
    begun: Option<u64>,
    /// A reading of a table without a key, until it ends.
    aside: Option<HashMap<u64, i64>>,
    held: usize,
    waiting: Vec<Column>,
    waits: usize,
    /// Rows that the source has shown.
    pub source_rows: u64,
    wrong: Vec<Wrong>,
}

impl State {
    /// Of a table as the source has it.
    pub fn new(table: &Table) -> Self {
        Self {
            rows: HashMap::new(),
            bag: HashMap::new(),
            begun: None,
            aside: None,
            held: 0,
            waiting: table.columns.iter().map(|column| Column::new(&column.ty)).collect(),
            waits: 0,
            source_rows: 0,
            wrong: Vec::new(),
            table: table.clone(),
        }
    }

    fn is_bag(&self) -> bool {
        self.table.key.is_empty()
    }

    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// Rows that the files come to.
    pub fn rows(&self) -> u64 {
        match self.is_bag() {
            true => self.bag.values().map(|count| (*count).max(0) as u64).sum(),
            false => self.rows.values().map(|rows| rows.len() as u64).sum(),
        }
    }

    /// Takes an event; they come in the order of the log. Err: why it cannot be compared.
    pub(crate) fn take(&mut self, event: Event) -> std::result::Result<(), String> {
        match event.act {
            Act::Truncate => {
                self.rows.clear();
                self.bag.clear();
                self.held = 0;
                if let Some(aside) = &mut self.aside {
                    aside.clear();
                }
            }
            Act::Begin => {
                self.begun = Some(event.offset);
                self.aside = self.is_bag().then(HashMap::new);
            }
            Act::End => {
                if let Some(begun) = self.begun.take() {
                    let held = &mut self.held;
                    self.rows.retain(|_, rows| {
                        rows.retain(|row| {
                            let stays = row.touched >= begun;
                            *held -= if stays { 0 } else { size(&row.key, row.hashes.len()) };
                            stays
                        });
                        !rows.is_empty()
                    });
                }
                if let Some(aside) = self.aside.take() {
                    self.bag = aside;
                }
            }
            _ if self.is_bag() => self.change_bag(&event),
            _ => self.change(event),
        }
        match self.held > MOST {
            true => Err(format!("its rows take more than the {} GiB that are held to compare them", MOST >> 30)),
            false => Ok(()),
        }
    }

    fn change_bag(&mut self, event: &Event) {
        let before = event.before.as_deref().map(of_all);
        let after = of_all(&event.hashes);
        let (gone, came) = match event.act {
            Act::Delete => (Some(before.unwrap_or(after)), None),
            Act::Update => (before, Some(after)),
            _ => (None, Some(after)),
        };
        let reading = event.act == Act::Read && self.aside.is_some();
        for bag in [(!reading).then_some(&mut self.bag), self.aside.as_mut()].into_iter().flatten() {
            if let Some(gone) = gone {
                *bag.entry(gone).or_default() -= 1;
            }
            if let Some(came) = came {
                *bag.entry(came).or_default() += 1;
            }
        }
        self.held = (self.bag.len() + self.aside.as_ref().map_or(0, HashMap::len)) * 24;
    }

    fn change(&mut self, event: Event) {
        let Event { act, offset, key, mut hashes, absent, old_key, .. } = event;
        let before = self.remove(old_key.as_deref().unwrap_or(&key));
        if old_key.is_some() {
            self.remove(&key);
        }
        if act == Act::Delete {
            return;
        }
        if let Some(before) = &before {
            absent.into_iter().for_each(|at| hashes[at] = before.hashes[at]);
        }
        self.held += size(&key, hashes.len());
        let row = Row { hashes, touched: offset, met: false, key };
        self.rows.entry(of_key(&row.key)).or_default().push(row);
    }

    fn remove(&mut self, key: &[String]) -> Option<Row> {
        let place = of_key(key);
        let rows = self.rows.get_mut(&place)?;
        let at = rows.iter().position(|row| *row.key == *key)?;
        let row = rows.swap_remove(at);
        if rows.is_empty() {
            self.rows.remove(&place);
        }
        self.held -= size(&row.key, row.hashes.len());
        Some(row)
    }

    /// The source shows a row, in the form of the log.
    pub fn meet(&mut self, body: &[u8]) -> Result<()> {
        let mut reader = Reader::new(body);
        let decoded = (|| -> std::result::Result<(), Malformed> {
            for (i, column) in self.waiting.iter_mut().enumerate() {
                if self.table.in_key(i) { column.value(&mut reader)? } else { column.nullable(&mut reader)? }
            }
            Ok(())
        })();
        decoded.map_err(|error| Error::halt("a row of the source cannot be compared").because(error))?;
        self.waits += 1;
        if self.waits >= ROWS {
            self.settle();
        }
        Ok(())
    }

    fn settle(&mut self) {
        let columns: Vec<Option<ArrayRef>> = self.waiting.iter_mut().map(|column| Some(column.finish())).collect();
        let value = |column: usize, i: usize| columns[column].as_ref().and_then(|c| values::text(c, i));
        for i in 0..std::mem::take(&mut self.waits) {
            self.source_rows += 1;
            let hashes = values::hashes(&columns, i);
            if self.is_bag() {
                *self.bag.entry(of_all(&hashes)).or_default() -= 1;
                continue;
            }
            let key: Vec<String> = self.table.key.iter().map(|&k| value(k, i).unwrap_or_default()).collect();
            let rows = self.rows.get_mut(&of_key(&key));
            let row = rows.and_then(|rows| rows.iter_mut().find(|row| *row.key == *key));
            match row {
                None => self.wrong.push(Wrong { there: true, here: false, key, columns: Vec::new() }),
                Some(row) => {
                    row.met = true;
                    let differ: Vec<usize> = (0..hashes.len()).filter(|&c| row.hashes[c] != hashes[c]).collect();
                    if !differ.is_empty() {
                        self.wrong.push(Wrong { there: true, here: true, key, columns: differ });
                    }
                }
            }
        }
    }

    /// All rows of the source were shown: what is wrong. `rows` must be asked before.
    pub fn finish(mut self) -> (u64, Vec<Wrong>) {
        self.settle();
        let mut wrong = std::mem::take(&mut self.wrong);
        for row in self.rows.into_values().flatten().filter(|row| !row.met) {
            wrong.push(Wrong { there: false, here: true, key: row.key.into_vec(), columns: Vec::new() });
        }
        for count in self.bag.into_values() {
            let bare = Wrong { there: count < 0, here: count > 0, key: Vec::new(), columns: Vec::new() };
            wrong.extend(std::iter::repeat_n(bare, count.unsigned_abs() as usize));
        }
        (self.source_rows, wrong)
    }
}

fn size(key: &[String], columns: usize) -> usize {
    120 + columns * 8 + key.iter().map(|value| value.len() + 24).sum::<usize>()
}

fn of_all(hashes: &[u64]) -> u64 {
    of(hashes)
}

fn of_key(key: &[String]) -> u64 {
    of(key)
}

fn of<T: std::hash::Hash + ?Sized>(value: &T) -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

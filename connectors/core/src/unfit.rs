//! A row that cannot be carried, as it came: its columns as the database's
//! text, and why.
//!
//! ```text
//! unfit = reason u8, column u16 (0xffff: none), why u16 length + text, size u64,
//!         key u32 length + body (0xffffffff: not known), old key likewise,
//!         old u8 (0: none, 1: its key, 2: whole) [cells], new u8 (0: none, 1) [cells]
//! cells = a column each, in the table's order:
//!         n | u | t u32 length (big-endian) + text
//! ```
//!
//! It stands in a batch where the row would, with its operation, so that the
//! transaction stays whole and every ordinal keeps its place. Only the log's
//! pending frames ever hold one: the runtime lets none through to a sink.

use crate::batch::Malformed;

const NONE: u32 = u32::MAX;
const NO_COLUMN: u16 = u16::MAX;

/// Why a row is not carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum UnfitReason {
    /// A value that its type cannot hold.
    Value = 1,
    /// The row is larger than rows may be.
    TooLarge = 2,
}

/// A column of a row as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawCell<'a> {
    /// NULL.
    Null,
    /// Not sent.
    Unchanged,
    /// The database's text.
    Text(&'a [u8]),
}

/// Columns as they came, in the order of the table's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawCells<'a> {
    bytes: &'a [u8],
}

impl<'a> RawCells<'a> {
    /// As they are stored.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// In order. What is broken ends it.
    pub fn iter(&self) -> impl Iterator<Item = RawCell<'a>> + use<'a> {
        let mut rest = self.bytes;
        std::iter::from_fn(move || {
            let (&kind, tail) = rest.split_first()?;
            rest = tail;
            match kind {
                b'n' => Some(RawCell::Null),
                b'u' => Some(RawCell::Unchanged),
                _ => {
                    let (length, tail) = rest.split_first_chunk::<4>()?;
                    let (text, tail) = tail.split_at_checked(u32::from_be_bytes(*length) as usize)?;
                    rest = tail;
                    Some(RawCell::Text(text))
                }
            }
        })
    }
}

/// Appends one column.
pub fn put_cell(out: &mut Vec<u8>, cell: RawCell<'_>) {
    match cell {
        RawCell::Null => out.push(b'n'),
        RawCell::Unchanged => out.push(b'u'),
        RawCell::Text(text) => {
            out.push(b't');
            out.extend_from_slice(&(text.len() as u32).to_be_bytes());
            out.extend_from_slice(text);
        }
    }
}

/// A row as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfit<'a> {
    /// Why it is not carried.
    pub reason: UnfitReason,
    /// Which column is to blame.
    pub column: Option<u16>,
    /// In words, without the value.
    pub why: &'a str,
    /// Of the row as the database sent it, in bytes.
    pub size: u64,
    /// The key's body, if it can be carried.
    pub key: Option<&'a [u8]>,
    /// The key before, where it changed and can be carried.
    pub old_key: Option<&'a [u8]>,
    /// What was told of the old row; true: all of it, else its key.
    pub old: Option<(bool, RawCells<'a>)>,
    /// The new row.
    pub new: Option<RawCells<'a>>,
}

impl<'a> Unfit<'a> {
    /// Appends it, with the columns that the two give.
    pub fn write(
        &self,
        old: Option<(bool, impl Iterator<Item = RawCell<'a>>)>,
        new: Option<impl Iterator<Item = RawCell<'a>>>,
        out: &mut Vec<u8>,
    ) {
        out.push(self.reason as u8);
        out.extend_from_slice(&self.column.unwrap_or(NO_COLUMN).to_le_bytes());
        let why = self.why.get(..usize::from(u16::MAX)).unwrap_or(self.why);
        out.extend_from_slice(&(why.len() as u16).to_le_bytes());
        out.extend_from_slice(why.as_bytes());
        out.extend_from_slice(&self.size.to_le_bytes());
        for key in [self.key, self.old_key] {
            out.extend_from_slice(&key.map_or(NONE, |key| key.len() as u32).to_le_bytes());
            out.extend_from_slice(key.unwrap_or_default());
        }
        let mut cells = |mark: u8, cells: Option<&mut dyn Iterator<Item = RawCell<'a>>>| {
            out.push(mark);
            let Some(cells) = cells else { return };
            let start = out.len();
            out.extend_from_slice(&[0; 4]);
            cells.for_each(|cell| put_cell(out, cell));
            let length = (out.len() - start - 4) as u32;
            out[start..start + 4].copy_from_slice(&length.to_le_bytes());
        };
        match old {
            None => cells(0, None),
            Some((whole, mut old)) => cells(1 + u8::from(whole), Some(&mut old)),
        }
        match new {
            None => cells(0, None),
            Some(mut new) => cells(1, Some(&mut new)),
        }
    }

    /// Reads what `write` has written.
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut rest = body;
        let mut take = |length: usize| {
            let (taken, tail) = rest.split_at_checked(length).ok_or(Malformed("a row as it came ends early"))?;
            rest = tail;
            Ok(taken)
        };
        let reason = match take(1)? {
            [1] => UnfitReason::Value,
            [2] => UnfitReason::TooLarge,
            _ => return Err(Malformed("reason")),
        };
        let column = u16_of(take(2)?);
        let length = usize::from(u16_of(take(2)?));
        let why = std::str::from_utf8(take(length)?).map_err(|_| Malformed("reason"))?;
        let size = take(8)?.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let mut keys = [None, None];
        for key in &mut keys {
            *key = match u32_of(take(4)?) {
                NONE => None,
                length => Some(take(length as usize)?),
            };
        }
        let mut cells = || {
            let mark = take(1)?[0];
            if mark == 0 {
                return Ok(None);
            }
            let length = u32_of(take(4)?);
            Ok(Some((mark, RawCells { bytes: take(length as usize)? })))
        };
        let old = cells()?.map(|(mark, cells)| (mark == 2, cells));
        let new = cells()?.map(|(_, cells)| cells);
        let column = (column != NO_COLUMN).then_some(column);
        Ok(Self { reason, column, why, size, key: keys[0], old_key: keys[1], old, new })
    }
}

fn u16_of(bytes: &[u8]) -> u16 {
    bytes.first_chunk().map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

fn u32_of(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_comes_back_as_it_came() {
        let cells = [RawCell::Text(b"1"), RawCell::Null, RawCell::Unchanged, RawCell::Text(b"")];
        let unfit = Unfit {
            reason: UnfitReason::Value,
            column: Some(3),
            why: "not a number",
            size: 77,
            key: Some(b"\x02"),
            old_key: None,
            old: None,
            new: None,
        };
        let mut out = Vec::new();
        unfit.write(Some((true, cells.into_iter())), Some(cells[..2].iter().copied()), &mut out);
        let read = Unfit::read(&out).unwrap();
        assert_eq!((read.reason, read.column, read.why, read.size), (UnfitReason::Value, Some(3), "not a number", 77));
        assert_eq!((read.key, read.old_key), (Some(&b"\x02"[..]), None));
        let (whole, old) = read.old.unwrap();
        assert!(whole);
        assert_eq!(old.iter().collect::<Vec<_>>(), cells);
        assert_eq!(read.new.unwrap().iter().collect::<Vec<_>>(), cells[..2]);
    }

    proptest::proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes: Vec<u8>) {
            if let Ok(unfit) = Unfit::read(&bytes) {
                unfit.new.map(|cells| cells.iter().count());
            }
        }
    }
}

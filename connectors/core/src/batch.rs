//! A batch: the changes of one or more transactions, as a frame of the log
//! carries them.
//!
//! ```text
//! payload  = version u8 = 1, part*
//! part     = length u32 of what follows,
//!            position  u8 length + bytes     (length with its highest bit: not yet known;
//!                                             the transaction ends in a later frame,
//!                                             whose position counts),
//!            commit_time i64 (µs), tx u8 length + text,
//!                                            (length with its highest bit: for some sinks
//!                                             alone; audience u16 length + text follows,
//!                                             names with commas between),
//!            first_ordinal u64, records u32, run*
//! run      = schema u32, count u32, bodies_length u32, bodies,
//!            ends count × u32, ops count × u8
//! row      = value body,
//!            [old key body, u32 length]      flag 0x10
//!            [before body,  u32 length]      flag 0x20
//!            [absent bitmap, u16 length]     flag 0x40
//!            or, in place of it all, a row as it came     flag 0x80
//! ```
//!
//! Little-endian throughout. Extras stand *behind* the value, with their
//! lengths last, because a column is found to be absent only while the value
//! is being written. One pass writes it all, without an allocation per row.

use std::fmt;

use bytes::Bytes;
use storage::Micros;

use crate::shape::SchemaNumber;

mod runs;
mod splice;
mod tally;

pub use runs::{Batch, Change, Run, Runs};
pub use tally::Tally;

const VERSION: u8 = 1;
const UNKNOWN: u8 = 0x80;
const FOR_SOME: u8 = 0x80;
const OLD_KEY: u8 = 0x10;
const BEFORE: u8 = 0x20;
const ABSENT: u8 = 0x40;
const UNFIT: u8 = 0x80;

/// Bytes that do not have the form they claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed batch: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// What happened to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    /// Seen by a snapshot.
    Read = 0,
    /// Inserted.
    Insert = 1,
    /// Updated, perhaps its key too.
    Update = 2,
    /// Deleted; the body holds what is known of the old row.
    Delete = 3,
    /// The whole table was emptied; the body is empty.
    Truncate = 4,
    /// A logical message.
    Message = 5,
}

impl Op {
    /// As users see it.
    pub fn name(self) -> &'static str {
        match self {
            Op::Read => "read",
            Op::Insert => "insert",
            Op::Update => "update",
            Op::Delete => "delete",
            Op::Truncate => "truncate",
            Op::Message => "message",
        }
    }

    /// All, in the order of their numbers.
    pub const ALL: [Op; 6] = [Op::Read, Op::Insert, Op::Update, Op::Delete, Op::Truncate, Op::Message];

    fn from_bits(bits: u8) -> Result<Self, Malformed> {
        Ok(match bits {
            0 => Op::Read,
            1 => Op::Insert,
            2 => Op::Update,
            3 => Op::Delete,
            4 => Op::Truncate,
            5 => Op::Message,
            _ => return Err(Malformed("operation")),
        })
    }
}

/// The transaction that changes belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transaction<'a> {
    /// End of its commit in the source's stream; a snapshot round's consistent point.
    pub position: &'a [u8],
    /// When it was committed.
    pub commit_time: Micros,
    /// xid or GTID; empty for a snapshot.
    pub tx: &'a str,
}

/// What stands beside a row's value.
#[derive(Clone, Copy, Debug, Default)]
pub struct RowExtras<'a> {
    /// The key before this update, where it changed.
    pub old_key: Option<&'a [u8]>,
    /// The whole old row, where the database sends it.
    pub before: Option<&'a [u8]>,
    /// Bit i (of byte i / 8, lowest first): column i was not sent.
    pub absent: Option<&'a [u8]>,
}

/// Writes batches; one a source, its buffer handed on with each `take`.
#[derive(Debug, Default)]
pub struct BatchWriter {
    out: Vec<u8>,
    ends: Vec<u32>,
    ops: Vec<u8>,
    records: u32,
    part: Option<OpenPart>,
    run: Option<OpenRun>,
}

#[derive(Debug)]
struct OpenPart {
    start: usize,
    records_at: usize,
    records: u32,
}

#[derive(Debug)]
struct OpenRun {
    schema: SchemaNumber,
    start: usize,
    bodies: usize,
}

impl BatchWriter {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes held.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether nothing was begun since the last `take`.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// Rows held.
    pub fn records(&self) -> u32 {
        self.records
    }

    /// Begins a transaction's part. Its position is often known only at its
    /// commit: until `set_position` the `room` bytes kept for it are blank, and
    /// the frame that ends the transaction tells it.
    pub fn begin_open(&mut self, room: u8, commit_time: Micros, tx: &str, first_ordinal: u64) {
        self.begin(&[0; UNKNOWN as usize][..usize::from(room & !UNKNOWN)], commit_time, tx, first_ordinal);
        if let Some(part) = &self.part {
            self.out[part.start + 4] |= UNKNOWN;
        }
    }

    /// The position of the part begun last, of as many bytes as were kept for it.
    pub fn set_position(&mut self, position: &[u8]) {
        let Some(part) = &self.part else { return };
        let at = part.start + 5;
        self.out[at - 1] &= !UNKNOWN;
        self.out[at..at + position.len()].copy_from_slice(position);
    }

    /// Begins a transaction's part.
    pub fn begin(&mut self, position: &[u8], commit_time: Micros, tx: &str, first_ordinal: u64) {
        self.begin_for("", position, commit_time, tx, first_ordinal);
    }

    /// As `begin`, of rows that are meant for some sinks alone: their names,
    /// with commas between; empty: all.
    pub fn begin_for(&mut self, audience: &str, position: &[u8], commit_time: Micros, tx: &str, first_ordinal: u64) {
        self.end();
        if self.out.is_empty() {
            self.out.push(VERSION);
        }
        let start = self.out.len();
        self.out.extend_from_slice(&[0; 4]);
        put_short(&mut self.out, position);
        self.out.extend_from_slice(&commit_time.0.to_le_bytes());
        let tx_at = self.out.len();
        put_short(&mut self.out, tx.as_bytes());
        if !audience.is_empty() {
            self.out[tx_at] |= FOR_SOME;
            let length = u16::try_from(audience.len()).expect("names of sinks fit into 64 KiB");
            self.out.extend_from_slice(&length.to_le_bytes());
            self.out.extend_from_slice(audience.as_bytes());
        }
        self.out.extend_from_slice(&first_ordinal.to_le_bytes());
        let records_at = self.out.len();
        self.out.extend_from_slice(&[0; 4]);
        self.part = Some(OpenPart { start, records_at, records: 0 });
    }

    /// Ends the part begun last; a part without rows leaves nothing behind.
    pub fn end(&mut self) {
        self.end_run();
        let Some(part) = self.part.take() else { return };
        if part.records == 0 {
            self.out.truncate(part.start);
            if self.out.len() == 1 {
                self.out.clear();
            }
            return;
        }
        let length = (self.out.len() - part.start - 4) as u32;
        self.out[part.start..part.start + 4].copy_from_slice(&length.to_le_bytes());
        self.out[part.records_at..part.records_at + 4].copy_from_slice(&part.records.to_le_bytes());
    }

    /// The buffer to write the next row's value body to, of this schema.
    /// `close_row` or `drop_row` must follow.
    #[inline]
    pub fn open_row(&mut self, schema: SchemaNumber) -> &mut Vec<u8> {
        if self.run.as_ref().is_none_or(|run| run.schema != schema) {
            self.end_run();
            let start = self.out.len();
            self.out.extend_from_slice(&schema.to_le_bytes());
            self.out.extend_from_slice(&[0; 8]);
            self.run = Some(OpenRun { schema, start, bodies: self.out.len() });
        }
        &mut self.out
    }

    /// Copies rows of a run as they are.
    pub(crate) fn copy_rows(&mut self, run: &Run<'_>, rows: std::ops::Range<usize>) -> Result<(), Malformed> {
        let end_of = |row: usize| run.ends.get(row * 4..).and_then(|rest| rest.first_chunk()).copied();
        let start = if rows.start == 0 { Some([0; 4]) } else { end_of(rows.start - 1) };
        let start = u32::from_le_bytes(start.ok_or(Malformed("row end"))?);
        let end = u32::from_le_bytes(end_of(rows.end - 1).ok_or(Malformed("row end"))?);
        let bodies = run.bodies.get(start as usize..end as usize).ok_or(Malformed("row end"))?;
        self.open_row(run.schema).extend_from_slice(bodies);
        let base = self.run.as_ref().expect("open_row came first").bodies;
        let before = (self.out.len() - base - bodies.len()) as u32;
        for row in rows.clone() {
            let end = end_of(row).map(u32::from_le_bytes).and_then(|end| end.checked_sub(start));
            self.ends.push(end.ok_or(Malformed("row end"))? + before);
        }
        self.ops.extend_from_slice(run.ops.get(rows.clone()).ok_or(Malformed("row count"))?);
        let count = rows.len() as u32;
        self.records += count;
        if let Some(part) = &mut self.part {
            part.records += count;
        }
        Ok(())
    }

    /// Ends the row whose value was written.
    #[inline]
    pub fn close_row(&mut self, op: Op, extras: RowExtras<'_>) {
        let mut bits = op as u8;
        for (flag, bytes) in [(OLD_KEY, extras.old_key), (BEFORE, extras.before)] {
            if let Some(bytes) = bytes {
                bits |= flag;
                self.out.extend_from_slice(bytes);
                self.out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            }
        }
        if let Some(bitmap) = extras.absent {
            bits |= ABSENT;
            self.out.extend_from_slice(bitmap);
            self.out.extend_from_slice(&(bitmap.len() as u16).to_le_bytes());
        }
        let bodies = self.run.as_ref().expect("open_row came first").bodies;
        self.ends.push((self.out.len() - bodies) as u32);
        self.ops.push(bits);
        self.records += 1;
        if let Some(part) = &mut self.part {
            part.records += 1;
        }
    }

    /// Ends a row that is none: it was written as it came ([`crate::Unfit`]).
    pub fn close_unfit(&mut self, op: Op) {
        self.close_row(op, RowExtras::default());
        if let Some(bits) = self.ops.last_mut() {
            *bits |= UNFIT;
        }
    }

    /// Takes back a row that could not be written whole.
    pub fn drop_row(&mut self) {
        if let Some(run) = &self.run {
            let end = self.ends.last().copied().unwrap_or(0) as usize;
            self.out.truncate(run.bodies + end);
        }
    }

    /// The payload and its rows; the writer is empty after. None if there is nothing.
    pub fn take(&mut self) -> Option<(Bytes, u32)> {
        self.end();
        if self.out.is_empty() {
            return None;
        }
        // The next one is about as large; one that has to grow is copied.
        let room = self.out.len() + self.out.len() / 16;
        let payload = std::mem::replace(&mut self.out, Vec::with_capacity(room.min(4 << 20)));
        Some((payload.into(), std::mem::take(&mut self.records)))
    }

    fn end_run(&mut self) {
        let Some(run) = self.run.take() else { return };
        if self.ops.is_empty() {
            self.out.truncate(run.start);
            return;
        }
        let bodies = (self.out.len() - run.bodies) as u32;
        self.out[run.start + 4..run.start + 8].copy_from_slice(&(self.ops.len() as u32).to_le_bytes());
        self.out[run.start + 8..run.start + 12].copy_from_slice(&bodies.to_le_bytes());
        for end in self.ends.drain(..) {
            self.out.extend_from_slice(&end.to_le_bytes());
        }
        self.out.append(&mut self.ops);
    }
}

/// Sets the first ordinal of a payload's only part: a snapshot's workers write
/// batches before their place among the others is known.
pub fn patch_first_ordinal(payload: &mut [u8], first_ordinal: u64) -> Result<(), Malformed> {
    const SHORT: Malformed = Malformed("part ends early");
    let position = *payload.get(5).ok_or(SHORT)? as usize;
    let tx_at = 6 + position + 8;
    let tx = *payload.get(tx_at).ok_or(SHORT)?;
    let mut at = tx_at + 1 + usize::from(tx & !FOR_SOME);
    if tx & FOR_SOME != 0 {
        let length = payload.get(at..).and_then(|rest| rest.first_chunk()).ok_or(SHORT)?;
        at += 2 + usize::from(u16::from_le_bytes(*length));
    }
    payload.get_mut(at..at + 8).ok_or(SHORT)?.copy_from_slice(&first_ordinal.to_le_bytes());
    Ok(())
}

fn put_short(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = bytes.len() as u8;
    assert!(usize::from(len) == bytes.len() && len < UNKNOWN, "positions and ids of a part are below 128 bytes");
    out.push(len);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests;

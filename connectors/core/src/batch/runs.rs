//! Batches, read: runs of rows, one after the other, from the frame's bytes.

use bytes::Bytes;
use storage::{Frame, Micros, Offset, OffsetRange, Position};

use super::{ABSENT, BEFORE, FOR_SOME, Malformed, OLD_KEY, Op, Transaction, UNFIT, UNKNOWN, VERSION};
use crate::shape::SchemaNumber;

/// A frame's changes, read.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Of its first record, and behind its last.
    pub offsets: OffsetRange,
    /// The commit position of the transaction the frame belongs to.
    pub position: Option<Position>,
    /// Whether the frame ends its transaction.
    pub ends_transaction: bool,
    /// Greatest commit time so far.
    pub event_time: Micros,
    payload: Bytes,
}

impl Batch {
    /// Over what a source has captured, before it is in the log.
    pub fn captured(batch: &storage::LogBatch) -> Self {
        Self {
            offsets: OffsetRange { start: Offset(0), end: Offset(u64::from(batch.records)) },
            position: batch.position.clone(),
            ends_transaction: batch.ends_transaction,
            event_time: batch.event_time,
            payload: batch.payload.clone(),
        }
    }

    /// Over a data frame.
    pub fn new(frame: Frame) -> Self {
        Self {
            offsets: frame.offsets,
            position: frame.position,
            ends_transaction: frame.ends_transaction,
            event_time: frame.event_time,
            payload: frame.payload,
        }
    }

    /// Size of the payload in bytes.
    pub fn bytes(&self) -> usize {
        self.payload.len()
    }

    /// The runs in order. After an error nothing more comes.
    pub fn runs(&self) -> Runs<'_> {
        Runs {
            rest: &self.payload,
            part: &[],
            transaction: Transaction { position: &[], commit_time: Micros(0), tx: "" },
            commit: self.position.as_ref().map(Position::as_bytes).unwrap_or_default(),
            offset: self.offsets.start,
            ordinal: 0,
            begun: false,
            parts: 0,
            open: false,
            audience: "",
        }
    }
}

/// Iterates over a batch's runs.
#[derive(Debug)]
pub struct Runs<'a> {
    rest: &'a [u8],
    part: &'a [u8],
    transaction: Transaction<'a>,
    commit: &'a [u8],
    offset: Offset,
    ordinal: u64,
    begun: bool,
    parts: u32,
    open: bool,
    audience: &'a str,
}

impl<'a> Runs<'a> {
    fn read(&mut self) -> Result<Option<Run<'a>>, Malformed> {
        if !self.begun {
            self.begun = true;
            if let Some((&version, rest)) = self.rest.split_first() {
                if version != VERSION {
                    return Err(Malformed("version"));
                }
                self.rest = rest;
            }
        }
        if self.part.is_empty() {
            if self.rest.is_empty() {
                return Ok(None);
            }
            let length = u32_of(&mut self.rest)? as usize;
            let (mut part, rest) = split(self.rest, length)?;
            self.rest = rest;
            let (&length, _) = part.split_first().ok_or(Malformed("it ends early"))?;
            self.parts += 1;
            self.open = length & UNKNOWN != 0;
            let position = match length & UNKNOWN {
                0 => short(&mut part)?,
                _ => {
                    part = split(&part[1..], usize::from(length & !UNKNOWN))?.1;
                    self.commit
                }
            };
            let commit_time = Micros(i64::from_le_bytes(fixed(&mut part)?));
            let [length] = fixed(&mut part)?;
            let (tx, rest) = split(part, usize::from(length & !FOR_SOME))?;
            part = rest;
            let tx = std::str::from_utf8(tx).map_err(|_| Malformed("transaction id"))?;
            self.audience = "";
            if length & FOR_SOME != 0 {
                let length = u16::from_le_bytes(fixed(&mut part)?);
                let (names, rest) = split(part, length.into())?;
                part = rest;
                self.audience = std::str::from_utf8(names).map_err(|_| Malformed("names of sinks"))?;
            }
            self.ordinal = u64::from_le_bytes(fixed(&mut part)?);
            let _records = u32_of(&mut part)?;
            self.transaction = Transaction { position, commit_time, tx };
            self.part = part;
        }
        let schema = u32_of(&mut self.part)?;
        let count = u32_of(&mut self.part)? as usize;
        let length = u32_of(&mut self.part)? as usize;
        let (bodies, rest) = split(self.part, length)?;
        let (ends, rest) = split(rest, count.checked_mul(4).ok_or(Malformed("row count"))?)?;
        let (ops, rest) = split(rest, count)?;
        self.part = rest;
        if count == 0 {
            return Err(Malformed("empty run"));
        }
        let run = Run {
            schema,
            transaction: self.transaction,
            first_offset: self.offset,
            first_ordinal: self.ordinal,
            part: self.parts,
            open: self.open,
            audience: self.audience,
            bodies,
            ends,
            ops,
        };
        self.offset = Offset(self.offset.0 + count as u64);
        self.ordinal += count as u64;
        Ok(Some(run))
    }
}

impl<'a> Iterator for Runs<'a> {
    type Item = Result<Run<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let run = self.read().transpose();
        if matches!(run, Some(Err(_))) {
            (self.rest, self.part) = (&[], &[]);
        }
        run
    }
}

/// Rows of one table under one schema, in one transaction.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The log's own number of the schema.
    pub schema: SchemaNumber,
    /// Whose changes these are.
    pub transaction: Transaction<'a>,
    /// Of the first row.
    pub first_offset: Offset,
    /// Of the first row, in its transaction.
    pub first_ordinal: u64,
    /// Counts the payload's parts.
    pub(crate) part: u32,
    /// The position is told by the frame that ends the transaction.
    pub(crate) open: bool,
    /// The sinks it is meant for, with commas between; empty: all.
    pub(crate) audience: &'a str,
    pub(super) bodies: &'a [u8],
    pub(super) ends: &'a [u8],
    pub(super) ops: &'a [u8],
}

/// One row's change.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// What happened.
    pub op: Op,
    /// In the log.
    pub offset: Offset,
    /// In its transaction.
    pub ordinal: u64,
    /// The row under the run's schema.
    pub value: &'a [u8],
    /// The key before, under the schema of the key.
    pub old_key: Option<&'a [u8]>,
    /// The whole old row, under the run's schema.
    pub before: Option<&'a [u8]>,
    /// `value` is a row as it came, which no schema describes.
    pub unfit: bool,
    absent: Option<&'a [u8]>,
}

impl<'a> Run<'a> {
    /// Rows in it.
    #[expect(clippy::len_without_is_empty, reason = "a run is never empty")]
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether a sink of this name is to take it: a reading may be meant for
    /// some alone.
    #[inline]
    pub fn is_for(&self, sink: &str) -> bool {
        self.audience.is_empty() || self.audience.split(',').any(|name| name == sink)
    }

    /// Size of the bodies in bytes.
    pub fn bytes(&self) -> usize {
        self.bodies.len()
    }

    /// Whether a row in it is as it came.
    pub fn has_unfit(&self) -> bool {
        self.ops.iter().any(|bits| bits & UNFIT != 0)
    }

    /// The changes in order.
    pub fn changes(&self) -> impl Iterator<Item = Result<Change<'a>, Malformed>> + use<'a> {
        let run = *self;
        let mut start = 0;
        (0..run.len()).map(move |i| {
            let end = run.ends[i * 4..].first_chunk().map_or(0, |b| u32::from_le_bytes(*b)) as usize;
            let row = run.bodies.get(start..end).ok_or(Malformed("row end"))?;
            start = end;
            run.change(i, row)
        })
    }

    #[inline]
    fn change(&self, i: usize, mut row: &'a [u8]) -> Result<Change<'a>, Malformed> {
        let bits = self.ops[i];
        let op = Op::from_bits(bits & 0x0f)?;
        let (mut old_key, mut before, mut absent) = (None, None, None);
        if bits & (OLD_KEY | BEFORE | ABSENT) != 0 {
            if bits & ABSENT != 0 {
                let (rest, length) = row.split_last_chunk::<2>().ok_or(Malformed("absent columns"))?;
                absent = Some(split_end(rest, u16::from_le_bytes(*length) as usize, &mut row)?);
            }
            for (flag, into) in [(BEFORE, &mut before), (OLD_KEY, &mut old_key)] {
                if bits & flag != 0 {
                    let (rest, length) = row.split_last_chunk::<4>().ok_or(Malformed("old row"))?;
                    *into = Some(split_end(rest, u32::from_le_bytes(*length) as usize, &mut row)?);
                }
            }
        }
        Ok(Change {
            op,
            offset: Offset(self.first_offset.0 + i as u64),
            ordinal: self.first_ordinal + i as u64,
            value: row,
            old_key,
            before,
            unfit: bits & UNFIT != 0,
            absent,
        })
    }
}

impl Change<'_> {
    /// Whether the database did not send this column.
    #[inline]
    pub fn is_absent(&self, column: usize) -> bool {
        self.absent.is_some_and(|bits| bits.get(column / 8).is_some_and(|byte| byte & (1 << (column % 8)) != 0))
    }

    /// The columns that were not sent, a bit each.
    pub fn absent_bits(&self) -> Option<&[u8]> {
        self.absent
    }

    /// Whether any column was not sent.
    #[inline]
    pub fn has_absent(&self) -> bool {
        self.absent.is_some()
    }
}

fn split(bytes: &[u8], at: usize) -> Result<(&[u8], &[u8]), Malformed> {
    bytes.split_at_checked(at).ok_or(Malformed("it ends early"))
}

fn split_end<'a>(bytes: &'a [u8], length: usize, rest: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let at = bytes.len().checked_sub(length).ok_or(Malformed("extras are longer than the row"))?;
    let (head, tail) = bytes.split_at(at);
    *rest = head;
    Ok(tail)
}

fn fixed<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (head, rest) = bytes.split_first_chunk::<N>().ok_or(Malformed("it ends early"))?;
    *bytes = rest;
    Ok(*head)
}

fn u32_of(bytes: &mut &[u8]) -> Result<u32, Malformed> {
    fixed(bytes).map(u32::from_le_bytes)
}

fn short<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let [length] = fixed(bytes)?;
    let (head, rest) = split(bytes, length as usize)?;
    *bytes = rest;
    Ok(head)
}

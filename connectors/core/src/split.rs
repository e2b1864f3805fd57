//! Splits a batch in two: what passes, and what is held back.
//!
//! Rows are copied as bytes, stretch by stretch, never decoded. Each contiguous
//! stretch of a part becomes a part of its own with its own first ordinal, so
//! that every row keeps its (source, position, ordinal), wherever and whenever
//! it is appended. A part whose position is not yet known stays open while it
//! is unknown: its half must be appended in the same transaction. Split again
//! when read back from the log, it has the position that the transaction came
//! to have.
//!
//! ```text
//! let halves = Splitter::default().split(&batch, &mut sieve)?;
//! // halves.passed, halves.held: Option<(payload, records)>
//! ```
//!
//! A [`Sieve`] is asked once a run; only where it has no answer for the whole
//! run is it asked for each row.

use bytes::Bytes;

use crate::batch::{Batch, BatchWriter, Change, Malformed, Run};

/// Where a row goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// On to the sinks.
    Pass,
    /// Kept back.
    Hold,
    /// Nowhere: it is neither in one half nor in the other.
    Drop,
}

/// Decides.
pub trait Sieve {
    /// For all rows of a run; None: each row is asked for.
    fn run(&mut self, run: &Run<'_>) -> Option<Side>;

    /// For one row, where the run had no answer.
    fn row(&mut self, run: &Run<'_>, change: &Change<'_>) -> Side;
}

impl<F: FnMut(&Run<'_>) -> Side> Sieve for F {
    fn run(&mut self, run: &Run<'_>) -> Option<Side> {
        Some(self(run))
    }

    fn row(&mut self, _: &Run<'_>, _: &Change<'_>) -> Side {
        Side::Pass
    }
}

/// What a batch was split into: payloads with their rows; None: nothing.
#[derive(Debug, Default)]
pub struct Halves {
    /// For the sinks.
    pub passed: Option<(Bytes, u32)>,
    /// Kept back.
    pub held: Option<(Bytes, u32)>,
}

/// Splits batches; its buffers are used again.
#[derive(Debug, Default)]
pub struct Splitter {
    passed: Half,
    held: Half,
}

#[derive(Debug, Default)]
struct Half {
    writer: BatchWriter,
    /// Part and ordinal that go on where the last row ended.
    next: Option<(u32, u64)>,
}

impl Splitter {
    /// Splits one batch. After an error nothing of it is left.
    pub fn split(&mut self, batch: &Batch, sieve: &mut impl Sieve) -> Result<Halves, Malformed> {
        let sorted = self.sort(batch, sieve);
        let halves = Halves { passed: self.passed.take(), held: self.held.take() };
        sorted.map(|()| halves)
    }

    fn sort(&mut self, batch: &Batch, sieve: &mut impl Sieve) -> Result<(), Malformed> {
        for run in batch.runs() {
            let run = run?;
            if let Some(side) = sieve.run(&run) {
                self.copy(&run, 0..run.len(), side)?;
                continue;
            }
            let mut stretch = (0, Side::Pass);
            for (row, change) in run.changes().enumerate() {
                let side = sieve.row(&run, &change?);
                if side != stretch.1 {
                    self.copy(&run, stretch.0..row, stretch.1)?;
                    stretch = (row, side);
                }
            }
            self.copy(&run, stretch.0..run.len(), stretch.1)?;
        }
        Ok(())
    }

    fn copy(&mut self, run: &Run<'_>, rows: std::ops::Range<usize>, side: Side) -> Result<(), Malformed> {
        match side {
            _ if rows.is_empty() => Ok(()),
            Side::Pass => self.passed.copy(run, rows),
            Side::Hold => self.held.copy(run, rows),
            Side::Drop => Ok(()),
        }
    }
}

impl Half {
    fn copy(&mut self, run: &Run<'_>, rows: std::ops::Range<usize>) -> Result<(), Malformed> {
        let ordinal = run.first_ordinal + rows.start as u64;
        if self.next != Some((run.part, ordinal)) {
            let of = run.transaction;
            if run.open && of.position.is_empty() {
                self.writer.begin_open(0, of.commit_time, of.tx, ordinal);
            } else if of.position.len() > 127 {
                return Err(Malformed("a position of more than 127 bytes"));
            } else {
                self.writer.begin_for(run.audience, of.position, of.commit_time, of.tx, ordinal);
            }
        }
        self.next = Some((run.part, run.first_ordinal + rows.end as u64));
        self.writer.copy_rows(run, rows)
    }

    fn take(&mut self) -> Option<(Bytes, u32)> {
        self.next = None;
        self.writer.take()
    }
}

#[cfg(test)]
mod tests;

//! How the rows of one shape are written: each column with its type in the
//! warehouse, so that a row is decoded once, straight into COPY's fields.

use std::sync::Arc;

use connector::{Change, Malformed, Reader, Shape};

use crate::types::{OwnTypes, Target};
use crate::wire;

/// A shape with its types.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) shape: Arc<Shape>,
    /// A type for each column.
    pub(crate) targets: Vec<Target>,
}

impl Plan {
    pub(crate) fn new(shape: Arc<Shape>, types: &OwnTypes) -> Self {
        let targets = shape.table.columns.iter().map(|column| types.target(&column.ty, &column.db_type)).collect();
        Self { shape, targets }
    }

    /// Columns.
    pub(crate) fn width(&self) -> usize {
        self.targets.len()
    }

    /// Whether rows are known by a key.
    pub(crate) fn has_key(&self) -> bool {
        !self.shape.table.key.is_empty()
    }

    /// Appends the fields of a row, absent ones marked; where each begins goes to `starts`.
    pub(crate) fn row(
        &self,
        value: &[u8],
        change: Option<&Change<'_>>,
        out: &mut Vec<u8>,
        starts: &mut Vec<usize>,
    ) -> Result<(), Malformed> {
        let table = &self.shape.table;
        let mut reader = Reader::new(value);
        let has_absent = change.is_some_and(Change::has_absent);
        starts.clear();
        for (i, (column, target)) in table.columns.iter().zip(&self.targets).enumerate() {
            starts.push(out.len());
            let there = table.in_key(i) || reader.present()?;
            if has_absent && change.is_some_and(|change| change.is_absent(i)) {
                // What stands in its place means nothing, but has to be passed.
                if there {
                    wire::put(out, &mut reader, target.wire, &column.ty, &column.db_type)?;
                    out.truncate(starts[i]);
                }
                wire::put_none(out, wire::ABSENT);
            } else if there {
                wire::put(out, &mut reader, target.wire, &column.ty, &column.db_type)?;
            } else {
                wire::put_none(out, wire::NULL);
            }
        }
        starts.push(out.len());
        Ok(())
    }

    /// The key's fields of a row just written.
    pub(crate) fn key_of(&self, out: &[u8], starts: &[usize], key: &mut Vec<u8>) {
        key.clear();
        for &i in &self.shape.table.key {
            key.extend_from_slice(&out[starts[i]..starts[i + 1]]);
        }
    }

    /// The key's fields of a body under the schema of the key.
    pub(crate) fn key(&self, body: &[u8], key: &mut Vec<u8>) -> Result<(), Malformed> {
        key.clear();
        let mut reader = Reader::new(body);
        for &i in &self.shape.table.key {
            let (column, target) = (&self.shape.table.columns[i], &self.targets[i]);
            wire::put(key, &mut reader, target.wire, &column.ty, &column.db_type)?;
        }
        Ok(())
    }

    /// A row laid over another: what it does not know is the other's.
    pub(crate) fn overlay(&self, mut under: &[u8], mut over: &[u8], laid: &mut Vec<u8>) {
        laid.clear();
        for _ in 0..self.width() {
            let below = wire::next(&mut under).unwrap_or((wire::ABSENT, &[]));
            let above = wire::next(&mut over).unwrap_or((wire::ABSENT, &[]));
            let (length, value) = if above.0 == wire::ABSENT { below } else { above };
            laid.extend_from_slice(&length.to_be_bytes());
            laid.extend_from_slice(value);
        }
    }

    /// Whether all columns of a row are known.
    pub(crate) fn is_whole(&self, mut row: &[u8]) -> bool {
        (0..self.width()).all(|_| wire::next(&mut row).is_some_and(|(length, _)| length != wire::ABSENT))
    }

    /// Bit i: column i is known.
    pub(crate) fn known(&self, mut row: &[u8]) -> Vec<u8> {
        let mut bits = vec![0; self.width().div_ceil(8)];
        for i in 0..self.width() {
            if wire::next(&mut row).is_some_and(|(length, _)| length != wire::ABSENT) {
                bits[i / 8] |= 1 << (i % 8);
            }
        }
        bits
    }
}

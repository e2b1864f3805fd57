//! Changes, counted by what happened: for metrics.

use super::{Batch, Malformed, Op};

/// How many there were of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally([u64; Op::ALL.len()]);

impl Tally {
    /// Adds a batch's. Of a row only its operation is looked at.
    pub fn add(&mut self, batch: &Batch) -> Result<(), Malformed> {
        for run in batch.runs() {
            for &bits in run?.ops {
                if let Some(count) = self.0.get_mut(usize::from(bits & OPERATION)) {
                    *count += 1;
                }
            }
        }
        Ok(())
    }

    /// Adds what was counted elsewhere.
    pub fn merge(&mut self, other: Self) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count += more;
        }
    }

    /// Each with its count.
    pub fn iter(&self) -> impl Iterator<Item = (Op, u64)> {
        Op::ALL.into_iter().zip(self.0)
    }
}

/// The rest are flags.
const OPERATION: u8 = 0x0f;

impl serde::Serialize for Tally {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|(op, count)| (op.name(), count)))
    }
}

//! The snapshot, in rounds.
//!
//! A round reads under the snapshot of a temporary slot: what its consistent
//! point S has seen, and nothing else, is visible in it. The stream is logged
//! up to S, then chunks are copied as `read` events at S, then the stream goes
//! on. After a crash the chunks that are left are taken up in another round.
//!
//! The first round has the snapshot of the permanent slot's own creation, so
//! that every row comes once: read, or changed after it. Later rounds (after a
//! crash, of a table that was added) have a temporary slot each, and what was
//! committed before their point comes as its change and again as `read`, which
//! is an upsert.

mod mend;
mod progress;
mod round;
mod worker;

pub(crate) use mend::{Mend, copied_body};
pub(crate) use progress::{Generation, Progress, TableProgress};
pub(crate) use round::{Prepared, Round, prepare, step_end_batch};

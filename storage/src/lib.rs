//! The durable log: segments of CRC-protected, chained frames.
//!
//! ```text
//!  append ─► writer thread ─► frames ─► fdatasync ─► high-water mark ─► read
//!                 │                                        ▲
//!                 └─ state: a small ordered map, kept in every segment's head
//! ```
//!
//! What a resolved commit says is durable stays; nothing above the high-water
//! mark, the end of the last whole transaction that is synced, is ever shown.
//! Storage does not know what a row is. `docs/log-format.md` has the bytes.

mod batch;
mod error;
pub mod fault;
pub mod files;
mod index;
mod log;
mod newtypes;
pub mod outside;
mod reader;
mod recovery;
mod retention;
mod segment;
mod state;
mod used;
mod writer;

#[cfg(test)]
mod tests;

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
#[cfg(any(test, feature = "conformance"))]
pub mod simulated;

pub use batch::{Appended, Frame, Kind, LogBatch, StateChange};
pub use error::{Error, Result};
pub use log::{EventLog, Log, Options, Recovered, Retain, Stats};
pub use newtypes::{Durable, Epoch, LogId, Micros, Offset, OffsetRange, Position};
pub use state::State;
pub use writer::{Commit, PENDING_KEY};

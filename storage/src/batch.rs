//! What goes into the log and comes out of it.

use bytes::Bytes;

use crate::newtypes::{Durable, Micros, OffsetRange, Position};

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Events for sinks.
    Data,
    /// Held back: kept, and never delivered from here.
    Pending,
    /// A mark among the events.
    Control,
}

/// A change of the log's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateChange {
    /// Of the entry.
    pub key: Bytes,
    /// None removes it.
    pub value: Option<Bytes>,
}

/// Something to append; with its state changes it is there whole or not at all.
#[derive(Clone, Debug)]
pub struct LogBatch {
    /// What it is for.
    pub kind: Kind,
    /// Where the source resumes once this is durable; only with `ends_transaction`.
    pub position: Option<Position>,
    /// Offsets it takes; may be 0.
    pub records: u32,
    /// Commit time of its events.
    pub event_time: Micros,
    /// Opaque.
    pub payload: Bytes,
    /// Applied before the payload.
    pub state: Vec<StateChange>,
    /// A transaction may be many batches; only its last ends it.
    pub ends_transaction: bool,
}

/// What an append came to.
#[derive(Clone, Debug)]
pub struct Appended {
    /// The offsets of its records.
    pub offsets: OffsetRange,
    /// The batch's position, durable with everything before it.
    pub position: Durable<Option<Position>>,
}

/// A frame of a whole, durable transaction.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The offsets of its records.
    pub offsets: OffsetRange,
    /// What it is for.
    pub kind: Kind,
    /// Whether it is its transaction's last.
    pub ends_transaction: bool,
    /// Greatest commit time so far.
    pub event_time: Micros,
    /// Opaque.
    pub payload: Bytes,
    /// That of the transaction's last frame, on every frame of it.
    pub position: Option<Position>,
}

//! The runtime: source → log, log → sinks, and what happens when something fails.
//!
//! ```text
//!            ┌────────── Pipeline, one a source ──────────┐
//!  Source ──►│ ingest ──► storage::Log ──► delivery ──────┼──► Sink
//!            │    ▲             ▲          delivery ──────┼──► Sink
//!            │    └─ notes ─────┼─────────────┘           │
//!            │              retention                     │
//!            └────────────────────────────────────────────┘
//! ```
//!
//! Only ingest appends to the log: an append from elsewhere could fall between
//! the frames of a large transaction. What deliveries have to remember reaches
//! the log's state as *notes* that ingest carries along.
//!
//! The runtime knows no connector. One sink down stops neither the source nor
//! another sink: each delivery has its own cursor in the log.

mod backoff;
mod clerk;
mod contract;
mod delivery;
mod desk;
mod gate;
mod hold;
mod holds;
mod ingest;
mod lanes;
mod notes;
mod orders;
mod pipeline;
mod quarantine;
mod schemas;
mod start;
mod status;
mod supervise;

pub use contract::{Contracts, Unfitting};
pub use delivery::{Delivery, Selection};
pub use desk::{Desk, Requests};
pub use gate::{Approval, Approved, Hold, approve_stopped};
pub use holds::Holds;
pub use orders::{
    Detached, Lane, Order, Orders, Replay, checkpoint, detached, lanes, replay, sink_paused, source_paused,
};
pub use pipeline::{Ended, Pipeline};
pub use quarantine::{Deed, Discard, Discarded, Done, Filter, HeldRow, Recode, Rules, act_stopped, held_rows};
pub use schemas::{Judged, Parked, Policy, SchemaBook};
pub use start::Start;
pub use status::{Health, Problem, Quarantined, SinkStatus, SourceStatus};

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
mod delivery;
mod holds;
mod ingest;
mod notes;
mod pipeline;
mod schemas;
mod status;

pub use delivery::{Delivery, Selection};
pub use holds::Holds;
pub use pipeline::{Ended, Pipeline};
pub use schemas::SchemaBook;
pub use status::{Health, Problem, SinkStatus, SourceStatus};

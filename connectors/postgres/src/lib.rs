//! The PostgreSQL source.
//!
//! ```text
//!  control      tokio-postgres: catalog, publication, slot, checks
//!  connection   our own blocking line, for what must be fast: stream and COPY
//!  replication  ── pgoutput ──► capture ──► batches ──► the log
//!                                  │  ▲ at their commit
//!                                  ▼  │
//!                                 spool: transactions in progress
//!  snapshot     rounds of COPY between transactions, by the same plans
//!  catalog ──► shape ──► plan ──► codec: the database's values to Avro
//! ```

#[cfg(feature = "bench")]
pub mod bench;
mod capture;
mod catalog;
mod check;
mod codec;
mod compared;
mod connection;
mod control;
mod datetime;
mod error;
#[cfg(test)]
mod fuzz;
mod heartbeat;
mod lineage;
mod lsn;
mod nested;
mod numeric;
mod pgoutput;
mod plan;
mod points;
mod printed;
mod publication;
mod rehearsal;
mod repair;
mod replication;
mod rows;
mod setup;
mod shape;
mod slot;
mod snapshot;
mod source;
mod spool;
mod stream;
mod survey;
mod tables;
mod target;
mod tls;
mod unfit;

pub use check::{Finding, Severity, Standing, check, shapes};
pub use compared::{ComparedTable, compared, connect};
pub use error::{ServerError, WireError};
pub use lsn::{Lsn, NotAnLsn};
pub use points::PointState;
pub use rehearsal::{Rehearsed, rehearse};
pub use repair::{Plan, plan, read_again, repair};
pub use rows::SourceRows;
pub use slot::{SlotState, slot_state};
pub use source::{PostgresSource, TableReading, Watch};
pub use survey::{Survey, SurveyedTable, survey};
pub use tables::LeftOut;
pub use target::{Servers, Target};
pub use tls::Tls;
pub use unfit::{Misfit, recode};

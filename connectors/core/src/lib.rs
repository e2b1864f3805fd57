//! What every connector and the runtime share: tables and their types, the
//! Avro form of a row, batches of changes, and the two traits `Source` and
//! `Sink`.
//!
//! ```text
//!  source ──► BatchWriter ──► storage::LogBatch ─── log ───► storage::Frame ──► Batch ──► Run ──► Change ──► sink
//! ```
//!
//! Nothing here knows a database, a destination, the runtime or the registry.

mod avro;
mod batch;
mod civil;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod decimal;
mod difference;
mod error;
pub use storage::fault;
mod json;
mod mark;
mod name;
mod schema;
mod shape;
mod sink;
mod source;
mod split;
mod table;
mod unfit;

pub use avro::{Reader, put_bytes, put_double, put_float, put_long};
pub use batch::{
    Batch, BatchWriter, Change, Malformed, Op, RowExtras, Run, Runs, Tally, Transaction, patch_first_ordinal,
};
pub use civil::{civil_from_days, days_from_civil};
pub use decimal::{OutOfRange, decimal_from_text, decimal_to_i128, decimal_to_text, put_decimal};
pub use difference::Difference;
pub use error::{Action, Error, Result};
pub use json::{EventJson, ValueJson, timestamp};
pub use mark::{Mark, StepEnd};
pub use name::{avro_name, stream_part};
pub use schema::{key_schema, value_schema};
pub use shape::{SchemaNumber, Shape, Shapes};
pub use sink::{Checkpoint, Moved, Opened, Parked, Promise, Sink, Step};
pub use source::{Captured, FOLLOWED, Fresh, Resolved, Schemas, Source};
pub use split::{Halves, Side, Sieve, Splitter};
pub use table::{Column, Field, Table, TableKind, Type};
pub use unfit::{RawCell, RawCells, Unfit, UnfitReason, put_cell};

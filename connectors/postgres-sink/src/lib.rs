//! The warehouse sink: tables of another PostgreSQL, in step with the source.
//!
//! ```text
//!  stage   rows ─ Fold ─► last image a key, in memory; new rows go ahead into the step's transaction
//!  commit  BEGIN, lock the checkpoint ─► tables altered ─► COPY, merge ─► checkpoint, COMMIT
//! ```
//!
//! Rows and checkpoint go in one transaction, so each change is there once
//! whatever dies, and a step ends only between transactions of the source, so a
//! reader sees only states that the source had. The checkpoint's row carries the
//! epoch, and its lock decides who writes. `docs/postgres-sink.md` is for users.

mod bag;
mod check;
mod compared;
mod copy;
mod ddl;
mod drift;
mod error;
mod fold;
mod generation;
mod history;
mod images;
mod lane;
mod ledger;
mod line;
mod merge;
mod plan;
mod room;
mod session;
mod settings;
mod short;
mod sink;
mod sql;
mod table;
mod text;
mod types;
mod wire;
mod work;

pub use check::{Finding, check};
pub use compared::{ComparedTable, Sessions, checkpoint, compared, connect};
pub use drift::{Drift, drift};
pub use lane::may_move_back;
pub use settings::Settings;
pub use sink::{Merged, PostgresSink};

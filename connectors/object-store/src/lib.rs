//! The object-store sink: Parquet files in a folder or a bucket, each event once.
//!
//! ```text
//!  stage   rows ─ columns ─► local Parquet files, invisible
//!  commit  announce (manifest n+1) ─► upload ─► done (manifest n+2)
//! ```
//!
//! A step is *announced* in a manifest before its first byte goes up: which
//! files, of which offsets. So a successor finishes it as it was announced, a
//! late upload of a fenced writer lands on a name that was meant for these very
//! rows, and a reader that only lists `*.parquet` never sees an event twice.
//! Manifests are numbered objects, each made by put-if-absent; the highest
//! counts and carries the epoch. `docs/object-store.md` has their form.

mod columns;
mod compared;
mod error;
mod manifest;
mod meta;
mod settings;
mod sink;
mod staging;
mod state;
mod values;
mod writer;

pub use compared::Files;
pub use settings::Settings;
pub use sink::{ObjectStoreSink, Uploaded};
pub use state::{State, Wrong};

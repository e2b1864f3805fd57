//! The object-store sink: files in a folder or a bucket, each event once.
//!
//! ```text
//!  stage   rows ─ a format's writer ─► local files, invisible
//!  commit  announce (manifest n+1) ─► upload ─► done (manifest n+2)
//! ```
//!
//! A step is *announced* in a manifest before its first byte goes up: which
//! files, of which offsets, in which form. So a successor finishes it as it was
//! announced, a late upload of a fenced writer lands on a name that was meant
//! for these very rows, and a reader that only lists files never sees an event
//! twice. Manifests are numbered objects, each made by put-if-absent; the
//! highest counts and carries the epoch. `docs/object-store.md` has their form.
//!
//! A table that cannot be delivered waits apart in a *lane*, whose steps are
//! announced like those of the others.

mod avro_file;
mod avro_schema;
mod check;
mod columns;
mod compared;
mod error;
mod event;
mod format;
mod json_text;
mod lane;
mod manifest;
mod meta;
mod ndjson_file;
mod out;
mod parquet_file;
mod partition;
mod press;
mod readers;
mod retention;
mod rewind;
mod settings;
mod sink;
mod staging;
mod state;
mod store;
mod upload;
mod values;
mod writer;

pub use check::refused;
pub use compared::Files;
pub use format::{Codec, Form, Format, Partition};
pub use rewind::Reach;
pub use settings::Settings;
pub use sink::{ObjectStoreSink, Uploaded};
pub use state::{State, Wrong};
pub use store::Store;

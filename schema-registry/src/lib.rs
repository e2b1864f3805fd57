//! The schema registry: schemas, subjects, versions and ids, durable on a log
//! of their own, behind Confluent's REST API.
//!
//! ```text
//!  avro            a parsed schema, and its one text
//!  compatibility   whether a schema may follow others, and all that forbids it
//!  registry        subjects → versions → ids, settings; pure, in memory
//!  store           the registry on a storage::Log: an answer leaves once it is durable
//!  server          Confluent's REST face of a store
//!  client          the same face of a registry elsewhere
//! ```

mod avro;
mod change;
mod client;
mod compatibility;
mod content;
mod error;
mod merge;
mod numbering;
mod registrar;
mod registry;
mod rules;
mod server;
mod store;
mod subject;
mod transfer;

pub use client::{Client, Elsewhere, Standing, Trouble};
pub use compatibility::{Level, Violation, ViolationKind};
pub use content::{Content, Guid, NewSchema, Reference, SchemaType, is_same};
pub use error::{Code, Error, Refusal, Result, chain};
pub use registrar::{Check, Registrar, Told};
pub use registry::{Config, Counts, Found, Mode, Registered, Registry, SchemaId, Shown, Version, Which};
pub use server::Server;
pub use store::{Limits, Store};
pub use subject::{Prefix, Subject};
pub use transfer::{Entry, Imported, SchemaEntry};

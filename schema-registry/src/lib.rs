//! The schema registry's core: schemas, subjects, versions and ids, durable on
//! a log of their own.
//!
//! ```text
//!  schema    a parsed Avro schema: its text, canonical form, fingerprint
//!  registry  subjects → versions → ids; pure, in memory
//!  store     the registry on a storage::Log: an answer leaves once it is durable
//! ```
//!
//! Compatibility levels and the gate stand between `registry` and `store`,
//! Confluent's REST face above `store`; both are to come.

mod error;
mod registry;
mod schema;
mod store;

pub use error::{Error, Result};
pub use registry::{Registered, Registry, SchemaId, Version};
pub use schema::AvroSchema;
pub use store::Store;

//! The configuration: one TOML file, layered by figment under `HIGHWATER_…`
//! variables. Plain data: no client, no runtime. All faults are told together.

mod contract;
mod fault;
mod file;
mod listen;
mod object_store;
mod pattern;
mod postgres;
mod postgres_sink;
mod registry;
mod section;
mod units;

pub use contract::{Contract, Must, Rule};
pub use fault::{Fault, Faults};
pub use file::{Config, Destination, Log, OnFull, Quarantine, Sink, Source, Start};
pub use listen::{Http, Listen, ListenTls, ListenToken, ListenUser, Role};
pub use object_store::{Compression, FileFormat, ObjectStore, PartitionBy};
pub use pattern::Patterns;
pub use postgres::{
    OnIncompatible, Partitions, Postgres, PostgresHost, PostgresServer, PostgresTls, Session, SnapshotMode,
    TableOptions,
};
pub use postgres_sink::{DroppedColumns, PostgresSink, WarehouseMode};
pub use registry::{ExternalRegistry, Registry, ServedRegistry};
pub use section::Secret;

/// What `highwater init` writes.
pub const EXAMPLE: &str = include_str!("../examples/highwater.toml");

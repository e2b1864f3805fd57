//! The PostgreSQL source.

mod codec;
mod connection;
mod error;
mod lsn;
mod nested;
mod pgoutput;
mod plan;
mod replication;
mod target;
mod tls;

pub use error::{ServerError, WireError};
pub use lsn::{Lsn, NotAnLsn};
pub use target::Target;
pub use tls::Tls;

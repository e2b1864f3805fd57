//! Every test on real servers: one binary, shared servers.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod accidents;
mod announced;
mod bad_input;
mod commands;
mod conformance;
mod failover;
mod kills;
mod outages;
mod pgsink;
mod registry;
mod s3;
mod spine;
mod tls;
mod values;
mod verify;

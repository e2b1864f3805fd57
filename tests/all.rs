//! Every test on real servers: one binary, shared servers.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod accidents;
mod added;
mod announced;
mod bad_input;
mod check;
mod commands;
mod conformance;
mod delivery;
mod failover;
mod gate;
mod http;
mod kills;
mod lanes;
mod memory;
mod outages;
mod pgsink;
mod property;
mod quarantine;
mod registry;
mod replay;
mod s3;
mod spine;
mod standby;
mod stores;
mod streaming;
mod tls;
mod values;
mod verify;

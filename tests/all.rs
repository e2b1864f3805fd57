//! Every test on real servers: one binary, shared servers.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod accidents;
mod bad_input;
mod commands;
mod kills;
mod pgsink;
mod s3;
mod spine;
mod values;

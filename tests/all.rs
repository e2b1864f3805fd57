//! Every test on real servers: one binary, shared servers.

mod bad_input;
mod kills;
mod s3;
mod spine;
mod values;

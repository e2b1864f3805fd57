//! Proof of the log: on a disk that forgets, and against a model of it.

mod ahead;
mod conforming;
mod corruption;
mod failing_io;
mod fixtures;
mod history;
mod power_cut;
mod random;
mod reading;
mod retention;

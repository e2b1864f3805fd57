//! What we compare with, each as fast as we can write it.

pub(crate) mod bare_route;
pub(crate) mod bare_sync;
pub(crate) mod copy;
pub(crate) mod encoder;
pub(crate) mod lines;
pub(crate) mod null_drain;
pub(crate) mod parquet;
mod route;
pub(crate) mod wire;

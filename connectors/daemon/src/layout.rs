//! Where things are in the data folder.

use std::path::PathBuf;

use config::Config;

pub(crate) fn log(config: &Config, source: &str) -> PathBuf {
    config.data_dir.join("sources").join(source)
}

pub(crate) fn registry(config: &Config) -> PathBuf {
    config.data_dir.join("registry")
}

pub(crate) fn staging(config: &Config, sink: &str, source: &str) -> PathBuf {
    config.data_dir.join("sinks").join(sink).join(source)
}

pub(crate) fn socket(config: &Config) -> PathBuf {
    config.data_dir.join("control.sock")
}

//! Where things are in the data folder.

use std::path::{Path, PathBuf};

use config::Config;
use connector::{Error, Result};

pub(crate) fn log(config: &Config, source: &str) -> PathBuf {
    config.data_dir.join("sources").join(source)
}

/// A log that no daemon has begun is not one that cannot be read.
pub(crate) fn has_log(folder: &Path) -> Result<()> {
    if folder.exists() {
        return Ok(());
    }
    Err(Error::halt(format!("there is no log in {}", folder.display()))
        .hint("`highwater run` makes it; if it has run, check `data_dir`"))
}

pub(crate) fn registry(config: &Config) -> PathBuf {
    config.data_dir.join("registry")
}

pub(crate) fn staging(config: &Config, sink: &str, source: &str) -> PathBuf {
    config.data_dir.join("sinks").join(sink).join(source)
}

/// Of transactions in progress; emptied at every start.
pub(crate) fn spool(config: &Config, source: &str) -> PathBuf {
    config.data_dir.join("spool").join(source)
}

pub(crate) fn socket(config: &Config) -> PathBuf {
    config.data_dir.join("control.sock")
}

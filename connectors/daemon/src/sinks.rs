//! The one match over sinks.

use std::path::PathBuf;

use config::Sink as Config;
use connector::Result;
use connector_object_store::{ObjectStoreSink, Settings};

/// A sink for one source.
pub(crate) fn open(name: &str, source: &str, config: &Config, staging: PathBuf) -> Result<ObjectStoreSink> {
    let settings = Settings::new(name, source, &config.store, staging, crate::tail::position_text);
    ObjectStoreSink::new(settings, &config.store)
}

/// Whether it would work.
pub(crate) async fn check(config: &Config) -> Result<String> {
    ObjectStoreSink::check(&config.store).await
}

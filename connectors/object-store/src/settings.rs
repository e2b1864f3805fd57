//! What the sink was told.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use config::ObjectStore as Config;
use connector::{Error, Result};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ClientOptions, ObjectStore, RetryConfig};

use crate::error::failed;

/// S3 takes no smaller parts than 5 MiB.
const PART: usize = 8 << 20;

/// Everything the sink needs.
#[derive(Clone)]
pub struct Settings {
    /// Its name among all that write there: `<sink>/<source>`.
    pub sink: String,
    /// Where rows wait before they go up; emptied at every opening.
    pub staging: PathBuf,
    /// A step is full at so many bytes of rows.
    pub cut_bytes: u64,
    /// `_hw_before` in every table.
    pub before: bool,
    /// Of our own columns.
    pub meta_prefix: String,
    /// Larger files go up in parts of this size.
    pub part_bytes: usize,
    /// How positions are printed.
    pub position: fn(&[u8]) -> String,
}

impl Settings {
    /// From the configuration's section.
    pub fn new(sink: &str, source: &str, config: &Config, staging: PathBuf, position: fn(&[u8]) -> String) -> Self {
        Self {
            sink: format!("{sink}/{source}"),
            staging,
            cut_bytes: config.cut_bytes,
            before: config.before,
            meta_prefix: config.meta_prefix.clone(),
            part_bytes: PART,
            position,
        }
    }
}

/// The store that a configuration names.
pub(crate) fn store(config: &Config) -> Result<Arc<dyn ObjectStore>> {
    let url = &config.url;
    if url.scheme() == "file" {
        let folder = url.to_file_path().map_err(|()| {
            Error::halt(format!("{url} is no folder of this machine")).hint("write it like file:///var/lake")
        })?;
        std::fs::create_dir_all(&folder).map_err(|error| {
            Error::retry(format!("could not make the folder {}", folder.display()))
                .because(error)
                .hint("check `url` of the sink, and that this user may write there")
        })?;
        let store = LocalFileSystem::new_with_prefix(&folder);
        let store = store.map_err(|error| failed(error, format!("could not open {}", folder.display())))?;
        return Ok(Arc::new(store.with_fsync(true)));
    }
    let bucket = url.host_str().unwrap_or_default();
    let mut builder = AmazonS3Builder::new().with_bucket_name(bucket).with_retry(RetryConfig {
        max_retries: 2,
        retry_timeout: Duration::from_secs(20),
        ..RetryConfig::default()
    });
    let mut client =
        ClientOptions::new().with_timeout(Duration::from_secs(60)).with_connect_timeout(Duration::from_secs(5));
    for (key, value) in &config.options {
        let value = value.expose();
        let name = format!("aws_{key}");
        if key == "allow_http" {
            client = client.with_allow_http(value == "true");
            continue;
        }
        let key: AmazonS3ConfigKey =
            name.parse().map_err(|error| failed(error, format!("option {key:?} is not known")))?;
        builder = builder.with_config(key, value);
        if name == "aws_endpoint" && value.starts_with("http://") {
            client = client.with_allow_http(true);
        }
    }
    let store = builder.with_client_options(client).build();
    let store = store.map_err(|error| failed(error, format!("could not set up {url}")))?;
    let prefix = url.path().trim_matches('/');
    if prefix.is_empty() {
        return Ok(Arc::new(store));
    }
    let prefix =
        Path::from_url_path(prefix).map_err(|error| Error::halt(format!("{url} has no usable path")).because(error))?;
    Ok(Arc::new(PrefixStore::new(store, prefix)))
}

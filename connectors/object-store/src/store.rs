//! The store that a configuration names.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use config::ObjectStore as Config;
use connector::{Error, Result};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ClientOptions, ObjectStore, RetryConfig};

use crate::error::failed;

/// A store, and what else it can.
#[derive(Clone)]
pub struct Store {
    /// The store.
    pub objects: Arc<dyn ObjectStore>,
    /// Where an upload in parts has an id, by which another process can abort it.
    pub multipart: Option<Arc<dyn MultipartStore>>,
    /// Where it is a folder of this machine.
    pub folder: Option<PathBuf>,
}

impl From<Arc<dyn ObjectStore>> for Store {
    fn from(objects: Arc<dyn ObjectStore>) -> Self {
        Self { objects, multipart: None, folder: None }
    }
}

impl Store {
    /// Of the configuration.
    pub(crate) fn new(config: &Config) -> Result<Self> {
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
            return Ok(Self { objects: Arc::new(store.with_fsync(true)), multipart: None, folder: Some(folder) });
        }
        let bucket = url.host_str().unwrap_or_default();
        let unusable = |error| failed(error, format!("could not set up {url}"));
        let (client, options) = client(config)?;
        let retry = RetryConfig { max_retries: 2, retry_timeout: Duration::from_secs(20), ..RetryConfig::default() };
        match url.scheme() {
            "gs" => {
                let mut builder = GoogleCloudStorageBuilder::new().with_bucket_name(bucket).with_retry(retry);
                for (key, value) in options {
                    let key = if key == "endpoint" { "base_url" } else { key };
                    builder = builder.with_config(key.parse().map_err(unusable)?, value);
                }
                Self::under(config, builder.with_client_options(client).build().map_err(unusable)?)
            }
            "az" => {
                let mut builder = MicrosoftAzureBuilder::new().with_container_name(bucket).with_retry(retry);
                for (key, value) in options {
                    builder = builder.with_config(key.parse().map_err(unusable)?, value);
                }
                Self::under(config, builder.with_client_options(client).build().map_err(unusable)?)
            }
            _ => {
                let mut builder = AmazonS3Builder::new().with_bucket_name(bucket).with_retry(retry);
                for (key, value) in options {
                    builder = builder.with_config(key.parse().map_err(unusable)?, value);
                }
                Self::under(config, builder.with_client_options(client).build().map_err(unusable)?)
            }
        }
    }

    fn under(config: &Config, store: impl ObjectStore + MultipartStore) -> Result<Self> {
        let url = &config.url;
        let prefix = url.path().trim_matches('/');
        if prefix.is_empty() {
            let store = Arc::new(store);
            return Ok(Self { objects: store.clone(), multipart: Some(store), folder: None });
        }
        let prefix = Path::from_url_path(prefix)
            .map_err(|error| Error::halt(format!("{url} has no usable path")).because(error))?;
        let store = Arc::new(PrefixStore::new(store, prefix));
        Ok(Self { objects: store.clone(), multipart: Some(store), folder: None })
    }
}

/// The HTTP client's options, and those that are the store's own.
fn client(config: &Config) -> Result<(ClientOptions, Vec<(&str, &str)>)> {
    let mut client =
        ClientOptions::new().with_timeout(Duration::from_secs(60)).with_connect_timeout(Duration::from_secs(5));
    let mut own = Vec::new();
    for (key, value) in &config.options {
        let value = value.expose();
        match key.as_str() {
            "allow_http" => client = client.with_allow_http(value == "true"),
            "proxy_url" => client = client.with_proxy_url(value),
            "proxy_excludes" => client = client.with_proxy_excludes(value),
            "endpoint" if value.starts_with("http://") => {
                client = client.with_allow_http(true);
                own.push(("endpoint", value));
            }
            key => own.push((key, value)),
        }
    }
    Ok((client, own))
}

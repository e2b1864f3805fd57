//! A sink's files, read to be compared with the source.

use std::sync::Arc;

use bytes::Bytes;
use config::ObjectStore as Config;
use connector::{Error, Result};
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::error::failed;
use crate::state::State;
use crate::store::Store;

/// A sink's destination, to read.
pub struct Files {
    store: Arc<dyn ObjectStore>,
    prefix: String,
}

impl Files {
    /// Of a configuration.
    pub fn new(config: &Config) -> Result<Self> {
        Ok(Self { store: Store::new(config)?.objects, prefix: config.meta_prefix.clone() })
    }

    /// Of our own columns.
    pub fn meta_prefix(&self) -> &str {
        &self.prefix
    }

    /// Has a state take what a stream's files say up to an offset. Files are never
    /// changed, so nobody need stand still for it. Err: why it cannot be compared.
    pub async fn fold(&self, stream: &str, upto: u64, state: &mut State) -> Result<std::result::Result<(), String>> {
        let folder =
            Path::parse(stream).map_err(|error| Error::halt(format!("{stream:?} is no path")).because(error))?;
        let listed: Result<Vec<_>, _> = self.store.list(Some(&folder)).try_collect().await;
        let listed = listed.map_err(|error| failed(error, format!("could not list {folder}")))?;
        let mut files = Vec::new();
        for meta in listed {
            let name = meta.location.filename().unwrap_or_default();
            let Some((range, kind)) = name.split_once('.') else { continue };
            let ends = range.split_once('-').and_then(|(first, end)| Some((first.parse().ok()?, end.parse().ok()?)));
            let Some((first, end)): Option<(u64, u64)> = ends else { continue };
            if kind != "parquet" {
                return Ok(Err(format!("its files are of format {kind}, and verify reads Parquet")));
            }
            if meta.location.parts().count() != folder.parts().count() + 1 {
                return Ok(Err("its files are in partitions, and verify reads them in one folder".into()));
            }
            if end <= upto {
                files.push((first, meta.location));
            }
        }
        files.sort_by_key(|(first, _)| *first);
        for (_, path) in files {
            let read = async { self.store.get(&path).await?.bytes().await }.await;
            let body: Bytes = read.map_err(|error| failed(error, format!("could not read {path}")))?;
            if let Err(why) = take(body, &path, state)? {
                return Ok(Err(why));
            }
        }
        Ok(Ok(()))
    }
}

fn take(body: Bytes, path: &Path, state: &mut State) -> Result<std::result::Result<(), String>> {
    let broken = |error: &dyn std::fmt::Display| {
        Error::halt(format!("{path} cannot be read as Parquet: {error}"))
            .hint("it was changed or cut short by somebody: bring it back as it was, or read its table again")
    };
    let reader = ParquetRecordBatchReaderBuilder::try_new(body).and_then(|builder| builder.build());
    for batch in reader.map_err(|error| broken(&error))? {
        if let Err(why) = state.take(&batch.map_err(|error| broken(&error))?)? {
            return Ok(Err(why));
        }
    }
    Ok(Ok(()))
}

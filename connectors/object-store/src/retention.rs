//! Old files go: the manifest first says that they do not count, then they are
//! deleted. What a crash or a late writer leaves goes at the next look.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use connector::{Result, fault};
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore};

use crate::error::failed;
use crate::format::offsets;
use crate::manifest::{Manifests, claimed};

/// Between two looks, at most.
const SELDOM: Duration = Duration::from_secs(3600);

/// A policy, and when it was last looked after.
pub(crate) struct Retention {
    age: Duration,
    now: fn() -> i64,
    looked: Option<Instant>,
}

impl Retention {
    pub(crate) fn new(age: Duration, now: fn() -> i64) -> Self {
        Self { age, now, looked: None }
    }

    /// Whether it is time to.
    pub(crate) fn is_due(&self) -> bool {
        self.looked.is_none_or(|looked| looked.elapsed() > SELDOM.min(self.age / 16))
    }

    /// Ends what is too old. An error is one of the manifests: what cannot be
    /// listed or deleted waits for the next look.
    pub(crate) async fn look(&mut self, store: &dyn ObjectStore, manifests: &mut Manifests) -> Result<()> {
        self.looked = Some(Instant::now());
        // Files of a table that catches up are new, however low their offsets.
        let Some(next) = manifests.current.least() else { return Ok(()) };
        let files = match list(store, manifests).await {
            Ok(files) => files,
            Err(error) => {
                tracing::warn!(error = error.chain(), "old files could not be looked for");
                return Ok(());
            }
        };
        let limit = (self.now)().saturating_sub(i64::try_from(self.age.as_micros()).unwrap_or(i64::MAX));
        let is_old = |meta: &ObjectMeta| meta.last_modified.timestamp_micros() < limit;
        // Up to the first that has to stay, of all streams.
        let stays = files.iter().filter(|(first, _, meta)| *first >= next || !is_old(meta));
        let from = stays.map(|(first, ..)| *first).min().unwrap_or(next).min(next);
        let from = from.max(manifests.current.retained_from.unwrap_or(0));
        let gone: Vec<Path> =
            files.into_iter().filter(|(_, end, _)| *end <= from).map(|(.., meta)| meta.location).collect();
        if gone.is_empty() {
            return Ok(());
        }
        if manifests.current.retained_from.is_none_or(|before| before < from) {
            manifests.advance(|manifest| manifest.retained_from = Some(from)).await?;
        }
        fault::point("retained");
        let count = gone.len();
        let mut deleted = store.delete_stream(stream::iter(gone.into_iter().map(Ok)).boxed());
        let mut failed_ones = 0;
        let mut last = None;
        while let Some(done) = deleted.next().await {
            match done {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => fault::point("half-deleted"),
                Err(error) => (failed_ones, last) = (failed_ones + 1, Some(error)),
            }
        }
        match last {
            Some(error) => tracing::warn!(%error, files = failed_ones, "old files could not be deleted yet"),
            None => tracing::info!(files = count, retained_from = from, "old files are gone"),
        }
        Ok(())
    }
}

/// First offset, end and the rest of every file of our streams.
async fn list(store: &dyn ObjectStore, manifests: &Manifests) -> Result<Vec<(u64, u64, ObjectMeta)>> {
    let streams: BTreeSet<String> = claimed(store, manifests.current.log, &manifests.current.sink).await?;
    let mut files = Vec::new();
    for stream in streams {
        let Ok(folder) = Path::parse(&stream) else { continue };
        let listed: Vec<ObjectMeta> = store
            .list(Some(&folder))
            .try_collect()
            .await
            .map_err(|error| failed(error, format!("could not list {folder}")))?;
        files.extend(listed.into_iter().filter_map(|meta| {
            let (first, end) = offsets(meta.location.filename()?)?;
            Some((first, end, meta))
        }));
    }
    Ok(files)
}

//! Moves a sink's end to another place in the log: the manifest first, then
//! files from that place on are deleted, the last one first, so that a reader
//! that only lists sees fewer events and none twice.

use connector::{Error, Moved, Result, fault};
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use storage::{LogId, Offset};

use crate::error::failed;
use crate::manifest::{Manifests, streams_of};

/// A file that the sink has put there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    path: Path,
    first: u64,
    end: u64,
    bytes: u64,
}

/// What moving back would come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The place where no file is cut in two.
    pub to: u64,
    /// Files that go.
    pub files: usize,
    /// Their size.
    pub bytes: u64,
}

/// Whatever the sink has put there, of any format.
pub(crate) async fn held(store: &dyn ObjectStore, sink: &str, log: Option<LogId>) -> Result<Vec<Held>> {
    let mut files = Vec::new();
    for stream in streams_of(store, sink, log).await? {
        let folder =
            Path::parse(&stream).map_err(|error| Error::halt(format!("{stream:?} is no path")).because(error))?;
        let listed: Result<Vec<_>, _> = store.list(Some(&folder)).try_collect().await;
        let listed = listed.map_err(|error| failed(error, format!("could not list {folder}")))?;
        files.extend(listed.into_iter().filter_map(|meta| {
            let (first, end) = meta.location.filename().and_then(offsets)?;
            Some(Held { first, end, bytes: meta.size, path: meta.location })
        }));
    }
    files.sort_by_key(|file| file.first);
    Ok(files)
}

/// `<first offset>-<end offset>.<format>`.
fn offsets(name: &str) -> Option<(u64, u64)> {
    let (first, end) = name.split('.').next()?.split_once('-')?;
    let number = |text: &str| if text.len() == 20 { text.parse().ok() } else { None };
    Some((number(first)?, number(end)?))
}

/// The next place at or below `to`, or at or above it, where no file is cut in two.
pub(crate) fn reach(files: &[Held], to: u64, up: bool) -> Reach {
    let mut to = to;
    while let Some(file) = files.iter().find(|file| file.first < to && to < file.end) {
        to = if up { file.end } else { file.first };
    }
    let gone = files.iter().filter(|file| file.first >= to);
    Reach { to, files: gone.clone().count(), bytes: gone.map(|file| file.bytes).sum() }
}

pub(crate) async fn move_to(store: &dyn ObjectStore, manifests: &mut Manifests, to: Offset) -> Result<Moved> {
    let files = held(store, &manifests.current.sink, Some(manifests.current.log)).await?;
    // What was announced and perhaps half done goes too.
    let next = manifests.current.next_offset.unwrap_or(to.0);
    let from = manifests.current.removing.unwrap_or(u64::MAX).min(to.0).min(next);
    let reach = reach(&files, from, false);
    if reach.to < from {
        return Ok(Moved::Below(Offset(reach.to)));
    }
    let back = to.0 < next;
    manifests
        .advance(|manifest| {
            manifest.announced = None;
            manifest.lanes.clear();
            manifest.next_offset = Some(to.0);
            manifest.removing = Some(from);
            if back {
                (manifest.position, manifest.event_time) = (None, None);
            }
        })
        .await?;
    fault::point("rewind-announced");
    remove(store, manifests).await?;
    Ok(Moved::Done)
}

/// Deletes what the manifest says is to go.
pub(crate) async fn remove(store: &dyn ObjectStore, manifests: &mut Manifests) -> Result<()> {
    let Some(from) = manifests.current.removing else { return Ok(()) };
    let files = held(store, &manifests.current.sink, Some(manifests.current.log)).await?;
    for file in files.iter().rev().filter(|file| file.first >= from) {
        match store.delete(&file.path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(failed(error, format!("could not delete {}", file.path))),
        }
        fault::point("rewind-half");
    }
    manifests.advance(|manifest| manifest.removing = None).await?;
    tracing::info!(sink = manifests.current.sink, offset = from, "files from there on are gone");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_file_is_cut_in_two() {
        let file = |first, end| Held { path: Path::from("x"), first, end, bytes: 10 };
        let files = [file(0, 10), file(5, 20), file(20, 30), file(22, 25)];
        let at = |to, up| (reach(&files, to, up).to, reach(&files, to, up).files);
        assert_eq!(at(20, false), (20, 2));
        assert_eq!(at(23, false), (20, 2));
        assert_eq!(at(15, false), (0, 4));
        assert_eq!(at(15, true), (20, 2));
        assert_eq!(at(100, false), (100, 0));
        assert_eq!(offsets("00000000000000000005-00000000000000000020.parquet"), Some((5, 20)));
        assert_eq!(offsets("5-20.parquet"), None);
        assert_eq!(offsets("part-1.parquet"), None);
    }
}

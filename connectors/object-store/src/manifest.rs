//! Manifests: numbered objects, each made by put-if-absent; the highest counts.

use std::collections::BTreeSet;
use std::sync::Arc;

use connector::{Error, Result};
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use serde::{Deserialize, Serialize};
use storage::{Epoch, LogId};

use crate::error::failed;
use crate::format::{Form, offsets};
use crate::lane::Lane;

/// How many superseded ones are left for people to look at.
const KEPT: u64 = 16;
/// Of a manifest. The first knew of no lanes, and is read as one without any.
const VERSION: u32 = 2;

/// What a manifest says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) version: u32,
    pub(crate) number: u64,
    pub(crate) log: LogId,
    pub(crate) sink: String,
    pub(crate) epoch: Epoch,
    /// Of the process that wrote it: tells its own lost answer.
    pub(crate) writer: String,
    /// The first offset that is not here yet; None: nothing was.
    pub(crate) next_offset: Option<u64>,
    /// Where the source stood there.
    pub(crate) position: Option<String>,
    /// Commit time up to which all is here, in microseconds.
    pub(crate) event_time: Option<i64>,
    /// Tables of which this does not hold: they wait apart.
    #[serde(default)]
    pub(crate) lanes: Vec<Lane>,
    /// Files that end at or before it do not count any more, and are being deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) retained_from: Option<u64>,
    /// A step that may be half done.
    pub(crate) announced: Option<Announced>,
    /// Files from this offset on are being removed: the sink was moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) removing: Option<u64>,
}

/// A step, as it will be whoever does it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Announced {
    pub(crate) start: u64,
    pub(crate) end: u64,
    #[serde(flatten)]
    pub(crate) form: Form,
    /// In the order in which they go up.
    pub(crate) files: Vec<File>,
}

/// A file of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct File {
    pub(crate) stream: String,
    pub(crate) path: String,
    pub(crate) first: u64,
    pub(crate) end: u64,
    pub(crate) rows: u64,
}

/// A sink's manifests.
pub(crate) struct Manifests {
    store: Arc<dyn ObjectStore>,
    folder: String,
    pub(crate) current: Manifest,
}

impl Manifests {
    /// Takes over what there is: the next manifest carries our epoch.
    pub(crate) async fn take_over(
        store: Arc<dyn ObjectStore>,
        sink: &str,
        log: LogId,
        epoch: Epoch,
        writer: &str,
    ) -> Result<Self> {
        let folder = format!("_highwater/sinks/{sink}");
        loop {
            let found = highest(&*store, &folder, None).await?;
            if found.is_none() {
                is_conditional(&*store, &folder, writer).await?;
            }
            let next = match found {
                None => Manifest {
                    version: VERSION,
                    number: 1,
                    log,
                    sink: sink.into(),
                    epoch,
                    writer: writer.into(),
                    next_offset: None,
                    position: None,
                    event_time: None,
                    lanes: Vec::new(),
                    retained_from: None,
                    announced: None,
                    removing: None,
                },
                Some(found) => {
                    if found.log != log {
                        return Err(Error::halt(format!(
                            "sink {sink:?} holds the changes of log {}, and this is log {log}: going on would mix both",
                            found.log
                        ))
                        .hint(
                            "put back the data folder that the sink was filled from; or point the sink at an empty \
                             destination, and it is filled from this log's beginning",
                        ));
                    }
                    if found.epoch > epoch || (found.epoch == epoch && found.writer != writer) {
                        return Err(superseded(sink, &found));
                    }
                    Manifest { version: VERSION, number: found.number + 1, epoch, writer: writer.into(), ..found }
                }
            };
            let mut manifests = Self { store: store.clone(), folder: folder.clone(), current: next.clone() };
            match manifests.put(&next).await? {
                Put::Done => {
                    manifests.current = next;
                    manifests.clear_old().await;
                    return Ok(manifests);
                }
                // Another was faster: what it wrote decides.
                Put::Lost(_) => {}
            }
        }
    }

    /// Nothing of a stream may lie at or behind `next`: what no manifest knows of
    /// would be there twice once its rows come.
    pub(crate) async fn nothing_beyond(&self, stream: &str, next: u64, partition: Option<&str>) -> Result<()> {
        let parse =
            |text: &str| Path::parse(text).map_err(|error| Error::halt(format!("{text:?} is no path")).because(error));
        // In the order of names it comes just before the first that would be
        // wrong, and before most folders of partitions.
        let (folder, before) = (parse(stream)?, parse(&format!("{stream}/{next:020}"))?);
        let odd = partition.is_some_and(|name| name.as_bytes().first().is_some_and(|first| *first < b'0'));
        let listed: Result<Vec<_>, _> = match odd {
            true => self.store.list(Some(&folder)).try_collect().await,
            false => self.store.list_with_offset(Some(&folder), &before).try_collect().await,
        };
        let listed = listed.map_err(|error| failed(error, format!("could not list {folder}")))?;
        let beyond = |path: &Path| path.filename().and_then(offsets).is_some_and(|(_, end)| end > next);
        let Some(found) = listed.iter().find(|meta| beyond(&meta.location)) else {
            return Ok(());
        };
        // A successor's, who is further than we know of.
        if let Some(higher) = highest(&*self.store, &self.folder, Some(self.current.number)).await? {
            return Err(superseded(&self.current.sink, &higher));
        }
        Err(Error::halt(format!(
            "{} is there, and the sink's manifests end at offset {next}: its rows would be there twice",
            found.location
        ))
        .hint(
            "`_highwater/` was removed or an older copy of it put back: bring it back as it was, or point the sink \
             at an empty destination",
        ))
    }

    /// An error, or that a successor is there, who clears away what we have begun.
    pub(crate) async fn or_superseded(&self, error: Error) -> Error {
        match highest(&*self.store, &self.folder, Some(self.current.number)).await {
            Ok(Some(higher)) => superseded(&self.current.sink, &higher),
            _ => error,
        }
    }

    /// Makes the next manifest. Another writer's in its place ends this one.
    pub(crate) async fn advance(&mut self, change: impl FnOnce(&mut Manifest)) -> Result<()> {
        let mut next = self.current.clone();
        next.number += 1;
        change(&mut next);
        match self.put(&next).await? {
            Put::Done => {
                self.current = next;
                if self.current.number.is_multiple_of(KEPT) {
                    self.clear_old().await;
                }
                Ok(())
            }
            Put::Lost(other) => Err(superseded(&self.current.sink, &other)),
        }
    }

    async fn put(&self, manifest: &Manifest) -> Result<Put> {
        let path = path(&self.folder, manifest.number)?;
        let body = serde_json::to_vec_pretty(manifest).expect("a manifest serialises");
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let attempt = || format!("could not write manifest {path}");
        let there = match self.store.put_opts(&path, body.into(), options).await {
            Ok(_) => true,
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
                match read(&*self.store, &path).await? {
                    // Our own, of which the answer was lost.
                    Some(found) if found == *manifest => true,
                    Some(found) => return Ok(Put::Lost(Box::new(found))),
                    // It was cleared away since.
                    None => false,
                }
            }
            // The outcome is unknown until it is read: if it is there it counts.
            Err(error) => match read(&*self.store, &path).await {
                Ok(Some(found)) if found == *manifest => true,
                Ok(Some(found)) => return Ok(Put::Lost(Box::new(found))),
                Ok(None) | Err(_) => return Err(failed(error, attempt())),
            },
        };
        // Its number was free, which it is again when a successor has come so
        // far that it has cleared it away. Whoever comes later begins at ours.
        match highest(&*self.store, &self.folder, Some(manifest.number)).await? {
            None if there => Ok(Put::Done),
            None => Err(Error::retry(attempt())),
            Some(higher) => {
                let _ = self.store.delete(&path).await;
                Ok(Put::Lost(Box::new(higher)))
            }
        }
    }

    /// Best effort: what stays is only longer to list.
    async fn clear_old(&self) {
        let Ok(numbers) = numbers(&*self.store, &self.folder, None).await else { return };
        for number in numbers.into_iter().filter(|n| n + KEPT < self.current.number) {
            if let Ok(path) = path(&self.folder, number) {
                let _ = self.store.delete(&path).await;
            }
        }
    }
}

enum Put {
    Done,
    Lost(Box<Manifest>),
}

fn superseded(sink: &str, other: &Manifest) -> Error {
    Error::superseded(format!("another daemon, of epoch {}, has taken over sink {sink:?}", other.epoch.0))
        .hint("this one must not be started again while the other runs")
}

fn path(folder: &str, number: u64) -> Result<Path> {
    let text = format!("{folder}/{number:020}.json");
    Path::parse(&text).map_err(|error| Error::halt(format!("{text:?} is no path")).because(error))
}

/// Those that are there; `above`: only beyond this number.
async fn numbers(store: &dyn ObjectStore, folder: &str, above: Option<u64>) -> Result<Vec<u64>> {
    let prefix = Path::parse(folder).map_err(|error| Error::halt(format!("{folder:?} is no path")).because(error))?;
    let listed: Result<Vec<_>, _> = match above {
        None => store.list(Some(&prefix)).try_collect().await,
        Some(number) => store.list_with_offset(Some(&prefix), &path(folder, number)?).try_collect().await,
    };
    let listed = listed.map_err(|error| failed(error, format!("could not list {prefix}")))?;
    let numbered = |path: &Path| path.filename()?.strip_suffix(".json")?.parse::<u64>().ok();
    Ok(listed.iter().filter_map(|meta| numbered(&meta.location)).filter(|number| above < Some(*number)).collect())
}

/// The highest; `above`: beyond this number.
async fn highest(store: &dyn ObjectStore, folder: &str, above: Option<u64>) -> Result<Option<Manifest>> {
    let mut missed = None;
    loop {
        let Some(number) = numbers(store, folder, above).await?.into_iter().max() else { return Ok(None) };
        match read(store, &path(folder, number)?).await? {
            Some(manifest) => return Ok(Some(manifest)),
            // It was cleared away since, by whoever is far beyond it.
            None if missed < Some(number) => missed = Some(number),
            None => return Err(Error::retry(format!("manifest {number} in {folder} is listed, and cannot be found"))),
        }
    }
}

/// None: it is not there.
async fn read(store: &dyn ObjectStore, path: &Path) -> Result<Option<Manifest>> {
    let attempt = || format!("could not read manifest {path}");
    let body = match async { store.get(path).await?.bytes().await }.await {
        Ok(body) => body,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(failed(error, attempt())),
    };
    const LATER: &str = "it may be of a later version of Highwater: run that one";
    let manifest: Manifest =
        serde_json::from_slice(&body).map_err(|error| Error::halt(attempt()).because(error).hint(LATER))?;
    if !(1..=VERSION).contains(&manifest.version) {
        return Err(Error::halt(format!("manifest {path} has version {}", manifest.version)).hint(LATER));
    }
    Ok(Some(manifest))
}

/// Whether the store means put-if-absent as it says: all else rests on it.
async fn is_conditional(store: &dyn ObjectStore, folder: &str, writer: &str) -> Result<()> {
    let text = format!("{folder}/probe-{writer}");
    let path = Path::parse(&text).map_err(|error| Error::halt(format!("{text:?} is no path")).because(error))?;
    probe(store, &path).await
}

/// Puts an object there twice; the second time must be refused.
pub(crate) async fn probe(store: &dyn ObjectStore, path: &Path) -> Result<()> {
    let put = || {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        store.put_opts(path, path.to_string().into_bytes().into(), options)
    };
    let exists =
        |error: &StoreError| matches!(error, StoreError::AlreadyExists { .. } | StoreError::Precondition { .. });
    match put().await {
        Ok(_) => {}
        // An earlier one whose answer was lost.
        Err(error) if exists(&error) => {}
        Err(error) => return Err(failed(error, format!("could not write {path}"))),
    }
    let second = put().await;
    let deleted = store.delete(path).await;
    match second {
        Err(error) if exists(&error) => deleted.map_err(|error| failed(error, format!("could not delete {path}"))),
        Err(error) => Err(failed(error, format!("could not write {path}"))),
        Ok(_) => Err(Error::halt(format!("the store wrote {path} over an object that was to be made only if absent"))
            .hint(
                "it does not know conditional writes (`If-None-Match: *`), without which two daemons could both \
                 write: use a store, or a version of it, that does",
            )),
    }
}

/// A sink's newest.
pub(crate) async fn newest(store: &dyn ObjectStore, sink: &str) -> Result<Option<Manifest>> {
    highest(store, &format!("_highwater/sinks/{sink}"), None).await
}

/// Whose a stream's folder is.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    log: LogId,
    sink: String,
}

/// The streams of which a sink has claimed the folders.
pub(crate) async fn streams_of(store: &dyn ObjectStore, sink: &str, log: Option<LogId>) -> Result<Vec<String>> {
    let folder = Path::from("_highwater/streams");
    let listed: Result<Vec<_>, _> = store.list(Some(&folder)).try_collect().await;
    let listed = listed.map_err(|error| failed(error, format!("could not list {folder}")))?;
    let mut streams = Vec::new();
    for meta in listed {
        let path = meta.location;
        let body = async { store.get(&path).await?.bytes().await }.await;
        let body = body.map_err(|error| failed(error, format!("could not read {path}")))?;
        let claim: Claim = serde_json::from_slice(&body)
            .map_err(|error| Error::halt(format!("{path} cannot be read")).because(error))?;
        let name = path.as_ref().strip_prefix("_highwater/streams/").and_then(|name| name.strip_suffix(".json"));
        if let Some(name) = name
            && claim.sink == sink
            && log.is_none_or(|log| claim.log == log)
        {
            streams.push(name.to_owned());
        }
    }
    Ok(streams)
}

/// Claims a stream's folder for one (log, sink), for ever.
pub(crate) async fn claim(store: &dyn ObjectStore, stream: &str, log: LogId, sink: &str) -> Result<()> {
    let text = format!("_highwater/streams/{stream}.json");
    let path = Path::parse(&text).map_err(|error| Error::halt(format!("{text:?} is no path")).because(error))?;
    let ours = Claim { log, sink: sink.into() };
    let body = serde_json::to_vec(&ours).expect("a claim serialises");
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    match store.put_opts(&path, body.into(), options).await {
        Ok(_) => return Ok(()),
        Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {}
        Err(error) => return Err(failed(error, format!("could not claim stream {stream}"))),
    }
    let body = async { store.get(&path).await?.bytes().await }.await;
    let body = body.map_err(|error| failed(error, format!("could not read whose stream {stream} is")))?;
    match serde_json::from_slice::<Claim>(&body) {
        Ok(theirs) if theirs == ours => Ok(()),
        Ok(theirs) => Err(Error::halt(format!(
            "folder {stream} belongs to sink {:?} of log {}, this is sink {sink:?} of log {log}",
            theirs.sink, theirs.log
        ))
        .hint("point the sink at a destination of its own")),
        Err(error) => Err(Error::halt(format!("{path} cannot be read")).because(error)),
    }
}

/// The streams that (log, sink) has claimed.
pub(crate) async fn claimed(store: &dyn ObjectStore, log: LogId, sink: &str) -> Result<BTreeSet<String>> {
    let attempt = || "could not read which streams are the sink's";
    let folder = Path::from("_highwater/streams");
    let listed: Result<Vec<_>, _> = store.list(Some(&folder)).try_collect().await;
    let ours = Claim { log, sink: sink.into() };
    let mut streams = BTreeSet::new();
    for meta in listed.map_err(|error| failed(error, attempt()))? {
        let Some(stream) = meta.location.filename().and_then(|name| name.strip_suffix(".json")) else { continue };
        let body = async { store.get(&meta.location).await?.bytes().await }.await;
        let body = body.map_err(|error| failed(error, attempt()))?;
        if serde_json::from_slice::<Claim>(&body).is_ok_and(|claim| claim == ours) {
            streams.insert(stream.to_owned());
        }
    }
    Ok(streams)
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use storage::Offset;

    use super::*;

    const V1: &str = include_str!("../../../tests/fixtures/manifest-v1.json");

    #[tokio::test]
    async fn one_of_the_first_version_is_taken_over_as_one_of_this() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let folder = "_highwater/sinks/lake/shop";
        store.put(&path(folder, 7).unwrap(), V1.into()).await.unwrap();
        let first: Manifest = serde_json::from_str(V1).unwrap();
        let take_over = || Manifests::take_over(store.clone(), "lake/shop", first.log, Epoch(2), "us");
        let mut manifests = take_over().await.unwrap();
        let ours = Manifest { version: 2, number: 8, epoch: Epoch(2), writer: "us".into(), ..first.clone() };
        assert_eq!(manifests.current, ours);
        assert_eq!(newest(&*store, "lake/shop").await.unwrap(), Some(ours), "and it is written so");
        // What was announced is split when one of its tables is to wait.
        manifests.advance(|manifest| manifest.park("shop.public.orders", Offset(3), "refused", 9)).await.unwrap();
        let parked = newest(&*store, "lake/shop").await.unwrap().unwrap();
        let (before, left) = (first.announced.unwrap(), parked.announced.unwrap());
        let lane = &parked.lanes[0];
        let apart = lane.announced.as_ref().unwrap();
        assert_eq!((lane.next_offset, lane.since, lane.event_time), (3, 9, first.event_time));
        assert_eq!((&left.files[..], &apart.files[..]), (&before.files[..1], &before.files[1..]));
        assert_eq!((apart.range(), &apart.form), (before.range(), &before.form));
        // A later one is left alone.
        let later = V1.replace("\"version\": 1", "\"version\": 3");
        store.put(&path(folder, 10).unwrap(), later.into()).await.unwrap();
        let error = take_over().await.err().unwrap();
        assert!(error.remedy().is_some_and(|remedy| remedy.contains("later version")), "{error}");
    }
}

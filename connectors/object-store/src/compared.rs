//! A sink's files, read to be compared with the source.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::Arc;

use bytes::Bytes;
use config::ObjectStore as Config;
use connector::{Error, Result};
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::error::failed;
use crate::event::{Event, Unread};
use crate::format::offsets;
use crate::manifest;
use crate::readers::{self, Events};
use crate::state::State;
use crate::store::Store;

/// A sink's destination, to read.
pub struct Files {
    store: Arc<dyn ObjectStore>,
    /// Of our own columns.
    prefix: String,
    /// As in its manifests: `<sink>/<source>`.
    sink: String,
}

impl Files {
    /// Of a configuration.
    pub fn new(config: &Config, sink: &str, source: &str) -> Result<Self> {
        let store = Store::new(config)?.objects;
        Ok(Self { store, prefix: config.meta_prefix.clone(), sink: format!("{sink}/{source}") })
    }

    /// Has a state take what a stream's files say up to an offset. Files are never
    /// changed, so nobody need stand still for it. Err: why it cannot be compared.
    ///
    /// Files of one folder follow each other. Those of several, as partitions
    /// have them, interleave: they are open together, no more than have to be.
    pub async fn fold(&self, stream: &str, upto: u64, state: &mut State) -> Result<std::result::Result<(), String>> {
        let newest = manifest::newest(&*self.store, &self.sink).await?;
        let lane = newest.as_ref().and_then(|manifest| manifest.lane(stream));
        if let Some(lane) = lane.filter(|lane| lane.next_offset < upto) {
            return Ok(Err(format!(
                "it waits apart at the destination, {} events of the log behind: {}",
                upto - lane.next_offset,
                lane.why
            )));
        }
        if let Some(from) = newest.and_then(|manifest| manifest.retained_from) {
            return Ok(Err(format!(
                "its files up to offset {from} were ended by `retain`: no file has a row that has not changed since"
            )));
        }
        let table = Arc::new(state.table().clone());
        let mut waiting = self.list(stream, upto).await?.into_iter().peekable();
        let mut open = BinaryHeap::<Head>::new();
        let mut before = None;
        loop {
            while let Some(file) =
                waiting.next_if(|file| open.peek().is_none_or(|head| file.first <= head.event.offset))
            {
                let suffix =
                    file.path.filename().and_then(|name| name.split_once('.')).map_or("", |(_, suffix)| suffix);
                let events = readers::open(self.read(&file.path).await?, suffix, &table, &self.prefix);
                match Head::next(events, file)? {
                    Ok(head) => open.extend(head),
                    Err(why) => return Ok(Err(why)),
                }
            }
            let Some(Head { event, events, file }) = open.pop() else { return Ok(Ok(())) };
            let offset = event.offset;
            if before.is_some_and(|before| before >= offset) {
                return Ok(Err(format!("event {offset} is in {} and in a file before it", file.path)));
            }
            before = Some(offset);
            if let Err(why) = state.take(event) {
                return Ok(Err(why));
            }
            match Head::next(Ok(events), file)? {
                Ok(head) => open.extend(head),
                Err(why) => return Ok(Err(why)),
            }
        }
    }

    /// A stream's files up to an offset, by their first one.
    async fn list(&self, stream: &str, upto: u64) -> Result<Vec<File>> {
        let folder =
            Path::parse(stream).map_err(|error| Error::halt(format!("{stream:?} is no path")).because(error))?;
        let listed: Result<Vec<_>, _> = self.store.list(Some(&folder)).try_collect().await;
        let listed = listed.map_err(|error| failed(error, format!("could not list {folder}")))?;
        let of = |path: Path| {
            let (first, end) = offsets(path.filename()?)?;
            (end <= upto).then_some(File { first, end, path })
        };
        let mut files: Vec<File> = listed.into_iter().filter_map(|meta| of(meta.location)).collect();
        files.sort_by_key(|file| file.first);
        Ok(files)
    }

    async fn read(&self, path: &Path) -> Result<Bytes> {
        let read = async { self.store.get(path).await?.bytes().await }.await;
        read.map_err(|error| failed(error, format!("could not read {path}")))
    }
}

/// A data file, and the offsets that its name says.
struct File {
    first: u64,
    end: u64,
    path: Path,
}

/// An open file, by its next event: the greatest is the one that comes first.
struct Head {
    event: Event,
    events: Events,
    file: File,
}

impl Head {
    /// None: the file ends. Err within: why it cannot be compared.
    fn next(
        events: std::result::Result<Events, Unread>,
        file: File,
    ) -> Result<std::result::Result<Option<Self>, String>> {
        let next = events.and_then(|mut events| Ok(events.next().transpose()?.map(|event| (event, events))));
        match next {
            Ok(Some((event, _))) if !(file.first..file.end).contains(&event.offset) => {
                Err(broken(&file.path, format!("it holds event {}, which its name does not say", event.offset)))
            }
            Ok(next) => Ok(Ok(next.map(|(event, events)| Self { event, events, file }))),
            Err(Unread::Incomparable(why)) => Ok(Err(why)),
            Err(Unread::Broken(why)) => Err(broken(&file.path, why)),
        }
    }
}

impl Ord for Head {
    fn cmp(&self, other: &Self) -> Ordering {
        other.event.offset.cmp(&self.event.offset)
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Head {}

fn broken(path: &Path, why: String) -> Error {
    Error::halt(format!("{path} cannot be read as what its name says"))
        .because(why)
        .hint("it was changed or cut short by somebody: bring it back as it was, or read its table again")
}

//! The sink.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use config::ObjectStore as Config;
use connector::{Checkpoint, Error, Mark, Moved, Opened, Promise, Result, Run, Shape, Sink, Step, fault};
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt, PutMode, PutOptions, WriteMultipart};
use storage::{Epoch, LogId, Offset, OffsetRange};
use tokio::io::AsyncReadExt;

use crate::error::failed;
use crate::manifest::{Announced, FORMAT, File, Manifests, claim};
use crate::rewind::{self, Reach};
use crate::settings::{Settings, store};
use crate::staging::Staging;

/// Writes Parquet files to a folder or a bucket.
pub struct ObjectStoreSink {
    settings: Settings,
    connect: Connect,
    /// Of this process: tells its own lost answers from another's.
    writer: String,
    open: Option<Open>,
}

type Connect = Box<dyn Fn() -> Result<Arc<dyn ObjectStore>> + Send + Sync>;

struct Open {
    store: Arc<dyn ObjectStore>,
    manifests: Manifests,
    staging: Staging,
    claimed: HashSet<String>,
}

/// A file that waits in the staging folder.
pub struct Uploaded {
    file: File,
    staged: PathBuf,
}

impl ObjectStoreSink {
    /// Of a configuration; connects when it is opened.
    pub fn new(settings: Settings, config: &Config) -> Result<Self> {
        let config = config.clone();
        Self::on(settings, move || store(&config))
    }

    /// On a store of choice.
    pub fn on(
        settings: Settings,
        connect: impl Fn() -> Result<Arc<dyn ObjectStore>> + Send + Sync + 'static,
    ) -> Result<Self> {
        let mut random = [0; 16];
        let read =
            std::fs::File::open("/dev/urandom").and_then(|mut file| std::io::Read::read_exact(&mut file, &mut random));
        read.map_err(|error| Error::halt("could not read /dev/urandom").because(error))?;
        let writer = LogId(random).to_string();
        Ok(Self { settings, connect: Box::new(connect), writer, open: None })
    }

    /// Whether the destination can be written, listed and deleted from.
    pub async fn check(config: &Config) -> Result<String> {
        let store = store(config)?;
        let path = Path::from(format!("_highwater/check-{}", std::process::id()));
        store.put(&path, Bytes::from_static(b"check").into()).await.map_err(|e| failed(e, "could not write"))?;
        store.get(&path).await.map_err(|error| failed(error, "could not read"))?;
        store.delete(&path).await.map_err(|error| failed(error, "could not delete"))?;
        Ok(format!("{} can be written and read", config.url))
    }

    /// What moving the sink back to an offset would come to; `up`: to one above
    /// if files are in the way.
    pub async fn reach(config: &Config, sink: &str, to: u64, up: bool) -> Result<Reach> {
        let files = rewind::held(&*store(config)?, sink, None).await?;
        Ok(rewind::reach(&files, to, up))
    }

    fn opened(&mut self) -> Result<&mut Open> {
        self.open.as_mut().ok_or_else(|| Error::retry("the sink is not open"))
    }
}

impl Sink for ObjectStoreSink {
    type Staged = Uploaded;

    async fn open(&mut self, log: LogId, epoch: Epoch) -> Result<Opened> {
        self.open = None;
        let store = (self.connect)()?;
        let settings = &self.settings;
        let mut manifests = Manifests::take_over(store.clone(), &settings.sink, log, epoch, &self.writer).await?;
        rewind::remove(&*store, &mut manifests).await?;
        let announced = manifests.current.announced.clone();
        // An announced step is done as it was announced, whatever the
        // configuration says by now.
        let (prefix, before) = match &announced {
            Some(announced) => (announced.meta_prefix.clone(), announced.before),
            None => (settings.meta_prefix.clone(), settings.before),
        };
        let staging = Staging::new(settings.staging.clone(), prefix, before, settings.position)?;
        let checkpoint = manifests.current.next_offset.map(|next| Checkpoint { next: Offset(next) });
        self.open = Some(Open { store, manifests, staging, claimed: HashSet::new() });
        let promised = announced.map(|announced| Promise {
            range: OffsetRange { start: Offset(announced.start), end: Offset(announced.end) },
            streams: {
                let streams: HashSet<String> = announced.files.into_iter().map(|file| file.stream).collect();
                streams.into_iter().collect()
            },
        });
        Ok(Opened { checkpoint, promised, parked: Vec::new() })
    }

    async fn stage(&mut self, shape: &Arc<Shape>, run: Run<'_>) -> Result<()> {
        self.opened()?.staging.run(shape, &run)
    }

    async fn stage_mark(&mut self, shape: &Arc<Shape>, mark: &Mark, offset: Offset) -> Result<()> {
        // The first reading of a table is its beginning: nothing went before.
        if mark.generation <= 1 {
            return Ok(());
        }
        self.opened()?.staging.mark(shape, mark, offset)
    }

    async fn staged(&mut self) -> Result<Vec<Uploaded>> {
        let files = self.opened()?.staging.finish()?;
        Ok(files.into_iter().map(|(file, staged)| Uploaded { file, staged }).collect())
    }

    async fn commit(&mut self, staged: Vec<Uploaded>, step: Step) -> Result<Checkpoint> {
        let range = step.range();
        let (prefix, before) = (self.settings.meta_prefix.clone(), self.settings.before);
        let position = step.position.as_ref().map(|position| (self.settings.position)(position.as_bytes()));
        let settings = self.settings.clone();
        // After an error, or cut short, it has to be opened again: what the
        // destination holds by then is not known here.
        let mut open = self.open.take().ok_or_else(|| Error::retry("the sink is not open"))?;
        if let Some(next) = open.manifests.current.next_offset
            && next != range.start.0
        {
            let what = format!("a step from offset {} does not begin at the sink's checkpoint {next}", range.start);
            return Err(Error::halt(what).hint("this is a fault of Highwater: please report it"));
        }
        let files: Vec<File> = staged.iter().map(|staged| staged.file.clone()).collect();
        let redone = open.manifests.current.announced.is_some();
        match &open.manifests.current.announced {
            Some(announced) => {
                if (announced.start, announced.end) != (range.start.0, range.end.0) || announced.files != files {
                    return Err(Error::halt(format!(
                        "the step from offset {} to {} was announced with other files than the log gives",
                        announced.start, announced.end
                    ))
                    .hint("the log is not the one that the step was announced from: put back its data folder"));
                }
            }
            None if files.is_empty() => {}
            None => {
                for file in &files {
                    if !open.claimed.contains(&file.stream) {
                        claim(&*open.store, &file.stream, open.manifests.current.log, &settings.sink).await?;
                        open.manifests.nothing_beyond(&file.stream, range.start.0).await?;
                        open.claimed.insert(file.stream.clone());
                    }
                }
                let announced = Announced {
                    start: range.start.0,
                    end: range.end.0,
                    format: FORMAT.into(),
                    meta_prefix: prefix.clone(),
                    before,
                    files,
                };
                open.manifests.advance(|manifest| manifest.announced = Some(announced)).await?;
                fault::point("announced");
            }
        }
        for Uploaded { file, staged } in &staged {
            upload(&*open.store, &file.path, staged, settings.part_bytes, redone).await?;
            // It waits no longer; a leftover goes with the next opening.
            let _ = tokio::fs::remove_file(staged).await;
            fault::point("half-uploaded");
        }
        fault::point("uploaded");
        open.manifests
            .advance(|manifest| {
                manifest.announced = None;
                manifest.next_offset = Some(range.end.0);
                manifest.position = position;
                manifest.event_time = Some(step.event_time.0);
            })
            .await?;
        fault::point("manifest-lost-answer");
        if redone {
            open.staging = Staging::new(settings.staging, prefix, before, settings.position)?;
        }
        self.open = Some(open);
        Ok(Checkpoint { next: range.end })
    }

    async fn move_to(&mut self, to: Offset) -> Result<Moved> {
        let mut open = self.open.take().ok_or_else(|| Error::retry("the sink is not open"))?;
        rewind::move_to(&*open.store, &mut open.manifests, to).await.inspect(|_| self.open = Some(open))
    }

    fn is_full(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.staging.bytes >= self.settings.cut_bytes)
    }
}

/// A file under its announced name. One that is there is these very rows: put
/// there by whoever announced it, for objects appear whole or not at all.
async fn upload(
    store: &dyn ObjectStore,
    path: &str,
    staged: &std::path::Path,
    part_bytes: usize,
    redone: bool,
) -> Result<()> {
    let path = Path::parse(path).map_err(|error| Error::halt(format!("{path:?} is no path")).because(error))?;
    let attempt = || format!("could not write {path}");
    let unreadable =
        |error: std::io::Error| Error::retry(format!("could not read {}", staged.display())).because(error);
    if redone {
        match store.head(&path).await {
            Ok(_) => return Ok(()),
            Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(failed(error, attempt())),
        }
    }
    let mut file = tokio::fs::File::open(staged).await.map_err(unreadable)?;
    let length = file.metadata().await.map_err(unreadable)?.len();
    if length <= part_bytes as u64 {
        let mut body = Vec::with_capacity(length as usize);
        file.read_to_end(&mut body).await.map_err(unreadable)?;
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        return match store.put_opts(&path, body.into(), options).await {
            Ok(_) => Ok(()),
            // S3 also answers so while another's is under way, which may fail yet.
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
                store.head(&path).await.map(drop).map_err(|error| failed(error, attempt()))
            }
            Err(error) => Err(failed(error, attempt())),
        };
    }
    let upload = store.put_multipart(&path).await.map_err(|error| failed(error, attempt()))?;
    let mut upload = WriteMultipart::new_with_chunk_size(upload, part_bytes);
    loop {
        let mut part = vec![0; part_bytes];
        let mut filled = 0;
        while filled < part_bytes {
            let read = file.read(&mut part[filled..]).await.map_err(unreadable)?;
            if read == 0 {
                break;
            }
            filled += read;
        }
        if filled == 0 {
            break;
        }
        part.truncate(filled);
        if let Err(error) = upload.wait_for_capacity(2).await {
            // Parts that nobody completes cost money until somebody clears them.
            let _ = upload.abort().await;
            return Err(failed(error, attempt()));
        }
        upload.put(part.into());
        fault::point("half-uploaded");
    }
    upload.finish().await.map(drop).map_err(|error| failed(error, attempt()))
}

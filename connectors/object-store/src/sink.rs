//! The sink.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use config::ObjectStore as Config;
use connector::{Action, Checkpoint, Error, Mark, Moved, Opened, Result, Run, Shape, Sink, Step, fault, stream_part};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use storage::{Epoch, LogId, Offset};

use crate::error::{failed, of_table};
use crate::format::Partition;
use crate::lane::Lane;
use crate::manifest::{Announced, File, Manifest, Manifests, claim, probe};
use crate::retention::Retention;
use crate::rewind::{self, Reach};
use crate::settings::Settings;
use crate::staging::{Gather, Staging};
use crate::store::Store;
use crate::upload::Uploads;

/// Writes files to a folder or a bucket.
pub struct ObjectStoreSink {
    settings: Settings,
    connect: Connect,
    /// Of this process: tells its own lost answers from another's.
    writer: String,
    random: [u8; 16],
    open: Option<Open>,
    retention: Option<Retention>,
}

type Connect = Box<dyn Fn() -> Result<Store> + Send + Sync>;

struct Open {
    store: Store,
    manifests: Manifests,
    uploads: Uploads,
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
        Self::on(settings, move || Store::new(&config))
    }

    /// On a store of choice.
    pub fn on(settings: Settings, connect: impl Fn() -> Result<Store> + Send + Sync + 'static) -> Result<Self> {
        let mut random = [0; 16];
        let read =
            std::fs::File::open("/dev/urandom").and_then(|mut file| std::io::Read::read_exact(&mut file, &mut random));
        read.map_err(|error| Error::halt("could not read /dev/urandom").because(error))?;
        let writer = LogId(random).to_string();
        let retention = settings.retain.map(|age| Retention::new(age, settings.now));
        Ok(Self { settings, connect: Box::new(connect), writer, random, open: None, retention })
    }

    /// Whether the destination can be written, listed and deleted from, and
    /// knows conditional writes.
    pub async fn check(config: &Config) -> Result<String> {
        let store = Store::new(config)?.objects;
        let path = Path::from(format!("_highwater/check-{}", std::process::id()));
        store.put(&path, "check".into()).await.map_err(|e| failed(e, "could not write"))?;
        store.get(&path).await.map_err(|error| failed(error, "could not read"))?;
        let listed = store.list_with_delimiter(Some(&Path::from("_highwater"))).await;
        listed.map_err(|error| failed(error, "could not list"))?;
        store.delete(&path).await.map_err(|error| failed(error, "could not delete"))?;
        probe(&*store, &path).await?;
        Ok(format!("{} can be written and read", config.url))
    }

    /// An announced step is done as it was announced, whatever the configuration
    /// says by now.
    fn gather(&self, store: &Store, manifest: &Manifest) -> Gather {
        let Settings { staging, position, form, .. } = &self.settings;
        let announced = |lane: &Lane| Some((lane.stream.clone(), lane.announced.as_ref()?.form.clone()));
        Gather {
            folder: staging.clone(),
            stays: store.folder.is_some(),
            form: manifest.announced.as_ref().map_or(form, |announced| &announced.form).clone(),
            apart: manifest.lanes.iter().filter_map(announced).collect::<HashMap<_, _>>(),
            position: *position,
            sync: self.random,
        }
    }

    /// What moving the sink back to an offset would come to; `up`: to one above
    /// if files are in the way.
    pub async fn reach(config: &Config, sink: &str, to: u64, up: bool) -> Result<Reach> {
        let files = rewind::held(&*Store::new(config)?.objects, sink, None).await?;
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
        let objects = store.objects.clone();
        let mut manifests = Manifests::take_over(objects, &settings.sink, log, epoch, &self.writer).await?;
        rewind::remove(&*store.objects, &mut manifests).await?;
        let uploads = Uploads::new(store.clone(), settings.part_bytes, &settings.staging, &settings.sink, &self.writer);
        uploads.clear().await;
        if let Some(retention) = &mut self.retention {
            retention.look(&*store.objects, &mut manifests).await?;
        }
        let staging = Staging::new(self.gather(&store, &manifests.current))?;
        let Manifest { next_offset, announced, lanes, .. } = &manifests.current;
        let opened = Opened {
            checkpoint: next_offset.map(|next| Checkpoint { next: Offset(next) }),
            promised: announced.as_ref().map(Announced::promise),
            parked: lanes.iter().map(Lane::parked).collect(),
        };
        self.open = Some(Open { store, manifests, uploads, staging, claimed: HashSet::new() });
        Ok(opened)
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
        let position = step.position.as_ref().map(|position| (self.settings.position)(position.as_bytes()));
        // After an error, or cut short, it has to be opened again: what the
        // destination holds by then is not known here.
        let mut open = self.open.take().ok_or_else(|| Error::retry("the sink is not open"))?;
        let files: Vec<File> = staged.iter().map(|staged| staged.file.clone()).collect();
        let announced = open.manifests.current.announced_for(&step)?;
        let redone = announced.is_some();
        match announced {
            Some(announced) => {
                if announced.range() != range || announced.files != files {
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
                    open.claim(&file.stream, range.start, &self.settings).await?;
                }
                fault::point("staged");
                let form = self.settings.form.clone();
                let announced = Announced { start: range.start.0, end: range.end.0, form, files };
                open.manifests.advance(|manifest| manifest.announce(&step, announced)).await?;
                fault::point("announced");
            }
        }
        for Uploaded { file, staged } in &staged {
            if let Err(error) = open.uploads.put(&file.path, staged, redone).await {
                return Err(open.manifests.or_superseded(of_table(error, &file.stream)).await);
            }
            // It waits no longer; a leftover goes with the next opening.
            let _ = tokio::fs::remove_file(staged).await;
            fault::point("file-uploaded");
        }
        fault::point("uploaded");
        open.manifests.advance(|manifest| manifest.arrive(&step, position)).await?;
        fault::point("manifest-lost-answer");
        if redone {
            open.staging = Staging::new(self.gather(&open.store, &open.manifests.current))?;
        }
        if let Some(retention) = self.retention.as_mut().filter(|retention| retention.is_due()) {
            retention.look(&*open.store.objects, &mut open.manifests).await?;
        }
        self.open = Some(open);
        Ok(Checkpoint { next: range.end })
    }

    async fn park(&mut self, stream: &str, at: Offset, why: &str) -> Result<bool> {
        let mut open = self.open.take().ok_or_else(|| Error::retry("the sink is not open"))?;
        let now = (self.settings.now)();
        open.manifests.advance(|manifest| manifest.park(stream, at, why, now)).await?;
        fault::point("table-parked");
        self.open = Some(open);
        Ok(true)
    }

    async fn move_to(&mut self, to: Offset) -> Result<Moved> {
        let mut open = self.open.take().ok_or_else(|| Error::retry("the sink is not open"))?;
        rewind::move_to(&*open.store.objects, &mut open.manifests, to).await.inspect(|_| self.open = Some(open))
    }

    fn is_full(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.staging.bytes >= self.settings.cut_bytes)
    }
}

impl Open {
    /// A stream's folder is ours, and holds nothing at or behind an offset.
    async fn claim(&mut self, stream: &str, at: Offset, settings: &Settings) -> Result<()> {
        if self.claimed.contains(stream) {
            return Ok(());
        }
        let Manifest { log, next_offset, .. } = self.manifests.current;
        let claimed = claim(&*self.store.objects, stream, log, &settings.sink).await;
        claimed.map_err(|error| match error.action() {
            // A new sink of which the first table is another's is not meant to be here at all.
            Action::Halt if next_offset.is_some() => error.of_stream(stream),
            _ => of_table(error, stream),
        })?;
        let partition = match &settings.form.partition {
            Some(Partition::Column(name)) => Some(stream_part(name)),
            Some(Partition::CommitDate) => Some(stream_part(&settings.form.meta_prefix)),
            None => None,
        };
        let beyond = self.manifests.nothing_beyond(stream, at.0, partition.as_deref()).await;
        beyond.map_err(|error| of_table(error, stream))?;
        self.uploads.clear_stream(stream, at.0);
        self.claimed.insert(stream.into());
        Ok(())
    }
}

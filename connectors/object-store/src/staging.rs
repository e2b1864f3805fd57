//! The files of a step while it gathers: one open a stream (and folder of it), a
//! new one where its schema changes.
//!
//! Which files a step has depends on its rows and its form alone: a successor
//! that finishes it makes the same ones.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use connector::{Error, Mark, Op, Result, Run, Shape};
use storage::Offset;

use crate::format::{Form, Format};
use crate::manifest::File;
use crate::out::Place;
use crate::partition::Places;
use crate::press::Press;
use crate::writer::{Writer, broken};

/// Of all open files together; beyond, the largest writes what it can.
const MEMORY: usize = 48 << 20;
/// Open files in partitions; beyond, the one that got no row for longest ends.
const PARTITIONS: usize = 64;

/// A step's files.
pub(crate) struct Staging {
    settings: Gather,
    /// By folder in the store.
    open: HashMap<String, Writer>,
    closed: Vec<(File, PathBuf)>,
    /// By the schema's number.
    places: HashMap<u32, Option<Places>>,
    partitioned: usize,
    made: u64,
    /// Of rows taken.
    pub(crate) bytes: u64,
    unmeasured: usize,
    /// The last: it ends when nothing more can be sent to it.
    press: Press,
}

/// How it gathers.
#[derive(Clone)]
pub(crate) struct Gather {
    pub(crate) folder: PathBuf,
    /// The store is a folder of this machine: files are linked to their names.
    pub(crate) stays: bool,
    pub(crate) form: Form,
    /// Of tables whose own step was announced.
    pub(crate) apart: HashMap<String, Form>,
    pub(crate) position: fn(&[u8]) -> String,
    /// Between the blocks of Avro files.
    pub(crate) sync: [u8; 16],
}

impl Gather {
    fn form(&self, stream: &str) -> &Form {
        self.apart.get(stream).unwrap_or(&self.form)
    }
}

impl Staging {
    /// An empty folder.
    pub(crate) fn new(settings: Gather) -> Result<Self> {
        let folder = &settings.folder;
        let failed = |error: std::io::Error| {
            Error::retry(format!("could not empty the staging folder {}", folder.display())).because(error)
        };
        if folder.exists() {
            std::fs::remove_dir_all(folder).map_err(failed)?;
        }
        std::fs::create_dir_all(folder).map_err(failed)?;
        let waiting = settings.form.format.waiting();
        Ok(Self {
            settings,
            open: HashMap::new(),
            closed: Vec::new(),
            places: HashMap::new(),
            partitioned: 0,
            made: 0,
            bytes: 0,
            unmeasured: 0,
            press: Press::new(waiting).map_err(|error| Error::retry("could not start a thread").because(error))?,
        })
    }

    /// The file that the next row of a folder goes to.
    fn writer(&mut self, folder: &str, shape: &Arc<Shape>, blank: bool, first: Offset) -> Result<&mut Writer> {
        if let Some(writer) = self.open.get(folder)
            && (writer.shape.number != shape.number || writer.blank != blank)
        {
            self.close(folder)?;
        }
        if !self.open.contains_key(folder) {
            let in_partition = |folder: &str| folder.contains('/');
            if in_partition(folder) {
                if self.partitioned >= PARTITIONS {
                    let open = self.open.iter().filter(|(folder, _)| in_partition(folder));
                    let idle = open.min_by_key(|(_, writer)| writer.end).map(|(folder, _)| folder.clone());
                    self.close(&idle.unwrap_or_default())?;
                }
                self.partitioned += 1;
            }
            self.made += 1;
            let (form, sync) = (self.settings.form(stream_of(folder)), self.settings.sync);
            let path = self.settings.folder.join(format!("{}.{}", self.made, form.suffix()));
            let place = Place { path, stays: self.settings.stays };
            self.open.insert(folder.into(), Writer::new(shape.clone(), blank, place, first, form, sync, &self.press)?);
        }
        Ok(self.open.get_mut(folder).expect("inserted above"))
    }

    pub(crate) fn run(&mut self, shape: &Arc<Shape>, run: &Run<'_>) -> Result<()> {
        self.bytes += run.bytes() as u64;
        self.unmeasured += run.bytes();
        let position = (self.settings.position)(run.transaction.position);
        let stream = shape.table.stream();
        let form = self.settings.form(&stream);
        // Only Avro cannot say that a column of the key has no value.
        let blanks = form.format == Format::Avro && !shape.table.key.is_empty();
        let mut places = self.places.remove(&shape.number).unwrap_or_else(|| Places::of(&shape.table, form));
        let (mut folder, mut next_folder) = (String::new(), String::new());
        let mut changes = run.changes();
        let mut next = changes.next();
        while let Some(change) = next.take() {
            let change = change.map_err(|error| broken(shape, error))?;
            let blank = blanks && change.op == Op::Truncate;
            folder.clear();
            folder.push_str(&stream);
            if let Some(places) = &mut places {
                folder.push('/');
                places.change(&mut folder, &shape.table, run, &change).map_err(|error| broken(shape, error))?;
            }
            let writer = self.writer(&folder, shape, blank, change.offset)?;
            writer.change(&change, run, &position)?;
            // All that follow into the same file.
            for change in changes.by_ref() {
                if let Ok(change) = &change {
                    let mut same = blank == (blanks && change.op == Op::Truncate);
                    if let (true, Some(places)) = (same, &mut places) {
                        next_folder.clear();
                        places
                            .change(&mut next_folder, &shape.table, run, change)
                            .map_err(|error| broken(shape, error))?;
                        same = folder[stream.len() + 1..] == next_folder;
                    }
                    if same {
                        writer.change(change, run, &position)?;
                        continue;
                    }
                }
                next = Some(change);
                break;
            }
        }
        self.places.insert(shape.number, places);
        if self.unmeasured > MEMORY / 16 {
            self.unmeasured = 0;
            self.relieve()?;
        }
        Ok(())
    }

    pub(crate) fn mark(&mut self, shape: &Arc<Shape>, mark: &Mark, offset: Offset) -> Result<()> {
        let mut folder = shape.table.stream();
        let form = self.settings.form(&folder);
        let blank = form.format == Format::Avro && !shape.table.key.is_empty();
        if let Some(mut places) = Places::of(&shape.table, form) {
            folder.push('/');
            places.mark(&mut folder, mark);
        }
        let position = (self.settings.position)(&mark.position);
        self.writer(&folder, shape, blank, offset)?.mark(mark, &position, offset)
    }

    fn relieve(&mut self) -> Result<()> {
        let used: usize = self.open.values().map(Writer::memory).sum();
        if used > MEMORY
            && let Some(largest) = self.open.values_mut().max_by_key(|writer| writer.memory())
        {
            largest.flush()?;
        }
        Ok(())
    }

    fn close(&mut self, folder: &str) -> Result<()> {
        let Some(mut writer) = self.open.remove(folder) else { return Ok(()) };
        self.partitioned -= usize::from(folder.contains('/'));
        let stream = stream_of(folder);
        writer.close()?;
        let file = File {
            path: format!("{folder}/{:020}-{:020}.{}", writer.first, writer.end, self.settings.form(stream).suffix()),
            stream: stream.into(),
            first: writer.first,
            end: writer.end,
            rows: writer.rows,
        };
        self.closed.push((file, writer.file));
        Ok(())
    }

    /// Ends every file; they are in the order of their offsets.
    pub(crate) fn finish(&mut self) -> Result<Vec<(File, PathBuf)>> {
        let folders: Vec<String> = self.open.keys().cloned().collect();
        for folder in folders {
            self.close(&folder)?;
        }
        self.bytes = 0;
        let mut files = std::mem::take(&mut self.closed);
        files.sort_by_key(|(file, _)| file.first);
        Ok(files)
    }
}

fn stream_of(folder: &str) -> &str {
    folder.split('/').next().unwrap_or(folder)
}

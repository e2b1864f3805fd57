//! The files of a step while it gathers: one open a stream, a new one where
//! its schema changes.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use connector::{Error, Mark, Result, Run, Shape};
use storage::Offset;

use crate::manifest::File;
use crate::writer::Writer;

/// Of all open files together; beyond, the largest ends its row group.
const MEMORY: usize = 48 << 20;

/// A step's files.
pub(crate) struct Staging {
    folder: PathBuf,
    prefix: String,
    before: bool,
    position: fn(&[u8]) -> String,
    open: HashMap<String, Writer>,
    closed: Vec<(File, PathBuf)>,
    made: u64,
    /// Of rows taken.
    pub(crate) bytes: u64,
    unmeasured: usize,
}

impl Staging {
    /// An empty folder.
    pub(crate) fn new(folder: PathBuf, prefix: String, before: bool, position: fn(&[u8]) -> String) -> Result<Self> {
        let failed = |error: std::io::Error| {
            Error::retry(format!("could not empty the staging folder {}", folder.display())).because(error)
        };
        if folder.exists() {
            std::fs::remove_dir_all(&folder).map_err(failed)?;
        }
        std::fs::create_dir_all(&folder).map_err(failed)?;
        Ok(Self {
            folder,
            prefix,
            before,
            position,
            open: HashMap::new(),
            closed: Vec::new(),
            made: 0,
            bytes: 0,
            unmeasured: 0,
        })
    }

    fn writer(&mut self, shape: &Arc<Shape>, first: Offset) -> Result<&mut Writer> {
        let stream = shape.table.stream();
        if let Some(writer) = self.open.get(&stream)
            && writer.shape.number != shape.number
        {
            self.close(&stream)?;
        }
        if !self.open.contains_key(&stream) {
            self.made += 1;
            let file = self.folder.join(format!("{}.parquet", self.made));
            let writer = Writer::new(shape.clone(), file, first, &self.prefix, self.before, self.position);
            self.open.insert(stream.clone(), writer);
        }
        Ok(self.open.get_mut(&stream).expect("inserted above"))
    }

    pub(crate) fn run(&mut self, shape: &Arc<Shape>, run: &Run<'_>) -> Result<()> {
        self.bytes += run.bytes() as u64;
        self.unmeasured += run.bytes();
        self.writer(shape, run.first_offset)?.run(run)?;
        if self.unmeasured > MEMORY / 16 {
            self.unmeasured = 0;
            self.relieve()?;
        }
        Ok(())
    }

    pub(crate) fn mark(&mut self, shape: &Arc<Shape>, mark: &Mark, offset: Offset) -> Result<()> {
        self.writer(shape, offset)?.mark(mark, offset)
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

    fn close(&mut self, stream: &str) -> Result<()> {
        let Some(mut writer) = self.open.remove(stream) else { return Ok(()) };
        writer.close()?;
        let file = File {
            path: format!("{stream}/{:020}-{:020}.parquet", writer.first, writer.end),
            stream: stream.into(),
            first: writer.first,
            end: writer.end,
            rows: writer.rows,
        };
        self.closed.push((file, writer.file));
        Ok(())
    }

    /// Ends every file; a stream's own are in the order of their offsets.
    pub(crate) fn finish(&mut self) -> Result<Vec<(File, PathBuf)>> {
        let streams: Vec<String> = self.open.keys().cloned().collect();
        for stream in streams {
            self.close(&stream)?;
        }
        self.bytes = 0;
        let mut files = std::mem::take(&mut self.closed);
        files.sort_by_key(|(file, _)| file.first);
        Ok(files)
    }
}

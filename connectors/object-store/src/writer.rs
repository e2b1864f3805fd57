//! One file being written, in the staging folder.

use std::error::Error as StdError;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use connector::{Change, Error, Malformed, Mark, Result, Run, Shape};
use storage::Offset;

use crate::avro_file::AvroFile;
use crate::format::{Form, Format};
use crate::ndjson_file::NdjsonFile;
use crate::out::Place;
use crate::parquet_file::ParquetFile;
use crate::press::Press;

/// Writes rows in one format. A file that got no row need not exist.
pub(crate) trait FileWriter: Send {
    /// Takes a change of a run.
    fn change(&mut self, change: &Change<'_>, run: &Run<'_>, position: &str) -> Result<(), Failed>;

    /// Takes a mark.
    fn mark(&mut self, mark: &Mark, position: &str, offset: Offset) -> Result<(), Failed>;

    /// Bytes in memory.
    fn memory(&self) -> usize;

    /// Writes what can be written, so that its memory is free again.
    fn flush(&mut self) -> Result<(), Failed>;

    /// Ends the file.
    fn close(&mut self) -> Result<(), Failed>;
}

/// Why a row did not get into its file.
#[derive(Debug)]
pub(crate) enum Failed {
    /// It is none.
    Row(Malformed),
    /// The file cannot be written.
    File(Box<dyn StdError + Send + Sync>),
}

impl From<Malformed> for Failed {
    fn from(error: Malformed) -> Self {
        Self::Row(error)
    }
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Self {
        Self::File(error.into())
    }
}

/// A file's rows, and what it will be called by.
pub(crate) struct Writer {
    pub(crate) shape: Arc<Shape>,
    /// Whether it is one of rows that have no values.
    pub(crate) blank: bool,
    pub(crate) file: PathBuf,
    pub(crate) first: u64,
    pub(crate) end: u64,
    pub(crate) rows: u64,
    form: Box<dyn FileWriter>,
}

impl Writer {
    pub(crate) fn new(
        shape: Arc<Shape>,
        blank: bool,
        place: Place,
        first: Offset,
        form: &Form,
        sync: [u8; 16],
        press: &Press,
    ) -> Result<Self> {
        if let Some(refusal) = form.refusal(&shape.table) {
            return Err(refusal);
        }
        let file = place.path.clone();
        let writer: Box<dyn FileWriter> = match form.format {
            Format::Parquet => Box::new(ParquetFile::new(shape.clone(), place, &form.meta_prefix, form.before, press)),
            Format::Avro => Box::new(AvroFile::new(&shape, blank, place, form, sync, press)?),
            Format::Ndjson => Box::new(NdjsonFile::new(shape.clone(), place, form, press)),
        };
        Ok(Self { shape, blank, file, first: first.0, end: first.0, rows: 0, form: writer })
    }

    /// Takes a change.
    #[inline]
    pub(crate) fn change(&mut self, change: &Change<'_>, run: &Run<'_>, position: &str) -> Result<()> {
        self.end = change.offset.0 + 1;
        self.rows += 1;
        self.form.change(change, run, position).map_err(|error| self.failed(error))
    }

    /// Takes a mark.
    pub(crate) fn mark(&mut self, mark: &Mark, position: &str, offset: Offset) -> Result<()> {
        self.end = offset.0 + 1;
        self.rows += 1;
        self.form.mark(mark, position, offset).map_err(|error| self.failed(error))
    }

    /// Bytes in memory.
    pub(crate) fn memory(&self) -> usize {
        self.form.memory()
    }

    /// See [`FileWriter::flush`].
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.form.flush().map_err(|error| self.failed(error))
    }

    /// Ends the file.
    pub(crate) fn close(&mut self) -> Result<()> {
        self.form.close().map_err(|error| self.failed(error))
    }

    fn failed(&self, error: Failed) -> Error {
        match error {
            Failed::Row(error) => broken(&self.shape, error),
            Failed::File(error) if !is_of_the_disk(&*error) => {
                let stream = self.shape.table.stream();
                let why = format!("rows of {stream} under schema {} do not go into such a file", self.shape.number);
                Error::halt(why).because(error).hint(OTHERWISE).of_stream(&stream)
            }
            Failed::File(error) => {
                let folder = self.file.parent().unwrap_or(Path::new("."));
                Error::retry(format!("could not write {}", self.file.display()))
                    .because(error)
                    .hint(format!("is there room in {}?", folder.display()))
            }
        }
    }
}

/// A row of the log that is none.
pub(crate) fn broken(shape: &Shape, error: Malformed) -> Error {
    let stream = shape.table.stream();
    Error::halt(format!("a row of {stream} under schema {} cannot be read", shape.number))
        .because(error)
        .hint("run `highwater log check`")
        .of_stream(&stream)
}

const OTHERWISE: &str = "set another `format` of the sink, in which such rows can be";

fn is_of_the_disk(error: &(dyn StdError + Send + Sync + 'static)) -> bool {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<std::io::Error>() {
            return true;
        }
        cause = error.source();
    }
    false
}

//! One Parquet file being written, in the staging folder.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow_schema::{DataType, Schema, SchemaRef};
use connector::{Error, Malformed, Mark, Op, Reader, Result, Run, Shape};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use storage::Offset;

use crate::columns::{Column, field};
use crate::meta::Meta;

/// Rows that go to the encoder at a time.
const ROWS: usize = 8192;
/// Or so many bytes of them: wide rows must not fill the memory.
const BYTES: usize = 4 << 20;
/// A column of texts with more distinct ones than this share has no dictionary.
const DISTINCT: usize = 5;

/// A file's rows, and what it will be called by.
pub(crate) struct Writer {
    pub(crate) shape: Arc<Shape>,
    pub(crate) file: PathBuf,
    pub(crate) first: u64,
    pub(crate) end: u64,
    pub(crate) rows: u64,
    schema: SchemaRef,
    columns: Vec<Column>,
    in_key: Vec<bool>,
    meta: Meta,
    waiting: usize,
    waiting_bytes: usize,
    parquet: Option<ArrowWriter<File>>,
    position: fn(&[u8]) -> String,
}

impl Writer {
    pub(crate) fn new(
        shape: Arc<Shape>,
        file: PathBuf,
        first: Offset,
        prefix: &str,
        before: bool,
        position: fn(&[u8]) -> String,
    ) -> Self {
        let table = &shape.table;
        let mut fields: Vec<_> = table.columns.iter().map(|column| field(&column.name, &column.ty)).collect();
        fields.extend(Meta::fields(table, prefix, before));
        Self {
            schema: Arc::new(Schema::new(fields)),
            columns: table.columns.iter().map(|column| Column::new(&column.ty)).collect(),
            in_key: (0..table.columns.len()).map(|i| table.in_key(i)).collect(),
            meta: Meta::new(table, before),
            shape,
            file,
            first: first.0,
            end: first.0,
            rows: 0,
            waiting: 0,
            waiting_bytes: 0,
            parquet: None,
            position,
        }
    }

    /// Takes a run.
    pub(crate) fn run(&mut self, run: &Run<'_>) -> Result<()> {
        let position = (self.position)(run.transaction.position);
        for change in run.changes() {
            let change = change.map_err(|error| self.broken(error))?;
            self.end = change.offset.0 + 1;
            let decoded = self.row(&change, run, &position);
            decoded.map_err(|error| self.broken(error))?;
            self.waiting_bytes += change.value.len() + change.before.map_or(0, <[u8]>::len);
            self.row_done()?;
        }
        Ok(())
    }

    #[inline]
    fn row(
        &mut self,
        change: &connector::Change<'_>,
        run: &Run<'_>,
        position: &str,
    ) -> std::result::Result<(), Malformed> {
        if change.op == Op::Truncate {
            self.columns.iter_mut().for_each(Column::null);
        } else {
            let mut reader = Reader::new(change.value);
            for (column, in_key) in self.columns.iter_mut().zip(&self.in_key) {
                if *in_key { column.value(&mut reader)? } else { column.nullable(&mut reader)? }
            }
        }
        self.meta.change(&self.shape.table, run, position, change)
    }

    /// Takes a mark.
    pub(crate) fn mark(&mut self, mark: &Mark, offset: Offset) -> Result<()> {
        self.end = offset.0 + 1;
        self.columns.iter_mut().for_each(Column::null);
        self.meta.mark(mark, &(self.position)(&mark.position), offset);
        self.row_done()
    }

    fn row_done(&mut self) -> Result<()> {
        self.rows += 1;
        self.waiting += 1;
        if self.waiting >= ROWS || self.waiting_bytes >= BYTES { self.encode() } else { Ok(()) }
    }

    fn encode(&mut self) -> Result<()> {
        if self.waiting == 0 {
            return Ok(());
        }
        (self.waiting, self.waiting_bytes) = (0, 0);
        let mut arrays: Vec<ArrayRef> = self.columns.iter_mut().map(Column::finish).collect();
        arrays.extend(self.meta.finish());
        let batch = RecordBatch::try_new(self.schema.clone(), arrays);
        let batch = batch.map_err(|error| Error::halt("rows do not fit their columns").because(error))?;
        if self.parquet.is_none() {
            let file = File::create(&self.file).map_err(|error| self.unwritable(error))?;
            let writer = ArrowWriter::try_new(file, self.schema.clone(), Some(properties(&batch)));
            self.parquet = Some(writer.map_err(|error| self.unwritable(error))?);
        }
        let written = self.parquet.as_mut().expect("made above").write(&batch);
        written.map_err(|error| self.unwritable(error))
    }

    /// Bytes in memory.
    pub(crate) fn memory(&self) -> usize {
        self.parquet.as_ref().map_or(0, ArrowWriter::memory_size)
    }

    /// Ends the row group, so that its memory is free again.
    pub(crate) fn flush(&mut self) -> Result<()> {
        let Some(parquet) = &mut self.parquet else { return Ok(()) };
        let flushed = parquet.flush();
        flushed.map_err(|error| self.unwritable(error))
    }

    /// Ends the file.
    pub(crate) fn close(&mut self) -> Result<()> {
        self.encode()?;
        let Some(parquet) = self.parquet.take() else { return Ok(()) };
        parquet.close().map(drop).map_err(|error| self.unwritable(error))
    }

    fn broken(&self, error: Malformed) -> Error {
        let stream = self.shape.table.stream();
        Error::halt(format!("a row of {stream} under schema {} cannot be read", self.shape.number))
            .because(error)
            .hint("run `highwater log check`")
    }

    fn unwritable(&self, error: impl std::error::Error + Send + Sync + 'static) -> Error {
        let folder = self.file.parent().unwrap_or(Path::new("."));
        Error::retry(format!("could not write {}", self.file.display()))
            .because(error)
            .hint(format!("is there room in {}?", folder.display()))
    }
}

/// Measured: a dictionary of unique texts costs time and room; integers and
/// times pack best by their differences; one level of zstd is enough; page
/// statistics cost more than they give here.
fn properties(first: &RecordBatch) -> WriterProperties {
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).expect("1 is a level")))
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_created_by(format!("highwater {}", env!("CARGO_PKG_VERSION")));
    for (field, array) in first.schema().fields().iter().zip(first.columns()) {
        let path = ColumnPath::from(field.name().as_str());
        match field.data_type() {
            DataType::Int32 | DataType::Int64 | DataType::Date32 | DataType::Time64(_) | DataType::Timestamp(..) => {
                builder = builder.set_column_encoding(path, Encoding::DELTA_BINARY_PACKED);
            }
            DataType::Utf8 if repeats(array) => builder = builder.set_column_dictionary_enabled(path, true),
            _ => {}
        }
    }
    builder.build()
}

fn repeats(array: &ArrayRef) -> bool {
    let Some(texts) = array.as_any().downcast_ref::<StringArray>() else { return false };
    let most = texts.len() / DISTINCT;
    let mut seen = HashSet::new();
    texts.len() >= 64
        && texts.iter().flatten().all(|text| {
            seen.insert(text);
            seen.len() <= most
        })
}

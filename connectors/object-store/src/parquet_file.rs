//! A Parquet file.

use std::collections::HashSet;
use std::sync::Arc;

use arrow_array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow_schema::{DataType, Schema, SchemaRef};
use connector::{Change, Mark, Op, Reader, Run, Shape};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use storage::Offset;

use crate::columns::{Column, field};
use crate::meta::Meta;
use crate::out::{Out, Place};
use crate::press::{Packer, Press, Pressed};
use crate::writer::{Failed, FileWriter};

/// Rows that go to the encoder at a time.
const ROWS: usize = 8192;
/// Or so many bytes of them: wide rows must not fill the memory.
const BYTES: usize = 4 << 20;
/// A column of texts with more distinct ones than this share has no dictionary.
const DISTINCT: usize = 5;

/// Rows as columns.
pub(crate) struct ParquetFile {
    shape: Arc<Shape>,
    columns: Vec<Column>,
    in_key: Vec<bool>,
    meta: Meta,
    waiting: usize,
    waiting_bytes: usize,
    encoded: Pressed<Encoder>,
}

/// The file itself.
struct Encoder {
    place: Place,
    schema: SchemaRef,
    parquet: Option<ArrowWriter<Out>>,
}

impl ParquetFile {
    pub(crate) fn new(shape: Arc<Shape>, place: Place, prefix: &str, before: bool, press: &Press) -> Self {
        let table = &shape.table;
        let mut fields: Vec<_> = table.columns.iter().map(|column| field(&column.name, &column.ty)).collect();
        fields.extend(Meta::fields(table, prefix, before));
        let schema = Arc::new(Schema::new(fields));
        Self {
            columns: table.columns.iter().map(|column| Column::new(&column.ty)).collect(),
            in_key: (0..table.columns.len()).map(|i| table.in_key(i)).collect(),
            meta: Meta::new(table, before),
            shape,
            waiting: 0,
            waiting_bytes: 0,
            encoded: press.file(Encoder { place, schema, parquet: None }),
        }
    }

    #[inline]
    fn row_done(&mut self) -> Result<(), Failed> {
        self.waiting += 1;
        if self.waiting >= ROWS || self.waiting_bytes >= BYTES { self.encode() } else { Ok(()) }
    }

    fn encode(&mut self) -> Result<(), Failed> {
        if self.waiting == 0 {
            return Ok(());
        }
        (self.waiting, self.waiting_bytes) = (0, 0);
        let mut arrays: Vec<ArrayRef> = self.columns.iter_mut().map(Column::finish).collect();
        arrays.extend(self.meta.finish());
        self.encoded.push(arrays).map(drop)
    }
}

impl Packer for Encoder {
    /// Columns of a batch.
    type Piece = Vec<ArrayRef>;

    fn pack(&mut self, arrays: &mut Vec<ArrayRef>) -> Result<(), Failed> {
        let batch = RecordBatch::try_new(self.schema.clone(), std::mem::take(arrays));
        let batch = batch.map_err(|error| Failed::File(error.into()))?;
        if self.parquet.is_none() {
            let file = self.place.create()?;
            let writer = ArrowWriter::try_new(file, self.schema.clone(), Some(properties(&batch)));
            self.parquet = Some(writer.map_err(unwritable)?);
        }
        self.parquet.as_mut().expect("made above").write(&batch).map_err(unwritable)
    }

    fn memory(&self) -> usize {
        self.parquet.as_ref().map_or(0, |parquet| parquet.memory_size() + parquet.inner().memory())
    }

    /// Ends the row group.
    fn flush(&mut self) -> Result<(), Failed> {
        let Some(parquet) = &mut self.parquet else { return Ok(()) };
        parquet.flush().map_err(unwritable)?;
        Ok(parquet.inner_mut().spill()?)
    }

    fn close(&mut self) -> Result<(), Failed> {
        let Some(parquet) = self.parquet.take() else { return Ok(()) };
        Ok(parquet.into_inner().map_err(unwritable)?.finish()?)
    }
}

impl FileWriter for ParquetFile {
    #[inline]
    fn change(&mut self, change: &Change<'_>, run: &Run<'_>, position: &str) -> Result<(), Failed> {
        if change.op == Op::Truncate {
            self.columns.iter_mut().for_each(Column::null);
        } else {
            let mut reader = Reader::new(change.value);
            for (column, in_key) in self.columns.iter_mut().zip(&self.in_key) {
                if *in_key { column.value(&mut reader)? } else { column.nullable(&mut reader)? }
            }
        }
        self.meta.change(&self.shape.table, run, position, change)?;
        self.waiting_bytes += change.value.len() + change.before.map_or(0, <[u8]>::len);
        self.row_done()
    }

    fn mark(&mut self, mark: &Mark, position: &str, offset: Offset) -> Result<(), Failed> {
        self.columns.iter_mut().for_each(Column::null);
        self.meta.mark(mark, position, offset);
        self.row_done()
    }

    fn memory(&self) -> usize {
        self.encoded.memory()
    }

    fn flush(&mut self) -> Result<(), Failed> {
        self.encoded.flush()
    }

    fn close(&mut self) -> Result<(), Failed> {
        self.encode()?;
        self.encoded.close()
    }
}

fn unwritable(error: parquet::errors::ParquetError) -> Failed {
    Failed::File(error.into())
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

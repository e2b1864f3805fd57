//! Parquet and nothing else: ready batches of 8192 rows, in memory, to one file
//! by a bare ArrowWriter, synced at the end. The settings are the fastest found
//! for these rows, and the sink's: zstd level 1, a dictionary only for texts
//! that repeat, DELTA_BINARY_PACKED for integers and times, chunk statistics.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use arrow_array::RecordBatch;
use arrow_schema::DataType;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use crate::Result;

/// Texts of few distinct values.
const REPEATS: [&str; 4] = ["currency", "_hw_op", "_hw_position", "_hw_tx"];
const ROWS: usize = 8192;

/// All rows of files, in order, as batches of equal size.
pub(crate) fn batches(files: &[std::path::PathBuf]) -> Result<Vec<RecordBatch>> {
    let mut batches = Vec::new();
    for file in files {
        let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(file)?)?.with_batch_size(ROWS).build()?;
        for batch in reader {
            batches.push(batch?);
        }
    }
    Ok(batches)
}

/// How long it takes to write them.
pub(crate) fn write(batches: &[RecordBatch], to: &Path) -> Result<Duration> {
    let schema = batches.first().ok_or("no batches")?.schema();
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::Chunk);
    for field in schema.fields() {
        let path = ColumnPath::from(field.name().as_str());
        properties = match field.data_type() {
            DataType::Int32 | DataType::Int64 | DataType::Timestamp(..) => {
                properties.set_column_encoding(path, Encoding::DELTA_BINARY_PACKED)
            }
            DataType::Utf8 if REPEATS.contains(&field.name().as_str()) => {
                properties.set_column_dictionary_enabled(path, true)
            }
            _ => properties,
        };
    }
    let started = Instant::now();
    let mut writer = ArrowWriter::try_new(File::create(to)?, schema, Some(properties.build()))?;
    for batch in batches {
        writer.write(batch)?;
    }
    writer.close()?;
    File::open(to)?.sync_all()?;
    Ok(started.elapsed())
}

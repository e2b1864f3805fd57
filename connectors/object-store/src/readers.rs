//! Files of every format, read back as events.

mod avro;
mod batches;
mod json_value;
mod ndjson;

use std::sync::Arc;

use bytes::Bytes;
use connector::Table;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::event::{Event, Unread};
use avro::Container;
use batches::Batches;
use ndjson::{Lines, Packing};

/// The events of a file, in their order.
pub(crate) type Events = Box<dyn Iterator<Item = Result<Event, Unread>> + Send>;

/// Of a file whose name ends like that.
pub(crate) fn open(body: Bytes, suffix: &str, table: &Arc<Table>, prefix: &str) -> Result<Events, Unread> {
    let packing = match suffix {
        "parquet" => {
            let reader = ParquetRecordBatchReaderBuilder::try_new(body).and_then(|builder| builder.build());
            let batches = reader.map_err(Unread::broken)?.map(|batch| batch.map_err(Unread::broken));
            return Ok(Box::new(Batches::new(batches, table.clone(), prefix)));
        }
        "avro" => return Ok(Box::new(Batches::new(Container::open(body)?, table.clone(), prefix))),
        "ndjson.gz" => Packing::Gzip,
        "ndjson.zst" => Packing::Zstd,
        "ndjson" => Packing::None,
        other => return Err(Unread::Incomparable(format!("there are files of a format {other:?}"))),
    };
    Ok(Box::new(Lines::open(body, packing, table.clone(), prefix)?))
}

#[cfg(test)]
mod tests;

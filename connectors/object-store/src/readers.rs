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
            let open = || ParquetRecordBatchReaderBuilder::try_new(body).and_then(|builder| builder.build());
            let mut reader = Some(caught(open)?.map_err(Unread::broken)?);
            let batches = std::iter::from_fn(move || {
                let batch = caught(|| reader.as_mut().and_then(Iterator::next));
                if batch.is_err() {
                    reader = None;
                }
                batch.map(|batch| batch.map(|batch| batch.map_err(Unread::broken))).unwrap_or_else(|why| Some(Err(why)))
            });
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

/// The reader of Parquet is another's, and panics at some damage.
fn caught<T>(read: impl FnOnce() -> T) -> Result<T, Unread> {
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read));
    done.map_err(|_| Unread::Broken("it is damaged in a way that its reader could not name".into()))
}

#[cfg(test)]
mod tests;

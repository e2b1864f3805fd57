//! What lies at the destination: every row of every Parquet file of a stream.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, RecordBatch};
use arrow_schema::DataType;
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

/// A row: our columns and the table's, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub op: String,
    pub offset: i64,
    pub ordinal: i64,
    pub position: String,
    pub tx: Option<String>,
    pub absent: Vec<String>,
    pub old_key: Option<String>,
    pub row: BTreeMap<String, Option<String>>,
}

/// All events of a stream in the order of their offsets. Files must not
/// overlap, and their names must tell what is in them.
pub async fn landed(store: &Arc<dyn ObjectStore>, stream: &str) -> Vec<Event> {
    let prefix = Path::parse(stream).unwrap();
    let mut files: Vec<Path> = store.list(Some(&prefix)).map_ok(|meta| meta.location).try_collect().await.unwrap();
    files.retain(|path| path.as_ref().ends_with(".parquet"));
    files.sort();
    let mut events: Vec<Event> = Vec::new();
    for path in files {
        let name = path.filename().unwrap().trim_end_matches(".parquet").to_owned();
        let (first, end) = name.split_once('-').unwrap();
        let (first, end): (i64, i64) = (first.parse().unwrap(), end.parse().unwrap());
        let bytes = store.get(&path).await.unwrap().bytes().await.unwrap();
        let before = events.len();
        for batch in ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap() {
            read(&batch.unwrap(), &mut events);
        }
        let rows = &events[before..];
        assert_eq!((rows[0].offset, rows[rows.len() - 1].offset + 1), (first, end), "{path} tells its offsets");
    }
    for pair in events.windows(2) {
        assert!(pair[0].offset < pair[1].offset, "offsets of {stream} grow: {pair:?}");
    }
    events
}

fn read(batch: &RecordBatch, events: &mut Vec<Event>) {
    let column = |name: &str| batch.column_by_name(name).unwrap();
    let (offset, ordinal) =
        (column("_hw_offset").as_primitive::<Int64Type>(), column("_hw_ordinal").as_primitive::<Int64Type>());
    for i in 0..batch.num_rows() {
        let absent = column("_hw_absent").as_list::<i32>();
        let absent = match absent.is_null(i) {
            true => Vec::new(),
            false => absent.value(i).as_string::<i32>().iter().flatten().map(str::to_owned).collect(),
        };
        let old_key = batch.column_by_name("_hw_old_key").and_then(|keys| {
            let keys = keys.as_struct();
            (!keys.is_null(i)).then(|| text(keys.column(0), i).unwrap())
        });
        let fields = batch.schema();
        let row = fields
            .fields()
            .iter()
            .zip(batch.columns())
            .filter(|(field, _)| !field.name().starts_with("_hw_"))
            .map(|(field, array)| (field.name().clone(), text(array, i)))
            .collect();
        events.push(Event {
            op: text(column("_hw_op"), i).unwrap(),
            offset: offset.value(i),
            ordinal: ordinal.value(i),
            position: text(column("_hw_position"), i).unwrap(),
            tx: text(column("_hw_tx"), i),
            absent,
            old_key,
            row,
        });
    }
}

fn text(array: &Arc<dyn Array>, i: usize) -> Option<String> {
    if array.is_null(i) {
        return None;
    }
    Some(match array.data_type() {
        DataType::Int32 => array.as_primitive::<Int32Type>().value(i).to_string(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(i).to_string(),
        DataType::Utf8 => array.as_string::<i32>().value(i).to_owned(),
        DataType::Boolean => array.as_boolean().value(i).to_string(),
        DataType::Timestamp(..) => array.as_primitive::<TimestampMicrosecondType>().value(i).to_string(),
        DataType::Decimal128(..) => array.as_primitive::<arrow_array::types::Decimal128Type>().value_as_string(i),
        other => panic!("the oracle reads no {other}"),
    })
}

/// The offsets of a data file's rows in their order, whatever its format and
/// however our own columns begin.
pub fn offsets_of(path: &Path, bytes: bytes::Bytes) -> Vec<u64> {
    let name = path.filename().unwrap();
    let (_, suffix) = name.split_once('.').unwrap();
    let ours = |name: &str| ["_hw_offset", "_other_offset"].contains(&name);
    let lines = |text: Vec<u8>| -> Vec<u64> {
        let offset = |line: &str| {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            row.get("_hw_offset").or(row.get("_other_offset")).unwrap().as_u64().unwrap()
        };
        String::from_utf8(text).unwrap().lines().map(offset).collect()
    };
    let unpack = |mut reader: Box<dyn std::io::Read>| {
        let mut text = Vec::new();
        reader.read_to_end(&mut text).unwrap();
        text
    };
    match suffix {
        "parquet" => {
            let batches = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap();
            let of_batch = |batch: RecordBatch| {
                let column = batch.schema().fields().iter().position(|field| ours(field.name())).unwrap();
                let offsets = batch.column(column).as_primitive::<Int64Type>().values().to_vec();
                offsets.into_iter().map(|offset| offset as u64)
            };
            batches.flat_map(|batch| of_batch(batch.unwrap())).collect()
        }
        "avro" => {
            let rows = apache_avro::Reader::new(&bytes[..]).unwrap();
            let of_row = |row| {
                let apache_avro::types::Value::Record(fields) = row else { panic!("a row is a record") };
                let (_, offset) = fields.into_iter().find(|(name, _)| ours(name)).unwrap();
                let apache_avro::types::Value::Long(offset) = offset else { panic!("an offset is a long") };
                offset as u64
            };
            rows.map(|row| of_row(row.unwrap())).collect()
        }
        "ndjson.gz" => lines(unpack(Box::new(flate2::read::GzDecoder::new(std::io::Cursor::new(bytes))))),
        "ndjson.zst" => lines(zstd::decode_all(&bytes[..]).unwrap()),
        "ndjson" => lines(bytes.to_vec()),
        other => panic!("no reader for {other}"),
    }
}

//! What the writers wrote is read back as what the log had, in every format.

use arrow_array::ArrayRef;
use connector::{
    Batch, BatchWriter, Column, Field, Op, Reader, RowExtras, Shape, Table, Type, put_bytes, put_double, put_float,
    put_long,
};
use serde_json::value::RawValue;
use storage::{Frame, Kind, OffsetRange};
use storage::{Micros, Offset};

use super::*;
use crate::event::Act;
use crate::format::{Codec, Form, Format};
use crate::json_text::put_value;
use crate::out::Place;
use crate::press::Press;
use crate::values;
use crate::writer::Writer;

fn column(name: &str, ty: Type, id: i32) -> Column {
    Column { name: name.into(), ty, db_type: "t".into(), nullable: true, id }
}

/// A value's hash and text as Arrow has them, and as its JSON has.
#[track_caller]
fn same(ty: &Type, body: &[u8]) {
    let column = column("c", ty.clone(), 1);
    let mut builder = crate::columns::Column::new(ty);
    builder.value(&mut Reader::new(body)).unwrap();
    let array: ArrayRef = builder.finish();
    let mut json = Vec::new();
    put_value(&mut json, &mut Reader::new(body), &column, true).unwrap();
    let raw: Box<RawValue> = serde_json::from_slice(&json).unwrap();
    assert_eq!(json_value::hash(&raw, ty), values::hashes(&[Some(array.clone())], 0)[0], "{ty:?}: {raw}");
    if !matches!(ty, Type::Map) {
        assert_eq!(json_value::text(&raw, ty), values::text(&array, 0), "{ty:?}: {raw}");
    }
}

fn long(value: i64) -> Vec<u8> {
    let mut body = Vec::new();
    put_long(&mut body, value);
    body
}

fn bytes(value: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    put_bytes(&mut body, value);
    body
}

#[test]
fn the_ends_of_every_range_are_the_same_in_json() {
    const DAY: i64 = 86_400_000_000;
    for micros in [0, 1, 500_000, i64::MAX, -i64::MAX, i64::MAX - 1, i64::MIN + 2, -1, -210_866_803_200_000_000] {
        same(&Type::Timestamp, &long(micros));
        same(&Type::LocalTimestamp, &long(micros));
    }
    for days in [0, i32::MAX, -i32::MAX, -735_160, -719_528, 2_932_897, 2_145_042_905] {
        same(&Type::Date, &long(days.into()));
    }
    for time in [0, 1, DAY - 1, DAY, 100] {
        same(&Type::Time, &long(time));
    }
    for value in [0.0, -0.0, f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300, 0.1, 1e16, 5e-324] {
        let mut body = Vec::new();
        put_double(&mut body, value);
        same(&Type::Double, &body);
        let mut body = Vec::new();
        put_float(&mut body, value as f32);
        same(&Type::Float, &body);
    }
    for value in [0, 1] {
        same(&Type::Boolean, &[value]);
    }
    // A text in place of a number is another value, and no error.
    let raw: Box<RawValue> = serde_json::from_str("\"planted\"").unwrap();
    let zero: Box<RawValue> = serde_json::from_str("0").unwrap();
    for ty in [Type::Int, Type::Boolean, Type::Double, Type::Date, Type::Timestamp, Type::Bytes, Type::Map] {
        assert_ne!(json_value::hash(&raw, &ty), json_value::hash(&zero, &ty), "{ty:?}");
    }
}

proptest::proptest! {
    #[test]
    fn any_value_is_the_same_in_json(
        number: i64, raw: Vec<u8>, text: String, double: f64, float: f32, scale in 0u32..20,
    ) {
        same(&Type::Long, &long(number));
        same(&Type::Int, &long((number as i32).into()));
        same(&Type::Timestamp, &long(number));
        same(&Type::Date, &long((number as i32).into()));
        same(&Type::Time, &long(number.rem_euclid(86_400_000_001)));
        same(&Type::Bytes, &bytes(&raw));
        same(&Type::String, &bytes(text.as_bytes()));
        same(&Type::Decimal { precision: 38, scale }, &bytes(&number.to_be_bytes()));
        same(&Type::Decimal { precision: 60, scale }, &bytes(&raw));
        let mut body = Vec::new();
        put_double(&mut body, double);
        same(&Type::Double, &body);
        let mut body = Vec::new();
        put_float(&mut body, float);
        same(&Type::Float, &body);
    }

    #[test]
    fn no_bytes_make_a_reader_panic(body: Vec<u8>, at in 0usize..600, bit in 0u8..8) {
        let table = Arc::new(table(true));
        for (format, codec, suffix) in FORMS {
            for mut body in [body.clone(), written(&table, format, codec, &EVENTS[..2])] {
                if let Some(byte) = body.get_mut(at) {
                    *byte ^= 1 << bit;
                }
                if let Ok(events) = open(body.into(), suffix, &table, "_hw_") {
                    events.take(100).for_each(drop);
                }
            }
        }
    }
}

const FORMS: [(Format, Codec, &str); 7] = [
    (Format::Parquet, Codec::Zstd, "parquet"),
    (Format::Avro, Codec::Zstd, "avro"),
    (Format::Avro, Codec::Deflate, "avro"),
    (Format::Avro, Codec::None, "avro"),
    (Format::Ndjson, Codec::Gzip, "ndjson.gz"),
    (Format::Ndjson, Codec::Zstd, "ndjson.zst"),
    (Format::Ndjson, Codec::None, "ndjson"),
];
const EVENTS: [Op; 4] = [Op::Read, Op::Update, Op::Delete, Op::Insert];

/// Columns of every kind, under names that Avro does not allow too.
fn table(keyed: bool) -> Table {
    let composite = Type::Record(vec![
        Field { name: "a b".into(), ty: Type::Map, db_type: "hstore".into() },
        Field { name: "n".into(), ty: Type::Decimal { precision: 12, scale: 2 }, db_type: "numeric(12,2)".into() },
    ]);
    let types = [
        Type::Long,
        Type::String,
        composite.clone(),
        Type::Array(Box::new(composite)),
        Type::Array(Box::new(Type::Array(Box::new(Type::Int)))),
        Type::Double,
        Type::Timestamp,
        Type::Uuid,
        Type::Bytes,
    ];
    let columns = types.into_iter().enumerate().map(|(i, ty)| column(&format!("c {i} é"), ty, i as i32 + 1));
    Table {
        source: "shop".into(),
        schema: "a.b".into(),
        name: "Größe".into(),
        kind: Default::default(),
        columns: columns.collect(),
        key: if keyed { vec![0, 7] } else { Vec::new() },
        full_identity: false,
    }
}

fn some(out: &mut Vec<u8>, body: &[u8]) {
    out.push(2);
    out.extend_from_slice(body);
}

fn composite() -> Vec<u8> {
    let mut map = long(2);
    map.extend(bytes(b"k"));
    some(&mut map, &bytes(b"v"));
    map.extend(bytes(b""));
    map.extend([0, 0]);
    let mut out = Vec::new();
    some(&mut out, &map);
    some(&mut out, &bytes(&(-150i64).to_be_bytes()));
    out
}

/// The n-th row: every other one is mostly NULL.
fn row(table: &Table, n: u8) -> Vec<u8> {
    let mut double = Vec::new();
    put_double(&mut double, f64::from(n) / 3.0);
    let list = |item: &[u8]| {
        let mut out = long(2);
        some(&mut out, item);
        out.extend([0, 0]);
        out
    };
    let mut inner = long(1);
    some(&mut inner, &long(7));
    inner.push(0);
    let values = [
        long(n.into()),
        bytes(b"quoted \" \\ \n and \xc3\xa9"),
        composite(),
        list(&composite()),
        list(&inner),
        double,
        long(1_709_208_000_500_000 + i64::from(n)),
        bytes(b"cee63112-1c2e-c923-2f3a-2f028ad5c89b"),
        bytes(&[0, 255, n]),
    ];
    let mut out = Vec::new();
    for (i, value) in values.iter().enumerate() {
        match table.in_key(i) {
            true => out.extend_from_slice(value),
            false if n % 2 == 1 => out.push(0),
            false => some(&mut out, value),
        }
    }
    out
}

fn written(table: &Arc<Table>, format: Format, codec: Codec, ops: &[Op]) -> Vec<u8> {
    let shape = Arc::new(Shape::new(1, (**table).clone(), Some(1), 2));
    let mut batch = BatchWriter::new();
    batch.begin(b"here", Micros(1_709_208_000_500_000), "77", 0);
    let mut old_key = long(9);
    old_key.extend(bytes(b"00000000-0000-0000-0000-000000000001"));
    for (n, op) in ops.iter().enumerate() {
        let (keyed, update) = (!table.key.is_empty(), *op == Op::Update);
        let before = row(table, 100);
        let extras = RowExtras {
            old_key: (keyed && update).then_some(&*old_key),
            before: (!keyed && matches!(op, Op::Update | Op::Delete)).then_some(&*before),
            absent: (keyed && update).then_some(&[0b1010]),
        };
        batch.open_row(1).extend_from_slice(&row(table, n as u8));
        batch.close_row(*op, extras);
    }
    let (payload, records) = batch.take().unwrap();
    let batch = Batch::new(Frame {
        offsets: OffsetRange { start: Offset(100), end: Offset(100 + u64::from(records)) },
        kind: Kind::Data,
        ends_transaction: true,
        event_time: Micros(0),
        payload,
        position: None,
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    let form = Form {
        format,
        compression: (format != Format::Parquet).then_some(codec),
        meta_prefix: "_hw_".into(),
        before: false,
        partition: None,
    };
    let press = Press::new(2).unwrap();
    let mut writer =
        Writer::new(shape, false, Place { path: file.clone(), stays: true }, Offset(100), &form, [7; 16], &press)
            .unwrap();
    for run in batch.runs() {
        let run = run.unwrap();
        run.changes().for_each(|change| writer.change(&change.unwrap(), &run, "0/1").unwrap());
    }
    writer.close().unwrap();
    std::fs::read(file).unwrap()
}

#[test]
fn every_format_comes_to_the_same_events() {
    for keyed in [true, false] {
        let table = Arc::new(table(keyed));
        let read = |format, codec, suffix| -> Vec<Event> {
            let body = written(&table, format, codec, &EVENTS);
            open(body.into(), suffix, &table, "_hw_").unwrap().map(|event| event.unwrap()).collect()
        };
        let (format, codec, suffix) = FORMS[0];
        let first = read(format, codec, suffix);
        let acts: Vec<_> = first.iter().map(|event| (event.act, event.offset)).collect();
        assert_eq!(acts, [(Act::Read, 100), (Act::Update, 101), (Act::Delete, 102), (Act::Insert, 103)]);
        assert_eq!(first[1].old_key.is_some(), keyed);
        assert_eq!(first[1].before.is_some(), !keyed);
        assert_eq!(first[1].absent, if keyed { vec![1, 3] } else { Vec::new() });
        for (format, codec, suffix) in &FORMS[1..] {
            let mut events = read(*format, *codec, suffix);
            // What was not sent is told by `absent`, whatever stands in its place.
            for (event, first) in events.iter_mut().zip(&first) {
                first.absent.iter().for_each(|&at| event.hashes[at] = first.hashes[at]);
            }
            assert_eq!(events, first, "{format:?} {codec:?}");
        }
    }
}

/// Written by others, as somebody does who mends a file by hand.
#[test]
fn a_file_that_another_writer_wrote_anew_is_read() {
    let table = Arc::new(table(true));
    let body = written(&table, Format::Avro, Codec::Deflate, &EVENTS);
    let first: Vec<Event> =
        open(body.clone().into(), "avro", &table, "_hw_").unwrap().map(|event| event.unwrap()).collect();
    let reader = apache_avro::Reader::new(&body[..]).unwrap();
    let schema = reader.writer_schema().clone();
    let mut writer = apache_avro::Writer::new(&schema, Vec::new()).unwrap();
    for row in reader {
        writer.append_value(row.unwrap()).unwrap();
    }
    let again = writer.into_inner().unwrap();
    assert_ne!(again, body);
    let again: Vec<Event> = open(again.into(), "avro", &table, "_hw_").unwrap().map(|event| event.unwrap()).collect();
    assert_eq!(again, first);
}

#[test]
fn a_file_that_was_cut_short_or_changed_is_broken() {
    let table = Arc::new(table(true));
    for (format, codec, suffix) in FORMS {
        let body = written(&table, format, codec, &EVENTS);
        let cut = body[..body.len() - 2].to_vec();
        let read = open(cut.into(), suffix, &table, "_hw_").and_then(|mut events| events.try_for_each(|e| e.map(drop)));
        assert!(matches!(read, Err(Unread::Broken(_))), "{format:?} {codec:?}: {read:?}");
    }
}

use bytes::Bytes;
use connector::{Batch, BatchWriter, Column, RowExtras, Shape, Table, Type, put_bytes, put_long};
use storage::{Frame, Kind, Micros, Offset, OffsetRange};

use super::*;
use crate::types::OwnTypes;
use crate::wire;

/// Three columns, of which the first is the key.
fn plan(keyed: bool) -> Arc<Plan> {
    let column = |id, name: &str, ty, db_type: &str| Column {
        name: name.into(),
        ty,
        db_type: db_type.into(),
        nullable: true,
        id,
    };
    let table = Table {
        source: "shop".into(),
        schema: "public".into(),
        name: "t".into(),
        kind: Default::default(),
        columns: vec![
            column(1, "id", Type::Long, "bigint"),
            column(2, "a", Type::String, "text"),
            column(3, "b", Type::String, "text"),
        ],
        key: if keyed { vec![0] } else { Vec::new() },
        full_identity: !keyed,
    };
    Arc::new(Plan::new(Arc::new(Shape::new(1, table, None, 1)), &OwnTypes::default()))
}

struct Writer(BatchWriter, bool);

impl Writer {
    fn body(&self, id: i64, a: &str, b: Option<&str>) -> Vec<u8> {
        let mut body = Vec::new();
        if !self.1 {
            body.push(2);
        }
        put_long(&mut body, id);
        body.push(2);
        put_bytes(&mut body, a.as_bytes());
        match b {
            Some(b) => {
                body.push(2);
                put_bytes(&mut body, b.as_bytes());
            }
            None => body.push(0),
        }
        body
    }

    /// `b` None: not sent.
    fn row(&mut self, op: Op, old: Option<i64>, id: i64, a: &str, b: Option<&str>) {
        let body = self.body(id, a, b);
        self.0.open_row(1).extend_from_slice(&body);
        let mut old_key = Vec::new();
        old.iter().for_each(|old| put_long(&mut old_key, *old));
        let absent = b.is_none().then_some(&[0b100u8][..]);
        self.0.close_row(op, RowExtras { old_key: old.map(|_| &old_key[..]), absent, before: None });
    }
}

fn fold(keyed: bool, write: impl FnOnce(&mut Writer)) -> Fold {
    let mut writer = Writer(BatchWriter::new(), keyed);
    writer.0.begin(b"p", Micros(0), "1", 0);
    write(&mut writer);
    let (payload, records): (Bytes, u32) = writer.0.take().unwrap();
    let batch = Batch::new(Frame {
        offsets: OffsetRange { start: Offset(0), end: Offset(records.into()) },
        kind: Kind::Data,
        ends_transaction: true,
        event_time: Micros(0),
        payload,
        position: None,
    });
    let mut fold = Fold::new(plan(keyed));
    for run in batch.runs() {
        for change in run.unwrap().changes() {
            fold.change(&change.unwrap()).unwrap();
        }
    }
    fold
}

/// `a` and `b` of a row; `?` where it is not known.
fn shown(fold: &Fold, id: i64) -> String {
    let mut key = Vec::new();
    key.extend_from_slice(&8i32.to_be_bytes());
    key.extend_from_slice(&id.to_be_bytes());
    let columns = |row: &Range<usize>| {
        let mut fields = &fold.rows[row.clone()];
        let mut texts = Vec::new();
        while let Some((length, value)) = wire::next(&mut fields) {
            texts.push(if length == wire::ABSENT { "?".into() } else { String::from_utf8_lossy(value).into_owned() });
        }
        texts[1..].join(",")
    };
    match fold.images.get(&key[..]) {
        None => "-".into(),
        Some(Image::Gone) => "gone".into(),
        Some(Image::Whole(row)) => columns(row),
        Some(Image::New(row)) => format!("new {}", columns(row)),
        Some(Image::Patch { row, origin: None }) => format!("patch {}", columns(row)),
        Some(Image::Patch { row, origin: Some(origin) }) => {
            format!("patch of {} {}", i64::from_be_bytes(origin[4..].try_into().unwrap()), columns(row))
        }
    }
}

#[test]
fn the_last_image_of_a_key_counts() {
    let fold = fold(true, |w| {
        w.row(Op::Insert, None, 1, "one", Some("x"));
        w.row(Op::Update, None, 1, "two", None);
        w.row(Op::Insert, None, 2, "gone", Some("x"));
        w.row(Op::Delete, None, 2, "", None);
        w.row(Op::Update, None, 3, "patch", None);
        w.row(Op::Update, None, 3, "patched", None);
        w.row(Op::Update, None, 4, "first", None);
        w.row(Op::Update, None, 4, "whole", Some("y"));
    });
    let images: Vec<_> = (1..=5).map(|id| shown(&fold, id)).collect();
    assert_eq!(images, ["new two,x", "gone", "patch patched,?", "whole,y", "-"]);
}

#[test]
fn a_row_keeps_what_was_not_sent_when_its_key_changes() {
    let fold = fold(true, |w| {
        // In the warehouse: 1 and 2. They change places by way of 3.
        w.row(Op::Update, Some(1), 3, "was 1", None);
        w.row(Op::Update, Some(2), 1, "was 2", None);
        w.row(Op::Update, Some(3), 2, "was 1", None);
        // Inserted here, moved here.
        w.row(Op::Insert, None, 7, "new", Some("kept"));
        w.row(Op::Update, Some(7), 8, "new", None);
        // Moved away and its place taken.
        w.row(Op::Update, Some(10), 11, "moved", None);
        w.row(Op::Insert, None, 10, "other", Some("z"));
    });
    let images: Vec<_> = [1, 2, 3, 7, 8, 10, 11].map(|id| shown(&fold, id)).to_vec();
    assert_eq!(
        images,
        ["patch of 2 was 2,?", "patch of 1 was 1,?", "gone", "gone", "new,kept", "other,z", "patch of 10 moved,?"]
    );
}

#[test]
fn new_is_only_what_the_warehouse_cannot_have() {
    let fold = fold(true, |w| {
        w.row(Op::Insert, None, 1, "inserted", Some("x"));
        w.row(Op::Update, None, 1, "changed", Some("x"));
        w.row(Op::Read, None, 2, "read", Some("x"));
        // These are there, or may be.
        w.row(Op::Update, None, 3, "changed", Some("x"));
        w.row(Op::Delete, None, 4, "", None);
        w.row(Op::Insert, None, 4, "again", Some("x"));
        w.row(Op::Insert, None, 5, "inserted", Some("x"));
        w.row(Op::Update, Some(5), 6, "moved", Some("x"));
        w.row(Op::Insert, None, 5, "in its place", Some("x"));
    });
    let images: Vec<_> = (1..=6).map(|id| shown(&fold, id)).collect();
    let expected = ["new changed,x", "new read,x", "changed,x", "again,x", "in its place,x", "moved,x"];
    assert_eq!(images, expected);
    assert!(!fold.is_settled());
}

#[test]
fn behind_a_truncate_there_is_nothing_to_patch() {
    let fold = fold(true, |w| {
        w.row(Op::Insert, None, 1, "one", Some("x"));
        w.0.open_row(1);
        w.0.close_row(Op::Truncate, RowExtras::default());
        w.row(Op::Insert, None, 2, "two", Some("y"));
        w.row(Op::Update, None, 3, "never", None);
    });
    assert!(fold.emptied);
    assert_eq!([1, 2, 3].map(|id| shown(&fold, id)), ["-", "new two,y", "gone"]);
}

#[test]
fn a_bag_counts_images() {
    let fold = fold(false, |w| {
        let x = w.body(1, "x", Some("-"));
        w.row(Op::Insert, None, 1, "x", Some("-"));
        w.row(Op::Insert, None, 1, "x", Some("-"));
        let y = w.body(1, "y", Some("-"));
        w.0.open_row(1).extend_from_slice(&y);
        w.0.close_row(Op::Update, RowExtras { before: Some(&x), ..Default::default() });
        w.0.open_row(1).extend_from_slice(&y);
        w.0.close_row(Op::Delete, RowExtras { before: Some(&y), ..Default::default() });
    });
    let counts: Vec<i64> = fold.bag.values().copied().collect();
    assert_eq!(counts, [1, 0]);
}

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
    let mut fold = Fold::new(plan(keyed));
    take(&mut fold, write);
    fold
}

fn take(fold: &mut Fold, write: impl FnOnce(&mut Writer)) {
    let mut writer = Writer(BatchWriter::new(), fold.plan.has_key());
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
    for run in batch.runs() {
        for change in run.unwrap().changes() {
            fold.change(&change.unwrap()).unwrap();
        }
    }
}

/// `a` and `b` of a row; `?` where it is not known.
fn shown(fold: &Fold, id: i64) -> String {
    let mut key = Vec::new();
    key.extend_from_slice(&8i32.to_be_bytes());
    key.extend_from_slice(&id.to_be_bytes());
    let columns = |mut fields: &[u8]| {
        let mut texts = Vec::new();
        while let Some((length, value)) = wire::next(&mut fields) {
            texts.push(if length == wire::ABSENT { "?".into() } else { String::from_utf8_lossy(value).into_owned() });
        }
        texts[1..].join(",")
    };
    let news = fold.news.get(&key).map(|(came, row)| match came {
        Came::Inserted => format!("new {}", columns(row)),
        Came::Read => format!("read {}", columns(row)),
    });
    let image = fold.images.get(&key).map(|(image, row)| match image {
        Image::Gone => "gone".into(),
        Image::Whole => columns(row),
        Image::Patch { origin: None } => format!("patch {}", columns(row)),
        Image::Patch { origin: Some(origin) } => {
            format!("patch of {} {}", i64::from_be_bytes(origin[4..].try_into().unwrap()), columns(row))
        }
    });
    assert!(news.is_none() || image.is_none(), "{news:?} and {image:?} of {id}");
    news.or(image).unwrap_or_else(|| "-".into())
}

#[test]
fn the_last_image_of_a_key_counts() {
    let fold = fold(true, |w| {
        w.row(Op::Insert, None, 1, "one", Some("x"));
        w.row(Op::Update, None, 1, "two", None);
        w.row(Op::Insert, None, 2, "came and went", Some("x"));
        w.row(Op::Delete, None, 2, "", None);
        w.row(Op::Update, None, 3, "patch", None);
        w.row(Op::Update, None, 3, "patched", None);
        w.row(Op::Update, None, 4, "first", None);
        w.row(Op::Update, None, 4, "whole", Some("y"));
    });
    let images: Vec<_> = (1..=5).map(|id| shown(&fold, id)).collect();
    assert_eq!(images, ["new two,x", "-", "patch patched,?", "whole,y", "-"]);
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
        ["patch of 2 was 2,?", "patch of 1 was 1,?", "gone", "-", "new,kept", "other,z", "patch of 10 moved,?"]
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
    let expected = ["new changed,x", "read read,x", "changed,x", "again,x", "new in its place,x", "moved,x"];
    assert_eq!(images, expected);
    assert!(!fold.is_settled());
}

#[test]
fn only_what_an_insert_began_goes_without_a_word() {
    let fold = fold(true, |w| {
        w.row(Op::Insert, None, 1, "inserted", Some("x"));
        w.row(Op::Delete, None, 1, "", None);
        w.row(Op::Read, None, 2, "read", Some("x"));
        w.row(Op::Update, None, 2, "changed", Some("x"));
        w.row(Op::Delete, None, 2, "", None);
        // A reading that mends: another row of this key may be there.
        w.row(Op::Insert, None, 3, "inserted", Some("x"));
        w.row(Op::Read, None, 3, "inserted", Some("x"));
        w.row(Op::Delete, None, 3, "", None);
        w.row(Op::Delete, None, 4, "", None);
        w.row(Op::Insert, None, 4, "again", Some("x"));
        w.row(Op::Delete, None, 4, "", None);
        w.row(Op::Insert, None, 5, "inserted", Some("x"));
        w.row(Op::Update, Some(5), 6, "moved", Some("x"));
        w.row(Op::Delete, None, 6, "", None);
    });
    let images: Vec<_> = (1..=6).map(|id| shown(&fold, id)).collect();
    assert_eq!(images, ["-", "gone", "gone", "gone", "-", "gone"]);
    assert!(fold.news.is_empty() && fold.images.len() == 4);
}

#[test]
fn keys_are_told_in_the_order_in_which_they_were_met() {
    let mut fold = fold(true, |w| {
        w.row(Op::Update, None, 5, "gives its value up", Some("x"));
        w.row(Op::Insert, None, 4, "takes it", Some("x"));
        w.row(Op::Update, Some(3), 2, "moved", None);
        w.row(Op::Insert, None, 9, "came", Some("x"));
        w.row(Op::Delete, None, 9, "and went", None);
        w.row(Op::Insert, None, 1, "new", Some("x"));
        w.row(Op::Update, None, 5, "again", Some("x"));
    });
    let ids = |fold: &Fold| -> Vec<u8> { fold.in_turn().iter().map(|(key, ..)| key[11]).collect() };
    assert_eq!(ids(&fold), [5, 4, 3, 2, 1]);
    fold.take_new();
    take(&mut fold, |w| w.row(Op::Insert, None, 0, "later", Some("x")));
    assert_eq!(ids(&fold), [5, 3, 2, 0]);
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
    assert!(!fold.is_settled(), "what went is looked for once a step");
}

#[test]
fn what_is_new_goes_first_and_the_rest_knows_no_more_of_it() {
    let mut fold = fold(true, |w| {
        w.row(Op::Insert, None, 1, "new", Some("x"));
        w.row(Op::Update, None, 2, "there", None);
        w.row(Op::Delete, None, 3, "", None);
        w.row(Op::Insert, None, 4, "new", Some("x"));
        w.row(Op::Delete, None, 4, "", None);
        w.row(Op::Update, Some(5), 6, "moved", None);
        w.row(Op::Insert, None, 5, "in its place", Some("x"));
    });
    let bytes = fold.bytes();
    let taken = fold.take_new();
    assert_eq!([1, 2, 3, 4, 5, 6].map(|id| shown(&taken, id)), ["new new,x", "-", "-", "-", "-", "-"]);
    assert_eq!(
        [1, 2, 3, 4, 5, 6].map(|id| shown(&fold, id)),
        ["-", "patch there,?", "gone", "-", "in its place,x", "patch of 5 moved,?"]
    );
    assert!(fold.bytes() + taken.bytes() == bytes && fold.news.is_empty() && taken.images.is_empty());
    take(&mut fold, |w| {
        w.row(Op::Update, None, 1, "changed", None);
        w.row(Op::Insert, None, 7, "new", Some("x"));
    });
    assert_eq!([1, 7].map(|id| shown(&fold, id)), ["patch changed,?", "new new,x"]);
}

#[test]
fn a_truncate_goes_with_what_goes_first() {
    let mut fold = fold(true, |w| {
        w.0.open_row(1);
        w.0.close_row(Op::Truncate, RowExtras::default());
        w.row(Op::Insert, None, 1, "one", Some("x"));
    });
    let taken = fold.take_new();
    assert!(taken.emptied && !fold.emptied && fold.is_empty());
}

/// What happens at the source, or to the fold: rows by a number of ten.
#[derive(Clone, Debug)]
enum Happens {
    Insert(i64, usize),
    Update {
        id: i64,
        length: usize,
        sent: bool,
    },
    Move {
        from: i64,
        to: i64,
        sent: bool,
    },
    Delete(i64),
    Truncate,
    /// Its new rows go ahead, or all of it does.
    NewGo,
    AllGo,
}

fn happens() -> impl proptest::strategy::Strategy<Value = Happens> {
    use proptest::prelude::*;
    let id = || 0i64..10;
    prop_oneof![
        6 => (id(), 0usize..40).prop_map(|(id, length)| Happens::Insert(id, length)),
        6 => (id(), 0usize..40, any::<bool>()).prop_map(|(id, length, sent)| Happens::Update { id, length, sent }),
        4 => (id(), id(), any::<bool>()).prop_map(|(from, to, sent)| Happens::Move { from, to, sent }),
        4 => id().prop_map(Happens::Delete),
        1 => Just(Happens::Truncate),
        2 => Just(Happens::NewGo),
        1 => Just(Happens::AllGo),
    ]
}

type Rows = std::collections::BTreeMap<i64, (String, String)>;

/// As `merge` does it, in its order.
fn put(here: &mut Rows, fold: &Fold) {
    if fold.emptied {
        here.clear();
    }
    let id = |key: &[u8]| i64::from_be_bytes(key[4..].try_into().unwrap());
    let columns = |mut fields: &[u8]| {
        let mut texts = Vec::new();
        while let Some((length, value)) = wire::next(&mut fields) {
            texts.push((length != wire::ABSENT).then(|| String::from_utf8_lossy(value).into_owned()));
        }
        (texts[1].clone().unwrap(), texts[2].clone())
    };
    let mut moved = Vec::new();
    for (key, image, row) in fold.images.iter() {
        if let Image::Patch { origin: Some(origin) } = image
            && let Some((_, b)) = here.get(&id(origin))
        {
            let row = columns(row);
            moved.push((id(key), (row.0, row.1.unwrap_or_else(|| b.clone()))));
        }
    }
    here.retain(|id, _| {
        let key = [&8i32.to_be_bytes()[..], &id.to_be_bytes()].concat();
        !matches!(fold.images.get(&key), Some((Image::Gone, _)))
    });
    for (key, _, row) in fold.news.iter() {
        let (a, b) = columns(row);
        assert!(here.insert(id(key), (a, b.unwrap())).is_none(), "{} is not new", id(key));
    }
    for (key, image, row) in fold.images.iter() {
        match image {
            Image::Whole => drop(here.insert(id(key), {
                let (a, b) = columns(row);
                (a, b.unwrap())
            })),
            Image::Patch { origin: None } => {
                if let Some(there) = here.get_mut(&id(key)) {
                    let (a, b) = columns(row);
                    *there = (a, b.unwrap_or_else(|| there.1.clone()));
                }
            }
            Image::Patch { .. } | Image::Gone => {}
        }
    }
    here.extend(moved);
}

proptest::proptest! {
    #[test]
    fn a_mirror_comes_to_the_source_whatever_goes_ahead(
        there in proptest::collection::btree_map(0i64..10, (".{0,9}", ".{0,9}"), 0..10),
        happens in proptest::collection::vec(happens(), 1..120),
    ) {
        let (mut source, mut here): (Rows, Rows) = (there.clone(), there);
        let mut fold = Fold::new(plan(true));
        for (i, happens) in happens.iter().enumerate() {
            let text = |length: usize| format!("{i}{}", "-".repeat(length));
            match *happens {
                Happens::Insert(id, length) if !source.contains_key(&id) => {
                    let row = (text(length), text(40 - length));
                    take(&mut fold, |w| w.row(Op::Insert, None, id, &row.0, Some(&row.1)));
                    source.insert(id, row);
                }
                Happens::Update { id, length, sent } => {
                    let Some(row) = source.get_mut(&id) else { continue };
                    row.0 = text(length);
                    take(&mut fold, |w| w.row(Op::Update, None, id, &row.0, sent.then_some(&row.1)));
                }
                Happens::Move { from, to, sent } if !source.contains_key(&to) => {
                    let Some(row) = source.remove(&from) else { continue };
                    take(&mut fold, |w| w.row(Op::Update, Some(from), to, &row.0, sent.then_some(&row.1)));
                    source.insert(to, row);
                }
                Happens::Delete(id) if source.remove(&id).is_some() => {
                    take(&mut fold, |w| w.row(Op::Delete, None, id, "", None));
                }
                Happens::Truncate => {
                    take(&mut fold, |w| {
                        w.0.open_row(1);
                        w.0.close_row(Op::Truncate, RowExtras::default());
                    });
                    source.clear();
                }
                Happens::NewGo => put(&mut here, &fold.take_new()),
                Happens::AllGo => {
                    put(&mut here, &fold);
                    fold = Fold::new(plan(true));
                }
                Happens::Insert(..) | Happens::Move { .. } | Happens::Delete(_) => {}
            }
            proptest::prop_assert!(fold.news.is_sound() && fold.images.is_sound());
            proptest::prop_assert!(fold.news.iter().all(|(key, ..)| !fold.images.contains(key)));
        }
        put(&mut here, &fold);
        proptest::prop_assert_eq!(here, source);
    }
}

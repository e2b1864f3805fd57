use storage::Kind;

use storage::{Frame, Offset, OffsetRange, Position};

use super::*;

fn frame(payload: Bytes, records: u32, position: Option<&[u8]>) -> Batch {
    Batch::new(Frame {
        offsets: OffsetRange { start: Offset(100), end: Offset(100 + u64::from(records)) },
        kind: Kind::Data,
        ends_transaction: true,
        event_time: Micros(0),
        payload,
        position: position.map(|p| Position::new(p.to_vec()).unwrap()),
    })
}

#[test]
fn what_was_written_is_read() {
    let mut writer = BatchWriter::new();
    writer.begin(b"pos1", Micros(5), "77", 0);
    writer.open_row(1).extend_from_slice(b"one");
    writer.close_row(Op::Insert, RowExtras::default());
    writer.open_row(1).extend_from_slice(b"broken");
    writer.drop_row();
    writer.open_row(1).extend_from_slice(b"two");
    let extras = RowExtras { old_key: Some(b"old"), before: Some(b"before"), absent: Some(&[0b10]) };
    writer.close_row(Op::Update, extras);
    writer.open_row(2).extend_from_slice(b"three");
    writer.close_row(Op::Delete, RowExtras { absent: Some(&[0, 1]), ..Default::default() });
    writer.begin(b"empty", Micros(5), "78", 0);
    writer.begin_open(5, Micros(6), "", 9);
    writer.open_row(2);
    writer.close_row(Op::Truncate, RowExtras::default());
    let (payload, records) = writer.take().unwrap();
    assert_eq!(records, 4);
    assert!(writer.take().is_none());

    let batch = frame(payload, records, Some(b"later"));
    let runs: Vec<_> = batch.runs().collect::<Result<_, _>>().unwrap();
    let seen: Vec<_> = runs
        .iter()
        .flat_map(|run| run.changes().map(move |c| (run, c.unwrap())))
        .map(|(run, c)| {
            (run.schema, run.transaction.position, run.transaction.tx, c.op, c.value, c.offset.0, c.ordinal)
        })
        .collect();
    assert_eq!(
        seen,
        [
            (1, &b"pos1"[..], "77", Op::Insert, &b"one"[..], 100, 0),
            (1, b"pos1", "77", Op::Update, b"two", 101, 1),
            (2, b"pos1", "77", Op::Delete, b"three", 102, 2),
            (2, b"later", "", Op::Truncate, b"", 103, 9),
        ]
    );
    let two = runs[0].changes().nth(1).unwrap().unwrap();
    assert_eq!((two.old_key, two.before), (Some(&b"old"[..]), Some(&b"before"[..])));
    assert!(two.is_absent(1) && !two.is_absent(0) && !two.is_absent(9));
    let three = runs[1].changes().next().unwrap().unwrap();
    assert!(three.is_absent(8) && !three.is_absent(1));
}

#[test]
fn a_position_known_at_the_commit_is_told_there() {
    let mut writer = BatchWriter::new();
    writer.begin_open(4, Micros(5), "77", 0);
    writer.open_row(1).extend_from_slice(b"one");
    writer.close_row(Op::Insert, RowExtras::default());
    writer.set_position(b"pos1");
    let (payload, records) = writer.take().unwrap();
    let batch = frame(payload, records, Some(b"later"));
    assert_eq!(batch.runs().next().unwrap().unwrap().transaction.position, b"pos1");
}

#[test]
fn a_snapshot_batch_gets_its_place_later() {
    let mut writer = BatchWriter::new();
    writer.begin(b"12345678", Micros(5), "", 0);
    writer.open_row(1).extend_from_slice(b"one");
    writer.close_row(Op::Read, RowExtras::default());
    let (payload, records) = writer.take().unwrap();
    let mut payload = payload.to_vec();
    patch_first_ordinal(&mut payload, 4711).unwrap();
    let batch = frame(payload.into(), records, None);
    assert_eq!(batch.runs().next().unwrap().unwrap().first_ordinal, 4711);
}

#[test]
fn rows_for_some_sinks_are_for_no_other() {
    let mut writer = BatchWriter::new();
    writer.begin_for("lake,hall", b"12345678", Micros(5), "", 0);
    writer.open_row(1).extend_from_slice(b"one");
    writer.close_row(Op::Read, RowExtras::default());
    writer.begin(b"12345678", Micros(5), "7", 3);
    writer.open_row(1).extend_from_slice(b"two");
    writer.close_row(Op::Insert, RowExtras::default());
    let (payload, records) = writer.take().unwrap();
    let mut payload = payload.to_vec();
    patch_first_ordinal(&mut payload, 4711).unwrap();
    let batch = frame(payload.into(), records, None);
    let runs: Vec<_> = batch.runs().map(Result::unwrap).collect();
    let takes = |i: usize| ["lake", "hall", "all", ""].map(|sink| runs[i].is_for(sink));
    assert_eq!(takes(0), [true, true, false, false]);
    assert_eq!(takes(1), [true; 4]);
    assert_eq!((runs[0].first_ordinal, runs[0].transaction.tx), (4711, ""));
    assert_eq!((runs[1].first_ordinal, runs[1].transaction.tx), (3, "7"));
    assert_eq!(runs[0].changes().next().unwrap().unwrap().value, b"one");
}

proptest::proptest! {
    #[test]
    fn hostile_bytes_never_panic(mut bytes: Vec<u8>, version: bool) {
        if version && !bytes.is_empty() {
            bytes[0] = VERSION;
        }
        for run in frame(bytes.into(), 1, None).runs().flatten() {
            for change in run.changes().flatten() {
                let _ = change.is_absent(1000);
            }
        }
    }
}

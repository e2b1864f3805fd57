use proptest::prelude::*;
use storage::{Frame, Kind, Micros, Offset, OffsetRange, Position};

use super::*;
use crate::batch::{Op, RowExtras};

/// Everything of a row that must survive.
type Row = (Vec<u8>, String, i64, u64, u32, Op, Vec<u8>, Option<Vec<u8>>, Option<Vec<u8>>, Vec<bool>);

#[derive(Clone, Debug)]
struct Written {
    position: Option<Vec<u8>>,
    first_ordinal: u64,
    rows: Vec<(u32, u8, Vec<u8>, u8)>,
}

fn written() -> impl Strategy<Value = Written> {
    let row = (0..4u32, 0..6u8, proptest::collection::vec(any::<u8>(), 0..20), 0..8u8);
    (proptest::option::of(proptest::collection::vec(any::<u8>(), 1..9)), 0..5u64, proptest::collection::vec(row, 0..12))
        .prop_map(|(position, first_ordinal, rows)| Written { position, first_ordinal, rows })
}

fn op(n: u8) -> Op {
    [Op::Read, Op::Insert, Op::Update, Op::Delete, Op::Truncate, Op::Message][usize::from(n)]
}

fn payload(parts: &[Written]) -> Option<(Bytes, u32)> {
    let mut writer = BatchWriter::new();
    for (tx, part) in parts.iter().enumerate() {
        match &part.position {
            Some(position) => writer.begin(position, Micros(tx as i64), &tx.to_string(), part.first_ordinal),
            None => writer.begin_open(8, Micros(tx as i64), &tx.to_string(), part.first_ordinal),
        }
        for (schema, n, body, extras) in &part.rows {
            writer.open_row(*schema).extend_from_slice(body);
            let has = |bit: u8| extras & bit != 0;
            writer.close_row(
                op(*n),
                RowExtras {
                    old_key: has(1).then_some(&b"old"[..]),
                    before: has(2).then_some(&b"before"[..]),
                    absent: has(4).then_some(&[0b101]),
                },
            );
        }
    }
    writer.take()
}

fn batch(payload: Bytes, records: u32, position: Option<&[u8]>) -> Batch {
    Batch::new(Frame {
        offsets: OffsetRange { start: Offset(0), end: Offset(u64::from(records)) },
        kind: Kind::Data,
        ends_transaction: true,
        event_time: Micros(0),
        payload,
        position: position.map(|p| Position::new(p.to_vec()).unwrap()),
    })
}

fn rows(batch: &Batch) -> Vec<Row> {
    let mut out = Vec::new();
    for run in batch.runs() {
        let run = run.unwrap();
        for change in run.changes() {
            let change = change.unwrap();
            out.push((
                run.transaction.position.to_vec(),
                run.transaction.tx.to_owned(),
                run.transaction.commit_time.0,
                change.ordinal,
                run.schema,
                change.op,
                change.value.to_vec(),
                change.old_key.map(<[u8]>::to_vec),
                change.before.map(<[u8]>::to_vec),
                (0..4).map(|column| change.is_absent(column)).collect(),
            ));
        }
    }
    out
}

/// Whole runs by schema, single rows of schema 2 by their ordinal.
struct BySchema(u8);

impl Sieve for BySchema {
    fn run(&mut self, run: &Run<'_>) -> Option<Side> {
        match run.schema {
            2 => None,
            schema => Some(if self.0 & (1 << schema) == 0 { Side::Pass } else { Side::Hold }),
        }
    }

    fn row(&mut self, _: &Run<'_>, change: &Change<'_>) -> Side {
        if change.ordinal.is_multiple_of(2) { Side::Pass } else { Side::Hold }
    }
}

proptest! {
    #[test]
    fn what_was_split_is_what_was_written(parts in proptest::collection::vec(written(), 0..5), held: u8) {
        let Some((payload, records)) = payload(&parts) else { return Ok(()) };
        // As it comes from a source, before the commit's position is known; and
        // as it is read back, under the position of its commit.
        let expected = rows(&batch(payload.clone(), records, Some(b"commit")));
        let whole = batch(payload, records, None);
        let halves = Splitter::default().split(&whole, &mut BySchema(held)).unwrap();
        let read = |half: Option<(Bytes, u32)>| match half {
            None => Vec::new(),
            Some((payload, records)) => {
                let read = rows(&batch(payload, records, Some(b"commit")));
                assert_eq!(read.len(), records as usize);
                read
            }
        };
        let is_held = |row: &Row| match row.4 {
            2 => row.3 % 2 == 1,
            schema => held & (1 << schema) != 0,
        };
        let (kept, passed): (Vec<Row>, Vec<Row>) = expected.into_iter().partition(is_held);
        prop_assert_eq!(read(halves.passed), passed);
        prop_assert_eq!(read(halves.held), kept);
    }

    #[test]
    fn what_is_read_back_keeps_the_position_of_its_commit(parts in proptest::collection::vec(written(), 1..4)) {
        let Some((payload, records)) = payload(&parts) else { return Ok(()) };
        let expected = rows(&batch(payload.clone(), records, Some(b"commit")));
        let mut all = |_: &Run<'_>| Side::Hold;
        let halves = Splitter::default().split(&batch(payload, records, Some(b"commit")), &mut all).unwrap();
        let (payload, records) = halves.held.unwrap();
        // Under another commit, or none.
        prop_assert_eq!(rows(&batch(payload, records, Some(b"later"))), expected);
        prop_assert!(halves.passed.is_none());
    }

    #[test]
    fn hostile_bytes_never_panic(mut bytes: Vec<u8>, version: bool) {
        if version && !bytes.is_empty() {
            bytes[0] = 1;
        }
        let _ = Splitter::default().split(&batch(bytes.into(), 1, None), &mut BySchema(2));
    }
}

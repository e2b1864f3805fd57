use connector::{BatchWriter, Change, Op, RowExtras, Run};
use storage::{Options, Position};

use super::*;

/// Rows of one schema.
struct Of(u32);

impl Sieve for Of {
    fn run(&mut self, run: &Run<'_>) -> Option<Side> {
        Some(if run.schema == self.0 { Side::Hold } else { Side::Drop })
    }

    fn row(&mut self, _: &Run<'_>, _: &Change<'_>) -> Side {
        Side::Drop
    }
}

impl Pick for Of {
    fn mark(&mut self, mark: &Mark) -> Side {
        if mark.shape == self.0 { Side::Hold } else { Side::Drop }
    }
}

fn rows(kind: Kind, position: u8, schemas: &[u32], ends: bool) -> LogBatch {
    let mut writer = BatchWriter::new();
    writer.begin_open(1, Micros(i64::from(position)), "7", 0);
    for schema in schemas {
        writer.open_row(*schema).push(position);
        writer.close_row(Op::Insert, RowExtras::default());
    }
    let (payload, records) = writer.take().unwrap();
    LogBatch {
        kind,
        position: ends.then(|| Position::new(vec![position]).unwrap()),
        records,
        event_time: Micros(i64::from(position)),
        payload,
        state: Vec::new(),
        ends_transaction: ends,
    }
}

type Seen = (u32, Vec<u8>, u64, Vec<u8>);

async fn data(log: &Log, from: Offset) -> Vec<Seen> {
    let end = boundary(log).await.unwrap();
    let mut frames = pin!(log.read(from));
    let (mut next, mut out) = (from, Vec::new());
    while next < end {
        let frame = frames.next().await.unwrap().unwrap();
        next = frame.offsets.end;
        if frame.kind != Kind::Data {
            continue;
        }
        for run in Batch::new(frame).runs() {
            let run = run.unwrap();
            for change in run.changes() {
                let change = change.unwrap();
                let position = run.transaction.position.to_vec();
                out.push((run.schema, position, change.ordinal, change.value.to_vec()));
            }
        }
    }
    out
}

#[tokio::test]
async fn what_was_held_comes_at_the_head_as_it_was() {
    let folder = std::env::temp_dir().join(format!("highwater-hold-{}", std::process::id()));
    let (log, _) = Log::open(&folder, Options { segment_bytes: 300, ..Options::default() }).unwrap();
    // A transaction in two pieces, one more of another thing, and one that is aborted.
    for batch in [
        rows(Kind::Data, 1, &[9], true),
        rows(Kind::Pending, 2, &[1, 2, 1], false),
        rows(Kind::Pending, 2, &[2], true),
        rows(Kind::Data, 3, &[9], true),
        rows(Kind::Pending, 4, &[1], true),
        rows(Kind::Pending, 5, &[1], false),
    ] {
        log.append(batch).await.unwrap();
    }
    log.abort().await.unwrap();
    let before = log.high_water();
    assert_eq!(log.state().get(PENDING_KEY), Some(&b"1"[..]));
    let gate = put("gate/b".into(), &serde_json::json!({"from": 2}));
    log.append(batch(Kind::Control, Bytes::new(), 0, Micros(0), vec![gate])).await.unwrap().await.unwrap();

    assert_eq!(count(&log, Offset(1), &mut Of(1)).await.unwrap().events, 3);
    let state = vec![floor_without(&log.state(), &[b"gate/a"])];
    let amount = release(&log, Offset(1), &mut Of(1), state, |batch| Ok((batch, None))).await.unwrap();
    assert_eq!(amount.events, 3);
    let expected = vec![(1, vec![2], 0, vec![2]), (1, vec![2], 2, vec![2]), (1, vec![4], 0, vec![4])];
    assert_eq!(data(&log, before).await, expected);
    assert_eq!(log.state().get(PENDING_KEY), Some(&b"2"[..]), "another hold is left");
    assert_eq!(log.position().await.unwrap().unwrap().as_bytes(), [4], "the source's position stays");

    let again = log.high_water();
    let state = vec![floor_without(&log.state(), &[b"gate/b"])];
    assert_eq!(release(&log, Offset(2), &mut Of(2), state, |batch| Ok((batch, None))).await.unwrap().events, 2);
    assert_eq!(data(&log, again).await, vec![(2, vec![2], 1, vec![2]), (2, vec![2], 0, vec![2])]);
    assert_eq!(log.state().get(PENDING_KEY), None);
    log.close().await;
    std::fs::remove_dir_all(folder).unwrap();
}

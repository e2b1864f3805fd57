//! A log small enough to deliver some hundred times, with everything in it
//! that a sink must take: several streams, a schema that changes, marks, a
//! truncate, a stretch that is for others, transactions without rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use storage::{Frame, Kind, Micros, Offset, OffsetRange, Position};

use crate::avro::{put_bytes, put_long};
use crate::batch::{Batch, BatchWriter, Op, RowExtras};
use crate::mark::Mark;
use crate::shape::Shape;
use crate::table::{Column, Table, TableKind, Type};

/// Streams of the log; the second's table has a name that needs encoding.
pub const STREAMS: [&str; 3] = ["shop.public.a", "shop.public.b%2Fb", "shop.public.c"];

const TRANSACTIONS: u64 = 28;
/// Not 0: a log that retention has cut begins later.
const START: u64 = 100;

/// What a step takes in.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    Rows(Frame),
    Mark(Mark, OffsetRange),
    Nothing(OffsetRange),
}

impl Item {
    pub(crate) fn range(&self) -> OffsetRange {
        match self {
            Item::Rows(frame) => frame.offsets,
            Item::Mark(_, range) | Item::Nothing(range) => *range,
        }
    }
}

/// A whole log.
#[derive(Debug)]
pub(crate) struct TestLog {
    pub(crate) items: Vec<Item>,
    pub(crate) shapes: BTreeMap<u32, Arc<Shape>>,
}

fn shape(number: u32, table: &str, more: bool) -> Arc<Shape> {
    let column = |id, name: &str, ty, db_type: &str| Column {
        name: name.into(),
        ty,
        db_type: db_type.into(),
        nullable: id > 1,
        id,
    };
    let mut columns = vec![column(1, "id", Type::Long, "bigint"), column(2, "text", Type::String, "text")];
    if more {
        columns.push(column(3, "more", Type::Boolean, "boolean"));
    }
    let table = Table {
        source: "shop".into(),
        schema: "public".into(),
        name: table.into(),
        kind: TableKind::Table,
        columns,
        key: vec![0],
        full_identity: false,
    };
    Arc::new(Shape::new(number, table, Some(number), number))
}

fn row(writer: &mut BatchWriter, shape: u32, id: u64, op: Op) {
    let body = writer.open_row(shape);
    if op != Op::Truncate {
        put_long(body, id as i64);
        put_long(body, 1);
        put_bytes(body, format!("text of {id}").as_bytes());
        if shape == 4 {
            put_long(body, 1);
            body.push(1);
        }
    }
    writer.close_row(op, RowExtras::default());
}

fn position(i: u64) -> Vec<u8> {
    (0x1000 + i).to_be_bytes().to_vec()
}

impl TestLog {
    pub(crate) fn new() -> Self {
        let shapes: BTreeMap<u32, Arc<Shape>> =
            [shape(1, "a", false), shape(2, "b/b", false), shape(3, "c", false), shape(4, "a", true)]
                .into_iter()
                .map(|shape| (shape.number, shape))
                .collect();
        let mut items = Vec::new();
        let mut next = START;
        let mut writer = BatchWriter::new();
        for i in 0..TRANSACTIONS {
            let a = if i < 5 { 1 } else { 4 };
            let mut ids = next..;
            let mut put = |writer: &mut BatchWriter, shape, op| row(writer, shape, ids.next().unwrap_or(0), op);
            writer.begin(&position(i), Micros(i as i64), "7", 0);
            match i {
                6 | 11 => {
                    let op = if i == 6 { Mark::BEGIN } else { Mark::END };
                    let mark = Mark {
                        op: op.into(),
                        schema: "public".into(),
                        table: "a".into(),
                        stream: STREAMS[0].into(),
                        shape: a,
                        generation: 2,
                        sinks: Vec::new(),
                        position: position(i),
                        ordinal: 0,
                        commit_time: i as i64,
                    };
                    items.push(Item::Mark(mark, OffsetRange { start: Offset(next), end: Offset(next + 1) }));
                    next += 1;
                    continue;
                }
                7..=9 => {
                    // Of a table that nobody takes; offsets are used all the same.
                    items.push(Item::Nothing(OffsetRange { start: Offset(next), end: Offset(next + 3) }));
                    next += 3;
                    continue;
                }
                12 => put(&mut writer, a, Op::Truncate),
                // The schema changes inside a transaction too.
                4 => [1, 2, 4, 4, 2].into_iter().for_each(|shape| put(&mut writer, shape, Op::Insert)),
                _ if i % 5 == 0 => [a, 2, 3, a].into_iter().for_each(|shape| put(&mut writer, shape, Op::Insert)),
                _ if i % 2 == 0 => [2, a].into_iter().for_each(|shape| put(&mut writer, shape, Op::Update)),
                _ => put(&mut writer, a, Op::Delete),
            }
            let (payload, records) = writer.take().expect("each transaction left has rows");
            let offsets = OffsetRange { start: Offset(next), end: Offset(next + u64::from(records)) };
            next = offsets.end.0;
            items.push(Item::Rows(Frame {
                offsets,
                kind: Kind::Data,
                ends_transaction: true,
                event_time: Micros(i as i64),
                payload,
                position: Position::new(position(i)).ok(),
            }));
        }
        Self { items, shapes }
    }

    pub(crate) fn start(&self) -> Offset {
        Offset(START)
    }

    pub(crate) fn end(&self) -> Offset {
        self.items.last().map_or(Offset(START), |item| item.range().end)
    }

    pub(crate) fn middle(&self) -> Offset {
        self.items[self.items.len() / 2].range().end
    }

    /// What a destination must hold of a stretch: each stream's offsets, in order.
    pub(crate) fn offsets(&self, range: OffsetRange, streams: &[&str]) -> BTreeMap<String, Vec<u64>> {
        let mut out: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let mut add = |stream: String, offset: u64| {
            if range.start.0 <= offset && offset < range.end.0 && streams.contains(&stream.as_str()) {
                out.entry(stream).or_default().push(offset);
            }
        };
        for item in &self.items {
            match item {
                Item::Rows(frame) => {
                    let batch = Batch::new(frame.clone());
                    for run in batch.runs().map(|run| run.expect("the suite wrote it")) {
                        for i in 0..run.len() as u64 {
                            add(self.shapes[&run.schema].table.stream(), run.first_offset.0 + i);
                        }
                    }
                }
                Item::Mark(mark, range) => add(mark.stream.clone(), range.start.0),
                Item::Nothing(_) => {}
            }
        }
        out
    }
}

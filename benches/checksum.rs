//! What was moved, counted and summed up in its order, from wherever it lies:
//! the stream, the log, Parquet files. Rows are compared as the Avro bodies
//! that the hand-written encoder makes of the stream.

use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::types::{Decimal128Type, Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, RecordBatch};
use connector::{Batch, Op, put_bytes, put_long};
use storage::Kind;
use storage::outside::LogFiles;

use crate::Result;

/// Over rows, in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checksum {
    pub(crate) inserts: u64,
    pub(crate) updates: u64,
    pub(crate) deletes: u64,
    /// Read by a snapshot.
    pub(crate) reads: u64,
    /// Of the ids, which the generators are known by.
    pub(crate) ids: i64,
    /// Differs when any row, byte or place differs.
    pub(crate) sum: u64,
    /// Differs when any row or byte differs: a snapshot's rows come in no order.
    pub(crate) unordered: u64,
}

impl Checksum {
    /// Takes the next row.
    pub(crate) fn row(&mut self, op: Op, body: &[u8]) {
        *match op {
            Op::Insert => &mut self.inserts,
            Op::Update => &mut self.updates,
            Op::Delete => &mut self.deletes,
            _ => &mut self.reads,
        } += 1;
        self.ids += connector::Reader::new(body).long().unwrap_or(i64::MIN);
        let (words, rest) = body.as_chunks::<8>();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        let words = words.iter().chain([&last]).map(|word| u64::from_le_bytes(*word));
        let row = words.fold(body.len() as u64, mix);
        self.unordered = self.unordered.wrapping_add(row);
        self.sum = mix(mix(self.sum, op as u64), row);
    }

    /// Rows in all.
    pub(crate) fn rows(&self) -> u64 {
        self.inserts + self.updates + self.deletes + self.reads
    }
}

fn mix(sum: u64, word: u64) -> u64 {
    let mixed = (sum.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 29
}

/// Of a message of the stream.
pub(crate) fn op(message: &[u8]) -> Op {
    match message[0] {
        b'I' => Op::Insert,
        b'U' => Op::Update,
        _ => Op::Delete,
    }
}

/// Of everything a stopped daemon's log holds. `transaction` gets each
/// transaction's commit time and the offset behind its last row.
pub(crate) fn of_log(folder: &Path, mut transaction: impl FnMut(i64, u64)) -> Result<Checksum> {
    let files = LogFiles::open(folder)?;
    let start = files.start()?.ok_or("no log")?;
    let mut cursor = files.read(start)?;
    let mut checksum = Checksum::default();
    while let Some(frame) = cursor.next()? {
        if frame.kind != Kind::Data {
            continue;
        }
        let batch = Batch::new(frame);
        for run in batch.runs() {
            let run = run?;
            for change in run.changes() {
                let change = change?;
                // The message by which a backlog's end is passed is no row.
                if change.op != Op::Message {
                    checksum.row(change.op, change.value);
                }
            }
            transaction(run.transaction.commit_time.0, run.first_offset.0 + run.len() as u64);
        }
    }
    Ok(checksum)
}

/// Adds the rows of a Parquet batch.
pub(crate) fn add_batch(checksum: &mut Checksum, batch: &RecordBatch) -> Result<()> {
    let column = |name: &str| batch.column_by_name(name).ok_or(format!("no column {name}"));
    let texts = |name: &str| column(name).map(|array| array.as_string::<i32>());
    let long = |name: &str| column(name).map(|array| array.as_primitive::<Int64Type>());
    let int = |name: &str| column(name).map(|array| array.as_primitive::<Int32Type>());
    let time = |name: &str| column(name).map(|array| array.as_primitive::<TimestampMicrosecondType>());
    let (id, customer, sku, note) = (long("id")?, int("customer_id")?, texts("sku")?, texts("note")?);
    let (amount, currency) = (column("amount")?.as_primitive::<Decimal128Type>(), texts("currency")?);
    let (qty, paid) = (int("qty")?, column("paid")?.as_boolean());
    let (created, updated, uid, attrs) = (time("created_at")?, time("updated_at")?, texts("uid")?, texts("attrs")?);
    let ops = texts("_hw_op")?;
    let mut body = Vec::new();
    for i in 0..batch.num_rows() {
        body.clear();
        put_long(&mut body, id.value(i));
        let mut put = |array: &dyn Array, put: &dyn Fn(&mut Vec<u8>)| {
            if array.is_null(i) {
                body.push(0);
            } else {
                body.push(2);
                put(&mut body);
            }
        };
        put(customer, &|out| put_long(out, customer.value(i).into()));
        put(sku, &|out| put_bytes(out, sku.value(i).as_bytes()));
        put(note, &|out| put_bytes(out, note.value(i).as_bytes()));
        put(amount, &|out| put_bytes(out, shortest(&amount.value(i).to_be_bytes())));
        put(currency, &|out| put_bytes(out, currency.value(i).as_bytes()));
        put(qty, &|out| put_long(out, qty.value(i).into()));
        put(paid, &|out| out.push(paid.value(i).into()));
        put(created, &|out| put_long(out, created.value(i)));
        put(updated, &|out| put_long(out, updated.value(i)));
        put(uid, &|out| put_bytes(out, uid.value(i).as_bytes()));
        put(attrs, &|out| put_bytes(out, attrs.value(i).as_bytes()));
        let op = match ops.value(i) {
            "insert" => Op::Insert,
            "update" => Op::Update,
            "delete" => Op::Delete,
            _ => Op::Read,
        };
        checksum.row(op, &body);
    }
    Ok(())
}

/// Two's complement without the bytes that say nothing.
fn shortest(be: &[u8]) -> &[u8] {
    let says_nothing = |pair: &&[u8]| (pair[0] == 0 && pair[1] & 0x80 == 0) || (pair[0] == 0xff && pair[1] & 0x80 != 0);
    &be[be.windows(2).take_while(says_nothing).count()..]
}

//! A table's sums: for each bucket how many rows, and what their hashes come to.

use crate::pace::Progress;
use crate::side::{Failure, Hash, Side};
use crate::table::{Leaf, Place, Table, Which};

/// What the rows of a bucket come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) rows: u64,
    pub(crate) hashes: i128,
}

/// So many that the rows of one are soon read: a power of two.
pub(crate) fn buckets(table: &Table) -> usize {
    const ROWS_OF_A_BLOCK: u64 = 60;
    const ROWS_OF_A_BUCKET: u64 = 500;
    if table.sink.leaves.is_empty() || table.source.leaves.is_empty() {
        return 4096;
    }
    let rows = table.blocks() / 2 * ROWS_OF_A_BLOCK;
    (rows / ROWS_OF_A_BUCKET).next_power_of_two().clamp(64, 16_384) as usize
}

/// A piece of a table that one statement reads.
pub(crate) struct Piece<'a> {
    /// `ONLY t WHERE ctid …`; ends so that more conditions may follow.
    pub(crate) from: String,
    pub(crate) of: Option<&'a Leaf>,
    pub(crate) blocks: u64,
}

/// All of a table, in the order of its disk.
pub(crate) fn pieces<'a>(side: &Side, place: &'a Place) -> Vec<Piece<'a>> {
    if place.leaves.is_empty() {
        return vec![Piece { from: format!("{} WHERE true", place.quoted), of: None, blocks: 0 }];
    }
    let mut pieces = Vec::new();
    for leaf in &place.leaves {
        let step = if side.by_block { side.pace.blocks() } else { u64::MAX };
        let mut low = 0u64;
        loop {
            let high = low.saturating_add(step);
            let last = high >= leaf.blocks;
            // The last one is open: rows may lie behind what was measured.
            let until = if last { String::new() } else { format!(" AND ctid < '({high},0)'::tid") };
            let from = match (low, last) {
                (0, true) => format!("ONLY {} WHERE true", leaf.quoted),
                _ => format!("ONLY {} WHERE ctid >= '({low},0)'::tid{until}", leaf.quoted),
            };
            pieces.push(Piece { from, of: Some(leaf), blocks: high.min(leaf.blocks) - low });
            if last {
                break;
            }
            low = high;
        }
    }
    pieces
}

/// The hashes of a row's key and of the row.
pub(crate) fn hashes(table: &Table, which: Which, hash: Hash) -> (String, String) {
    let row = hash.text(&table.row(which));
    let key = match table.integer_key(which) {
        Some(number) => hash.integer(&number),
        None if table.key.is_empty() => row.clone(),
        None => hash.text(&table.key_text(which)),
    };
    (key, row)
}

/// The sums of one side.
pub(crate) async fn sums(
    side: &mut Side,
    table: &Table,
    hash: Hash,
    count: usize,
    progress: &Progress,
) -> Result<Vec<Sum>, Failure> {
    let (key, row) = hashes(table, side.which, hash);
    let columns =
        if table.key.is_empty() { format!("{row} AS k FROM") } else { format!("{key} AS k, {row} AS r FROM") };
    let of_row = if table.key.is_empty() { "k" } else { "r" };
    // Else what is used twice would be hashed twice.
    let apart = if table.key.is_empty() { " OFFSET 0" } else { "" };
    let mut sums = vec![Sum::default(); count];
    let mask = count - 1;
    for piece in pieces(side, table.place(side.which)) {
        let sql = format!(
            "SELECT (k & {mask})::int, count(*), sum({of_row}) FROM (SELECT {columns} {}{apart}) s GROUP BY 1",
            piece.from
        );
        let mut rows = 0;
        for answer in side.rows(&sql, piece.of).await? {
            let number = |i: usize| answer.get(i).and_then(|text| text.parse::<i128>().ok());
            let (Some(bucket), Some(n), Some(sum)) = (number(0), number(1), number(2)) else {
                return Err(Failure::Changed);
            };
            let Some(into) = sums.get_mut(bucket as usize) else { return Err(Failure::Changed) };
            into.rows += n as u64;
            into.hashes += sum;
            rows += n as u64;
        }
        progress.read(piece.blocks, rows);
        side.pace.keep(rows).await;
    }
    Ok(sums)
}

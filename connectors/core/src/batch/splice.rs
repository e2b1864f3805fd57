//! Parts that were written before it was known where they belong: into a
//! spool, while their transaction was in progress.

use storage::Micros;

use super::{BatchWriter, Malformed, UNKNOWN, VERSION};
use crate::shape::SchemaNumber;

impl BatchWriter {
    /// Appends the only part of a payload that another writer has made, with
    /// what is known by now: the transaction's position, of as many bytes as
    /// were kept for it, its commit time, the part's first ordinal, and for each
    /// run's schema the number that `number` gives it. Returns its rows. After
    /// an error the batch is as it was.
    pub fn splice<E: From<Malformed>>(
        &mut self,
        payload: &[u8],
        position: &[u8],
        commit_time: Micros,
        first_ordinal: u64,
        number: impl FnMut(SchemaNumber) -> Result<SchemaNumber, E>,
    ) -> Result<u32, E> {
        let Some((&VERSION, part)) = payload.split_first() else { return Err(Malformed("version").into()) };
        self.end();
        let before = self.out.len();
        if before == 0 {
            self.out.push(VERSION);
        }
        let start = self.out.len();
        self.out.extend_from_slice(part);
        let spliced = patch(&mut self.out[start..], position, commit_time, first_ordinal, number);
        match spliced {
            Ok(records) => self.records += records,
            Err(_) => self.out.truncate(before),
        }
        spliced
    }
}

fn patch<E: From<Malformed>>(
    part: &mut [u8],
    position: &[u8],
    commit_time: Micros,
    first_ordinal: u64,
    mut number: impl FnMut(SchemaNumber) -> Result<SchemaNumber, E>,
) -> Result<u32, E> {
    let mut at = 0;
    let length = u32::from_le_bytes(*take(part, &mut at)?) as usize;
    if length != part.len() - at {
        return Err(Malformed("more or less than one part").into());
    }
    let [room] = take::<1>(part, &mut at)?;
    if usize::from(*room & !UNKNOWN) != position.len() {
        return Err(Malformed("room for the position").into());
    }
    *room &= !UNKNOWN;
    slice(part, &mut at, position.len())?.copy_from_slice(position);
    *take(part, &mut at)? = commit_time.0.to_le_bytes();
    let [tx] = *take::<1>(part, &mut at)?;
    slice(part, &mut at, usize::from(tx))?;
    *take(part, &mut at)? = first_ordinal.to_le_bytes();
    let records = u32::from_le_bytes(*take(part, &mut at)?);
    let mut rows = 0u64;
    while at < part.len() {
        let schema = take::<4>(part, &mut at)?;
        *schema = number(u32::from_le_bytes(*schema))?.to_le_bytes();
        let count = u32::from_le_bytes(*take(part, &mut at)?) as usize;
        let bodies = u32::from_le_bytes(*take(part, &mut at)?) as usize;
        slice(part, &mut at, bodies)?;
        // Ends, then operations.
        slice(part, &mut at, count.checked_mul(5).ok_or(Malformed("row count"))?)?;
        rows += count as u64;
    }
    if rows != u64::from(records) {
        return Err(Malformed("row count").into());
    }
    Ok(records)
}

fn take<'a, const N: usize>(part: &'a mut [u8], at: &mut usize) -> Result<&'a mut [u8; N], Malformed> {
    let taken = slice(part, at, N)?;
    Ok(taken.try_into().expect("as long as asked for"))
}

fn slice<'a>(part: &'a mut [u8], at: &mut usize, length: usize) -> Result<&'a mut [u8], Malformed> {
    let end = at.checked_add(length).ok_or(Malformed("it ends early"))?;
    let taken = part.get_mut(*at..end).ok_or(Malformed("it ends early"))?;
    *at = end;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Batch, Op, RowExtras};
    use storage::{Frame, Kind, Offset, OffsetRange};

    fn piece() -> Vec<u8> {
        let mut writer = BatchWriter::new();
        writer.begin_open(8, Micros(0), "771", 0);
        for (schema, body) in [(0, b"a"), (0, b"b"), (1, b"c")] {
            writer.open_row(schema).extend_from_slice(body);
            writer.close_row(Op::Insert, RowExtras::default());
        }
        writer.take().unwrap().0.into()
    }

    fn splice(writer: &mut BatchWriter, payload: &[u8], ordinal: u64) -> Result<u32, Malformed> {
        writer.splice(payload, &9u64.to_be_bytes(), Micros(5), ordinal, |number| Ok(number + 40))
    }

    #[test]
    fn a_part_gets_its_place_behind_what_was_there() {
        let mut writer = BatchWriter::new();
        writer.begin(&8u64.to_be_bytes(), Micros(4), "770", 0);
        writer.open_row(3).push(b'x');
        writer.close_row(Op::Insert, RowExtras::default());
        assert_eq!(splice(&mut writer, &piece(), 70), Ok(3));
        assert_eq!(splice(&mut writer, &piece(), 73), Ok(3));
        let (payload, records) = writer.take().unwrap();
        assert_eq!(records, 7);
        let batch = Batch::new(Frame {
            offsets: OffsetRange { start: Offset(0), end: Offset(7) },
            kind: Kind::Data,
            ends_transaction: true,
            event_time: Micros(0),
            payload,
            position: None,
        });
        let runs: Vec<_> = batch
            .runs()
            .map(|run| {
                let run = run.unwrap();
                let transaction = run.transaction;
                (run.schema, transaction.position[7], transaction.commit_time.0, run.first_ordinal, run.len())
            })
            .collect();
        assert_eq!(runs, [(3, 8, 4, 0, 1), (40, 9, 5, 70, 2), (41, 9, 5, 72, 1), (40, 9, 5, 73, 2), (41, 9, 5, 75, 1)]);
    }

    #[test]
    fn a_part_that_is_cut_or_broken_leaves_the_batch_as_it_was() {
        let mut writer = BatchWriter::new();
        let whole = piece();
        for end in 0..whole.len() {
            assert!(splice(&mut writer, &whole[..end], 0).is_err(), "cut at {end}");
            assert!(writer.is_empty());
        }
        let refused = writer.splice(&whole, &[0; 8], Micros(0), 0, |_| Err(Malformed("no such schema")));
        assert_eq!(refused, Err(Malformed("no such schema")));
        assert!(writer.take().is_none());
    }
}

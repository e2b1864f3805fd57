//! Events of columns, a batch of them at a time.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray};
use connector::Table;

use crate::event::{Act, Event, Unread, places};
use crate::format::OURS;
use crate::values;

/// The events of batches.
pub(crate) struct Batches<I> {
    batches: I,
    table: Arc<Table>,
    prefix: String,
    now: Option<Rows>,
}

/// A batch, and how far it is read.
struct Rows {
    next: usize,
    act: StringArray,
    offset: Int64Array,
    absent: Option<ArrayRef>,
    old_key: Option<ArrayRef>,
    before: Option<ArrayRef>,
    /// None: the file is older than the column.
    columns: Vec<Option<ArrayRef>>,
}

impl<I> Batches<I> {
    pub(crate) fn new(batches: I, table: Arc<Table>, prefix: &str) -> Self {
        Self { batches, table, prefix: prefix.into(), now: None }
    }

    fn begin(&self, batch: &RecordBatch) -> Result<Rows, Unread> {
        let own = |name: &str| batch.column_by_name(&format!("{}{name}", self.prefix)).cloned();
        let lacks = |name: &str| Unread::lacks(&self.prefix, name);
        let [op, offset, .., absent, old_key, before] = OURS;
        let act = own(op).and_then(|op| op.as_string_opt::<i32>().cloned()).ok_or_else(|| lacks(op))?;
        let offsets = own(offset).and_then(|offset| offset.as_primitive_opt::<Int64Type>().cloned());
        let columns: Vec<Option<ArrayRef>> =
            self.table.columns.iter().map(|column| batch.column_by_name(&column.name).cloned()).collect();
        let schema = batch.schema();
        let strange = schema.fields().iter().any(|field| {
            !field.name().starts_with(&self.prefix) && !self.table.columns.iter().any(|c| c.name == *field.name())
        });
        if strange && columns.iter().any(Option::is_none) {
            return Err(Unread::renamed());
        }
        Ok(Rows {
            next: 0,
            act,
            offset: offsets.ok_or_else(|| lacks(offset))?,
            absent: own(absent),
            old_key: own(old_key),
            before: own(before),
            columns,
        })
    }
}

impl Rows {
    fn event(&self, table: &Table, i: usize) -> Result<Event, Unread> {
        let name = self.act.value(i);
        let act = Act::named(name).ok_or_else(|| Unread::Broken(format!("an event of it is a {name:?}")))?;
        let texts = |columns: Vec<Option<&ArrayRef>>| -> Box<[String]> {
            columns.into_iter().map(|c| c.and_then(|c| values::text(c, i)).unwrap_or_default()).collect()
        };
        let there = |array: &Option<ArrayRef>| array.as_ref().filter(|array| array.is_valid(i)).cloned();
        let (absent, old_key, before) = (there(&self.absent), there(&self.old_key), there(&self.before));
        let absent = absent.as_ref().and_then(|names| names.as_list_opt::<i32>()).map(|names| names.value(i));
        let absent = absent.as_ref().and_then(|names| names.as_string_opt::<i32>());
        let old_key = old_key.as_ref().and_then(|old| old.as_struct_opt());
        let before = before.as_ref().and_then(|before| before.as_struct_opt());
        Ok(Event {
            act,
            offset: self.offset.value(i) as u64,
            key: texts(table.key.iter().map(|&k| self.columns[k].as_ref()).collect()),
            hashes: values::hashes(&self.columns, i),
            absent: absent.map_or(Vec::new(), |names| places(table, names.iter().flatten())),
            old_key: old_key
                .map(|old| texts(table.key.iter().map(|&k| old.column_by_name(&table.columns[k].name)).collect())),
            before: before.map(|before| {
                let of = |column: &connector::Column| before.column_by_name(&column.name).cloned();
                values::hashes(&table.columns.iter().map(of).collect::<Vec<_>>(), i)
            }),
        })
    }
}

impl<I: Iterator<Item = Result<RecordBatch, Unread>>> Iterator for Batches<I> {
    type Item = Result<Event, Unread>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(rows) = &mut self.now
                && rows.next < rows.act.len()
            {
                rows.next += 1;
                return Some(rows.event(&self.table, rows.next - 1));
            }
            let begun = self.batches.next()?.and_then(|batch| self.begin(&batch));
            match begun {
                Ok(rows) => self.now = Some(rows),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

//! Our own columns, behind the table's.

use arrow_array::ArrayRef;
use arrow_array::builder::{Int64Builder, ListBuilder, StringBuilder, TimestampMicrosecondBuilder};
use arrow_schema::{DataType, Field};
use connector::{Change, Malformed, Mark, Reader, Run, Table, Type};
use std::sync::Arc;
use storage::Offset;

use crate::columns::{Column, field, finish_texts};
use crate::format::OURS;

/// Their builders.
pub(crate) struct Meta {
    op: StringBuilder,
    offset: Int64Builder,
    ordinal: Int64Builder,
    position: StringBuilder,
    tx: StringBuilder,
    commit_time: TimestampMicrosecondBuilder,
    absent: ListBuilder<StringBuilder>,
    old_key: Option<Column>,
    before: Option<Column>,
}

impl Meta {
    pub(crate) fn new(table: &Table, before: bool) -> Self {
        let keyed = table.key.iter().map(|&i| (table.columns[i].name.as_str(), &table.columns[i].ty));
        let all = table.columns.iter().map(|column| (column.name.as_str(), &column.ty));
        Self {
            op: StringBuilder::new(),
            offset: Int64Builder::new(),
            ordinal: Int64Builder::new(),
            position: StringBuilder::new(),
            tx: StringBuilder::new(),
            commit_time: TimestampMicrosecondBuilder::new(),
            absent: ListBuilder::new(StringBuilder::new()).with_field(field("element", &Type::String)),
            old_key: (!table.key.is_empty()).then(|| Column::structure(keyed)),
            before: has_struct(table, before).then(|| Column::structure(all)),
        }
    }

    /// Their fields.
    pub(crate) fn fields(table: &Table, prefix: &str, before: bool) -> Vec<Field> {
        let [op, offset, ordinal, position, tx, commit_time, absent, old_key, old_row] =
            OURS.map(|name| format!("{prefix}{name}"));
        let texts = Type::Array(Box::new(Type::String));
        let mut fields = vec![
            field(&op, &Type::String),
            field(&offset, &Type::Long),
            field(&ordinal, &Type::Long),
            field(&position, &Type::String),
            field(&tx, &Type::String),
            field(&commit_time, &Type::Timestamp),
            field(&absent, &texts),
        ];
        let structure = |name: String, fields: Vec<Field>| Field::new(name, DataType::Struct(fields.into()), true);
        if !table.key.is_empty() {
            let keyed = table.key.iter().map(|&i| field(&table.columns[i].name, &table.columns[i].ty));
            fields.push(structure(old_key, keyed.collect()));
        }
        if has_struct(table, before) {
            fields.push(structure(old_row, table.columns.iter().map(|c| field(&c.name, &c.ty)).collect()));
        }
        fields
    }

    /// Of one change.
    #[inline]
    pub(crate) fn change(
        &mut self,
        table: &Table,
        run: &Run<'_>,
        position: &str,
        change: &Change<'_>,
    ) -> Result<(), Malformed> {
        self.op.append_value(change.op.name());
        self.offset.append_value(change.offset.0 as i64);
        self.ordinal.append_value(change.ordinal as i64);
        self.position.append_value(position);
        match run.transaction.tx {
            "" => self.tx.append_null(),
            tx => self.tx.append_value(tx),
        }
        self.commit_time.append_value(run.transaction.commit_time.0);
        if change.has_absent() {
            for (i, column) in table.columns.iter().enumerate() {
                if change.is_absent(i) {
                    self.absent.values().append_value(&column.name);
                }
            }
            self.absent.append(true);
        } else {
            self.absent.append(false);
        }
        if let Some(column) = &mut self.old_key {
            match change.old_key {
                Some(body) => structure(column, &mut Reader::new(body), |_| true)?,
                None => column.null(),
            }
        }
        if let Some(column) = &mut self.before {
            match change.before {
                Some(body) => structure(column, &mut Reader::new(body), |i| table.in_key(i))?,
                None => column.null(),
            }
        }
        Ok(())
    }

    /// Of a mark.
    pub(crate) fn mark(&mut self, mark: &Mark, position: &str, offset: Offset) {
        self.op.append_value(&mark.op);
        self.offset.append_value(offset.0 as i64);
        self.ordinal.append_value(mark.ordinal as i64);
        self.position.append_value(position);
        self.tx.append_null();
        self.commit_time.append_value(mark.commit_time);
        self.absent.append(false);
        self.old_key.iter_mut().chain(&mut self.before).for_each(Column::null);
    }

    pub(crate) fn finish(&mut self) -> Vec<ArrayRef> {
        let mut arrays: Vec<ArrayRef> = vec![
            finish_texts(&mut self.op),
            Arc::new(self.offset.finish()),
            Arc::new(self.ordinal.finish()),
            finish_texts(&mut self.position),
            finish_texts(&mut self.tx),
            Arc::new(self.commit_time.finish().with_timezone("UTC")),
            Arc::new(self.absent.finish()),
        ];
        arrays.extend(self.old_key.iter_mut().chain(&mut self.before).map(Column::finish));
        arrays
    }
}

/// The whole old row matters where there is no key to find it by.
pub(crate) fn has_before(table: &Table, before: bool) -> bool {
    before || table.key.is_empty()
}

/// Parquet has no struct without fields, which a table without columns would need.
fn has_struct(table: &Table, before: bool) -> bool {
    has_before(table, before) && !table.columns.is_empty()
}

/// A body of which some columns are `T` and the others may be null.
fn structure(column: &mut Column, reader: &mut Reader<'_>, required: impl Fn(usize) -> bool) -> Result<(), Malformed> {
    let Column::Struct { columns, nulls, .. } = column else { return Err(Malformed("not a struct")) };
    for (i, column) in columns.iter_mut().enumerate() {
        if required(i) { column.value(reader)? } else { column.nullable(reader)? }
    }
    nulls.append_non_null();
    Ok(())
}

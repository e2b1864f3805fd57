//! Rows that cannot be carried: handed on as they came, and encoded again
//! when they are let go.

use connector::{
    BatchWriter, Error, Op, RawCell, RawCells, RowExtras, SchemaNumber, Table, Type, Unfit, UnfitReason, put_cell,
};

use crate::codec::Codec;
use crate::pgoutput::{Cell, OldTuple, Tuple};
use crate::plan::{Plan, PlanColumn, ValueError};

/// Why a row is not carried.
#[derive(Clone, Debug)]
pub(crate) enum Cause {
    Value(ValueError),
    TooLarge,
}

/// Of a row that is looked at outside the stream, where nothing can wait.
pub(crate) fn uncarried(plan: &Plan, when: &str, error: &ValueError) -> Error {
    let table = &plan.table;
    let column = table.columns.get(error.column).map_or("?", |column| column.name.as_str());
    let name = format!("{}.{}", table.schema, table.name);
    Error::halt(format!("a value of {name}, {when}, column {column:?} cannot be carried: {}", error.why)).hint(format!(
        "`highwater quarantine list {0}` has the row; or carry the column as text: \
         [sources.{0}.table.{name:?}] as = {{ {column:?} = \"text\" }}",
        table.source
    ))
}

/// A row as it came, its columns in the table's order.
pub(crate) struct Row<'a> {
    pub(crate) op: Op,
    /// True: all of the old row, else its key.
    pub(crate) old: Option<(bool, Vec<RawCell<'a>>)>,
    pub(crate) new: Option<Vec<RawCell<'a>>>,
    /// In bytes, as it was sent.
    pub(crate) size: usize,
}

impl<'a> Row<'a> {
    /// Of the stream.
    pub(crate) fn streamed(
        plan: &Plan,
        op: Op,
        old: Option<OldTuple<'a>>,
        new: Option<Tuple<'a>>,
        size: usize,
    ) -> Self {
        let cells = |tuple: Tuple<'a>| -> Vec<RawCell<'a>> {
            let cell = |column| match plan.cell(tuple, column) {
                Some(Cell::Text(text)) => RawCell::Text(text),
                Some(Cell::Unchanged) => RawCell::Unchanged,
                Some(Cell::Null) | None => RawCell::Null,
            };
            (0..plan.table.columns.len()).map(cell).collect()
        };
        Self { op, old: old.map(|old| (old.whole, cells(old.tuple))), new: new.map(cells), size }
    }

    /// Writes it to where the row would stand.
    pub(crate) fn put(&self, plan: &Plan, number: SchemaNumber, cause: &Cause, writer: &mut BatchWriter) {
        let key_of = |cells: &[RawCell<'_>]| -> Option<Vec<u8>> {
            let mut key = Vec::new();
            for &column in &plan.table.key {
                let Some(RawCell::Text(text)) = cells.get(column) else { return None };
                plan.columns[column].codec.text(text, &mut key).ok()?;
            }
            Some(key)
        };
        let old_cells = self.old.as_ref().map(|(_, cells)| cells.as_slice());
        let old_key = old_cells.map(key_of);
        let mut key = self.new.as_deref().or(old_cells).and_then(key_of);
        if let (None, Some(Some(old))) = (&key, &old_key) {
            // A key that was not sent anew has not changed.
            let sent = self.new.iter().flat_map(|new| plan.table.key.iter().map(|&column| new.get(column)));
            if sent.into_iter().all(|cell| matches!(cell, Some(RawCell::Unchanged))) {
                key = Some(old.clone());
            }
        }
        if old_key == Some(None) {
            // Which key it had cannot be told: then neither can who must wait.
            key = None;
        }
        let changed = old_key.flatten().filter(|old| key.as_ref().is_some_and(|key| key != old));
        let (reason, column, why) = match cause {
            Cause::Value(error) => (UnfitReason::Value, u16::try_from(error.column).ok(), error.why),
            Cause::TooLarge => (UnfitReason::TooLarge, None, "larger than `max_row` of the source"),
        };
        let has_key = !plan.table.key.is_empty();
        let unfit = Unfit {
            reason,
            column,
            why,
            size: self.size as u64,
            key: key.as_deref().filter(|_| has_key),
            old_key: changed.as_deref(),
            old: None,
            new: None,
        };
        let body = writer.open_row(number);
        let old = self.old.as_ref().map(|(whole, cells)| (*whole, cells.iter().copied()));
        unfit.write(old, self.new.as_ref().map(|cells| cells.iter().copied()), body);
        writer.close_unfit(self.op);
    }
}

/// Why a row still cannot be carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// In which column.
    pub column: usize,
    /// In words.
    pub why: &'static str,
}

/// Encodes a row that came under the shape `from` anew under `to`, at the end
/// of a batch. Columns are known by their ids; one that came later is null.
/// After an error nothing of it is left in the batch.
pub fn recode(
    to: &Table,
    number: SchemaNumber,
    from: &Table,
    op: Op,
    unfit: &Unfit<'_>,
    into: &mut BatchWriter,
) -> Result<(), Misfit> {
    let columns =
        to.columns.iter().map(|column| PlanColumn { codec: codec_of(&column.ty, &column.db_type), output: None });
    let plan = Plan::new(to.clone(), columns.collect(), to.columns.iter().map(|column| column.name.as_str()));
    let arranged = |cells: RawCells<'_>| {
        let cells: Vec<RawCell<'_>> = cells.iter().collect();
        let mut bytes = Vec::new();
        for column in &to.columns {
            let place = from.columns.iter().position(|other| other.id == column.id);
            put_cell(&mut bytes, place.and_then(|place| cells.get(place)).copied().unwrap_or(RawCell::Null));
        }
        bytes
    };
    let new = unfit.new.map(arranged);
    let old = unfit.old.map(|(whole, cells)| (whole, arranged(cells)));
    let new = new.as_deref().map(|bytes| Tuple::over(to.columns.len(), bytes));
    let old =
        old.as_ref().map(|(whole, bytes)| OldTuple { whole: *whole, tuple: Tuple::over(to.columns.len(), bytes) });
    let written = encode(&plan, number, op, old, new, into);
    written.map_err(|error| {
        into.drop_row();
        Misfit { column: error.column, why: error.why }
    })
}

fn encode(
    plan: &Plan,
    number: SchemaNumber,
    op: Op,
    old: Option<OldTuple<'_>>,
    new: Option<Tuple<'_>>,
    into: &mut BatchWriter,
) -> Result<(), ValueError> {
    let (mut absent, mut before, mut old_key, mut new_key) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut unused = Vec::new();
    let mut extras = RowExtras::default();
    if let Some(old) = old {
        if let Some(new) = new
            && !plan.table.key.is_empty()
            && plan.key(old.tuple, &mut old_key)?
            && plan.key(new, &mut new_key)?
            && old_key != new_key
        {
            extras.old_key = Some(&old_key);
        }
        if old.whole {
            plan.value(old.tuple, None, &mut before, &mut unused)?;
            extras.before = Some(&before);
        }
    }
    let body = into.open_row(number);
    let any = match (new, old) {
        (Some(new), old) => plan.value(new, old, body, &mut absent)?,
        (None, Some(old)) if old.whole => plan.value(old.tuple, None, body, &mut absent)?,
        (None, Some(old)) => plan.key_only(old.tuple, body, &mut absent)?,
        (None, None) => return Err(ValueError { column: 0, why: "nothing of the row was told" }),
    };
    if any {
        extras.absent = Some(&absent);
    }
    into.close_row(op, extras);
    Ok(())
}

/// How a column's text is read, by what the log knows of it: the catalog may
/// have forgotten.
fn codec_of(ty: &Type, db_type: &str) -> Codec {
    match ty {
        Type::Boolean => Codec::Bool,
        Type::Int => Codec::Int,
        Type::Long => Codec::Long,
        Type::Float => Codec::Float,
        Type::Double => Codec::Double,
        Type::String if db_type == "money" => Codec::Money,
        Type::String => Codec::Text,
        Type::Bytes => Codec::Bytes,
        Type::Uuid => Codec::Uuid,
        Type::Json => Codec::Json,
        Type::Decimal { precision, scale } => Codec::Decimal { precision: *precision, scale: *scale },
        Type::Date => Codec::Date,
        Type::Time => Codec::Time,
        Type::LocalTimestamp => Codec::Timestamp,
        Type::Timestamp => Codec::Timestamptz,
        Type::Map => Codec::Hstore,
        Type::Array(_) => {
            let plain = db_type.rsplit('.').next().unwrap_or(db_type).trim_matches('"');
            if plain.starts_with("vector") || plain.starts_with("halfvec") {
                return Codec::Vector;
            }
            let (mut element, mut dimensions) = (ty, 0);
            while let Type::Array(inner) = element {
                (element, dimensions) = (inner, dimensions + 1);
            }
            let of = db_type.trim_end_matches("[]");
            let delimiter = if of == "box" { b';' } else { b',' };
            Codec::Array { element: Box::new(codec_of(element, of)), dimensions, delimiter }
        }
        Type::Record(fields) => Codec::Composite(
            fields.iter().map(|f| (f.name.clone(), f.db_type.clone(), codec_of(&f.ty, &f.db_type))).collect(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use connector::{Batch, Column, TableKind};

    use super::*;

    fn table(columns: &[(i32, &str, Type)]) -> Table {
        let column = |(id, name, ty): &(i32, &str, Type)| Column {
            name: (*name).into(),
            ty: ty.clone(),
            db_type: String::new(),
            nullable: true,
            id: *id,
        };
        Table {
            source: "shop".into(),
            schema: "public".into(),
            name: "t".into(),
            kind: TableKind::Table,
            columns: columns.iter().map(column).collect(),
            key: vec![0],
            full_identity: false,
        }
    }

    /// The same row, once as it came, once under a shape that holds it.
    #[test]
    fn a_row_is_encoded_anew_under_a_shape_that_holds_it() {
        let narrow = table(&[(1, "id", Type::Int), (2, "amount", Type::Decimal { precision: 12, scale: 2 })]);
        let wide = table(&[(1, "id", Type::Int), (3, "note", Type::String), (2, "amount", Type::String)]);
        let columns = |table: &Table| -> Vec<PlanColumn> {
            let of = |c: &Column| PlanColumn { codec: codec_of(&c.ty, &c.db_type), output: None };
            table.columns.iter().map(of).collect()
        };
        let plan = Plan::new(narrow.clone(), columns(&narrow), ["id", "amount"]);
        let row =
            Row { op: Op::Insert, old: None, new: Some(vec![RawCell::Text(b"7"), RawCell::Text(b"NaN")]), size: 20 };
        let mut writer = BatchWriter::new();
        writer.begin(&[1], storage::Micros(0), "1", 0);
        let cause = Cause::Value(ValueError { column: 1, why: "not a finite number" });
        row.put(&plan, 1, &cause, &mut writer);
        let (payload, _) = writer.take().unwrap();
        let frame = |payload, records| storage::Frame {
            offsets: storage::OffsetRange { start: storage::Offset(0), end: storage::Offset(records) },
            kind: storage::Kind::Pending,
            ends_transaction: true,
            event_time: storage::Micros(0),
            payload,
            position: None,
        };
        let batch = Batch::new(frame(payload, 1));
        let run = batch.runs().next().unwrap().unwrap();
        let change = run.changes().next().unwrap().unwrap();
        assert!(change.unfit);
        let unfit = Unfit::read(change.value).unwrap();
        assert_eq!((unfit.key, unfit.column), (Some(&[14][..]), Some(1)));
        writer.begin(&[1], storage::Micros(0), "1", 0);
        let still = recode(&narrow, 1, &narrow, Op::Insert, &unfit, &mut writer);
        assert_eq!(still.unwrap_err().column, 1);
        recode(&wide, 2, &narrow, Op::Insert, &unfit, &mut writer).unwrap();
        let (payload, records) = writer.take().unwrap();
        assert_eq!(records, 1);
        let batch = Batch::new(frame(payload, 1));
        let run = batch.runs().next().unwrap().unwrap();
        let change = run.changes().next().unwrap().unwrap();
        assert_eq!((run.schema, change.unfit, change.value), (2, false, &b"\x0e\0\x02\x06NaN"[..]));
    }
}

//! Events and values as `tail` prints them.

use std::fmt::{self, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde::ser::{Error as _, SerializeMap, SerializeSeq, Serializer};

use crate::avro::Reader;
use crate::batch::{Change, Malformed, Op, Transaction};
use crate::civil::civil_from_days;
use crate::decimal::decimal_to_text;
use crate::mark::Mark;
use crate::shape::Shape;
use crate::table::{Column, Table, TableKind, Type};

const DAY: i64 = 86_400_000_000;

/// One event, ready to be serialised.
#[derive(Clone, Copy)]
pub enum EventJson<'a> {
    /// A row's change.
    Change {
        /// Its schema.
        shape: &'a Shape,
        /// Its transaction.
        transaction: Transaction<'a>,
        /// The change.
        change: Change<'a>,
        /// The position as its source prints it.
        position: &'a str,
    },
    /// A mark.
    Mark {
        /// The source's name.
        source: &'a str,
        /// The mark.
        mark: &'a Mark,
        /// Its offset.
        offset: u64,
        /// The position as its source prints it.
        position: &'a str,
    },
}

impl Serialize for EventJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match *self {
            EventJson::Change { shape, transaction, change, position } => {
                let table = &shape.table;
                let is_table = table.kind == TableKind::Table;
                map.serialize_entry("source", &table.source)?;
                map.serialize_entry("schema", &is_table.then_some(&table.schema))?;
                map.serialize_entry("table", &is_table.then_some(&table.name))?;
                map.serialize_entry("op", change.op.name())?;
                let row = |value| RowJson { table, value, change: None };
                let known = RowJson { table, value: change.value, change: Some(change) };
                let has_key = !table.key.is_empty() && change.op != Op::Truncate;
                map.serialize_entry("key", &has_key.then_some(KeyOfRow(row(change.value))))?;
                map.serialize_entry("old_key", &change.old_key.map(|body| KeyJson { table, body }))?;
                map.serialize_entry("before", &change.before.map(row))?;
                let after = !matches!(change.op, Op::Delete | Op::Truncate);
                map.serialize_entry("after", &after.then_some(known))?;
                let absent: Vec<&str> = match change.op {
                    Op::Delete => Vec::new(),
                    _ => absent(table, change).collect(),
                };
                map.serialize_entry("absent", &absent)?;
                map.serialize_entry("position", position)?;
                map.serialize_entry("ordinal", &change.ordinal)?;
                map.serialize_entry("tx", &(!transaction.tx.is_empty()).then_some(transaction.tx))?;
                map.serialize_entry("commit_time", &timestamp(transaction.commit_time.0, true))?;
                map.serialize_entry("offset", &change.offset.0)?;
                map.serialize_entry("schema_id", &shape.value_id)?;
            }
            EventJson::Mark { source, mark, offset, position } => {
                map.serialize_entry("source", source)?;
                map.serialize_entry("schema", &mark.schema)?;
                map.serialize_entry("table", &mark.table)?;
                map.serialize_entry("op", &mark.op)?;
                map.serialize_entry("generation", &mark.generation)?;
                map.serialize_entry("for", &mark.sinks)?;
                map.serialize_entry("position", position)?;
                map.serialize_entry("ordinal", &mark.ordinal)?;
                map.serialize_entry("tx", &None::<&str>)?;
                map.serialize_entry("commit_time", &timestamp(mark.commit_time, true))?;
                map.serialize_entry("offset", &offset)?;
            }
        }
        map.end()
    }
}

fn absent<'a>(table: &'a Table, change: Change<'a>) -> impl Iterator<Item = &'a str> {
    let columns = table.columns.iter().enumerate();
    columns.filter(move |(i, _)| change.is_absent(*i)).map(|(_, column)| column.name.as_str())
}

/// A row under its table; absent columns are left out.
struct RowJson<'a> {
    table: &'a Table,
    value: &'a [u8],
    change: Option<Change<'a>>,
}

impl Serialize for RowJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut reader = Reader::new(self.value);
        let mut map = serializer.serialize_map(None)?;
        for (i, column) in self.table.columns.iter().enumerate() {
            let value = ValueJson::read(&mut reader, column, self.table.in_key(i)).map_err(S::Error::custom)?;
            if !self.change.is_some_and(|change| change.is_absent(i)) {
                map.serialize_entry(&column.name, &value)?;
            }
        }
        map.end()
    }
}

/// The key's columns of a row, in the key's order.
struct KeyOfRow<'a>(RowJson<'a>);

impl Serialize for KeyOfRow<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let RowJson { table, value, .. } = self.0;
        let mut reader = Reader::new(value);
        let mut values = Vec::with_capacity(table.columns.len());
        for (i, column) in table.columns.iter().enumerate() {
            values.push(ValueJson::read(&mut reader, column, table.in_key(i)).map_err(S::Error::custom)?);
        }
        let mut map = serializer.serialize_map(Some(table.key.len()))?;
        for &i in &table.key {
            map.serialize_entry(&table.columns[i].name, &values[i])?;
        }
        map.end()
    }
}

/// A body under the schema of the key.
struct KeyJson<'a> {
    table: &'a Table,
    body: &'a [u8],
}

impl Serialize for KeyJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut reader = Reader::new(self.body);
        let mut map = serializer.serialize_map(Some(self.table.key.len()))?;
        for &i in &self.table.key {
            let column = &self.table.columns[i];
            let value = ValueJson::read(&mut reader, column, true).map_err(S::Error::custom)?;
            map.serialize_entry(&column.name, &value)?;
        }
        map.end()
    }
}

/// A value as JSON, read from a body.
#[derive(Clone, Debug, PartialEq)]
pub enum ValueJson<'a> {
    /// NULL.
    Null,
    /// A boolean.
    Boolean(bool),
    /// An integer.
    Long(i64),
    /// A single.
    Float(f32),
    /// A double.
    Double(f64),
    /// Text of the body.
    Text(&'a str),
    /// Text made here.
    Owned(String),
    /// An array.
    Array(Vec<ValueJson<'a>>),
    /// A map or composite.
    Object(Vec<(String, ValueJson<'a>)>),
}

impl<'a> ValueJson<'a> {
    /// Reads the next column of a row.
    pub fn read(reader: &mut Reader<'a>, column: &Column, required: bool) -> Result<Self, Malformed> {
        if required { Self::of(reader, &column.ty, 0) } else { Self::nullable(reader, &column.ty, 0) }
    }

    fn nullable(reader: &mut Reader<'a>, ty: &Type, depth: u32) -> Result<Self, Malformed> {
        if reader.present()? { Self::of(reader, ty, depth) } else { Ok(ValueJson::Null) }
    }

    fn of(reader: &mut Reader<'a>, ty: &Type, depth: u32) -> Result<Self, Malformed> {
        if depth > 64 {
            return Err(Malformed("nested too deep"));
        }
        Ok(match ty {
            Type::Boolean => ValueJson::Boolean(reader.boolean()?),
            Type::Int => ValueJson::Long(reader.int()?.into()),
            Type::Long => ValueJson::Long(reader.long()?),
            Type::Float => ValueJson::Float(reader.float()?),
            Type::Double => ValueJson::Double(reader.double()?),
            Type::String | Type::Json | Type::Uuid => ValueJson::Text(reader.string()?),
            Type::Bytes => ValueJson::Owned(STANDARD.encode(reader.bytes()?)),
            Type::Decimal { scale, .. } => ValueJson::Owned(decimal_to_text(reader.bytes()?, *scale)),
            Type::Date => ValueJson::Owned(date(reader.int()?)),
            Type::Time => ValueJson::Owned(time(reader.long()?)),
            Type::LocalTimestamp => ValueJson::Owned(timestamp(reader.long()?, false)),
            Type::Timestamp => ValueJson::Owned(timestamp(reader.long()?, true)),
            Type::Array(element) => {
                let mut out = Vec::new();
                loop {
                    let count = reader.block()?;
                    if count == 0 {
                        break ValueJson::Array(out);
                    }
                    for _ in 0..count {
                        out.push(Self::nullable(reader, element, depth + 1)?);
                    }
                }
            }
            Type::Map => {
                let mut out = Vec::new();
                loop {
                    let count = reader.block()?;
                    if count == 0 {
                        break ValueJson::Object(out);
                    }
                    for _ in 0..count {
                        let key = reader.string()?.to_owned();
                        out.push((key, Self::nullable(reader, &Type::String, depth + 1)?));
                    }
                }
            }
            Type::Record(fields) => {
                let mut out = Vec::with_capacity(fields.len());
                for field in fields {
                    out.push((field.name.clone(), Self::nullable(reader, &field.ty, depth + 1)?));
                }
                ValueJson::Object(out)
            }
        })
    }
}

impl Serialize for ValueJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            ValueJson::Null => serializer.serialize_none(),
            ValueJson::Boolean(value) => serializer.serialize_bool(*value),
            ValueJson::Long(value) => serializer.serialize_i64(*value),
            ValueJson::Float(value) if value.is_finite() => serializer.serialize_f32(*value),
            ValueJson::Float(value) => serializer.serialize_str(not_finite(f64::from(*value))),
            ValueJson::Double(value) if value.is_finite() => serializer.serialize_f64(*value),
            ValueJson::Double(value) => serializer.serialize_str(not_finite(*value)),
            ValueJson::Text(text) => serializer.serialize_str(text),
            ValueJson::Owned(text) => serializer.serialize_str(text),
            ValueJson::Array(items) => {
                let mut seq = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    seq.serialize_element(item)?;
                }
                seq.end()
            }
            ValueJson::Object(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

fn not_finite(value: f64) -> &'static str {
    match value {
        v if v.is_nan() => "NaN",
        v if v > 0.0 => "Infinity",
        _ => "-Infinity",
    }
}

fn date(days: i32) -> String {
    match days {
        i32::MAX => "infinity".into(),
        // The greatest int's counterpart is -MAX: -infinity is "minus the greatest".
        _ if days == -i32::MAX => "-infinity".into(),
        _ => {
            let mut out = String::new();
            let bc = put_date(&mut out, days.into());
            out.push_str(bc);
            out
        }
    }
}

/// ` BC` where it belongs.
fn put_date(out: &mut String, days: i64) -> &'static str {
    let (year, month, day) = civil_from_days(days);
    let (year, bc) = if year <= 0 { (1 - year, " BC") } else { (year, "") };
    // Writing into a String cannot fail.
    let _ = write!(out, "{year:04}-{month:02}-{day:02}");
    bc
}

fn put_time(out: &mut String, micros: i64) {
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    let _ = write!(out, "{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if fraction != 0 {
        let digits = format!("{fraction:06}");
        let _ = write!(out, ".{}", digits.trim_end_matches('0'));
    }
}

fn time(micros: i64) -> String {
    let mut out = String::new();
    put_time(&mut out, micros);
    out
}

/// A timestamp as `tail` prints it, in UTC or without a zone.
pub fn timestamp(micros: i64, utc: bool) -> String {
    if micros == i64::MAX {
        return "infinity".into();
    }
    if micros == -i64::MAX {
        return "-infinity".into();
    }
    let mut out = String::new();
    let bc = put_date(&mut out, micros.div_euclid(DAY));
    out.push('T');
    put_time(&mut out, micros.rem_euclid(DAY));
    if utc {
        out.push('Z');
    }
    out.push_str(bc);
    out
}

impl fmt::Display for EventJson<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_times_are_iso_8601_as_postgresql_counts_years() {
        assert_eq!(date(19_782), "2024-02-29");
        assert_eq!(date(-735_160), "0044-03-15 BC");
        assert_eq!(date(i32::MAX), "infinity");
        assert_eq!(time(DAY), "24:00:00");
        assert_eq!(time(1), "00:00:00.000001");
        assert_eq!(timestamp(1_709_208_000_500_000, false), "2024-02-29T12:00:00.5");
        assert_eq!(timestamp(-i64::MAX, true), "-infinity");
        assert_eq!(timestamp(1_709_208_000_000_000, true), "2024-02-29T12:00:00Z");
    }
}

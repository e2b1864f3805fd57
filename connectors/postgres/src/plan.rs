//! A plan: how a table's tuples become Avro rows, compiled once per schema.

use std::fmt;

use connector::Table;

use crate::codec::{Codec, Why};
use crate::pgoutput::{Cell, OldTuple, Tuple};

/// A value that its type cannot hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ValueError {
    pub(crate) column: usize,
    pub(crate) why: Why,
}

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.why)
    }
}

/// How to read one column.
#[derive(Clone, Debug)]
pub(crate) struct PlanColumn {
    pub(crate) codec: Codec,
    /// `"schema"."function"` that prints the type; None where COPY's binary form is read.
    pub(crate) output: Option<String>,
}

/// A column of the stream.
#[derive(Clone, Debug)]
struct StreamColumn {
    /// None: left out.
    column: Option<usize>,
    in_key: bool,
    codec: Codec,
}

/// Compiled for one table under one schema.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) table: Table,
    pub(crate) columns: Vec<PlanColumn>,
    /// The relation's columns, in the stream's order: ours, or left out.
    from_stream: Vec<Option<usize>>,
    /// The same, with all that writing a value needs side by side.
    stream: Vec<StreamColumn>,
    in_key: Vec<bool>,
    bitmap: usize,
}

impl Plan {
    /// `stream` are the relation's columns by name, in its order.
    pub(crate) fn new<'a>(table: Table, columns: Vec<PlanColumn>, stream: impl IntoIterator<Item = &'a str>) -> Self {
        let place = |name: &str| table.columns.iter().position(|column| column.name == name);
        let from_stream: Vec<_> = stream.into_iter().map(place).collect();
        let in_key = (0..table.columns.len()).map(|i| table.in_key(i)).collect();
        let stream = from_stream
            .iter()
            .map(|&column| StreamColumn {
                column,
                in_key: column.is_some_and(|column| table.in_key(column)),
                codec: column.map_or(Codec::Text, |column| columns[column].codec.clone()),
            })
            .collect();
        Self { bitmap: table.columns.len().div_ceil(8), table, columns, from_stream, stream, in_key }
    }

    /// Whether a tuple of so many columns fits.
    pub(crate) fn width(&self) -> usize {
        self.from_stream.len()
    }

    /// Appends a whole row. Columns not sent are filled from the old row where
    /// it has them, else told in `absent`; returns whether any is.
    #[inline]
    pub(crate) fn value(
        &self,
        new: Tuple<'_>,
        old: Option<OldTuple<'_>>,
        out: &mut Vec<u8>,
        absent: &mut Vec<u8>,
    ) -> Result<bool, ValueError> {
        make_room(new.bytes(), out);
        let mut any = false;
        for (i, (cell, stream)) in new.cells().zip(&self.stream).enumerate() {
            let Some(column) = stream.column else { continue };
            let text = match cell {
                Cell::Text(text) => text,
                Cell::Null if !stream.in_key => {
                    out.push(0);
                    continue;
                }
                other => match self.not_sent(other, old, i, column)? {
                    Cell::Text(text) => text,
                    Cell::Null => {
                        out.push(0);
                        continue;
                    }
                    Cell::Unchanged => {
                        out.push(0);
                        if !any {
                            absent.clear();
                            absent.resize(self.bitmap, 0);
                            any = true;
                        }
                        absent[column / 8] |= 1 << (column % 8);
                        continue;
                    }
                },
            };
            if !stream.in_key {
                out.push(2);
            }
            stream.codec.text(text, out).map_err(|why| ValueError { column, why })?;
        }
        Ok(any)
    }

    /// A column without text: from the old row, where it was not sent and that has it.
    #[cold]
    fn not_sent<'a>(
        &self,
        cell: Cell<'a>,
        old: Option<OldTuple<'a>>,
        i: usize,
        column: usize,
    ) -> Result<Cell<'a>, ValueError> {
        let in_key = self.in_key[column];
        let found = match cell {
            Cell::Unchanged => old
                .filter(|old| old.whole || in_key)
                .and_then(|old| old.tuple.cells().nth(i))
                .unwrap_or(Cell::Unchanged),
            cell => cell,
        };
        match found {
            Cell::Text(_) => Ok(found),
            _ if in_key => Err(ValueError { column, why: "a key column was not sent" }),
            _ => Ok(found),
        }
    }

    /// Appends a row of which only the key is known; the rest is absent.
    pub(crate) fn key_only(&self, old: Tuple<'_>, out: &mut Vec<u8>, absent: &mut Vec<u8>) -> Result<bool, ValueError> {
        absent.clear();
        absent.resize(self.bitmap, 0);
        let mut any = false;
        for (cell, place) in old.cells().zip(&self.from_stream) {
            let Some(column) = *place else { continue };
            match cell {
                Cell::Text(text) if self.in_key[column] => {
                    let put = self.columns[column].codec.text(text, out);
                    put.map_err(|why| ValueError { column, why })?;
                }
                _ if self.in_key[column] => return Err(ValueError { column, why: "a key column was not sent" }),
                _ => {
                    out.push(0);
                    absent[column / 8] |= 1 << (column % 8);
                    any = true;
                }
            }
        }
        Ok(any)
    }

    /// The same of a key given as the database's text, in the key's order.
    pub(crate) fn keyed(
        &self,
        key: &[Option<String>],
        out: &mut Vec<u8>,
        absent: &mut Vec<u8>,
    ) -> Result<(), ValueError> {
        absent.clear();
        absent.resize(self.bitmap, 0);
        for (column, plan) in self.columns.iter().enumerate() {
            let Some(at) = self.table.key.iter().position(|&i| i == column) else {
                out.push(0);
                absent[column / 8] |= 1 << (column % 8);
                continue;
            };
            let text = key.get(at).and_then(Option::as_deref);
            let text = text.ok_or(ValueError { column, why: "a key column is null" })?;
            plan.codec.text(text.as_bytes(), out).map_err(|why| ValueError { column, why })?;
        }
        Ok(())
    }

    /// Appends a tuple's key under the schema of the key; false where the
    /// tuple does not have it whole.
    pub(crate) fn key(&self, tuple: Tuple<'_>, out: &mut Vec<u8>) -> Result<bool, ValueError> {
        for &column in &self.table.key {
            let Some(Cell::Text(text)) = self.cell(tuple, column) else { return Ok(false) };
            self.columns[column].codec.text(text, out).map_err(|why| ValueError { column, why })?;
        }
        Ok(true)
    }

    /// A column of ours in a tuple.
    pub(crate) fn cell<'a>(&self, tuple: Tuple<'a>, column: usize) -> Option<Cell<'a>> {
        let place = self.from_stream.iter().position(|place| *place == Some(column))?;
        tuple.cells().nth(place)
    }

    /// The key's values as the database's text, for people and for finding the row again.
    pub(crate) fn key_texts(&self, tuple: Tuple<'_>) -> Vec<Option<String>> {
        let text = |&column: &usize| match self.cell(tuple, column) {
            Some(Cell::Text(text)) => Some(String::from_utf8_lossy(text).into_owned()),
            _ => None,
        };
        self.table.key.iter().map(text).collect()
    }

    /// What a snapshot selects: the columns by name, each as it is or as the
    /// text that its type's own output function prints, which is what the
    /// stream sends. (A cast is not: `true::text` is `true`, the stream says `t`.)
    pub(crate) fn select_list(&self) -> String {
        let item = |(column, plan): (&connector::Column, &PlanColumn)| {
            let name = quote(&column.name);
            match &plan.output {
                Some(function) => format!("{function}({name})"),
                None => name,
            }
        };
        self.table.columns.iter().zip(&self.columns).map(item).collect::<Vec<_>>().join(", ")
    }

    /// Appends a row of `COPY … (FORMAT binary)`.
    #[inline]
    pub(crate) fn copied(&self, row: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
        const SHORT: Why = "the row ends early";
        make_room(row.len(), out);
        let mut rest = row.get(2..).ok_or(ValueError { column: 0, why: SHORT })?;
        for (column, plan) in self.columns.iter().enumerate() {
            let fail = |why| ValueError { column, why };
            let (length, tail) = rest.split_first_chunk::<4>().ok_or(fail(SHORT))?;
            let length = i32::from_be_bytes(*length);
            if length < 0 {
                if self.in_key[column] {
                    return Err(fail("a key column is null"));
                }
                out.push(0);
                rest = tail;
                continue;
            }
            let (value, tail) = tail.split_at_checked(length as usize).ok_or(fail(SHORT))?;
            rest = tail;
            if !self.in_key[column] {
                out.push(2);
            }
            let put = if plan.output.is_some() { plan.codec.text(value, out) } else { plan.codec.binary(value, out) };
            put.map_err(fail)?;
        }
        Ok(())
    }
}

/// For a row and, where it is a large one, what ends its batch: a buffer that
/// has to grow again is there twice, the row in both.
#[inline]
fn make_room(row: usize, out: &mut Vec<u8>) {
    out.reserve(row + row / 16);
}

/// The columns of a row of `COPY … (FORMAT binary)`; ends where the row does.
pub(crate) fn copied_cells(row: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    let mut rest = row.get(2..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let length = i32::from_be_bytes(*length);
        let (value, tail) = tail.split_at_checked(length.max(0) as usize)?;
        rest = tail;
        Some((length >= 0).then_some(value))
    })
}

/// As an identifier.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// As a literal, whatever standard_conforming_strings says.
pub(crate) fn literal(text: &str) -> String {
    if text.contains('\\') {
        format!(" E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

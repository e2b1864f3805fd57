//! Rows read again by key, at a round's point: what is there comes as `read`,
//! what is not as `delete`. Read at S and logged between what was committed up
//! to S and what came later, so never an old value behind a newer one.
//!
//! A key that only looks like one of the source's (1.00 for a numeric 1.0) is
//! deleted before its row is read: whoever holds the row under the other
//! spelling makes room for it.

use std::collections::BTreeMap;

use connector::{BatchWriter, Captured, Error, Op, Result, RowExtras, Schemas};

use crate::connection::Connection;
use crate::error::WireError;
use crate::plan::{Plan, literal, quote};
use crate::shape::Compiler;
use crate::snapshot::Prepared;
use crate::snapshot::round::{key_sql, rows_sql, whole_batch};
use crate::target::Target;
use crate::unfit::uncarried;

/// Keys of one statement.
const KEYS: usize = 500;

/// Rows by key, at a point.
pub(crate) struct Mend<'a, S> {
    pub(crate) compiler: &'a Compiler<S>,
    pub(crate) target: &'a Target,
    pub(crate) prepared: &'a Prepared,
}

impl<S: Schemas> Mend<'_, S> {
    /// Reads and deletes; how many of each. `ordinal` counts the point's events.
    pub(crate) fn run(
        &self,
        wanted: &BTreeMap<String, Vec<Vec<String>>>,
        ordinal: &mut u64,
        mut hand: impl FnMut(Captured) -> Result<()>,
    ) -> Result<(u64, u64)> {
        let attempt = || "could not read rows again";
        let failed = |error: WireError| error.during(attempt());
        let mut connection = Connection::connect(self.target, false).map_err(failed)?;
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
            literal(&self.prepared.snapshot)
        );
        connection.query(&begin).map_err(failed)?;
        let (mut read, mut deleted) = (0, 0);
        for (stream, keys) in wanted {
            let of_stream = |t: &&crate::catalog::CatalogTable| self.compiler.stream_of(&t.schema, &t.name) == *stream;
            let table = self.compiler.tables.iter().find(of_stream);
            let table = table.ok_or_else(|| Error::halt(format!("{stream} is not captured any more")))?;
            let compiled = self.compiler.compile(table)?;
            let plan = &compiled.plan;
            if plan.table.key.is_empty() {
                return Err(Error::halt(format!("{stream} has no key, its rows cannot be read one by one"))
                    .hint(format!("`highwater snapshot {} {}`", plan.table.source, table.qualified())));
            }
            let mut change = compiled.change.clone();
            for keys in keys.chunks(KEYS) {
                let mut writer = BatchWriter::new();
                writer.begin(&self.prepared.point.to_bytes(), self.prepared.time, "", *ordinal);
                let mut rows = 0;
                let gone = connection.query(&gone_sql(plan, &table.quoted(), keys)).map_err(failed)?;
                let mut absent = Vec::new();
                for key in gone {
                    let body = writer.open_row(compiled.number);
                    plan.keyed(&key, body, &mut absent).map_err(|e| uncarried(plan, "to be deleted", &e))?;
                    let extras = RowExtras { absent: Some(&absent), ..RowExtras::default() };
                    writer.close_row(Op::Delete, extras);
                    rows += 1;
                    deleted += 1;
                }
                let keys: Vec<&Vec<String>> = keys.iter().collect();
                connection.copy_out(&rows_sql(plan, &table.quoted(), &keys)).map_err(failed)?;
                while let Some(data) = connection.copy_row().map_err(failed)? {
                    let row = copied_body(data);
                    if row.is_empty() {
                        continue;
                    }
                    let body = writer.open_row(compiled.number);
                    plan.copied(row, body).map_err(|error| uncarried(plan, "read again", &error))?;
                    writer.close_row(Op::Read, RowExtras::default());
                    rows += 1;
                    read += 1;
                }
                *ordinal += rows;
                if let Some((payload, records)) = writer.take() {
                    hand(whole_batch(payload, records, change.take().into_iter().collect(), self.prepared.time))?;
                }
            }
        }
        connection.query("COMMIT").map_err(failed)?;
        Ok((read, deleted))
    }
}

/// A message of COPY without the stream's header; empty for its end.
pub(crate) fn copied_body(mut data: &[u8]) -> &[u8] {
    if let Some(rest) = data.strip_prefix(b"PGCOPY\n\xff\r\n\0") {
        // Flags, then the length of an extension.
        let extension = rest.get(4..8).and_then(|l| l.first_chunk::<4>()).map_or(0, |l| u32::from_be_bytes(*l));
        data = rest.get(8 + extension as usize..).unwrap_or_default();
    }
    if data == [0xff, 0xff] { &[] } else { data }
}

/// The keys that the source does not have as they are spelled, as its types print them.
fn gone_sql(plan: &Plan, table: &str, keys: &[Vec<String>]) -> String {
    let shape = &plan.table;
    let width = shape.key.len();
    // As the type's own output function has it, which a cast to text need not.
    let printed = |value: &str| format!("format('%s', {value})");
    let columns: Vec<String> = (0..width).map(|i| printed(&format!("w.k{i}"))).collect();
    let names: Vec<String> = (0..width).map(|i| format!("k{i}")).collect();
    let same: Vec<String> = (0..width)
        .map(|i| {
            let name = format!("t.{}", quote(&shape.columns[shape.key[i]].name));
            format!("{name} = w.k{i} AND {} = {}", printed(&name), printed(&format!("w.k{i}")))
        })
        .collect();
    let list: Vec<String> = keys.iter().map(|key| key_sql(plan, key)).collect();
    format!(
        "SELECT {} FROM (VALUES {}) w ({}) WHERE NOT EXISTS (SELECT FROM {table} t WHERE {})",
        columns.join(", "),
        list.join(", "),
        names.join(", "),
        same.join(" AND ")
    )
}

//! Whether a warehouse's tables are still as the sink left them: somebody else
//! may have altered them. Changes nothing.

use std::collections::HashMap;

use config::PostgresSink as Config;
use connector::{Error, Result, Table};
use tokio_postgres::Client;

use crate::error::failed;
use crate::session;
use crate::sql::{literal, quote};
use crate::table::Mirror;

/// A difference between a table and what is expected of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// The stream that the table belongs to.
    pub stream: String,
    /// What differs.
    pub what: String,
    /// SQL that mends it, in the warehouse.
    pub sql: Option<String>,
    /// The sink itself sees to it, with the next rows.
    pub by_itself: bool,
}

/// Compares the tables that a sink has for a source with what it left there,
/// and with the source's `tables` as they are now.
pub async fn drift(config: &Config, sink: &str, source: &str, tables: &[Table]) -> Result<Vec<Drift>> {
    let client = session::connect(&config.server).await?;
    let attempt = || "could not look at the sink's tables in the warehouse";
    let sql = "SELECT to_regclass('_highwater.tables') IS NOT NULL";
    if !client.query_one(sql, &[]).await.map_err(|error| failed(error, attempt()))?.get::<_, bool>(0) {
        return Ok(Vec::new());
    }
    let sql = format!("SELECT {} FROM _highwater.tables WHERE sink = $1 AND source = $2", Mirror::COLUMNS);
    let rows = client.query(&sql, &[&sink, &source]).await.map_err(|error| failed(error, attempt()))?;
    let mut known = HashMap::new();
    for row in &rows {
        let mirror = Mirror::from_row(row).map_err(|error| {
            Error::halt("_highwater.tables cannot be read").because(error).hint("was it changed by hand?")
        })?;
        known.insert(mirror.stream.clone(), mirror);
    }
    let mut all = Vec::new();
    // A table that is not known yet is made with its first rows.
    for table in tables {
        let Some(mirror) = known.get(&table.stream()) else { continue };
        let actual = actual(&client, mirror).await?;
        compare(mirror, actual.as_deref(), &config.meta_prefix, &mut all);
        if actual.is_some() {
            ahead(mirror, table, &mut all);
        }
    }
    Ok(all)
}

/// A column of a table as it is.
#[derive(Clone, Debug)]
struct Actual {
    name: String,
    ty: String,
    /// NOT NULL, and nothing fills it in.
    wants_value: bool,
}

/// None: there is no such table.
async fn actual(client: &Client, mirror: &Mirror) -> Result<Option<Vec<Actual>>> {
    let sql = "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod),
                      a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AND a.attgenerated = ''
                 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')";
    let rows = client.query(sql, &[&mirror.schema, &mirror.name]).await;
    let rows = rows.map_err(|error| failed(error, format!("could not look at table {}", mirror.quoted())))?;
    if rows.is_empty() {
        return Ok(None);
    }
    let columns = rows.iter().filter_map(|row| {
        let name: Option<String> = row.get(0);
        Some(Actual { name: name?, ty: row.get(1), wants_value: row.get(2) })
    });
    Ok(Some(columns.collect()))
}

/// What somebody else has changed.
fn compare(mirror: &Mirror, actual: Option<&[Actual]>, prefix: &str, all: &mut Vec<Drift>) {
    let quoted = mirror.quoted();
    let mut tell = |what: String, sql: Option<String>| {
        all.push(Drift { stream: mirror.stream.clone(), what, sql, by_itself: false });
    };
    let Some(actual) = actual else {
        let sql = format!(
            "DELETE FROM _highwater.tables WHERE schema_name = {} AND table_name = {}; -- then have it read again: \
             highwater snapshot",
            literal(&mirror.schema),
            literal(&mirror.name)
        );
        tell(format!("table {quoted} is gone"), Some(sql));
        return;
    };
    for column in mirror.columns.iter().filter(|column| !column.dropped) {
        let name = quote(&column.name);
        match actual.iter().find(|there| there.name == column.name) {
            None => tell(
                format!("column {name} of {quoted} is gone"),
                Some(format!("ALTER TABLE {quoted} ADD COLUMN {name} {}; -- then have it read again", column.ty)),
            ),
            Some(there) if there.ty != column.ty => tell(
                format!("column {name} of {quoted} is {}, and the sink made it {}", there.ty, column.ty),
                Some(format!("ALTER TABLE {quoted} ALTER COLUMN {name} TYPE {};", column.ty)),
            ),
            Some(_) => {}
        }
    }
    let ours = |name: &str| name.starts_with(prefix) || mirror.columns.iter().any(|column| column.name == name);
    for there in actual.iter().filter(|there| there.wants_value && !ours(&there.name)) {
        let name = quote(&there.name);
        tell(
            format!("column {name} of {quoted} is not the sink's and allows no NULL: no row can be put in"),
            Some(format!("ALTER TABLE {quoted} ALTER COLUMN {name} DROP NOT NULL;")),
        );
    }
}

/// What the source has changed since, which comes with the next rows.
fn ahead(mirror: &Mirror, table: &Table, all: &mut Vec<Drift>) {
    let quoted = mirror.quoted();
    let mut tell = |what| all.push(Drift { stream: mirror.stream.clone(), what, sql: None, by_itself: true });
    for column in &table.columns {
        let name = quote(&column.name);
        match mirror.columns.iter().find(|here| !here.dropped && here.id == column.id) {
            None => tell(format!("{quoted} has no column {name} yet")),
            Some(here) if here.name != column.name => {
                tell(format!("column {} of {quoted} is {name} at the source", quote(&here.name)));
            }
            Some(here) if here.source_type != column.db_type => {
                tell(format!(
                    "column {name} of {quoted} is made for {}, and is {} at the source",
                    here.source_type, column.db_type
                ));
            }
            Some(_) => {}
        }
    }
    for here in mirror.columns.iter().filter(|here| !here.dropped) {
        if !table.columns.iter().any(|column| column.id == here.id) {
            tell(format!("column {} of {quoted} is dropped at the source", quote(&here.name)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::MirrorColumn;
    use crate::types::Fit;
    use connector::{Column, TableKind, Type};

    fn mirror() -> Mirror {
        let column = |id, name: &str, ty: &str, dropped| MirrorColumn {
            id,
            name: name.into(),
            ty: ty.into(),
            source_type: ty.into(),
            fit: Fit::Exact,
            dropped,
        };
        Mirror {
            stream: "shop.public.t".into(),
            schema: "public".into(),
            name: "t".into(),
            shape: 1,
            columns: vec![
                column(1, "id", "integer", false),
                column(2, "v", "text", false),
                column(3, "old", "text", true),
            ],
            key: vec!["id".into()],
            generation: 1,
            seen: None,
        }
    }

    fn actual(columns: &[(&str, &str, bool)]) -> Vec<Actual> {
        let one = |(name, ty, wants_value): &(&str, &str, bool)| Actual {
            name: (*name).into(),
            ty: (*ty).into(),
            wants_value: *wants_value,
        };
        columns.iter().map(one).collect()
    }

    fn told(actual: Option<&[Actual]>) -> Vec<String> {
        let mut all = Vec::new();
        compare(&mirror(), actual, "_hw_", &mut all);
        all.into_iter().map(|drift| drift.what).collect()
    }

    #[test]
    fn what_somebody_else_altered_is_told() {
        let fine =
            [("id", "integer", true), ("v", "text", false), ("_hw_offset", "bigint", true), ("note", "text", false)];
        assert_eq!(told(Some(&actual(&fine))), Vec::<String>::new());
        let other = [("id", "bigint", true), ("load", "date", true)];
        assert_eq!(
            told(Some(&actual(&other))),
            [
                "column \"id\" of \"public\".\"t\" is bigint, and the sink made it integer",
                "column \"v\" of \"public\".\"t\" is gone",
                "column \"load\" of \"public\".\"t\" is not the sink's and allows no NULL: no row can be put in",
            ]
        );
        assert_eq!(told(None), ["table \"public\".\"t\" is gone"]);
    }

    #[test]
    fn what_the_source_altered_comes_by_itself() {
        let column = |id, name: &str, db_type: &str| Column {
            name: name.into(),
            ty: Type::Int,
            db_type: db_type.into(),
            nullable: true,
            id,
        };
        let table = Table {
            source: "shop".into(),
            schema: "public".into(),
            name: "t".into(),
            kind: TableKind::Table,
            columns: vec![column(1, "number", "integer"), column(4, "new", "date")],
            key: vec![0],
            full_identity: false,
        };
        let mut all = Vec::new();
        ahead(&mirror(), &table, &mut all);
        assert!(all.iter().all(|drift| drift.by_itself));
        let all: Vec<String> = all.into_iter().map(|drift| drift.what).collect();
        assert_eq!(
            all,
            [
                "column \"id\" of \"public\".\"t\" is \"number\" at the source",
                "\"public\".\"t\" has no column \"new\" yet",
                "column \"v\" of \"public\".\"t\" is dropped at the source",
            ]
        );
    }
}

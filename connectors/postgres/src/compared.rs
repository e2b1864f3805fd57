//! What of the source a destination is compared with: the tables and columns
//! that are captured, as one snapshot has them.

use std::collections::HashMap;

use config::Postgres;
use connector::{Result, stream_part};
use tokio_postgres::Client;

use crate::catalog::{self, CatalogTable};
use crate::error::control_failed;
use crate::target::Servers;

/// A captured table.
#[derive(Clone, Debug)]
pub struct ComparedTable {
    /// Its stream.
    pub stream: String,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Those that are captured: number, name, type.
    pub columns: Vec<(i32, String, String)>,
    /// Names, in the key's order; empty: no key.
    pub key: Vec<String>,
    /// Its place for SQL.
    pub quoted: String,
    /// The relations that hold its rows: oid, name for SQL, file, blocks.
    pub leaves: Vec<(u32, String, u32, u64)>,
    /// Why it cannot be compared.
    pub not_comparable: Option<String>,
}

/// Connects, with the settings that decide how values look.
pub async fn connect(config: &Postgres) -> Result<Client> {
    Ok(Servers::of(config)?.connect().await?.1)
}

/// The tables that pass `wanted` by `schema.table`, as the client's transaction sees them.
pub async fn compared(client: &Client, config: &Postgres, wanted: impl Fn(&str) -> bool) -> Result<Vec<ComparedTable>> {
    let sql = "SELECT r.prrelid FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
                WHERE p.pubname = ANY($1) AND to_jsonb(r) ->> 'prqual' IS NOT NULL";
    let rows = client.query(sql, &[&crate::publication::names(&config.publication)]).await;
    let rows = rows.map_err(|error| control_failed(error, "could not read what is published"))?;
    let filtered: Vec<u32> = rows.iter().map(|row| row.get(0)).collect();
    let tables = catalog::tables(client, None, |name| config.tables.matches(name) && wanted(name)).await?;
    let mut found = Vec::new();
    for table in tables {
        if !table.is_told(config.partitions) {
            continue;
        }
        let options = config.options(&table.schema, &table.name);
        let captured = |name: &str| options.is_none_or(|options| options.columns.matches(name));
        let columns = table.columns.iter().filter(|column| captured(&column.name));
        let columns: Vec<_> = columns.map(|c| (i32::from(c.number), c.name.clone(), c.db_type.clone())).collect();
        let key = table.key().iter();
        let key = key.filter_map(|number| columns.iter().find(|c| c.0 == i32::from(*number)).map(|c| c.1.clone()));
        let leaves = if table.readable { catalog::leaves(client, &table).await? } else { Vec::new() };
        let files = files(client, leaves.iter().map(|leaf| leaf.oid).collect()).await?;
        found.push(ComparedTable {
            stream: format!("{}.{}.{}", config.name, stream_part(&table.schema), stream_part(&table.name)),
            key: key.collect(),
            columns,
            quoted: table.quoted(),
            leaves: leaves
                .into_iter()
                .map(|leaf| (leaf.oid, leaf.name, files.get(&leaf.oid).copied().unwrap_or(0), leaf.blocks))
                .collect(),
            not_comparable: not_comparable(&table, &filtered),
            schema: table.schema,
            name: table.name,
        });
    }
    Ok(found)
}

/// The relations' files as the snapshot has them: those of now may be rewrites already.
async fn files(client: &Client, relations: Vec<u32>) -> Result<HashMap<u32, u32>> {
    let rows = client.query("SELECT oid, relfilenode FROM pg_class WHERE oid = ANY($1)", &[&relations]).await;
    let rows = rows.map_err(|error| control_failed(error, "could not read the catalog's tables"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

fn not_comparable(table: &CatalogTable, filtered: &[u32]) -> Option<String> {
    if !table.readable {
        return Some("the source's role may not read it".into());
    }
    if table.row_security {
        return Some("row security hides rows of it from the source's role".into());
    }
    let why = "its publication has a row filter: the destination holds what passes it, and what was read at first";
    filtered.contains(&table.oid).then(|| why.into())
}

//! What of the warehouse is compared with the source: the sink's tables, as one
//! snapshot has them.

use config::PostgresSink as Config;
use connector::{Error, Result};
use tokio_postgres::Client;

use crate::error::failed;
use crate::history::views::CURRENT;
use crate::session;
use crate::sql::{qualified, quote};
use crate::table::Mirror;

/// A table of the sink.
#[derive(Clone, Debug)]
pub struct ComparedTable {
    /// Its stream.
    pub stream: String,
    /// As `schema.table`.
    pub name: String,
    /// What holds the current rows, for SQL; of a history its view.
    pub quoted: String,
    /// The columns that are kept up: the source's number, name, type.
    pub columns: Vec<(i32, String, String)>,
    /// The relations that hold its rows: oid, name for SQL, file, blocks. Of a view there are none.
    pub leaves: Vec<(u32, String, u32, u64)>,
    /// Why it cannot be compared.
    pub not_comparable: Option<String>,
}

/// Connects, with the settings that decide how values look; stands still in
/// transactions for as long as a comparison takes.
pub async fn connect(config: &Config) -> Result<Client> {
    let client = session::connect(&config.server).await?;
    let waits = client.batch_execute("SET idle_in_transaction_session_timeout = 0").await;
    waits.map_err(|error| failed(error, "could not set up the session"))?;
    Ok(client)
}

/// The sink's checkpoint, as the client's transaction sees it.
pub async fn checkpoint(client: &Client, sink: &str, source: &str) -> Result<Option<u64>> {
    let sql =
        "SELECT next_offset FROM _highwater.checkpoints WHERE sink = $1 AND source = $2 AND coalesce(lane, '') = ''";
    let row = client.query_opt(sql, &[&sink, &source]).await;
    let row = row.map_err(|error| failed(error, format!("could not read the checkpoint of sink {sink:?}")))?;
    Ok(row.and_then(|row| row.get::<_, Option<i64>>(0)).and_then(|next| u64::try_from(next).ok()))
}

/// The sink's tables.
pub async fn compared(client: &Client, sink: &str, source: &str) -> Result<Vec<ComparedTable>> {
    let attempt = || "could not read _highwater.tables";
    let sql = format!(
        "SELECT {}, mode, behind_since::text FROM _highwater.tables WHERE sink = $1 AND source = $2",
        Mirror::COLUMNS
    );
    let rows = client.query(&sql, &[&sink, &source]).await.map_err(|error| failed(error, attempt()))?;
    let mut found = Vec::new();
    for row in rows {
        let mirror = Mirror::from_row(&row).map_err(|error| Error::halt(attempt()).because(error))?;
        let history = row.get::<_, String>(Mirror::FIELDS) == "history";
        let behind: Option<String> = row.get(Mirror::FIELDS + 1);
        let mut not_comparable = behind.map(|since| format!("it is parked at the destination since {since}"));
        let view = qualified(&mirror.schema, &format!("{}{CURRENT}", mirror.name));
        if history && !exists(client, &view).await? {
            not_comparable = Some("it has no key, and a history of such a table has no current state".into());
        }
        let kept = mirror.columns.iter().filter(|column| !column.dropped);
        let columns = kept.map(|c| (c.id, c.name.clone(), c.ty.clone())).collect();
        let leaves = if history { Vec::new() } else { leaves(client, &mirror).await? };
        if !history && leaves.is_empty() {
            not_comparable = Some(format!("table {} is gone from the warehouse", mirror.quoted()));
        }
        found.push(ComparedTable {
            stream: mirror.stream.clone(),
            name: format!("{}.{}", mirror.schema, mirror.name),
            quoted: if history { view } else { mirror.quoted() },
            columns,
            leaves,
            not_comparable,
        });
    }
    Ok(found)
}

async fn exists(client: &Client, quoted: &str) -> Result<bool> {
    let row = client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&quoted]).await;
    Ok(row.map_err(|error| failed(error, format!("could not look for {quoted}")))?.get(0))
}

async fn leaves(client: &Client, mirror: &Mirror) -> Result<Vec<(u32, String, u32, u64)>> {
    // The file as the snapshot has it: that of now may be a rewrite already.
    let sql = "SELECT c.oid, n.nspname::text, c.relname::text, c.relfilenode,
                      pg_relation_size(c.oid) / current_setting('block_size')::bigint
                 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE c.relkind = 'r' AND (c.oid = to_regclass($1) OR c.oid IN
                      (SELECT relid::oid FROM pg_partition_tree(to_regclass($1)) WHERE isleaf))
                ORDER BY c.oid";
    let rows = client.query(sql, &[&mirror.quoted()]).await;
    let rows = rows.map_err(|error| failed(error, format!("could not measure {}", mirror.quoted())))?;
    let leaf = |row: &tokio_postgres::Row| {
        let name = format!("{}.{}", quote(row.get(1)), quote(row.get(2)));
        (row.get(0), name, row.get(3), row.get::<_, i64>(4).max(0) as u64)
    };
    Ok(rows.iter().map(leaf).collect())
}

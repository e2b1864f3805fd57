//! What of the warehouse is compared with the source: the sink's tables, as one
//! snapshot has them.

use config::{PostgresServer, PostgresSink as Config};
use connector::{Error, Result};
use tokio::task::JoinSet;
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

/// A session that holds a snapshot, and one that reads under it.
pub type Sessions = (Client, Client);

/// Sessions with each server of the configuration that takes writes: of
/// several such the one is the sink's that has its checkpoint. They have the
/// settings that decide how values look, and stand still in transactions for as
/// long as a comparison takes.
pub async fn connect(config: &Config) -> Result<Vec<Sessions>> {
    let mut hosts = JoinSet::new();
    for (i, host) in config.server.hosts.iter().enumerate() {
        let server = PostgresServer { hosts: vec![host.clone()], ..config.server.clone() };
        hosts.spawn(async move { (i, pair(&server).await) });
    }
    let (mut found, mut last) = (Vec::new(), None);
    while let Some(joined) = hosts.join_next().await {
        match joined.map_err(|error| Error::halt("could not connect to the warehouse").because(error))? {
            (i, Ok(Some(pair))) => found.push((i, pair)),
            (_, Ok(None)) => {}
            (_, Err(error)) => last = Some(error),
        }
    }
    found.sort_by_key(|(i, _)| *i);
    if found.is_empty() {
        let name = session::name(&config.server);
        let none = || Error::retry(format!("no server of {name} takes writes")).hint("is one of them being promoted?");
        return Err(last.unwrap_or_else(none));
    }
    Ok(found.into_iter().map(|(_, pair)| pair).collect())
}

/// None: it is a standby.
async fn pair(server: &PostgresServer) -> Result<Option<Sessions>> {
    let attempt = || format!("could not set up a session with {}", session::name(server));
    let (holder, worker) = (session::connect(server).await?, session::connect(server).await?);
    for client in [&holder, &worker] {
        let waits = client.batch_execute("SET idle_in_transaction_session_timeout = 0").await;
        waits.map_err(|error| failed(error, attempt()))?;
    }
    let standby = holder.query_one("SELECT pg_is_in_recovery()", &[]).await;
    let standby: bool = standby.map_err(|error| failed(error, attempt()))?.get(0);
    Ok((!standby).then_some((holder, worker)))
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

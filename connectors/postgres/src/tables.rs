//! Which tables are captured: selected, published, and watched for changes of
//! both, since a table that appears, or that somebody takes out of the
//! publication, sends nothing that would tell.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use config::{Partitions, Postgres};
use connector::{Captured, Error, Result};
use serde::Serialize;
use tokio::sync::mpsc::Sender;
use tokio_postgres::Client;

use crate::catalog::{self, CatalogTable};
use crate::control;
use crate::error::control_failed;
use crate::heartbeat::Heartbeat;
use crate::lsn::Lsn;
use crate::plan::quote;
use crate::publication;
use crate::slot;
use crate::stream::Shared;
use crate::target::Target;

/// A table that matches and is not captured.
#[derive(Clone, Debug, Serialize)]
pub struct LeftOut {
    #[serde(skip)]
    pub(crate) oid: u32,
    /// As `schema.table`.
    pub table: String,
    /// What is in the way.
    pub why: String,
    /// What mends it.
    pub sql: String,
}

/// What is captured, and what is not.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    pub(crate) tables: Vec<CatalogTable>,
    pub(crate) left_out: Vec<LeftOut>,
}

/// The tables that match, and that the WAL tells of; whether the role may read
/// them is not asked. What is named and cannot be captured is an error; what a
/// pattern only happens to match is passed over.
pub(crate) async fn matching(client: &Client, config: &Postgres) -> Result<Vec<CatalogTable>> {
    let found = catalog::tables(client, None, |name| config.tables.matches(name)).await?;
    let leaf = config.partitions == Partitions::Leaf;
    let mut tables = Vec::new();
    for table in found {
        let name = table.qualified();
        let why = match table.kind {
            'v' | 'm' => Some("it is a view, of which the WAL has no changes"),
            'f' => Some("it is a foreign table, of which the WAL has no changes"),
            _ if table.persistence == 'u' => Some("it is unlogged: the WAL has no changes of it"),
            _ if table.is_told(config.partitions) => {
                tables.push(table);
                continue;
            }
            'p' if leaf && has_settings(config, &table) => {
                let what = format!("table.{name:?} is a partitioned table, and `partitions` is \"leaf\"");
                return Err(
                    Error::halt(what).hint("settings are of its partitions then: give the pattern of their names")
                );
            }
            'p' if leaf => {
                Some("it is partitioned, and `partitions` is \"leaf\": its partitions are, by their own names")
            }
            _ => None,
        };
        match why {
            Some(why) if is_named(config, &table) => {
                let what = format!("{name} cannot be captured: {why}");
                return Err(Error::halt(what).hint("take it out of `tables` of the source"));
            }
            Some(why) => tracing::debug!(table = name, why, "passed over"),
            None => {}
        }
    }
    for exact in config.tables.exact() {
        if !tables.iter().any(|table| table.qualified() == exact) && config.tables.matches(exact) {
            let (or_what, how) = match config.partitions {
                Partitions::Root => (", or is a partition", ", partitions go by their root"),
                Partitions::Leaf => ("", ""),
            };
            return Err(Error::halt(format!("table {exact} does not exist{or_what}"))
                .hint(format!("check `tables` of the source: names are schema.table{how}")));
        }
    }
    if tables.is_empty() {
        return Err(publication::nothing(config.tables.given()));
    }
    Ok(tables)
}

fn is_named(config: &Postgres, table: &CatalogTable) -> bool {
    config.tables.exact().any(|exact| exact == table.qualified())
}

fn has_settings(config: &Postgres, table: &CatalogTable) -> bool {
    let name = table.qualified();
    config.table_options.iter().any(|(pattern, _)| pattern.exact().any(|exact| exact == name))
}

/// SQL that lets a role read a table.
pub(crate) fn grant(schema: &str, table: &str, role: &str) -> String {
    let (schema, table, role) = (quote(schema), quote(table), quote(role));
    format!("GRANT USAGE ON SCHEMA {schema} TO {role};\nGRANT SELECT ON {schema}.{table} TO {role};")
}

impl Selection {
    fn oids(&self) -> BTreeSet<u32> {
        let left_out = self.left_out.iter().map(|out| out.oid);
        self.tables.iter().map(|table| table.oid).chain(left_out).collect()
    }
}

/// The tables to capture: those that match, and can be. With `lenient`, a table
/// that somebody added without a thought for us does not stop those that are
/// followed already.
pub(crate) async fn select(client: &Client, config: &Postgres, lenient: bool) -> Result<Selection> {
    let mut selection = Selection::default();
    for table in matching(client, config).await? {
        let name = table.qualified();
        let (why, sql) = if !table.readable {
            (format!("the role may not read {name}"), grant(&table.schema, &table.name, &config.user))
        } else if table.row_security {
            let why = format!("row security is active for this role on {name}: a snapshot would lack rows");
            (why, format!("ALTER ROLE {} BYPASSRLS;", quote(&config.user)))
        } else {
            selection.tables.push(table);
            continue;
        };
        if !lenient || is_named(config, &table) {
            return Err(Error::halt(why).hint(sql));
        }
        selection.left_out.push(LeftOut { oid: table.oid, table: name, why, sql });
    }
    if selection.tables.is_empty() {
        return Err(publication::nothing(config.tables.given()));
    }
    Ok(selection)
}

/// What decides what is captured, as one look finds it.
pub(crate) type Standing = Vec<(Option<String>, String)>;

/// Selects, brings the publications in step, and tells how all stands then: a
/// table that appears while this looks is in one or the other.
pub(crate) async fn prepare(client: &Client, config: &Postgres, lenient: bool) -> Result<(Selection, Standing)> {
    loop {
        let selection = in_step(client, config, lenient).await?;
        let standing = standing(client, config).await?;
        if select(client, config, lenient).await?.oids() == selection.oids() {
            return Ok((selection, standing));
        }
    }
}

async fn in_step(client: &Client, config: &Postgres, lenient: bool) -> Result<Selection> {
    let mut selection = select(client, config, lenient).await?;
    for wanted in publication::wanted(config, &selection.tables) {
        if wanted.name != config.publication {
            let names: Vec<&str> = wanted.tables.iter().map(|(name, _)| name.as_str()).collect();
            tracing::warn!(
                tables = names.join(", "),
                "no replica identity: only inserts and truncates are captured. For the rest: ALTER TABLE … REPLICA IDENTITY FULL, or add a primary key"
            );
        }
        let Err(error) = publication::ensure(client, &wanted).await else { continue };
        let outside = publication::outside(client, &wanted).await?;
        let by_pattern = |name: &String| !config.tables.exact().any(|exact| exact == name);
        if !lenient || outside.is_empty() || !outside.iter().all(by_pattern) {
            return Err(error);
        }
        let sql = error.remedy().unwrap_or_default().to_owned();
        let gone = |table: &CatalogTable| outside.contains(&table.qualified());
        for table in selection.tables.iter().filter(|table| gone(table)) {
            let why = format!("it is not in publication {:?}, which the role may not change", wanted.name);
            selection.left_out.push(LeftOut { oid: table.oid, table: table.qualified(), why, sql: sql.clone() });
        }
        selection.tables.retain(|table| !gone(table));
    }
    for table in publication::harmful(client, &config.publication, &selection.tables).await? {
        tracing::error!(
            table = table.qualified(),
            publication = config.publication,
            "has no replica identity and is published with updates: its UPDATEs and DELETEs fail at the source. ALTER PUBLICATION … DROP TABLE it"
        );
    }
    place(client, config, &mut selection.tables).await?;
    Ok(selection)
}

/// The publications that the stream is of.
pub(crate) fn publications(config: &Postgres, tables: &[CatalogTable]) -> Vec<String> {
    publication::wanted(config, tables).into_iter().map(|wanted| wanted.name).collect()
}

/// Tells each table its place in the publication that it is wanted in: a
/// partition that is not there itself has the place of what it is a part of.
async fn place(client: &Client, config: &Postgres, tables: &mut [CatalogTable]) -> Result<()> {
    let sql = "SELECT p.pubname::text, coalesce(t.oid, 0)::oid, coalesce(r.oid, 0)::oid, p.oid, p.xmin::text::int8
                 FROM pg_publication p LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid
                 LEFT JOIN LATERAL (SELECT r.prrelid AS oid, 0 AS level
                                     UNION SELECT relid::oid, level FROM pg_partition_tree(r.prrelid::regclass)) t ON true
                WHERE p.pubname = ANY($1) ORDER BY t.level DESC";
    let rows = client.query(sql, &[&publication::names(&config.publication)]).await;
    let rows = rows.map_err(|error| control_failed(error, "could not read what is published"))?;
    let (mut places, mut publications) = (HashMap::new(), HashMap::new());
    for row in &rows {
        let name: String = row.get(0);
        publications.insert(name.clone(), (row.get::<_, u32>(3), row.get::<_, i64>(4) as u32));
        places.insert((name, row.get::<_, u32>(1)), row.get::<_, u32>(2));
    }
    for wanted in publication::wanted(config, tables) {
        let Some(&(publication, options)) = publications.get(&wanted.name) else { continue };
        for table in tables.iter_mut().filter(|table| wanted.tables.iter().any(|(name, _)| *name == table.qualified()))
        {
            let place = places.get(&(wanted.name.clone(), table.oid));
            (table.published, table.publication) = (place.copied().unwrap_or(publication), options);
        }
    }
    Ok(())
}

/// Everything that decides what is captured, and how.
const STANDING: &str = "
SELECT concat(n.nspname, '.', c.relname),
       concat_ws(' ', c.oid, c.relreplident, coalesce(r.oid, 0), c.relispartition, has_table_privilege(c.oid, 'SELECT'),
                 (SELECT md5(string_agg(concat_ws('/', a.attnum, a.attname, a.atttypid, a.atttypmod, a.atthasmissing), ','
                                        ORDER BY a.attnum))
                    FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
                 CASE WHEN c.relkind = 'p' THEN
                     (SELECT md5(string_agg(concat_ws('/', l.relid::oid, pg_relation_filenode(l.relid)), ',' ORDER BY l.relid))
                        FROM pg_partition_tree(c.oid) l WHERE l.isleaf) END,
                 CASE WHEN c.relispartition THEN
                     (SELECT string_agg(above.oid::text, ',' ORDER BY above.oid)
                        FROM pg_publication_rel above JOIN pg_publication p ON p.oid = above.prpubid AND p.pubname = ANY($1)
                       WHERE above.prrelid IN (SELECT relid FROM pg_partition_ancestors(c.oid))) END)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN (pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid AND p.pubname = ANY($1))
    ON r.prrelid = c.oid
 WHERE CASE WHEN $2 THEN c.relkind = 'r' ELSE c.relkind IN ('r', 'p') AND NOT c.relispartition END AND c.relpersistence = 'p'
   AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
UNION ALL
SELECT NULL, concat_ws(' ', pubname, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot, puballtables)
  FROM pg_publication WHERE pubname = ANY($1)
UNION ALL
SELECT NULL, concat('in recovery: ', pg_is_in_recovery())
 ORDER BY 1, 2";

async fn standing(client: &Client, config: &Postgres) -> Result<Standing> {
    let leaf = config.partitions == Partitions::Leaf;
    let rows = client.query(STANDING, &[&publication::names(&config.publication), &leaf]).await;
    let rows = rows.map_err(|error| control_failed(error, "could not look at the tables"))?;
    let wanted = |name: &Option<String>| name.as_ref().is_none_or(|name| config.tables.matches(name));
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).filter(|(name, _)| wanted(name)).collect())
}

/// Looks again and again; when something that matters has changed, hands on an
/// error that has the source opened anew, and ends. Tells the stream how far
/// time has come, and how the slot stands, too.
pub(crate) async fn watch(
    target: Target,
    config: Arc<Postgres>,
    before: Standing,
    shared: Arc<Shared>,
    out: Sender<Result<Captured>>,
) {
    let every = config.heartbeat.max(Duration::from_secs(1));
    let (mut client, mut heartbeat): (Option<Client>, _) = (None, Heartbeat::default());
    let mut kept_from = Lsn(0);
    loop {
        if client.as_ref().is_none_or(Client::is_closed) {
            // A server that is away is the stream's to tell of.
            client = control::connect(&target).await.ok();
        }
        if let Some(client) = &client {
            match heartbeat.beat(client).await {
                Ok(covered) => covered.into_iter().for_each(|covered| shared.cover(covered)),
                Err(error) => tracing::warn!(error = error.chain(), "the watermark stands still"),
            }
        }
        let now = match &client {
            Some(client) => standing(client, &config).await.inspect_err(|error| {
                tracing::warn!(error = error.chain(), "could not look whether tables have changed");
            }),
            None => Err(Error::retry("not connected")),
        };
        let slot = match &client {
            Some(client) => slot::measure(client, &config.slot).await.unwrap_or_default(),
            None => None,
        };
        if let Some(slot) = &slot {
            // As of the look before: it shows a moment before it is saved.
            shared.kept_from.fetch_max(kept_from.0, Ordering::Relaxed);
            kept_from = slot.restart;
        }
        *shared.slot.lock().unwrap_or_else(PoisonError::into_inner) = slot;
        if now.is_ok_and(|now| now != before) {
            let changed =
                "the tables or publications have changed at the server, or it was promoted: capture begins anew";
            let _ = out.send(Err(Error::retry(changed))).await;
            return;
        }
        tokio::select! {
            () = out.closed() => return,
            () = tokio::time::sleep(every) => {}
        }
    }
}

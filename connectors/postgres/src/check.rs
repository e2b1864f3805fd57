//! Looks at a server, says what would fail and what mends it. Changes nothing.

use config::Postgres;
use connector::Table;
use serde::Serialize;
use tokio_postgres::Client;

use crate::catalog::{CatalogTable, Types};
use crate::control;
use crate::error::control_failed;
use crate::lsn::Lsn;
use crate::plan::quote;
use crate::publication;
use crate::shape;
use crate::slot;
use crate::source::target;
use crate::tables::{grant, matching};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Works; somebody should know.
    Warning,
    /// Would fail.
    Error,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub what: String,
    /// SQL that mends it.
    pub sql: Option<String>,
    /// What else to do.
    pub remedy: Option<String>,
}

impl Finding {
    fn ok(what: impl Into<String>) -> Self {
        Self { severity: Severity::Ok, what: what.into(), sql: None, remedy: None }
    }

    fn warning(what: impl Into<String>, sql: Option<String>) -> Self {
        Self { severity: Severity::Warning, what: what.into(), sql, remedy: None }
    }

    fn error(what: impl Into<String>, sql: Option<String>) -> Self {
        Self { severity: Severity::Error, what: what.into(), sql, remedy: None }
    }

    fn failed(error: &connector::Error) -> Self {
        let remedy = error.remedy().map(str::to_owned);
        Self { severity: Severity::Error, what: error.chain(), sql: None, remedy }
    }
}

/// Schema and name of each table that a configuration captures: what a sink
/// will be given.
pub async fn captured(config: &Postgres) -> connector::Result<Vec<(String, String)>> {
    let client = control::connect(&target(config)?).await?;
    let tables = matching(&client, config).await?;
    Ok(tables.into_iter().map(|table| (table.schema, table.name)).collect())
}

/// The shapes that tables would be captured in now.
pub async fn shapes(config: &Postgres) -> connector::Result<Vec<Table>> {
    let client = control::connect(&target(config)?).await?;
    let types = Types::read(&client).await?;
    let tables = matching(&client, config).await?;
    tables.iter().map(|table| Ok(shape::of(config, &types, table)?.0)).collect()
}

/// `durable`: where this source's log stands, if it has one.
pub async fn check(config: &Postgres, durable: Option<Lsn>) -> Vec<Finding> {
    let client = match target(config) {
        Ok(target) => match control::connect(&target).await {
            Ok(client) => client,
            Err(error) => return vec![Finding::failed(&error)],
        },
        Err(error) => return vec![Finding::failed(&error)],
    };
    let mut findings = vec![Finding::ok(format!("reached {}:{} as {}", config.host, config.port, config.user))];
    if let Err(error) = look(&client, config, durable, &mut findings).await {
        findings.push(Finding::failed(&error));
    }
    findings
}

async fn look(
    client: &Client,
    config: &Postgres,
    durable: Option<Lsn>,
    findings: &mut Vec<Finding>,
) -> connector::Result<()> {
    let version = control::scalar(client, "SHOW server_version_num").await?;
    let version: u32 = version.parse().unwrap_or(0);
    findings.push(if version >= 130_000 {
        Finding::ok(format!("server version {}.{}", version / 10_000, version % 10_000))
    } else {
        Finding::error(format!("server version {}.{}: 13 or later is needed", version / 10_000, version % 10_000), None)
    });
    let level = control::scalar(client, "SHOW wal_level").await?;
    findings.push(if level == "logical" {
        Finding::ok("wal_level = logical")
    } else {
        let sql = "ALTER SYSTEM SET wal_level = 'logical'; -- then restart the server";
        Finding::error(format!("wal_level = {level}, capture needs logical"), Some(sql.into()))
    });
    if control::scalar(client, "SELECT pg_is_in_recovery()").await? == "t" {
        findings.push(Finding::warning("the server is a standby", None));
    }
    let may =
        control::scalar(client, "SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user").await?;
    findings.push(if may == "t" {
        Finding::ok("the role has REPLICATION")
    } else {
        let sql = format!("ALTER ROLE {} REPLICATION;", quote(&config.user));
        Finding::error(format!("role {} lacks REPLICATION", config.user), Some(sql))
    });
    let found = slot::read(client, &config.slot).await?;
    for (setting, used, need) in [
        ("max_replication_slots", "pg_replication_slots", 1 + u64::from(found.is_none())),
        ("max_wal_senders", "pg_stat_replication", 2),
    ] {
        let sql = format!("SELECT current_setting('{setting}')::int - (SELECT count(*) FROM {used})");
        let free: i64 = control::scalar(client, &sql).await?.parse().unwrap_or(0);
        if free < need as i64 {
            let sql = format!("ALTER SYSTEM SET {setting} = 20; -- then restart the server");
            findings.push(Finding::error(format!("{setting}: {free} free, {need} needed"), Some(sql)));
        }
    }
    if control::scalar(client, "SELECT coalesce(current_setting('max_slot_wal_keep_size', true), '-1')").await? == "-1"
    {
        findings.push(Finding::warning(
            "max_slot_wal_keep_size = -1: should this daemon be away for long, its slot fills the server's disk",
            Some("ALTER SYSTEM SET max_slot_wal_keep_size = '100GB'; SELECT pg_reload_conf();".into()),
        ));
    }
    let tables = match matching(client, config).await {
        Ok(tables) => tables,
        Err(error) => {
            findings.push(Finding::failed(&error));
            return Ok(());
        }
    };
    findings.push(Finding::ok(format!("{} tables match", tables.len())));
    for (schema, name) in unreadable(client, &tables).await? {
        let sql = grant(&schema, &name, &config.user);
        findings.push(Finding::error(format!("the role may not read {schema}.{name}"), Some(sql)));
    }
    for table in tables.iter().filter(|table| table.row_security) {
        let what = format!("row security is active for this role on {}: a snapshot would lack rows", table.qualified());
        findings.push(Finding::error(what, Some(format!("ALTER ROLE {} BYPASSRLS;", quote(&config.user)))));
    }
    for table in tables.iter().filter(|table| !table.has_identity()) {
        findings.push(Finding::warning(
            format!("{} has no replica identity: only its inserts and truncates are captured", table.qualified()),
            Some(format!("ALTER TABLE {} REPLICA IDENTITY FULL; -- or add a primary key", table.quoted())),
        ));
    }
    for wanted in publication::wanted(&config.publication, &tables) {
        let missing = publication::missing(client, &wanted).await?;
        if missing.is_empty() {
            findings.push(Finding::ok(format!("publication {:?} holds its tables", wanted.name)));
            continue;
        }
        let sql = missing.iter().map(|sql| format!("{sql};")).collect::<Vec<_>>().join(" ");
        findings.push(if publication::may_mend(client, &wanted.name, &tables).await? {
            Finding::warning(format!("publication {:?} is not in step yet; `run` mends it", wanted.name), Some(sql))
        } else {
            let what = format!("publication {:?} is not in step, and the role may not mend it", wanted.name);
            Finding { remedy: Some("run the SQL as the owner of the tables".into()), ..Finding::error(what, Some(sql)) }
        });
    }
    for table in publication::harmful(client, &config.publication, &tables).await? {
        let (name, publication) = (table.qualified(), quote(&config.publication));
        let sql = format!("ALTER PUBLICATION {publication} DROP TABLE {};", table.quoted());
        findings.push(Finding::error(
            format!("{name} has no replica identity and is published with updates: its UPDATEs and DELETEs fail at the source"),
            Some(sql),
        ));
    }
    match slot::fits(config.into(), found.as_ref(), durable) {
        Ok(()) => findings.push(Finding::ok(match &found {
            Some(found) => format!("slot {:?} confirmed up to {}", config.slot, found.confirmed),
            None => format!("slot {:?} is not there yet; `run` makes it", config.slot),
        })),
        Err(error) => findings.push(Finding::failed(&error)),
    }
    Ok(())
}

/// What of the tables, their partitions included, the role may not read: a
/// snapshot reads every partition by its own name.
async fn unreadable(client: &Client, tables: &[CatalogTable]) -> connector::Result<Vec<(String, String)>> {
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    let sql = "SELECT DISTINCT n.nspname::text, c.relname::text
                 FROM unnest($1::oid[]) AS r (oid)
                CROSS JOIN LATERAL (SELECT r.oid AS oid UNION SELECT relid FROM pg_partition_tree(r.oid::regclass)) t
                 JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE NOT (has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE'))
                ORDER BY 1, 2";
    let rows = client.query(sql, &[&oids]).await;
    let rows = rows.map_err(|error| control_failed(error, "could not ask what the role may read"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

//! Looks at a warehouse, says what would fail and what mends it. Changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use config::{PostgresSink as Config, WarehouseMode};
use connector::{Error, Result};
use tokio_postgres::Client;

use crate::error::failed;
use crate::history;
use crate::session;
use crate::sql::{qualified, quote};

/// One thing that was looked at.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Whether delivery would fail.
    pub fails: bool,
    /// What was found.
    pub what: String,
    /// SQL that mends it.
    pub sql: Option<String>,
    /// What else to do.
    pub remedy: Option<String>,
}

impl Finding {
    fn ok(what: impl Into<String>) -> Self {
        Self { fails: false, what: what.into(), sql: None, remedy: None }
    }

    fn bad(what: impl Into<String>, sql: Option<String>, remedy: Option<&str>) -> Self {
        Self { fails: true, what: what.into(), sql, remedy: remedy.map(str::to_owned) }
    }

    fn failed(error: &Error) -> Self {
        Self { fails: true, what: error.chain(), sql: None, remedy: error.remedy().map(str::to_owned) }
    }
}

/// `tables` are the sources' schemas and tables that the sink takes.
pub async fn check(config: &Config, tables: &[(String, String)]) -> Vec<Finding> {
    let mut findings = names(config, tables);
    match session::connect(&config.server).await {
        Ok(client) => {
            findings.push(Finding::ok(format!("reached {}", session::name(&config.server))));
            if let Err(error) = look(&client, config, tables, &mut findings).await {
                findings.push(Finding::failed(&error));
            }
        }
        Err(error) => findings.push(Finding::failed(&error)),
    }
    findings
}

fn place<'a>(config: &'a Config, table: &'a (String, String)) -> (&'a str, &'a str) {
    (config.schema.as_deref().unwrap_or(&table.0), &table.1)
}

/// Tables that would meet in one, or whose names would be cut.
fn names(config: &Config, tables: &[(String, String)]) -> Vec<Finding> {
    const REMEDY: &str = "take one out of `tables`, or give it a sink with a `schema` of its own";
    let mut findings = Vec::new();
    let mut places: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for table in tables {
        let (schema, name) = place(config, table);
        let from = format!("{}.{}", table.0, table.1);
        let mut taken = vec![name.to_owned()];
        if config.mode == WarehouseMode::History {
            taken.extend(history::views::SUFFIXES.map(|suffix| format!("{name}{suffix}")));
        }
        for name in taken {
            if name.len() > 63 || schema.len() > 63 {
                let what = format!("{from} would be {schema}.{name}, longer than the 63 bytes of a name in PostgreSQL");
                findings.push(Finding::bad(what, None, Some("take it out of `tables` of the sink")));
            }
            places.entry((schema.to_owned(), name)).or_default().push(from.clone());
        }
    }
    for ((schema, name), from) in places.iter_mut().filter(|(_, from)| from.len() > 1) {
        from.sort();
        let what = format!("{} would all be {schema}.{name} in the warehouse", from.join(" and "));
        findings.push(Finding::bad(what, None, Some(REMEDY)));
    }
    // PostgreSQL tells them apart; people and tools that do not quote cannot.
    let mut folded: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for (schema, name) in places.keys() {
        let of = (schema.to_lowercase(), name.to_lowercase());
        folded.entry(of).or_default().insert(format!("{schema}.{name}"));
    }
    for same in folded.values().filter(|same| same.len() > 1) {
        let same: Vec<String> = same.iter().cloned().collect();
        let what = format!("{} differ only by case", same.join(" and "));
        findings.push(Finding::bad(what, None, Some(REMEDY)));
    }
    findings
}

async fn look(
    client: &Client,
    config: &Config,
    tables: &[(String, String)],
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let attempt = || "could not look at the warehouse";
    let sql = "SELECT current_setting('server_version_num')::int4, pg_is_in_recovery(), current_database()::text,
                      has_database_privilege(current_database(), 'TEMPORARY'),
                      has_database_privilege(current_database(), 'CREATE')";
    let row = client.query_one(sql, &[]).await.map_err(|error| failed(error, attempt()))?;
    let (version, standby): (i32, bool) = (row.get(0), row.get(1));
    let (database, temporary, create): (String, bool, bool) = (row.get(2), row.get(3), row.get(4));
    let role = quote(&config.server.user);
    findings.push(if version >= 130_000 {
        Finding::ok(format!("server version {}.{}", version / 10_000, version % 10_000))
    } else {
        Finding::bad(format!("server version {}: 13 or later is needed", version / 10_000), None, None)
    });
    if standby {
        findings.push(Finding::bad("the server is a standby, which cannot be written", None, None));
    }
    if !temporary {
        let sql = format!("GRANT TEMPORARY ON DATABASE {} TO {role};", quote(&database));
        findings.push(Finding::bad("the role may not make temporary tables", Some(sql), None));
    }
    let mut schemas: BTreeSet<&str> = tables.iter().map(|table| place(config, table).0).collect();
    schemas.insert("_highwater");
    for schema in schemas {
        let sql = "SELECT has_schema_privilege(oid, 'CREATE') AND has_schema_privilege(oid, 'USAGE')
                     FROM pg_namespace WHERE nspname = $1";
        let row = client.query_opt(sql, &[&schema]).await.map_err(|error| failed(error, attempt()))?;
        match row.map(|row| row.get::<_, bool>(0)) {
            Some(true) => {}
            Some(false) => {
                let sql = format!("GRANT USAGE, CREATE ON SCHEMA {} TO {role};", quote(schema));
                findings.push(Finding::bad(
                    format!("the role may not make tables in schema {schema}"),
                    Some(sql),
                    None,
                ));
            }
            None if create => {}
            None => {
                let sql = format!("CREATE SCHEMA {} AUTHORIZATION {role};", quote(schema));
                let what = format!("schema {schema} is not there, and the role may not make it");
                findings.push(Finding::bad(what, Some(sql), None));
            }
        }
    }
    taken(client, config, tables, findings).await?;
    if !findings.iter().any(|finding| finding.fails) {
        findings.push(Finding::ok(format!("{} tables can be written", tables.len())));
    }
    Ok(())
}

/// Tables that are there and are not ours.
async fn taken(
    client: &Client,
    config: &Config,
    tables: &[(String, String)],
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let attempt = || "could not look at the warehouse's tables";
    let sql = "SELECT to_regclass('_highwater.tables') IS NOT NULL AND has_table_privilege(to_regclass('_highwater.tables'), 'SELECT')";
    let ledger: Option<bool> = client.query_one(sql, &[]).await.map_err(|error| failed(error, attempt()))?.get(0);
    let mut ours = BTreeSet::new();
    if ledger == Some(true) {
        let rows = client.query("SELECT schema_name, table_name FROM _highwater.tables", &[]).await;
        for row in rows.map_err(|error| failed(error, attempt()))? {
            ours.insert((row.get::<_, String>(0), row.get::<_, String>(1)));
        }
    }
    for table in tables {
        let (schema, name) = place(config, table);
        if ours.contains(&(schema.to_owned(), name.to_owned())) {
            continue;
        }
        let sql =
            "SELECT c.relkind::text, c.reltuples > 0 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                    WHERE n.nspname = $1 AND c.relname = $2";
        let row = client.query_opt(sql, &[&schema, &name]).await.map_err(|error| failed(error, attempt()))?;
        let Some(row) = row else { continue };
        let (kind, mut rows): (String, bool) = (row.get(0), row.get(1));
        if kind == "r" && !rows {
            let sql = format!("SELECT EXISTS (SELECT 1 FROM {})", qualified(schema, name));
            rows = client.query_one(&sql, &[]).await.map(|row| row.get(0)).unwrap_or(true);
        }
        if rows || !matches!(kind.as_str(), "r" | "p") {
            let what = format!("{schema}.{name} is there already, and this is not a sink's table");
            findings.push(Finding::bad(what, None, Some("drop it, or give the sink a `schema` of its own")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::{DroppedColumns, PostgresServer, PostgresTls};

    fn found(schema: Option<&str>, mode: WarehouseMode, tables: &[(&str, &str)]) -> Vec<String> {
        let server = PostgresServer {
            hosts: vec![config::PostgresHost { name: "localhost".into(), port: 5432 }],
            session: config::Session::Any,
            user: "loader".into(),
            database: "analytics".into(),
            password: None,
            tls: PostgresTls::Disable,
        };
        let config = Config {
            server,
            mode,
            schema: schema.map(str::to_owned),
            drop: DroppedColumns::Keep,
            cut_bytes: 1,
            cut_age: std::time::Duration::ZERO,
            meta_prefix: "_hw_".into(),
        };
        let tables: Vec<(String, String)> = tables.iter().map(|(s, t)| ((*s).into(), (*t).into())).collect();
        names(&config, &tables).into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn names_that_meet_are_told_before_anything_is_written() {
        let tables = [("a", "t"), ("b", "t"), ("a", "T")];
        assert_eq!(found(None, WarehouseMode::Mirror, &tables[..2]), Vec::<String>::new());
        assert_eq!(
            found(Some("all"), WarehouseMode::Mirror, &tables[..2]),
            ["a.t and b.t would all be all.t in the warehouse"]
        );
        assert_eq!(found(None, WarehouseMode::Mirror, &tables), ["a.T and a.t differ only by case"]);
        let history = [("a", "t"), ("a", "t_current")];
        assert_eq!(
            found(None, WarehouseMode::History, &history),
            ["a.t and a.t_current would all be a.t_current in the warehouse"]
        );
        let long = "x".repeat(60);
        assert_eq!(found(None, WarehouseMode::Mirror, &[("a", &long)]), Vec::<String>::new());
        assert_eq!(found(None, WarehouseMode::History, &[("a", &long)]).len(), 2);
    }
}

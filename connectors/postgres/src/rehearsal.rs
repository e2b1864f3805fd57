//! What statements would do to captured tables: run in a transaction that is
//! rolled back, with the catalog read before them and after.
//!
//! They run inside of a `DO` block, where the server refuses COMMIT and all
//! that cannot be rolled back. Their locks are real while it lasts: it waits
//! for none longer than [`LOCK`], and does not run longer than [`RUN`].

use std::collections::BTreeMap;

use config::Postgres;
use connector::{Error, Result, Table};
use tokio_postgres::Client;

use crate::catalog::{self, CatalogTable, Types};
use crate::error::control_failed;
use crate::shape;
use crate::target::Servers;

const LOCK: &str = "5s";
const RUN: &str = "60s";

/// A table that the statements touch.
#[derive(Clone, Debug)]
pub struct Rehearsed {
    /// As `schema.table`, afterwards where it is left.
    pub name: String,
    /// As it is; None: it is not there, or not captured.
    pub before: Option<Table>,
    /// As it would be.
    pub after: Option<Table>,
    /// Why all of it would be read again.
    pub read_again: Option<&'static str>,
}

struct Seen {
    catalog: CatalogTable,
    shape: Table,
    nodes: BTreeMap<u32, u32>,
    defaults: Vec<i16>,
}

/// Runs them as the role of `config`, and tells which captured tables would
/// not be as they are.
pub async fn rehearse(config: &Postgres, sql: &str) -> Result<Vec<Rehearsed>> {
    let (target, client) = Servers::of(config)?.connect().await?;
    let failed = |error| control_failed(error, "could not begin the transaction");
    let begin = format!("BEGIN; SET LOCAL lock_timeout = '{LOCK}'; SET LOCAL statement_timeout = '{RUN}'");
    client.batch_execute(&begin).await.map_err(failed)?;
    let before = look(&client, config).await?;
    if let Err(error) = client.batch_execute(&block(sql)).await {
        // The transaction has failed; what is left of it goes with the connection.
        let _ = client.batch_execute("ROLLBACK").await;
        return Err(refused(&target.user, error));
    }
    let after = look(&client, config).await;
    client
        .batch_execute("ROLLBACK")
        .await
        .map_err(|error| control_failed(error, "could not roll back: it goes with the connection"))?;
    Ok(compare(before, after?))
}

fn block(sql: &str) -> String {
    let mut tag = String::from("highwater");
    while sql.contains(&tag) {
        tag.push('_');
    }
    format!("DO ${tag}_do$ BEGIN EXECUTE ${tag}_sql$\n{sql}\n${tag}_sql$; END ${tag}_do$")
}

fn refused(role: &str, error: tokio_postgres::Error) -> Error {
    let hint = match error.as_db_error().map(|db| db.code().code()) {
        Some("42501") => format!("role {role:?} may not do it: give --url of one that may, as postgres://owner@host/database"),
        Some("55P03") => format!("a lock was not to be had within {LOCK}: try again when the table is quieter"),
        Some("57014") => format!("it ran longer than {RUN} and was given up: it rewrites a large table; try it on a copy"),
        Some("0A000" | "25001" | "2D000") => {
            "what commits by itself (COMMIT, CREATE INDEX CONCURRENTLY, VACUUM) cannot be tried: leave it out of the file".into()
        }
        _ => "nothing was changed at the source".into(),
    };
    Error::halt("the statements do not run, and were rolled back").because(error).hint(hint)
}

async fn look(client: &Client, config: &Postgres) -> Result<BTreeMap<u32, Seen>> {
    let types = Types::read(client).await?;
    let mut seen = BTreeMap::new();
    for table in catalog::tables(client, None, |name| config.tables.matches(name)).await? {
        if !table.is_told(config.partitions) {
            continue;
        }
        let (shape, _) = shape::of(config, &types, &table)?;
        let leaves = catalog::leaves(client, &table).await?;
        let nodes = leaves.iter().map(|leaf| (leaf.oid, leaf.file_node)).collect();
        let defaults = catalog::defaults(client, table.oid).await?;
        seen.insert(table.oid, Seen { catalog: table, shape, nodes, defaults });
    }
    Ok(seen)
}

fn compare(mut before: BTreeMap<u32, Seen>, after: BTreeMap<u32, Seen>) -> Vec<Rehearsed> {
    let mut out = Vec::new();
    for (oid, new) in after {
        let name = new.catalog.qualified();
        match before.remove(&oid) {
            None => {
                out.push(Rehearsed { name, before: None, after: Some(new.shape), read_again: Some("it is new here") })
            }
            Some(old) if old.shape == new.shape && old.nodes == new.nodes => {}
            Some(old) => {
                let read_again = read_again(&old, &new);
                out.push(Rehearsed { name, before: Some(old.shape), after: Some(new.shape), read_again });
            }
        }
    }
    let gone =
        |old: Seen| Rehearsed { name: old.catalog.qualified(), before: Some(old.shape), after: None, read_again: None };
    out.extend(before.into_values().map(gone));
    out
}

/// As `Compiler::changes_values` decides it when the change has happened.
fn read_again(old: &Seen, new: &Seen) -> Option<&'static str> {
    if old.shape.stream() != new.shape.stream() {
        return Some("it becomes another stream by its new name");
    }
    let was = |id: i32| old.shape.columns.iter().find(|column| column.id == id);
    let columns = &new.shape.columns;
    if columns.iter().any(|c| was(c.id).is_none() && new.defaults.iter().any(|number| i32::from(*number) == c.id)) {
        return Some("rows that are there get the default of a new column, of which the stream does not tell");
    }
    let retyped = columns.iter().any(|c| was(c.id).is_some_and(|old| old.db_type != c.db_type));
    (retyped && old.nodes != new.nodes).then_some("its rows are rewritten, of which the stream does not tell")
}

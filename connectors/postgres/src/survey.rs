//! What a database has that could be captured, for who writes a configuration.

use std::collections::HashMap;

use config::Postgres;
use connector::Result;

use crate::catalog;
use crate::check::{Finding, Standing, check};
use crate::error::control_failed;
use crate::target::Servers;

/// A database, looked at.
#[derive(Clone, Debug)]
pub struct Survey {
    /// Tables that would be captured, by name.
    pub tables: Vec<SurveyedTable>,
    /// What `check` says of the same configuration.
    pub findings: Vec<Finding>,
}

/// A table.
#[derive(Clone, Debug)]
pub struct SurveyedTable {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// By the planner's statistics; None: never counted.
    pub rows: Option<u64>,
    /// With its TOAST and without its indexes, partitions included.
    pub bytes: u64,
    /// Whether updates and deletes can be captured.
    pub has_identity: bool,
}

const SIZES: &str = "
SELECT c.oid, sum(pg_table_size(t.relid))::int8, sum(greatest(l.reltuples, 0))::int8, bool_and(l.reltuples >= 0)
  FROM unnest($1::oid[]) AS c (oid)
 CROSS JOIN LATERAL (SELECT c.oid::regclass AS relid
                      UNION SELECT relid FROM pg_partition_tree(c.oid::regclass) WHERE isleaf) t
  JOIN pg_class l ON l.oid = t.relid AND l.relkind <> 'p'
 GROUP BY c.oid";

/// Looks; changes nothing. An error: the database cannot be looked at at all.
pub async fn survey(config: &Postgres) -> Result<Survey> {
    let client = Servers::of(config)?.connect().await?.1;
    let mut found = catalog::tables(&client, None, |name| config.tables.matches(name)).await?;
    found.retain(|table| table.is_told(config.partitions));
    found.sort_by_key(|table| (table.schema.clone(), table.name.clone()));
    let oids: Vec<u32> = found.iter().map(|table| table.oid).collect();
    let sizes = client.query(SIZES, &[&oids]).await;
    let sizes = sizes.map_err(|error| control_failed(error, "could not ask how large the tables are"))?;
    let sizes: HashMap<u32, (i64, i64, bool)> =
        sizes.iter().map(|row| (row.get(0), (row.get(1), row.get(2), row.get(3)))).collect();
    let tables = found
        .iter()
        .map(|table| {
            let (bytes, rows, counted) = sizes.get(&table.oid).copied().unwrap_or_default();
            SurveyedTable {
                schema: table.schema.clone(),
                name: table.name.clone(),
                rows: counted.then_some(rows.max(0) as u64),
                bytes: bytes.max(0) as u64,
                has_identity: table.has_identity(),
            }
        })
        .collect();
    Ok(Survey { tables, findings: check(config, &Standing::default()).await })
}

//! A table's rows under a snapshot, in the form in which the log has them: to be
//! compared with what a destination made of the log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use config::Postgres;
use connector::{Error, Resolved, Result, SchemaNumber, Schemas, Table};
use tokio::runtime::Handle;
use tokio_postgres::Client;

use crate::catalog::{self, Types};
use crate::compared::ComparedTable;
use crate::connection::Connection;
use crate::error::WireError;
use crate::plan::{Plan, literal};
use crate::shape::Compiler;
use crate::snapshot::copied_body;
use crate::target::{Servers, Target};
use crate::unfit::uncarried;

/// Blocks of one statement.
const BLOCKS: u64 = 4096;

/// Nothing is registered by looking.
struct Unregistered;

impl Schemas for Unregistered {
    fn resolve(&self, _: &Table) -> Result<Resolved> {
        Ok(Resolved { number: 0, change: None })
    }

    fn shapes(&self, _: &str) -> Vec<(SchemaNumber, Table)> {
        Vec::new()
    }
}

/// What reads a table.
pub struct SourceRows {
    plan: Arc<Plan>,
    target: Target,
    snapshot: String,
    leaves: Vec<(u32, String, u32, u64)>,
}

impl SourceRows {
    /// `client` holds the snapshot, and has exported it.
    pub async fn new(client: &Client, config: &Postgres, of: &ComparedTable, snapshot: &str) -> Result<Self> {
        let name = format!("{}.{}", of.schema, of.name);
        let tables = catalog::tables(client, None, |table| table == name).await?;
        let table = tables.first().cloned();
        let table = table.ok_or_else(|| Error::halt(format!("{name} is gone")).hint("verify again"))?;
        let (target, connected) = Servers::of(config)?.connect().await?;
        let compiler = Compiler {
            source: config.name.clone(),
            config: Arc::new(config.clone()),
            schemas: Arc::new(Unregistered),
            types: Types::read(client).await?,
            client: connected,
            handle: Handle::current(),
            tables,
            left_out: Default::default(),
        };
        let plan = compiler.compile(&table)?.plan;
        Ok(Self { plan, target, snapshot: snapshot.into(), leaves: of.leaves.clone() })
    }

    /// Its columns and its key.
    pub fn table(&self) -> &Table {
        &self.plan.table
    }

    /// Reads all rows, no more than so many a second (0: no limit). Blocking.
    /// False: it was rewritten since, and the snapshot sees nothing any more.
    pub fn read(&self, rows_per_second: u64, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<bool> {
        let failed = |error: WireError| error.during(format!("could not read {}", self.plan.table.name));
        let mut connection = Connection::connect(&self.target, false).map_err(failed)?;
        let (mut rows, begun) = (0u64, Instant::now());
        let mut body = Vec::new();
        for (oid, name, file_node, blocks) in &self.leaves {
            let mut low = 0;
            loop {
                let high = low + BLOCKS;
                let begin = format!(
                    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}; SET LOCAL lock_timeout = '10s'; \
                     LOCK TABLE {name} IN ACCESS SHARE MODE; SELECT coalesce(pg_relation_filenode({oid}), 0)",
                    literal(&self.snapshot)
                );
                let answer = connection.query(&begin).map_err(failed)?;
                let node = answer.first().and_then(|row| row.first()).cloned().flatten();
                if node.and_then(|node| node.parse().ok()) != Some(*file_node) {
                    return Ok(false);
                }
                let until = if high < *blocks { format!(" AND ctid < '({high},0)'::tid") } else { String::new() };
                let sql = format!(
                    "COPY (SELECT {} FROM ONLY {name} WHERE ctid >= '({low},0)'::tid{until}) TO STDOUT (FORMAT binary)",
                    self.plan.select_list()
                );
                connection.copy_out(&sql).map_err(failed)?;
                while let Some(data) = connection.copy_row().map_err(failed)? {
                    let data = copied_body(data);
                    if data.is_empty() {
                        continue;
                    }
                    body.clear();
                    self.plan.copied(data, &mut body).map_err(|e| uncarried(&self.plan, "being compared", &e))?;
                    each(&body)?;
                    rows += 1;
                    if rows_per_second > 0 && rows % 256 == 0 {
                        let due = Duration::from_secs_f64(rows as f64 / rows_per_second as f64);
                        std::thread::sleep(due.saturating_sub(begun.elapsed()));
                    }
                }
                connection.query("COMMIT").map_err(failed)?;
                if high >= *blocks {
                    break;
                }
                low = high;
            }
        }
        Ok(true)
    }
}

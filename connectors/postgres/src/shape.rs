//! From the catalog, and what the stream says, to a table's shape and plan.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use config::Postgres;
use connector::{Column, Error, Result, SchemaNumber, Schemas, Table, TableKind, stream_part};
use storage::StateChange;
use tokio::runtime::Handle;
use tokio_postgres::Client;

use crate::catalog::{self, CatalogTable, Types};
use crate::lineage::as_it_was;
use crate::pgoutput::Relation;
use crate::plan::{Plan, PlanColumn};
use crate::snapshot::Generation;

/// How long a commit that the stream has told of may take to become visible.
const VISIBLE_SOON: Duration = Duration::from_millis(10);
const VISIBLE_TRIES: usize = 3;

/// A table under its schema, ready to be written.
#[derive(Clone, Debug)]
pub(crate) struct Compiled {
    pub(crate) plan: Arc<Plan>,
    pub(crate) number: SchemaNumber,
    pub(crate) stream: String,
    /// The log must learn of the schema with the first batch that uses it.
    pub(crate) change: Option<StateChange>,
}

/// Compiles plans; asks the catalog where it must. Blocking.
pub(crate) struct Compiler<S> {
    pub(crate) source: String,
    pub(crate) config: Arc<Postgres>,
    pub(crate) schemas: Arc<S>,
    pub(crate) client: Client,
    pub(crate) handle: Handle,
    pub(crate) types: Types,
    pub(crate) tables: Vec<CatalogTable>,
    /// Tables that match, by oid, and cannot be captured as they are.
    pub(crate) left_out: HashSet<u32>,
}

impl<S: Schemas> Compiler<S> {
    /// Whether a table is captured.
    pub(crate) fn wants(&self, oid: u32, schema: &str, name: &str) -> bool {
        !self.left_out.contains(&oid) && self.config.tables.matches(&format!("{schema}.{name}"))
    }

    /// Whether rows that were there before have other values under the new
    /// shape, of which the stream has told nothing: `ADD COLUMN … DEFAULT`,
    /// `ALTER … USING`, or another `as` in the configuration.
    pub(crate) fn changes_values(&self, oid: u32, read: &Generation, old: &Table, new: &Table) -> Result<bool> {
        let same = |column: &Column| old.columns.iter().find(|other| other.id == column.id);
        let added: Vec<i32> = new.columns.iter().filter(|c| same(c).is_none()).map(|c| c.id).collect();
        let carried = |column: &Column| same(column).is_some_and(|o| o.db_type == column.db_type && o.ty != column.ty);
        if new.columns.iter().any(carried) {
            return Ok(true);
        }
        if !added.is_empty() {
            let defaults = self.handle.block_on(catalog::defaults(&self.client, oid))?;
            if added.iter().any(|id| defaults.iter().any(|number| i32::from(*number) == *id)) {
                return Ok(true);
            }
        }
        let retyped = |column: &Column| same(column).is_some_and(|other| other.db_type != column.db_type);
        if !new.columns.iter().any(retyped) {
            return Ok(false);
        }
        // Without a rewrite the values are the same: varchar(10) to text.
        let Some(table) = self.tables.iter().find(|table| table.oid == oid) else { return Ok(true) };
        let leaves = self.handle.block_on(catalog::leaves(&self.client, table))?;
        Ok(leaves.iter().any(|leaf| read.file_nodes.get(&leaf.oid) != Some(&leaf.file_node)))
    }

    /// The stream of a table.
    pub(crate) fn stream_of(&self, schema: &str, table: &str) -> String {
        format!("{}.{}.{}", self.source, stream_part(schema), stream_part(table))
    }

    /// The plan for what the stream describes; `shapes` are those that the same
    /// table had, the newest first.
    pub(crate) fn of_relation(&mut self, relation: &Relation, shapes: &[Table]) -> Result<Compiled> {
        let fits = |table: &CatalogTable| fits(table, relation);
        let known = self.tables.iter().find(|table| table.oid == relation.id);
        if !known.is_some_and(|table| fits(table) && self.knows_types(relation)) {
            self.refresh(relation.id)?;
            // A commit is in the WAL before it is visible: the catalog may be
            // behind as well as ahead, and a round would read by it.
            for _ in 0..VISIBLE_TRIES {
                if self.tables.iter().any(|table| table.oid == relation.id && fits(table)) {
                    break;
                }
                std::thread::sleep(VISIBLE_SOON);
                self.refresh(relation.id)?;
            }
        }
        let known = self.tables.iter().find(|table| table.oid == relation.id);
        match known {
            Some(table) if fits(table) => {
                let table = table.clone();
                self.compile(&table)
            }
            // The catalog is already further than the WAL: what was true then is
            // told by the relation, completed by what catalog and log remember.
            known => {
                let types = relation.columns.iter().map(|column| (column.type_oid, column.typmod)).collect();
                let names = self.handle.block_on(catalog::type_names(&self.client, types))?;
                let table = as_it_was(relation, &names, known, shapes);
                self.compile(&table)
            }
        }
    }

    /// Whether partitions came with rows, went, or were emptied or rewritten by
    /// themselves, of which the stream of their root tells nothing; and the
    /// leaves as they are.
    pub(crate) fn partitions(&self, table: &CatalogTable, read: &Generation) -> Result<(bool, BTreeMap<u32, u32>)> {
        let (leaves, attached) = self.handle.block_on(async {
            let leaves = catalog::leaves(&self.client, table).await?;
            Ok::<_, Error>((leaves, catalog::attached(&self.client, table.oid).await?))
        })?;
        let now: BTreeMap<u32, u32> = leaves.iter().map(|leaf| (leaf.oid, leaf.file_node)).collect();
        let went = read.file_nodes.keys().any(|leaf| !now.contains_key(leaf));
        let other = now.iter().any(|(leaf, node)| match read.file_nodes.get(leaf) {
            Some(before) => before != node,
            None => attached.contains(leaf),
        });
        Ok((went || other, now))
    }

    /// The plan for what the stream describes, if that is what we know the table
    /// as. Asks nobody, and gives no number: its transaction may be rolled back.
    pub(crate) fn plan_as_known(&self, relation: &Relation) -> Option<Plan> {
        let table = self.tables.iter().find(|table| table.oid == relation.id);
        let table = table.filter(|table| fits(table, relation) && self.knows_types(relation))?;
        self.plan(table).ok().filter(|plan| plan.width() == relation.columns.len())
    }

    fn knows_types(&self, relation: &Relation) -> bool {
        relation.columns.iter().all(|column| self.types.knows(column.type_oid))
    }

    /// Reads a table anew, and all types.
    fn refresh(&mut self, oid: u32) -> Result<()> {
        let (tables, types) = self.handle.block_on(async {
            let tables = catalog::tables(&self.client, Some(oid), |_| true).await?;
            Ok::<_, Error>((tables, Types::read(&self.client).await?))
        })?;
        self.types = types;
        let place = self.tables.iter().find(|table| table.oid == oid);
        let (published, publication) = place.map_or((0, 0), |table| (table.published, table.publication));
        self.tables.retain(|table| table.oid != oid);
        self.tables.extend(tables.into_iter().map(|table| CatalogTable { published, publication, ..table }));
        Ok(())
    }

    /// The plan for a table as the catalog has it, and its schema's number.
    pub(crate) fn compile(&self, table: &CatalogTable) -> Result<Compiled> {
        let plan = self.plan(table)?;
        let resolved = self.schemas.resolve(&plan.table)?;
        let stream = plan.table.stream();
        Ok(Compiled { plan: Arc::new(plan), number: resolved.number, stream, change: resolved.change })
    }

    fn plan(&self, table: &CatalogTable) -> Result<Plan> {
        let (shape, plans) = of(&self.config, &self.types, table)?;
        let names = table.columns.iter().map(|column| column.name.as_str());
        Ok(Plan::new(shape, plans, names))
    }

    /// The stream of logical messages.
    pub(crate) fn messages(&self) -> Result<(SchemaNumber, Option<StateChange>)> {
        let resolved = self.schemas.resolve(&Table::messages(&self.source))?;
        Ok((resolved.number, resolved.change))
    }
}

/// Whether the catalog has a table as the stream describes it.
fn fits(table: &CatalogTable, relation: &Relation) -> bool {
    let streamed = relation.columns.iter().map(|c| (c.name.as_str(), c.type_oid, c.typmod));
    let known = table.columns.iter().map(|c| (c.name.as_str(), c.type_oid, c.typmod));
    table.identity as u32 == u32::from(relation.identity) && streamed.eq(known)
}

/// A table's shape as the catalog and the configuration have it, and how its
/// columns are read.
pub(crate) fn of(config: &Postgres, types: &Types, table: &CatalogTable) -> Result<(Table, Vec<PlanColumn>)> {
    let options = config.options(&table.schema, &table.name);
    let wanted = |name: &str| options.is_none_or(|options| options.columns.matches(name));
    let key = table.key();
    let mut columns = Vec::new();
    let mut plans = Vec::new();
    for column in &table.columns {
        if !wanted(&column.name) {
            if key.contains(&column.number) {
                let what = format!("column {:?} of {} is part of its key", column.name, table.qualified());
                return Err(Error::halt(format!("{what} and cannot be left out"))
                    .hint("change `columns` of the table in the configuration"));
            }
            continue;
        }
        let as_text = options.is_some_and(|options| options.as_text.contains(&column.name));
        let plan = types.column(column.type_oid, column.typmod, column.dimensions, as_text);
        columns.push(Column {
            name: column.name.clone(),
            ty: plan.codec.carried(),
            db_type: column.db_type.clone(),
            nullable: !column.not_null,
            id: column.number.into(),
        });
        plans.push(plan);
    }
    let key: Vec<usize> =
        key.iter().filter_map(|number| columns.iter().position(|column| column.id == i32::from(*number))).collect();
    let shape = Table {
        source: config.name.clone(),
        schema: table.schema.clone(),
        name: table.name.clone(),
        kind: TableKind::Table,
        columns,
        key,
        full_identity: table.identity == 'f',
    };
    Ok((shape, plans))
}

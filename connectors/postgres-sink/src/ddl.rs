//! Brings a table of the warehouse to a shape of the source, within the step's
//! transaction: what is done is done with the first rows that need it, and a
//! crash at any point leaves nothing half.
//!
//! A column is known by the source's number, so a rename is no drop and add.
//! NOT NULL goes to the key alone: the stream does not tell when the source
//! gives it up elsewhere, and a row must never be refused for it.

use std::collections::HashSet;

use config::DroppedColumns;
use connector::{Error, Result};
use tokio_postgres::Client;

use crate::error::failed;
use crate::plan::Plan;
use crate::sql::{literal, qualified, quote};
use crate::table::{Mirror, MirrorColumn};
use crate::types::{Fit, Target, base, cast, held};

/// PostgreSQL cuts longer names silently.
const NAME_BYTES: usize = 63;

/// A table that is new to the sink; one that is there is taken if it is empty.
pub(crate) async fn create(
    client: &Client,
    plan: &Plan,
    place: (String, String),
    extra: &[(String, &str)],
) -> Result<Mirror> {
    let (schema, name) = place;
    let table = &plan.shape.table;
    let quoted = qualified(&schema, &name);
    let attempt = || format!("could not make table {quoted}");
    for name in [&schema, &name].into_iter().chain(table.columns.iter().map(|column| &column.name)) {
        if name.len() > NAME_BYTES {
            return Err(Error::halt(format!("{name:?} is longer than the {NAME_BYTES} bytes of a name in PostgreSQL"))
                .hint("leave it out in `tables` of the sink or `columns` of the source"));
        }
    }
    let mut mirror = Mirror {
        stream: table.stream(),
        schema,
        name,
        shape: plan.shape.number,
        columns: plan.targets.iter().enumerate().map(|(i, target)| column(plan, i, target)).collect(),
        key: Vec::new(),
        generation: 0,
        seen: None,
    };
    for column in mirror.columns.iter().filter(|column| column.fit == Fit::Widened) {
        tracing::info!(
            stream = mirror.stream,
            column = column.name,
            source_type = column.source_type,
            r#type = column.ty,
            "the warehouse does not have the column's type"
        );
    }
    let sql = format!("SELECT 1 FROM pg_namespace WHERE nspname = {}", literal(&mirror.schema));
    let there = client.query_opt(&sql, &[]).await.map_err(|error| failed(error, attempt()))?;
    if there.is_none() {
        let sql = format!("CREATE SCHEMA {}", quote(&mirror.schema));
        client.batch_execute(&sql).await.map_err(|error| failed(error, attempt()))?;
    }
    if let Some(taken) = existing(client, &mirror, plan).await? {
        mirror.columns = taken;
        let types: Vec<Target> = plan.targets.clone();
        add_missing(client, &mut mirror, plan, &types, extra).await?;
    } else {
        let mut columns: Vec<String> =
            mirror.columns.iter().map(|column| format!("{} {}", quote(&column.name), column.ty)).collect();
        columns.extend(extra.iter().map(|(name, definition)| format!("{} {definition}", quote(name))));
        let sql = format!("CREATE TABLE {} ({})", mirror.quoted(), columns.join(", "));
        client.batch_execute(&sql).await.map_err(|error| failed(error, attempt()))?;
    }
    Ok(mirror)
}

fn column(plan: &Plan, i: usize, target: &Target) -> MirrorColumn {
    let column = &plan.shape.table.columns[i];
    MirrorColumn {
        id: column.id,
        name: column.name.clone(),
        ty: target.sql.clone(),
        source_type: column.db_type.clone(),
        fit: target.fit,
        dropped: false,
    }
}

/// The columns of a table that is there already, if it may be taken over.
async fn existing(client: &Client, mirror: &Mirror, plan: &Plan) -> Result<Option<Vec<MirrorColumn>>> {
    let attempt = || format!("could not look at table {}", mirror.quoted());
    let sql = "SELECT c.oid, c.relkind::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE n.nspname = $1 AND c.relname = $2";
    let found =
        client.query_opt(sql, &[&mirror.schema, &mirror.name]).await.map_err(|error| failed(error, attempt()))?;
    let Some(row) = found else { return Ok(None) };
    let (oid, kind): (u32, String) = (row.get(0), row.get(1));
    if !matches!(kind.as_str(), "r" | "p") {
        return Err(Error::halt(format!("{} is there and no table", mirror.quoted()))
            .hint("give the sink a `schema` of its own, or drop what is there"));
    }
    let sql = format!("SELECT EXISTS (SELECT 1 FROM {})", mirror.quoted());
    if client.query_one(&sql, &[]).await.map_err(|error| failed(error, attempt()))?.get(0) {
        return Err(Error::halt(format!("table {} holds rows that this sink did not put there", mirror.quoted()))
            .hint("empty or drop the table, or give the sink a `schema` of its own"));
    }
    let sql = "SELECT attname::text, format_type(atttypid, atttypmod),
                      (SELECT typtype = 'e' FROM pg_type WHERE oid = atttypid) FROM pg_attribute
                WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped";
    let rows = client.query(sql, &[&oid]).await.map_err(|error| failed(error, attempt()))?;
    let mut columns = Vec::new();
    for row in rows {
        let (name, ty, labels): (String, String, bool) = (row.get(0), row.get(1), row.get(2));
        let Some(i) = plan.shape.table.columns.iter().position(|column| column.name == name) else { continue };
        let target = &plan.targets[i];
        let Some(fit) = held(target, &ty, labels) else {
            let (quoted, column) = (mirror.quoted(), quote(&name));
            let what =
                format!("column {column} of table {quoted} is {ty}, which could change values of {}", target.sql);
            let alter = format!("ALTER TABLE {quoted} ALTER COLUMN {column} TYPE {}", target.sql);
            return Err(Error::halt(what).hint(format!("drop the table, which is empty, or: {alter}")));
        };
        columns.push(MirrorColumn { ty, fit, ..column(plan, i, &plan.targets[i]) });
    }
    Ok(Some(columns))
}

/// Brings a known table to the plan's shape.
pub(crate) async fn align(
    client: &Client,
    mirror: &mut Mirror,
    plan: &Plan,
    policy: DroppedColumns,
    own: &[(String, &str)],
) -> Result<()> {
    let shape = &plan.shape;
    let quoted = mirror.quoted();
    // A column is the one of its number, whatever it is called.
    let find = |mirror: &Mirror, id: i32| mirror.columns.iter().position(|here| !here.dropped && here.id == id);
    let taken: HashSet<usize> = shape.table.columns.iter().filter_map(|column| find(mirror, column.id)).collect();
    let gone = drop_columns(client, mirror, &taken, policy).await?;
    mirror.columns.retain(|column| !(column.dropped && gone.contains(&column.id)));
    let pairs: Vec<Option<usize>> = shape.table.columns.iter().map(|column| find(mirror, column.id)).collect();
    rename_columns(client, mirror, plan, &pairs).await?;
    for (i, pair) in pairs.iter().enumerate() {
        let Some(at) = *pair else { continue };
        let (column, target) = (&shape.table.columns[i], &plan.targets[i]);
        let here = &mut mirror.columns[at];
        if here.source_type != column.db_type {
            here.source_type = column.db_type.clone();
            if here.ty != target.sql {
                let (ty, fit) = retype(client, &quoted, here, target).await?;
                tracing::info!(stream = mirror.stream, column = here.name, from = here.ty, to = ty, "column altered");
                (here.ty, here.fit) = (ty, fit);
            }
        }
    }
    let targets = plan.targets.clone();
    add_missing(client, mirror, plan, &targets, own).await?;
    mirror.shape = shape.number;
    Ok(())
}

/// What the source has dropped: kept as it is, or dropped too. Which are gone.
async fn drop_columns(
    client: &Client,
    mirror: &mut Mirror,
    taken: &HashSet<usize>,
    policy: DroppedColumns,
) -> Result<HashSet<i32>> {
    let quoted = mirror.quoted();
    let mut gone = HashSet::new();
    for (i, column) in mirror.columns.iter_mut().enumerate() {
        if taken.contains(&i) || column.dropped {
            continue;
        }
        column.dropped = true;
        let name = quote(&column.name);
        if mirror.key.contains(&column.name) {
            drop_key(client, &quoted).await?;
            mirror.key.clear();
            alter(client, &quoted, &format!("ALTER COLUMN {name} DROP NOT NULL")).await?;
        }
        if policy == DroppedColumns::Drop {
            alter(client, &quoted, &format!("DROP COLUMN {name}")).await?;
            gone.insert(column.id);
        }
        tracing::info!(
            stream = mirror.stream,
            column = column.name,
            kept = policy == DroppedColumns::Keep,
            "column dropped at the source"
        );
    }
    Ok(gone)
}

async fn rename_columns(client: &Client, mirror: &mut Mirror, plan: &Plan, pairs: &[Option<usize>]) -> Result<()> {
    let quoted = mirror.quoted();
    let wanted: Vec<(usize, String)> = pairs
        .iter()
        .zip(&plan.shape.table.columns)
        .filter_map(|(pair, column)| Some(((*pair)?, column.name.clone())))
        .filter(|(at, name)| mirror.columns[*at].name != *name)
        .collect();
    // A kept column gives its name up to one that needs it.
    for i in 0..mirror.columns.len() {
        if !mirror.columns[i].dropped
            || !plan.shape.table.columns.iter().any(|column| column.name == mirror.columns[i].name)
        {
            continue;
        }
        let names: HashSet<&str> = mirror.columns.iter().map(|column| column.name.as_str()).collect();
        let short: String = mirror.columns[i].name.chars().take(12).collect();
        let free = (1..).map(|n| format!("{short}_dropped_{n}")).find(|name| !names.contains(name.as_str()));
        let free = free.expect("there are endless numbers");
        rename(client, &quoted, &mirror.columns[i].name, &free).await?;
        mirror.columns[i].name = free;
    }
    // Columns may change places: one that stands in the way steps aside, its own turn comes.
    for (at, name) in &wanted {
        if mirror.columns.iter().any(|column| column.name == *name) {
            let (other, _) = mirror.columns.iter().enumerate().find(|(_, c)| c.name == *name).expect("just found");
            let aside = format!("_hw_renamed_{other}");
            rename(client, &quoted, name, &aside).await?;
            rename_in_key(mirror, other, &aside);
            mirror.columns[other].name = aside;
        }
        rename(client, &quoted, &mirror.columns[*at].name, name).await?;
        rename_in_key(mirror, *at, name);
        tracing::info!(stream = mirror.stream, from = mirror.columns[*at].name, to = name, "column renamed");
        mirror.columns[*at].name = name.clone();
    }
    Ok(())
}

fn rename_in_key(mirror: &mut Mirror, at: usize, name: &str) {
    let old = mirror.columns[at].name.clone();
    mirror.key.iter_mut().filter(|key| **key == old).for_each(|key| *key = name.into());
}

async fn rename(client: &Client, table: &str, from: &str, to: &str) -> Result<()> {
    alter(client, table, &format!("RENAME COLUMN {} TO {}", quote(from), quote(to))).await
}

/// Changes a column's type; to text if the values do not go into the new one,
/// for they are the source's old ones.
async fn retype(client: &Client, table: &str, here: &MirrorColumn, target: &Target) -> Result<(String, Fit)> {
    let name = quote(&here.name);
    let using = |to: &str| {
        let value = cast(&name, &here.ty, to);
        if base(&here.ty) == base(to) { String::new() } else { format!(" USING {value}") }
    };
    let change = |to: &str| format!("ALTER TABLE {table} ALTER COLUMN {name} TYPE {to}{}", using(to));
    let attempt = || format!("could not change column {name} of {table} from {} to {}", here.ty, target.sql);
    client.batch_execute("SAVEPOINT retype").await.map_err(|error| failed(error, attempt()))?;
    match client.batch_execute(&change(&target.sql)).await {
        Ok(()) => {
            client.batch_execute("RELEASE retype").await.map_err(|error| failed(error, attempt()))?;
            Ok((target.sql.clone(), target.fit))
        }
        Err(error)
            if error
                .code()
                .is_some_and(|code| code.code().starts_with("22") || matches!(code.code(), "42846" | "42804")) =>
        {
            client.batch_execute("ROLLBACK TO retype").await.map_err(|error| failed(error, attempt()))?;
            let text = client.batch_execute(&change("text")).await;
            text.map_err(|error| failed(error, attempt()))?;
            Ok(("text".into(), Fit::Widened))
        }
        Err(error) => Err(failed(error, attempt())),
    }
}

async fn add_missing(
    client: &Client,
    mirror: &mut Mirror,
    plan: &Plan,
    targets: &[Target],
    extra: &[(String, &str)],
) -> Result<()> {
    let quoted = mirror.quoted();
    for (name, definition) in extra {
        alter(client, &quoted, &format!("ADD COLUMN IF NOT EXISTS {} {definition}", quote(name))).await?;
    }
    for (i, shape_column) in plan.shape.table.columns.iter().enumerate() {
        if mirror.columns.iter().any(|here| !here.dropped && here.name == shape_column.name) {
            continue;
        }
        let new = column(plan, i, &targets[i]);
        alter(client, &quoted, &format!("ADD COLUMN {} {}", quote(&new.name), new.ty)).await?;
        mirror.columns.push(new);
    }
    Ok(())
}

/// Gives the table the key of the shape.
pub(crate) async fn align_key(client: &Client, mirror: &mut Mirror, key: Vec<String>) -> Result<()> {
    if mirror.key == key {
        return Ok(());
    }
    let quoted = mirror.quoted();
    if !mirror.key.is_empty() {
        drop_key(client, &quoted).await?;
        for name in mirror.key.iter().filter(|name| !key.contains(name)) {
            alter(client, &quoted, &format!("ALTER COLUMN {} DROP NOT NULL", quote(name))).await?;
        }
    }
    mirror.key = key;
    if !mirror.key.is_empty() && !has_unique(client, mirror).await? {
        let sql = format!("ADD PRIMARY KEY ({})", mirror.key_list(""));
        alter(client, &quoted, &sql).await?;
    }
    Ok(())
}

/// Whether the table has a unique index on exactly the key: one of the user's serves as well.
async fn has_unique(client: &Client, mirror: &Mirror) -> Result<bool> {
    let sql = "SELECT EXISTS (
                 SELECT 1 FROM pg_index i
                  WHERE i.indrelid = $1::text::regclass AND i.indisunique AND i.indisvalid AND i.indpred IS NULL
                    AND i.indexprs IS NULL AND i.indimmediate
                    AND (SELECT array_agg(a.attname::text ORDER BY a.attname::text) FROM pg_attribute a
                          WHERE a.attrelid = i.indrelid AND a.attnum = ANY((i.indkey::int2[])[0:i.indnkeyatts - 1]))
                        = (SELECT array_agg(k ORDER BY k) FROM unnest($2::text[]) k))";
    let row = client.query_one(sql, &[&mirror.quoted(), &mirror.key]).await;
    Ok(row.map_err(|error| failed(error, format!("could not look for the key of {}", mirror.quoted())))?.get(0))
}

async fn drop_key(client: &Client, table: &str) -> Result<()> {
    let sql = format!(
        "SELECT conname::text FROM pg_constraint WHERE conrelid = {}::regclass AND contype = 'p'",
        literal(table)
    );
    let attempt = || format!("could not drop the key of {table}");
    if let Some(row) = client.query_opt(&sql, &[]).await.map_err(|error| failed(error, attempt()))? {
        alter(client, table, &format!("DROP CONSTRAINT {}", quote(row.get(0)))).await?;
    }
    Ok(())
}

async fn alter(client: &Client, table: &str, what: &str) -> Result<()> {
    let sql = format!("ALTER TABLE {table} {what}");
    client.batch_execute(&sql).await.map_err(|error| failed(error, format!("could not alter table {table}: {what}")))
}

//! What is captured: grants, old rows, publications.

use config::Postgres;
use tokio_postgres::Client;

use super::Finding;
use crate::catalog::CatalogTable;
use crate::control;
use crate::error::control_failed;
use crate::plan::quote;
use crate::publication::{self, Published, Wanted};
use crate::tables::{grant, matching};

/// All of it.
pub(super) async fn look(client: &Client, config: &Postgres) -> connector::Result<Vec<Finding>> {
    let tables = match matching(client, config).await {
        Ok(tables) => tables,
        Err(error) => return Ok(vec![Finding::failed(&error)]),
    };
    let mut findings = vec![Finding::ok(format!("{} tables match", tables.len()))];
    for (schema, name) in unreadable(client, &tables).await? {
        let sql = grant(&schema, &name, &config.user);
        findings
            .push(Finding::error(format!("the role may not read {schema}.{name}")).why("a snapshot reads it").sql(sql));
    }
    for table in tables.iter().filter(|table| table.row_security) {
        findings.push(
            Finding::error(format!("row security is active for this role on {}", table.qualified()))
                .why("a snapshot would lack rows, and nothing would tell")
                .sql(format!("ALTER ROLE {} BYPASSRLS;", quote(&config.user))),
        );
    }
    let wanted = publication::wanted(config, &tables);
    let (main, inserts) = (&wanted[0], wanted.get(1));
    let main_there = Published::read(client, &main.name).await?;
    findings.push(in_step(client, main, main_there.as_ref(), &tables).await?);
    let mut inserts_there = None;
    if let Some(inserts) = inserts {
        inserts_there = Published::read(client, &inserts.name).await?;
        // What it lacks of tables is told with each of them.
        if let Some(there) = inserts_there.as_ref().filter(|there| !there.options(inserts).is_empty()) {
            findings.push(out_of_step(client, inserts, there.options(inserts), &tables).await?);
        }
    }
    for table in tables.iter().filter(|table| !table.has_identity()) {
        let both = [main_there.as_ref(), inserts_there.as_ref()];
        findings.push(without_identity(client, config, table, both, &tables).await?);
    }
    for there in [main_there, inserts_there].into_iter().flatten() {
        findings.extend(tables.iter().filter_map(|table| thinned(&there, table)));
    }
    Ok(findings)
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

/// The main publication, as to tables whose old rows can be told.
async fn in_step(
    client: &Client,
    wanted: &Wanted,
    there: Option<&Published>,
    tables: &[CatalogTable],
) -> connector::Result<Finding> {
    let missing = wanted.missing(there);
    if missing.is_empty() {
        return Ok(Finding::ok(format!("publication {:?} holds its tables", wanted.name)));
    }
    out_of_step(client, wanted, missing, tables).await
}

async fn out_of_step(
    client: &Client,
    wanted: &Wanted,
    missing: Vec<String>,
    tables: &[CatalogTable],
) -> connector::Result<Finding> {
    let name = &wanted.name;
    let finding = if publication::may_mend(client, name, tables).await? {
        Finding::warning(format!("publication {name:?} is not in step yet; `run` mends it"))
    } else {
        Finding::error(format!("publication {name:?} is not in step, and the role may not mend it")).remedy(
            if control::is_standby(client).await? {
                "run the SQL on the primary, as superuser, or as the owner of the tables"
            } else {
                "run the SQL as superuser, or as the owner of the tables"
            },
        )
    };
    let why = "changes of what it does not publish never come, and nothing would tell";
    Ok(finding.why(why).sql(statements(&missing)))
}

fn statements(sql: &[String]) -> String {
    sql.iter().map(|sql| format!("{sql};")).collect::<Vec<_>>().join("\n")
}

/// A table whose old rows cannot be told, and what makes it an ordinary one.
async fn without_identity(
    client: &Client,
    config: &Postgres,
    table: &CatalogTable,
    [main, inserts]: [Option<&Published>; 2],
    tables: &[CatalogTable],
) -> connector::Result<Finding> {
    let (name, quoted) = (table.qualified(), table.quoted());
    let identity = if table.primary.is_empty() { "FULL; -- or add a primary key" } else { "DEFAULT;" };
    let mut sql = vec![format!("ALTER TABLE {quoted} REPLICA IDENTITY {identity}")];
    let publication = quote(&config.publication);
    if main.is_none_or(|main| !main.holds(&name)) {
        sql.push(format!("ALTER PUBLICATION {publication} ADD TABLE {quoted};"));
    }
    let inserts_name = format!("{}_inserts", config.publication);
    if inserts.is_some_and(|inserts| !inserts.all && inserts.holds(&name)) {
        sql.push(format!("ALTER PUBLICATION {} DROP TABLE {quoted};", quote(&inserts_name)));
    }
    let only = format!("{name} has no replica identity: only its inserts and truncates are captured");
    let finding = if main.is_some_and(|main| main.holds(&name) && main.tells_old_rows()) {
        Finding::error(format!("{name} has no replica identity and is published with updates"))
            .why("its UPDATEs and DELETEs fail at the source")
    } else if inserts.is_some_and(|inserts| inserts.holds(&name)) {
        Finding::warning(only)
    } else if publication::may_mend(client, &inserts_name, tables).await? {
        Finding::warning(only)
            .why(format!("`run` publishes it by {inserts_name:?}, for updates would fail at the source"))
    } else {
        Finding::error(format!("{name} has no replica identity, and is not published"))
            .why("none of its changes are captured; with updates it may be published only when it has one")
    };
    Ok(finding.sql(sql.join("\n")))
}

/// A table of which a publication tells only some rows or columns.
fn thinned(there: &Published, table: &CatalogTable) -> Option<Finding> {
    let name = table.qualified();
    let (by, rows) =
        there.thinned.get(&name).map(|rows| if *rows { ("row filter", true) } else { ("column list", false) })?;
    let publication = quote(&there.name);
    let why = if rows {
        "a snapshot reads what the filter leaves out, and no change of it comes"
    } else {
        "a snapshot reads what the list leaves out, and no change of it comes: `columns` of the source leaves a column out of both"
    };
    let quoted = table.quoted();
    Some(Finding::warning(format!("{name} is published with a {by}")).why(why).sql(format!(
        "ALTER PUBLICATION {publication} DROP TABLE {quoted};\nALTER PUBLICATION {publication} ADD TABLE {quoted};"
    )))
}

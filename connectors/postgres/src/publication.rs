//! Publications: made and kept in step if the role may, else checked.
//!
//! A table whose old rows cannot be told goes into a second publication, of
//! inserts and truncates: in an ordinary one its UPDATEs and DELETEs would fail
//! on the primary, an outage made by the tool that watches.

use std::collections::BTreeSet;

use connector::{Error, Result};
use tokio_postgres::Client;

use crate::catalog::CatalogTable;
use crate::error::control_failed;
use crate::plan::quote;

/// What is to be published where.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) options: &'static str,
    /// (qualified for comparing, quoted for SQL).
    pub(crate) tables: Vec<(String, String)>,
}

/// The main publication, and the second one where there is need of it.
pub(crate) fn wanted(publication: &str, tables: &[CatalogTable]) -> Vec<Wanted> {
    let pick = |whole: bool| -> Vec<(String, String)> {
        tables.iter().filter(|t| t.has_identity() == whole).map(|t| (t.qualified(), t.quoted())).collect()
    };
    let mut out =
        vec![Wanted { name: publication.into(), options: "publish_via_partition_root = true", tables: pick(true) }];
    let without = pick(false);
    if !without.is_empty() {
        out.push(Wanted {
            name: format!("{publication}_inserts"),
            options: "publish = 'insert, truncate', publish_via_partition_root = true",
            tables: without,
        });
    }
    out
}

/// SQL that brings the server in step; empty if it is.
pub(crate) async fn missing(client: &Client, wanted: &Wanted) -> Result<Vec<String>> {
    let failed = |error| control_failed(error, format!("could not read publication {:?}", wanted.name));
    let found = client
        .query_opt("SELECT pubviaroot, puballtables FROM pg_publication WHERE pubname = $1", &[&wanted.name])
        .await
        .map_err(failed)?;
    let name = quote(&wanted.name);
    let list = |tables: &[&str]| match tables {
        [] => String::new(),
        tables => format!(" FOR TABLE {}", tables.join(", ")),
    };
    let Some(found) = found else {
        let tables: Vec<&str> = wanted.tables.iter().map(|(_, quoted)| quoted.as_str()).collect();
        return Ok(vec![format!("CREATE PUBLICATION {name}{} WITH ({})", list(&tables), wanted.options)]);
    };
    let mut sql = Vec::new();
    if !found.get::<_, bool>(0) {
        sql.push(format!("ALTER PUBLICATION {name} SET (publish_via_partition_root = true)"));
    }
    if found.get::<_, bool>(1) {
        return Ok(sql);
    }
    let there = published(client, &wanted.name).await?;
    let lacking: Vec<&str> =
        wanted.tables.iter().filter(|(name, _)| !there.contains(name)).map(|(_, q)| q.as_str()).collect();
    if !lacking.is_empty() {
        sql.push(format!("ALTER PUBLICATION {name} ADD TABLE {}", lacking.join(", ")));
    }
    Ok(sql)
}

/// The names of both.
pub(crate) fn names(publication: &str) -> Vec<String> {
    vec![publication.to_owned(), format!("{publication}_inserts")]
}

/// Which of its tables a publication does not hold.
pub(crate) async fn outside(client: &Client, wanted: &Wanted) -> Result<Vec<String>> {
    let there = published(client, &wanted.name).await?;
    Ok(wanted.tables.iter().map(|(name, _)| name).filter(|name| !there.contains(*name)).cloned().collect())
}

async fn published(client: &Client, name: &str) -> Result<BTreeSet<String>> {
    let sql = "SELECT schemaname::text || '.' || tablename::text FROM pg_publication_tables WHERE pubname = $1";
    let rows = client.query(sql, &[&name]).await;
    let rows = rows.map_err(|error| control_failed(error, format!("could not read publication {name:?}")))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Whether this role may do what is missing: it owns publication and tables, or
/// all is permitted to it.
pub(crate) async fn may_mend(client: &Client, name: &str, tables: &[CatalogTable]) -> Result<bool> {
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    let sql = "SELECT r.rolsuper OR (
                   coalesce((SELECT pg_has_role(p.pubowner, 'USAGE') FROM pg_publication p WHERE p.pubname = $1),
                            has_database_privilege(current_database(), 'CREATE'))
                   AND (SELECT coalesce(bool_and(pg_has_role(c.relowner, 'USAGE')), true) FROM pg_class c WHERE c.oid = ANY($2)))
                 FROM pg_roles r WHERE r.rolname = current_user";
    let row = client.query_one(sql, &[&name, &oids]).await;
    let row = row.map_err(|error| control_failed(error, "could not ask what the role may do"))?;
    Ok(row.get(0))
}

/// Tables without replica identity that a publication of updates holds: their
/// UPDATEs and DELETEs fail at the source.
pub(crate) async fn harmful<'a>(
    client: &Client,
    publication: &str,
    tables: &'a [CatalogTable],
) -> Result<Vec<&'a CatalogTable>> {
    let rows = client
        .query(
            "SELECT t.schemaname::text || '.' || t.tablename::text FROM pg_publication_tables t
               JOIN pg_publication p USING (pubname) WHERE p.pubname = $1 AND (p.pubupdate OR p.pubdelete)",
            &[&publication],
        )
        .await
        .map_err(|error| control_failed(error, format!("could not read publication {publication:?}")))?;
    let published: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
    Ok(tables.iter().filter(|table| !table.has_identity() && published.contains(&table.qualified())).collect())
}

/// Brings the server in step.
pub(crate) async fn ensure(client: &Client, wanted: &Wanted) -> Result<()> {
    for sql in missing(client, wanted).await? {
        tracing::info!(sql, "changing the publication");
        client.batch_execute(&sql).await.map_err(|error| {
            let may_not = error.code().is_some_and(|code| code.code() == "42501");
            let failed = control_failed(error, format!("could not bring publication {:?} in step", wanted.name));
            if may_not { failed.hint(format!("run as the owner of the tables: {sql};")) } else { failed }
        })?;
    }
    Ok(())
}

/// Nothing to capture is a mistake in the configuration.
pub(crate) fn nothing(patterns: &[String]) -> Error {
    Error::halt(format!("no table of the database matches {}", patterns.join(", ")))
        .hint("check `tables` of the source: patterns are of schema.table")
}

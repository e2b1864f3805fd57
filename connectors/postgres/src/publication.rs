//! Publications: made and kept in step if the role may, else checked.
//!
//! A table whose old rows cannot be told goes into a second publication, of
//! inserts and truncates: in an ordinary one its UPDATEs and DELETEs would fail
//! on the primary, an outage made by the tool that watches.

use std::collections::{BTreeMap, BTreeSet};

use config::{Partitions, Postgres};
use connector::{Error, Result};
use tokio_postgres::Client;

use crate::catalog::CatalogTable;
use crate::control;
use crate::error::control_failed;
use crate::plan::quote;

/// What is to be published where.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    /// insert, update, delete, truncate.
    publish: [bool; 4],
    /// Changes of a partition are its root's.
    via_root: bool,
    /// (qualified for comparing, quoted for SQL).
    pub(crate) tables: Vec<(String, String)>,
}

const VERBS: [&str; 4] = ["insert", "update", "delete", "truncate"];

/// The main publication, and the second one where there is need of it.
pub(crate) fn wanted(config: &Postgres, tables: &[CatalogTable]) -> Vec<Wanted> {
    let (publication, via_root) = (&config.publication, config.partitions == Partitions::Root);
    let pick = |whole: bool| -> Vec<(String, String)> {
        tables.iter().filter(|t| t.has_identity() == whole).map(|t| (t.qualified(), t.quoted())).collect()
    };
    let mut out = vec![Wanted { name: publication.clone(), publish: [true; 4], via_root, tables: pick(true) }];
    let without = pick(false);
    if !without.is_empty() {
        let publish = [true, false, false, true];
        out.push(Wanted { name: format!("{publication}_inserts"), publish, via_root, tables: without });
    }
    out
}

impl Wanted {
    fn verbs(&self) -> String {
        let verbs = VERBS.iter().zip(self.publish).filter(|(_, wanted)| *wanted);
        verbs.map(|(verb, _)| *verb).collect::<Vec<_>>().join(", ")
    }

    /// SQL that brings the server in step; empty if it is.
    pub(crate) fn missing(&self, there: Option<&Published>) -> Vec<String> {
        let name = quote(&self.name);
        let Some(there) = there else {
            let tables: Vec<&str> = self.tables.iter().map(|(_, quoted)| quoted.as_str()).collect();
            let list = if tables.is_empty() { String::new() } else { format!(" FOR TABLE {}", tables.join(", ")) };
            let publish =
                if self.publish == [true; 4] { String::new() } else { format!("publish = '{}', ", self.verbs()) };
            let via_root = self.via_root;
            return vec![format!(
                "CREATE PUBLICATION {name}{list} WITH ({publish}publish_via_partition_root = {via_root})"
            )];
        };
        let mut sql = there.options(self);
        let lacking: Vec<&str> =
            self.tables.iter().filter(|(name, _)| !there.holds(name)).map(|(_, quoted)| quoted.as_str()).collect();
        if !lacking.is_empty() {
            sql.push(format!("ALTER PUBLICATION {name} ADD TABLE {}", lacking.join(", ")));
        }
        sql
    }
}

/// A publication as the server has it.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    pub(crate) name: String,
    via_root: bool,
    /// Of all tables: none can be added or taken out.
    pub(crate) all: bool,
    publish: [bool; 4],
    /// Those that it tells of, as its options are.
    tables: BTreeSet<String>,
    /// Those that are in it by name.
    members: BTreeSet<String>,
    /// Of which only some rows are told (true), or some columns.
    pub(crate) thinned: BTreeMap<String, bool>,
}

impl Published {
    /// None: there is none of the name.
    pub(crate) async fn read(client: &Client, name: &str) -> Result<Option<Self>> {
        let failed = |error| control_failed(error, format!("could not read publication {name:?}"));
        let sql = "SELECT pubviaroot, puballtables, pubinsert, pubupdate, pubdelete, pubtruncate
                     FROM pg_publication WHERE pubname = $1";
        let Some(row) = client.query_opt(sql, &[&name]).await.map_err(failed)? else { return Ok(None) };
        // Row filters and column lists came with 15.
        let sql = "SELECT concat(n.nspname, '.', c.relname), to_jsonb(r) ->> 'prqual' IS NOT NULL
                     FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
                     JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
                    WHERE p.pubname = $1 AND coalesce(to_jsonb(r) ->> 'prqual', to_jsonb(r) ->> 'prattrs') IS NOT NULL";
        let thinned = client.query(sql, &[&name]).await.map_err(failed)?;
        let sql = "SELECT concat(n.nspname, '.', c.relname)
                     FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
                     JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
                    WHERE p.pubname = $1";
        let members = client.query(sql, &[&name]).await.map_err(failed)?;
        Ok(Some(Self {
            name: name.into(),
            via_root: row.get(0),
            all: row.get(1),
            publish: [row.get(2), row.get(3), row.get(4), row.get(5)],
            tables: published(client, name).await?,
            members: members.iter().map(|row| row.get(0)).collect(),
            thinned: thinned.iter().map(|row| (row.get(0), row.get(1))).collect(),
        }))
    }

    pub(crate) fn holds(&self, table: &str) -> bool {
        self.all || self.tables.contains(table) || self.members.contains(table)
    }

    /// Whether a table in it must be able to tell its old rows.
    pub(crate) fn tells_old_rows(&self) -> bool {
        self.publish[1] || self.publish[2]
    }

    /// SQL that gives it the options that are wanted.
    pub(crate) fn options(&self, wanted: &Wanted) -> Vec<String> {
        let name = quote(&self.name);
        let mut sql = Vec::new();
        if self.via_root != wanted.via_root {
            let via_root = wanted.via_root;
            sql.push(format!("ALTER PUBLICATION {name} SET (publish_via_partition_root = {via_root})"));
        }
        if self.publish != wanted.publish {
            sql.push(format!("ALTER PUBLICATION {name} SET (publish = '{}')", wanted.verbs()));
        }
        sql
    }
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
    let sql = "SELECT NOT pg_is_in_recovery() AND (r.rolsuper OR (
                   coalesce((SELECT pg_has_role(p.pubowner, 'USAGE') FROM pg_publication p WHERE p.pubname = $1),
                            has_database_privilege(current_database(), 'CREATE'))
                   AND (SELECT coalesce(bool_and(pg_has_role(c.relowner, 'USAGE')), true) FROM pg_class c WHERE c.oid = ANY($2))))
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
    let missing = wanted.missing(Published::read(client, &wanted.name).await?.as_ref());
    if !missing.is_empty() && control::is_standby(client).await? {
        let what = format!(
            "publication {:?} is not in step, and this is a standby, where nothing can be changed",
            wanted.name
        );
        return Err(
            Error::halt(what).hint(format!("run on the primary, as the owner of the tables: {};", missing.join("; ")))
        );
    }
    for sql in missing {
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

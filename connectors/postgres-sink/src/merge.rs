//! A fold into a table, within the step's transaction.
//!
//! Large ones go by COPY into a temporary table of the session and from there
//! by one statement a kind of change; rows that are new, where the table has
//! their types as they come, by COPY into the table itself. The order matters:
//! rows whose key changed first fetch what was not sent from where they were,
//! then what is gone goes, then what is new is added, what is whole is put, what
//! is known is set. So rows may change places in one step, and no unique key is
//! ever in the way.

use std::collections::{HashMap, HashSet};

use bytes::BufMut;
use connector::{Error, Result};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Statement};

use crate::copy::Copy;
use crate::error::failed;
use crate::fold::{Fold, Image};
use crate::plan::Plan;
use crate::sql::quote;
use crate::table::Mirror;
use crate::types::cast;
use crate::wire;

/// Fewer changes go one by one, in one trip to the server.
const FEW: usize = 32;

const GONE: i16 = 0;
const WHOLE: i16 = 1;
const PATCH: i16 = 2;
const MOVED: i16 = 3;
/// Moved, and what was not sent is fetched.
const FETCHED: i16 = 4;
const NEW: i16 = 5;

/// How a table takes rows that are new to us.
#[derive(Clone, Copy, PartialEq, Eq)]
enum News {
    /// Straight from us, past the staging table.
    Copied,
    /// From the staging table, with other types: for three quarters.
    Added,
    /// Like others: one was not new there, or the server would not have said so.
    Put,
}

/// What a session has made: temporary tables and prepared statements.
#[derive(Default)]
pub(crate) struct Made {
    staging: HashSet<String>,
    /// Temporary tables that hold rows of this transaction.
    used: HashSet<String>,
    /// By stream: how rows that are new to us are added.
    news: HashMap<String, News>,
    /// Likewise, of this transaction: whether nothing but the key ties its rows.
    untied: HashMap<String, bool>,
    pub(crate) statements: HashMap<(u32, Vec<u8>), Statement>,
}

impl Made {
    /// A table was altered: statements name what it had.
    pub(crate) fn forget(&mut self) {
        self.statements.clear();
        self.news.clear();
        self.untied.clear();
    }

    /// A transaction begins: temporary tables are empty, and somebody may have
    /// added a constraint.
    pub(crate) fn begin(&mut self) {
        self.used.clear();
        self.untied.clear();
    }

    /// Whether a table's rows may come in any order: there is no other unique key,
    /// whose value a row could have from one that waits, and no reference.
    pub(crate) async fn takes_any_order(&mut self, client: &Client, mirror: &Mirror) -> Result<bool> {
        if let Some(untied) = self.untied.get(&mirror.stream) {
            return Ok(*untied);
        }
        let sql = "SELECT NOT EXISTS (SELECT 1 FROM pg_constraint c
                     WHERE c.conrelid = $1::text::regclass AND c.contype IN ('f', 'x'))
                   AND NOT EXISTS (SELECT 1 FROM pg_index i
                     WHERE i.indrelid = $1::text::regclass AND i.indisunique
                       AND NOT (SELECT coalesce(array_agg(a.attname::text), '{}') FROM pg_attribute a
                                 WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1]))
                           @> $2::text[])";
        let row = client.query_one(sql, &[&mirror.quoted(), &mirror.key]).await;
        let untied = row.map_err(|error| failed(error, format!("could not look at {}", mirror.quoted())))?.get(0);
        self.untied.insert(mirror.stream.clone(), untied);
        Ok(untied)
    }

    /// An empty temporary table of these columns.
    pub(crate) async fn staging(
        &mut self,
        client: &Client,
        mirror: &Mirror,
        name: &str,
        columns: &[String],
    ) -> Result<()> {
        if !self.staging.contains(name) {
            let sql = format!("CREATE TEMP TABLE {name} ({}) ON COMMIT DELETE ROWS", columns.join(", "));
            run(client, mirror, &sql).await?;
            self.staging.insert(name.to_owned());
        } else if self.used.contains(name) {
            run(client, mirror, &format!("TRUNCATE pg_temp.{name}")).await?;
        }
        self.used.insert(name.to_owned());
        Ok(())
    }
}

/// Writes a fold to its table.
pub(crate) async fn merge(client: &Client, made: &mut Made, mirror: &Mirror, fold: &Fold) -> Result<()> {
    if fold.emptied {
        // Not TRUNCATE: it shows an empty table to readers with an older snapshot.
        run(client, mirror, &format!("DELETE FROM {}", mirror.quoted())).await?;
    }
    if fold.keys() == 0 {
        return Ok(());
    }
    let moved = fold.images.iter().any(|(_, image, _)| matches!(image, Image::Patch { origin: Some(_) }));
    let merge = Merge::new(mirror, &fold.plan)?;
    if fold.keys() <= FEW && !moved && mirror.seen.is_none() {
        crate::short::apply(client, made, &merge, fold).await
    } else {
        merge.staged(client, made, fold).await
    }
}

/// The SQL for one table under one shape.
pub(crate) struct Merge<'a> {
    pub(crate) mirror: &'a Mirror,
    pub(crate) plan: &'a Plan,
    /// For each column of the shape: its name and its type here.
    pub(crate) names: Vec<String>,
    pub(crate) types: Vec<&'a str>,
}

impl<'a> Merge<'a> {
    pub(crate) fn new(mirror: &'a Mirror, plan: &'a Plan) -> Result<Self> {
        let columns = mirror.columns_of(&plan.shape).ok_or_else(|| {
            Error::halt(format!("table {} lacks columns of its stream", mirror.quoted()))
                .hint("was _highwater.tables changed by hand?")
        })?;
        let names = columns.iter().map(|column| quote(&column.name)).collect();
        let types = columns.iter().map(|column| column.ty.as_str()).collect();
        Ok(Self { mirror, plan, names, types })
    }

    /// A staged value of column i as its type here.
    pub(crate) fn value(&self, i: usize, expression: &str) -> String {
        cast(expression, self.plan.targets[i].wire.sql(), self.types[i])
    }

    fn is_key(&self, i: usize) -> bool {
        self.plan.shape.table.in_key(i)
    }

    /// `t."id" = s.c0::… AND …`, for the columns of staging that begin with `from`.
    fn same_key(&self, from: &str) -> String {
        let key = &self.plan.shape.table.key;
        let parts: Vec<String> =
            key.iter().map(|&i| format!("t.{} = {}", self.names[i], self.value(i, &format!("s.{from}{i}")))).collect();
        parts.join(" AND ")
    }

    /// `INSERT … ON CONFLICT …` of what `source` selects or gives.
    pub(crate) fn upsert(&self, source: &str) -> String {
        let key: Vec<&str> = self.plan.shape.table.key.iter().map(|&i| self.names[i].as_str()).collect();
        let sets: Vec<String> = (0..self.names.len())
            .filter(|&i| !self.is_key(i))
            .map(|i| format!("{0} = excluded.{0}", self.names[i]))
            .collect();
        let action = if sets.is_empty() { "NOTHING".into() } else { format!("UPDATE SET {}", sets.join(", ")) };
        format!(
            "INSERT INTO {} ({}) {source} ON CONFLICT ({}) DO {action}",
            self.mirror.quoted(),
            self.names.join(", "),
            key.join(", ")
        )
    }

    fn staging(&self) -> String {
        format!("_hw_stage_{}", self.plan.shape.number)
    }

    async fn staged(&self, client: &Client, made: &mut Made, fold: &Fold) -> Result<()> {
        let (staging, table) = (self.staging(), self.mirror.quoted());
        let stage = format!("pg_temp.{staging}");
        // A table that is read again has most of its rows.
        let mut news = match fold.news.len() {
            0 => News::Put,
            _ if self.mirror.seen.is_some() => News::Put,
            _ => self.news(client, made).await?,
        };
        let mut found = Found::default();
        let came = || fold.news.iter().map(|(key, _, row)| Staged { op: NEW, key, row, origin: None });
        let staged = fold.images.iter().map(Staged::of);
        if news != News::Copied {
            made.staging(client, self.mirror, &staging, &self.staging_columns()).await?;
            self.copy(client, &stage, staged.chain(came()), &mut found).await?;
        } else if !fold.images.is_empty() {
            made.staging(client, self.mirror, &staging, &self.staging_columns()).await?;
            self.copy(client, &stage, staged, &mut found).await?;
        }
        if found.moved {
            let sets: Vec<String> = (0..self.names.len())
                .map(|i| {
                    let there = cast(&format!("t.{}", self.names[i]), self.types[i], self.plan.targets[i].wire.sql());
                    format!("c{i} = CASE WHEN get_bit(s._known, {i}) = 1 THEN s.c{i} ELSE {there} END")
                })
                .collect();
            let sql = format!(
                "UPDATE {stage} s SET _op = {FETCHED}, {} FROM {table} t WHERE s._op = {MOVED} AND {}",
                sets.join(", "),
                self.same_key("o")
            );
            run(client, self.mirror, &sql).await?;
        }
        if found.gone {
            let sql = format!("DELETE FROM {table} t USING {stage} s WHERE s._op = {GONE} AND {}", self.same_key("c"));
            run(client, self.mirror, &sql).await?;
        }
        if news != News::Put && !self.add(client, made, news, &stage, fold).await? {
            if news == News::Copied {
                if fold.images.is_empty() {
                    made.staging(client, self.mirror, &staging, &self.staging_columns()).await?;
                }
                self.copy(client, &stage, came(), &mut found).await?;
            }
            news = News::Put;
        }
        let new = found.new && news == News::Put;
        if found.whole || found.moved || new {
            let new = if new { format!(", {NEW}") } else { String::new() };
            let source = self.select(&stage, &format!("{WHOLE}, {FETCHED}{new}"));
            run(client, self.mirror, &self.upsert(&source)).await?;
        }
        if found.patch {
            let sets: Vec<String> = (0..self.names.len())
                .filter(|&i| !self.is_key(i))
                .map(|i| {
                    let (name, value) = (&self.names[i], self.value(i, &format!("s.c{i}")));
                    format!("{name} = CASE WHEN get_bit(s._known, {i}) = 1 THEN {value} ELSE t.{name} END")
                })
                .collect();
            let sql = format!(
                "UPDATE {table} t SET {} FROM {stage} s WHERE s._op = {PATCH} AND {}",
                sets.join(", "),
                self.same_key("c")
            );
            run(client, self.mirror, &sql).await?;
        }
        if let Some(seen) = &self.mirror.seen {
            let keys: Vec<String> =
                self.plan.shape.table.key.iter().map(|&i| self.value(i, &format!("s.c{i}"))).collect();
            let sql = format!(
                "INSERT INTO _highwater.{} SELECT {} FROM {stage} s WHERE s._op <> {GONE} ON CONFLICT DO NOTHING",
                quote(seen),
                keys.join(", ")
            );
            run(client, self.mirror, &sql).await?;
        }
        Ok(())
    }

    /// Staged rows of some kinds as the table has them.
    fn select(&self, stage: &str, kinds: &str) -> String {
        let values: Vec<String> = (0..self.names.len()).map(|i| self.value(i, &format!("s.c{i}"))).collect();
        format!("SELECT {} FROM {stage} s WHERE s._op IN ({kinds})", values.join(", "))
    }

    /// Adds rows that are new. False if one is not: then they are put like
    /// others, from now on at once.
    async fn add(&self, client: &Client, made: &mut Made, news: News, stage: &str, fold: &Fold) -> Result<bool> {
        let (table, names) = (self.mirror.quoted(), self.names.join(", "));
        let added = if news == News::Copied {
            run(client, self.mirror, "SAVEPOINT _hw_add").await?;
            let mut copy = Copy::begin(client, &table, &names).await?;
            let fields = i16::try_from(self.plan.width()).map_err(|_| too_wide(self.mirror))?;
            for (_, _, row) in fold.news.iter() {
                let out = copy.row();
                out.put_i16(fields);
                out.put_slice(row);
                copy.flow().await?;
            }
            match copy.end().await {
                Ok(_) => client.batch_execute("RELEASE _hw_add").await,
                Err(error) => Err(error),
            }
        } else {
            let insert = format!("INSERT INTO {table} ({names}) {}", self.select(stage, &NEW.to_string()));
            client.batch_execute(&format!("SAVEPOINT _hw_add; {insert}; RELEASE _hw_add")).await
        };
        match added {
            Ok(()) => Ok(true),
            Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => {
                made.news.insert(self.mirror.stream.clone(), News::Put);
                run(client, self.mirror, "ROLLBACK TO _hw_add; RELEASE _hw_add").await?;
                Ok(false)
            }
            Err(error) => Err(failed(error, format!("could not merge into {table}"))),
        }
    }

    /// How rows that are new are added: for that the server has to refuse a second
    /// row of a key, and COPY to mean what INSERT does.
    async fn news(&self, client: &Client, made: &mut Made) -> Result<News> {
        if let Some(news) = made.news.get(&self.mirror.stream) {
            return Ok(*news);
        }
        let sql = "SELECT EXISTS (SELECT 1 FROM pg_index i
                     WHERE i.indrelid = $1::text::regclass AND i.indisunique AND i.indimmediate AND i.indisvalid
                       AND i.indpred IS NULL AND i.indexprs IS NULL
                       AND (SELECT array_agg(a.attname::text ORDER BY a.attname::text COLLATE \"C\") FROM pg_attribute a
                             WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1]))
                         = (SELECT array_agg(name ORDER BY name COLLATE \"C\") FROM unnest($2::text[]) AS name)),
                          (SELECT relkind IN ('r', 'p') AND NOT relhasrules AND NOT relrowsecurity FROM pg_class
                            WHERE oid = $1::text::regclass)";
        let row = client.query_one(sql, &[&self.mirror.quoted(), &self.mirror.key]).await;
        let row = row.map_err(|error| failed(error, format!("could not look at {}", self.mirror.quoted())))?;
        let as_they_come = (0..self.plan.width()).all(|i| self.value(i, "v") == "v");
        let news = match (row.get(0), row.get(1)) {
            (true, true) if as_they_come => News::Copied,
            (true, _) => News::Added,
            _ => News::Put,
        };
        made.news.insert(self.mirror.stream.clone(), news);
        Ok(news)
    }

    fn staging_columns(&self) -> Vec<String> {
        let mut columns = vec!["_op smallint".to_owned(), "_known bytea".to_owned()];
        for &i in &self.plan.shape.table.key {
            columns.push(format!("o{i} {}", self.plan.targets[i].wire.sql()));
        }
        columns.extend(self.plan.targets.iter().enumerate().map(|(i, target)| format!("c{i} {}", target.wire.sql())));
        columns
    }

    /// Copies rows into the staging table.
    async fn copy(
        &self,
        client: &Client,
        stage: &str,
        rows: impl Iterator<Item = Staged<'_>>,
        found: &mut Found,
    ) -> Result<()> {
        let key = &self.plan.shape.table.key;
        let width = self.plan.width();
        let mut list = vec!["_op".to_owned(), "_known".to_owned()];
        list.extend(key.iter().map(|i| format!("o{i}")));
        list.extend((0..width).map(|i| format!("c{i}")));
        let mut copy = Copy::begin(client, stage, &list.join(", ")).await?;
        let fields = i16::try_from(list.len()).map_err(|_| too_wide(self.mirror))?;
        for Staged { op, key: of, mut row, origin } in rows {
            found.note(op);
            let out = copy.row();
            out.put_i16(fields);
            out.put_i32(2);
            out.put_i16(op);
            match op {
                PATCH | MOVED => {
                    let known = self.plan.known(row);
                    out.put_i32(known.len() as i32);
                    out.put_slice(&known);
                }
                _ => out.put_i32(wire::NULL),
            }
            match origin {
                Some(origin) => out.put_slice(origin),
                None => key.iter().for_each(|_| out.put_i32(wire::NULL)),
            }
            match op {
                GONE => {
                    let mut places: Vec<&[u8]> = vec![&[0xff; 4]; width];
                    let mut rest = of;
                    for &i in key {
                        let before = rest;
                        wire::next(&mut rest);
                        places[i] = &before[..before.len() - rest.len()];
                    }
                    places.iter().for_each(|place| out.put_slice(place));
                }
                PATCH | MOVED => {
                    for _ in 0..width {
                        let (length, value) = wire::next(&mut row).unwrap_or((wire::NULL, &[]));
                        out.put_i32(length.max(wire::NULL));
                        out.put_slice(value);
                    }
                }
                _ => out.put_slice(row),
            }
            copy.flow().await?;
        }
        copy.finish().await?;
        Ok(())
    }
}

/// A row of the staging table.
struct Staged<'a> {
    op: i16,
    key: &'a [u8],
    row: &'a [u8],
    /// The key that its row in the warehouse has.
    origin: Option<&'a [u8]>,
}

impl<'a> Staged<'a> {
    fn of((key, image, row): (&'a [u8], &'a Image, &'a [u8])) -> Self {
        let (op, origin) = match image {
            Image::Gone => (GONE, None),
            Image::Whole => (WHOLE, None),
            Image::Patch { origin: None } => (PATCH, None),
            Image::Patch { origin: Some(origin) } => (MOVED, Some(&origin[..])),
        };
        Self { op, key, row, origin }
    }
}

#[derive(Default)]
struct Found {
    gone: bool,
    whole: bool,
    new: bool,
    patch: bool,
    moved: bool,
}

impl Found {
    fn note(&mut self, op: i16) {
        match op {
            GONE => self.gone = true,
            WHOLE => self.whole = true,
            NEW => self.new = true,
            PATCH => self.patch = true,
            _ => self.moved = true,
        }
    }
}

pub(crate) fn too_wide(mirror: &Mirror) -> Error {
    Error::halt(format!("table {} has more columns than a row of COPY", mirror.quoted()))
        .hint("leave columns out with `columns` of the source")
}

pub(crate) async fn run(client: &Client, mirror: &Mirror, sql: &str) -> Result<()> {
    client.batch_execute(sql).await.map_err(|error| failed(error, format!("could not merge into {}", mirror.quoted())))
}

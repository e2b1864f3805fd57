//! `history`: every change a row, appended and never touched again, with a view
//! of what the rows come to.

use bytes::BufMut;
use connector::{Change, Malformed, Mark, Op, Reader, Result, Run, Transaction};
use std::sync::Arc;
use tokio_postgres::Client;

use crate::copy::Copy;
use crate::merge::{Made, Merge, run, too_wide};
use crate::plan::Plan;
use crate::settings::Settings;
use crate::sql::{literal, qualified, quote};
use crate::table::Mirror;
use crate::{text, wire};

/// Behind a table's name, for its view.
pub(crate) const VIEW: &str = "_current";

/// Our own columns, without their prefix, and what they are.
const META: [(&str, &str); 8] = [
    ("op", "text NOT NULL"),
    ("offset", "bigint PRIMARY KEY"),
    ("ordinal", "bigint NOT NULL"),
    ("position", "text NOT NULL"),
    ("tx", "text"),
    ("commit_time", "timestamp with time zone NOT NULL"),
    ("absent", "text[]"),
    ("old_key", "jsonb"),
];
/// And, where no key tells an old row, the old row.
const BEFORE: (&str, &str) = ("before", "jsonb");

/// Our columns of a table.
pub(crate) fn columns(plan: &Plan, prefix: &str) -> Vec<(String, &'static str)> {
    let before = (!plan.has_key()).then_some(BEFORE);
    META.into_iter().chain(before).map(|(name, definition)| (format!("{prefix}{name}"), definition)).collect()
}

/// Rows that wait, as COPY has them.
pub(crate) struct Appended {
    pub(crate) plan: Arc<Plan>,
    pub(crate) rows: Vec<u8>,
    starts: Vec<usize>,
}

impl Appended {
    pub(crate) fn new(plan: Arc<Plan>) -> Self {
        Self { plan, rows: Vec::new(), starts: Vec::new() }
    }

    fn fields(&self) -> i16 {
        let own = META.len() + usize::from(!self.plan.has_key());
        i16::try_from(self.plan.width() + own).unwrap_or(i16::MAX)
    }

    /// Takes the changes of a run.
    pub(crate) fn run(&mut self, run: &Run<'_>, position: fn(&[u8]) -> String) -> Result<(), Malformed> {
        let position = position(run.transaction.position);
        for change in run.changes() {
            self.change(&change?, &run.transaction, &position)?;
        }
        Ok(())
    }

    fn change(&mut self, change: &Change<'_>, transaction: &Transaction<'_>, position: &str) -> Result<(), Malformed> {
        let plan = self.plan.clone();
        self.rows.put_i16(self.fields());
        let mut absent = Vec::new();
        if change.op == Op::Truncate {
            self.nulls();
        } else {
            plan.row(change.value, Some(change), &mut self.rows, &mut self.starts)?;
            for i in (0..plan.width()).filter(|&i| change.is_absent(i)) {
                let at = self.starts[i];
                self.rows[at..at + 4].copy_from_slice(&wire::NULL.to_be_bytes());
                absent.push(plan.shape.table.columns[i].name.as_str());
            }
        }
        self.meta(
            change.op.name(),
            change.offset.0,
            change.ordinal,
            position,
            transaction.tx,
            transaction.commit_time.0,
        );
        if absent.is_empty() {
            self.rows.put_i32(wire::NULL)
        } else {
            texts(&mut self.rows, &absent)
        }
        match change.old_key {
            Some(body) => {
                let object = texts_of(&plan, body, &plan.shape.table.key)?;
                json(&mut self.rows, &object);
            }
            None => self.rows.put_i32(wire::NULL),
        }
        if !plan.has_key() {
            match change.before {
                Some(body) => {
                    let all: Vec<usize> = (0..plan.width()).collect();
                    let object = texts_of(&plan, body, &all)?;
                    json(&mut self.rows, &object);
                }
                None => self.rows.put_i32(wire::NULL),
            }
        }
        Ok(())
    }

    /// Takes a mark: begin and end of a later reading are rows of their own.
    pub(crate) fn mark(&mut self, mark: &Mark, offset: u64, position: &str) {
        self.rows.put_i16(self.fields());
        self.nulls();
        self.meta(&mark.op, offset, mark.ordinal, position, "", mark.commit_time);
        for _ in 0..2 + usize::from(!self.plan.has_key()) {
            self.rows.put_i32(wire::NULL);
        }
    }

    fn nulls(&mut self) {
        (0..self.plan.width()).for_each(|_| self.rows.put_i32(wire::NULL));
    }

    fn meta(&mut self, op: &str, offset: u64, ordinal: u64, position: &str, tx: &str, commit_time: i64) {
        let out = &mut self.rows;
        bytes_field(out, op.as_bytes());
        bytes_field(out, &(offset as i64).to_be_bytes());
        bytes_field(out, &(ordinal as i64).to_be_bytes());
        bytes_field(out, position.as_bytes());
        if tx.is_empty() {
            out.put_i32(wire::NULL)
        } else {
            bytes_field(out, tx.as_bytes())
        }
        bytes_field(out, &wire::micros(commit_time).to_be_bytes());
    }
}

fn bytes_field(out: &mut Vec<u8>, value: &[u8]) {
    out.put_i32(value.len() as i32);
    out.put_slice(value);
}

/// `text[]` in binary: one dimension, no NULLs, oid 25.
fn texts(out: &mut Vec<u8>, items: &[&str]) {
    let mut value = Vec::new();
    for word in [1, 0, 25, items.len() as i32, 1] {
        value.put_i32(word);
    }
    items.iter().for_each(|item| bytes_field(&mut value, item.as_bytes()));
    bytes_field(out, &value);
}

fn json(out: &mut Vec<u8>, object: &serde_json::Map<String, serde_json::Value>) {
    let text = serde_json::to_vec(object).expect("texts serialise");
    out.put_i32(text.len() as i32 + 1);
    out.put_u8(1);
    out.put_slice(&text);
}

/// Columns of a body as the source's own text, so that a cast gives the value.
/// A body of the key alone has them in the key's order, and none is null.
fn texts_of(
    plan: &Plan,
    body: &[u8],
    columns: &[usize],
) -> Result<serde_json::Map<String, serde_json::Value>, Malformed> {
    let table = &plan.shape.table;
    let mut reader = Reader::new(body);
    let mut object = serde_json::Map::new();
    for &i in columns {
        let column = &table.columns[i];
        let value = if table.in_key(i) || reader.present()? {
            let mut value = String::new();
            text::put(&mut value, &mut reader, &column.ty, &column.db_type)?;
            value.into()
        } else {
            serde_json::Value::Null
        };
        object.insert(column.name.clone(), value);
    }
    Ok(object)
}

/// Appends what waits.
pub(crate) async fn append(
    client: &Client,
    made: &mut Made,
    mirror: &Mirror,
    appended: &Appended,
    settings: &Settings,
) -> Result<()> {
    let plan = &appended.plan;
    let merge = Merge::new(mirror, plan)?;
    let own = columns(plan, &settings.meta_prefix);
    let names: Vec<String> = merge.names.iter().cloned().chain(own.iter().map(|(name, _)| quote(name))).collect();
    i16::try_from(names.len()).map_err(|_| too_wide(mirror))?;
    // Where a type has no binary form here, or is another, the values go by a
    // temporary table; else straight into place.
    let values: Vec<String> = (0..plan.width()).map(|i| merge.value(i, &format!("s.c{i}"))).collect();
    let straight = values.iter().enumerate().all(|(i, value)| *value == format!("s.c{i}"));
    if straight {
        let mut copy = Copy::begin(client, &mirror.quoted(), &names.join(", ")).await?;
        copy.rows(&appended.rows).await?;
        copy.finish().await?;
        return Ok(());
    }
    let staging = format!("_hw_history_{}", plan.shape.number);
    let mut columns: Vec<String> =
        plan.targets.iter().enumerate().map(|(i, target)| format!("c{i} {}", target.wire.sql())).collect();
    let plain = |definition: &str| definition.trim_end_matches(" NOT NULL").trim_end_matches(" PRIMARY KEY").to_owned();
    columns.extend(own.iter().enumerate().map(|(i, (_, definition))| format!("m{i} {}", plain(definition))));
    made.staging(client, mirror, &staging, &columns).await?;
    let list: Vec<String> =
        (0..plan.width()).map(|i| format!("c{i}")).chain((0..own.len()).map(|i| format!("m{i}"))).collect();
    let stage = format!("pg_temp.{staging}");
    let mut copy = Copy::begin(client, &stage, &list.join(", ")).await?;
    copy.rows(&appended.rows).await?;
    copy.finish().await?;
    let values: Vec<String> = values.into_iter().chain((0..own.len()).map(|i| format!("s.m{i}"))).collect();
    let sql =
        format!("INSERT INTO {} ({}) SELECT {} FROM {stage} s", mirror.quoted(), names.join(", "), values.join(", "));
    run(client, mirror, &sql).await
}

/// Drops the view, before its table is altered.
pub(crate) async fn drop_view(client: &Client, mirror: &Mirror) -> Result<()> {
    let view = qualified(&mirror.schema, &format!("{}{VIEW}", mirror.name));
    run(client, mirror, &format!("DROP VIEW IF EXISTS {view}")).await
}

/// Makes the view of the current rows; a table without a key has none.
pub(crate) async fn make_view(client: &Client, mirror: &Mirror, plan: &Plan, prefix: &str) -> Result<()> {
    if !plan.has_key() {
        return Ok(());
    }
    run(client, mirror, &view(mirror, plan, prefix)?).await
}

/// For each key its last change, if that left a row behind, and if the table
/// was not emptied or swept since. What a change did not tell is looked for in
/// the changes before it, back through the keys that the row has had.
fn view(mirror: &Mirror, plan: &Plan, prefix: &str) -> Result<String> {
    let merge = Merge::new(mirror, plan)?;
    let (table, names) = (mirror.quoted(), &merge.names);
    let own = |name: &str| quote(&format!("{prefix}{name}"));
    let (op, offset, absent, old_key) = (own("op"), own("offset"), own("absent"), own("old_key"));
    // Ours within the view: no column of the source has such a name.
    let (at, there, root, missing) = (own("at"), own("there"), own("root"), own("missing"));
    let key = &plan.shape.table.key;
    let each = |f: &dyn Fn(usize) -> String| key.iter().map(|&i| f(i)).collect::<Vec<_>>().join(", ");
    let old = |from: &str, i: usize| {
        format!("({from}{old_key} ->> {})::{}", literal(&plan.shape.table.columns[i].name), merge.types[i])
    };
    let was = |i: usize| own(&format!("was{i}"));
    let keys = each(&|i| names[i].clone());
    let old_keys = each(&|i| old("", i));
    let came = |from: &str| each(&|i| format!("coalesce({}, {from}{}) AS {}", old(from, i), names[i], was(i)));
    let here: Vec<String> = names.iter().map(|name| format!("a.{name}")).collect();
    let filled: Vec<String> = (0..names.len())
        .map(|i| {
            let column = literal(&plan.shape.table.columns[i].name);
            if plan.shape.table.in_key(i) {
                format!("f.{}", names[i])
            } else {
                format!("CASE WHEN {column} = ANY (f.{missing}) THEN p.{0} ELSE f.{0} END", names[i])
            }
        })
        .collect();
    let came_from: Vec<String> = key.iter().map(|&i| format!("h.{} = f.{}", names[i], was(i))).collect();
    Ok(format!(
        "CREATE VIEW {view} AS
         WITH RECURSIVE floor AS (
           SELECT greatest(
             (SELECT max({offset}) FROM {table} WHERE {op} = 'truncate'),
             (SELECT max({offset}) FROM {table} WHERE {op} = 'snapshot_begin'
                 AND {offset} < (SELECT max({offset}) FROM {table} WHERE {op} = 'snapshot_end')), -1) AS {at}
         ), placed AS (
           SELECT {keys}, {offset} AS {at}, {op} <> 'delete' AS {there} FROM {table}
            WHERE {op} IN ('read', 'insert', 'update', 'delete')
           UNION ALL
           SELECT {old_keys}, {offset}, false FROM {table} WHERE {old_key} IS NOT NULL
         ), last AS (
           SELECT DISTINCT ON ({keys}) {at}, {there} FROM placed ORDER BY {keys}, {at} DESC
         ), filled AS (
           SELECT a.{offset} AS {root}, a.{offset} AS {at}, {here}, coalesce(a.{absent}, '{{}}') AS {missing}, {came_here}
             FROM {table} a JOIN last ON last.{at} = a.{offset}
            WHERE last.{there} AND last.{at} > (SELECT {at} FROM floor)
           UNION ALL
           SELECT f.{root}, p.{offset}, {filled},
                  ARRAY(SELECT unnest(f.{missing}) INTERSECT SELECT unnest(p.{absent})), {came_before}
             FROM filled f CROSS JOIN LATERAL (
               SELECT * FROM {table} h WHERE {came_from} AND h.{offset} < f.{at} AND h.{op} IN ('read', 'insert', 'update')
                ORDER BY h.{offset} DESC LIMIT 1) p
            WHERE f.{missing} <> '{{}}'
         )
         SELECT {names} FROM (SELECT DISTINCT ON ({root}) * FROM filled ORDER BY {root}, {at}) newest",
        view = qualified(&mirror.schema, &format!("{}{VIEW}", mirror.name)),
        here = here.join(", "),
        came_here = came("a."),
        filled = filled.join(", "),
        came_before = came("p."),
        came_from = came_from.join(" AND "),
        names = names.join(", "),
    ))
}

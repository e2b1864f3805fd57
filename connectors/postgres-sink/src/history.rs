//! `history`: every change a row, appended and never touched again, with views
//! of what the rows come to.

pub(crate) mod views;

use bytes::BufMut;
use connector::{Change, Malformed, Mark, Op, Reader, Result, Run, Transaction};
use std::sync::Arc;
use tokio_postgres::Client;

use crate::copy::Copy;
use crate::merge::{Made, Merge, run, too_wide};
use crate::plan::Plan;
use crate::settings::Settings;
use crate::sql::quote;
use crate::table::Mirror;
use crate::{text, wire};

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

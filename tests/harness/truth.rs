//! The truth from elsewhere: a second slot, read by another plugin, and the
//! tables themselves.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::{Client, SimpleQueryMessage};

use crate::landed::Event;
use crate::postgres::Postgres;

/// No text of PostgreSQL has a NUL.
const UNKNOWN: &str = "\0 not known";

/// A committed change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Truth {
    pub xid: String,
    pub op: String,
    /// The row's `id` after it, or of what was deleted.
    pub id: Option<String>,
}

impl Truth {
    /// Makes the second slot; from here on it knows everything.
    pub async fn watch(postgres: &Postgres) {
        let sql = format!("SELECT pg_create_logical_replication_slot('truth_{}', 'test_decoding')", postgres.database);
        postgres.client().await.batch_execute(&sql).await.unwrap();
    }

    /// Every change of a table that was committed since, in commit order.
    /// `name` as test_decoding prints it: `public.orders`.
    pub async fn of(postgres: &Postgres, name: &str) -> Vec<Truth> {
        let client = postgres.client().await;
        // A server that spills a transaction with an ALTER in it and reads it back
        // may crash (18.4 does), and what is the truth must not.
        client.batch_execute("SET logical_decoding_work_mem = '1GB'").await.unwrap();
        let slot = format!("truth_{}", postgres.database);
        let sql = format!(
            "SELECT xid::text, data FROM pg_logical_slot_peek_changes('{slot}', NULL, NULL, 'skip-empty-xacts', '1')"
        );
        let mut changes = Vec::new();
        for message in client.simple_query(&sql).await.unwrap() {
            let SimpleQueryMessage::Row(row) = message else { continue };
            let (xid, text) = (row.get(0).unwrap(), row.get(1).unwrap());
            let Some(rest) = text.strip_prefix("table ") else { continue };
            if let Some(tables) = rest.strip_suffix(": TRUNCATE: (no-flags)") {
                if tables.split(", ").any(|table| table == name) {
                    changes.push(Truth { xid: xid.into(), op: "truncate".into(), id: None });
                }
                continue;
            }
            let Some(rest) = rest.strip_prefix(name).and_then(|rest| rest.strip_prefix(": ")) else { continue };
            let (op, tuple) = rest.split_once(": ").unwrap();
            let tuple = tuple.split_once("new-tuple: ").map_or(tuple, |(_, new)| new);
            let id = tuple.split_once("id[bigint]:").map(|(_, v)| v.split(' ').next().unwrap().to_owned());
            changes.push(Truth { xid: xid.into(), op: op.to_lowercase(), id });
        }
        changes
    }
}

/// Each committed change once, and in commit order; nothing else.
pub fn compare(stream: &str, truth: &[Truth], events: &[Event]) {
    let seen: Vec<Truth> = events
        .iter()
        .filter(|event| event.tx.is_some())
        .map(|event| Truth {
            xid: event.tx.clone().unwrap(),
            op: event.op.clone(),
            id: if event.op == "truncate" { None } else { event.row["id"].clone() },
        })
        .collect();
    let count = |list: &[Truth]| {
        let mut counts: BTreeMap<Truth, i64> = BTreeMap::new();
        list.iter().for_each(|change| *counts.entry(change.clone()).or_default() += 1);
        counts
    };
    let (mut expected, found) = (count(truth), count(&seen));
    for (change, n) in found {
        *expected.entry(change).or_default() -= n;
    }
    let missing: Vec<_> = expected.iter().filter(|(_, n)| **n > 0).take(5).collect();
    let extra: Vec<_> = expected.iter().filter(|(_, n)| **n < 0).take(5).collect();
    assert!(missing.is_empty(), "{stream}: missing {missing:?}");
    assert!(extra.is_empty(), "{stream}: twice, or never committed {extra:?}");
    let differs = truth.iter().zip(&seen).position(|(a, b)| a != b);
    assert!(differs.is_none(), "{stream}: out of order at {differs:?}");
    let mut places: Vec<(&str, i64)> = events.iter().map(|e| (e.position.as_str(), e.ordinal)).collect();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), events.len(), "{stream}: position and ordinal are an event's own");
}

/// What the events of a keyed table come to, against the table.
pub async fn final_state(client: &Client, table: &str, events: &[Event]) {
    let mut state: BTreeMap<String, BTreeMap<String, Option<String>>> = BTreeMap::new();
    // Keys seen since the generation under way began.
    let mut seen = BTreeSet::new();
    for event in events {
        let id = || event.row["id"].clone().unwrap();
        match event.op.as_str() {
            "truncate" => state.clear(),
            "delete" => drop(state.remove(&id())),
            "snapshot_begin" => seen.clear(),
            // What was neither read nor changed does not exist.
            "snapshot_end" => state.retain(|id, _| seen.contains(id)),
            _ => {
                seen.insert(id());
                let before = match &event.old_key {
                    Some(old) => state.remove(old),
                    None => state.remove(&id()),
                };
                let mut row = event.row.clone();
                for column in &event.absent {
                    // A row that a later round still has to read: what is not
                    // known now must be by the end.
                    let kept = before.as_ref().map_or_else(|| Some(UNKNOWN.to_owned()), |row| row[column].clone());
                    row.insert(column.clone(), kept);
                }
                state.insert(id(), row);
            }
        }
    }
    let columns = client
        .query(
            "SELECT attname::text, format_type(atttypid, NULL) FROM pg_attribute
              WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            &[&table],
        )
        .await
        .unwrap();
    let columns: Vec<(String, String)> = columns.iter().map(|row| (row.get(0), row.get(1))).collect();
    let list: Vec<String> = columns
        .iter()
        .map(|(name, ty)| match ty.as_str() {
            "timestamp with time zone" => format!("(extract(epoch from {}) * 1000000)::bigint::text", quoted(name)),
            _ => format!("{}::text", quoted(name)),
        })
        .collect();
    let rows = client.simple_query(&format!("SELECT {} FROM {table}", list.join(", "))).await.unwrap();
    let mut expected: BTreeMap<String, BTreeMap<String, Option<String>>> = BTreeMap::new();
    for message in rows {
        let SimpleQueryMessage::Row(row) = message else { continue };
        let values: BTreeMap<String, Option<String>> =
            columns.iter().enumerate().map(|(i, (name, _))| (name.clone(), row.get(i).map(str::to_owned))).collect();
        expected.insert(values["id"].clone().unwrap(), values);
    }
    let missing: Vec<_> = expected.keys().filter(|id| !state.contains_key(*id)).take(5).collect();
    let extra: Vec<_> = state.keys().filter(|id| !expected.contains_key(*id)).take(5).collect();
    assert!(missing.is_empty() && extra.is_empty(), "{table}: missing {missing:?}, too many {extra:?}");
    for (id, row) in &expected {
        // A column that came later, without values for what was there, is null.
        let landed = |name: &String| (name.clone(), state[id].get(name).cloned().flatten());
        let found: BTreeMap<_, _> = row.keys().map(landed).collect();
        assert_eq!(&found, row, "{table} {id}");
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

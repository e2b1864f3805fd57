//! Rows that wait for a person, and that nothing else waits for.

mod kills;
mod registered;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use highwater_tests::{Daemon, Event, Postgres, Truth, folder, landed, until};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::pgsink::{self, same, warehouse};
use crate::spine::{capturing, local, to_folder};

/// A lake and a warehouse; `more` are settings of the source's tables.
pub(crate) fn both(source: &Postgres, warehouse: &Postgres, lake: &Path, more: &str) -> String {
    let lake = to_folder(source, lake, "200ms");
    let (_, lake) = lake.split_once("[sinks.lake]").unwrap();
    format!("{}[sinks.lake]{lake}\n{more}\n", pgsink::config(source, warehouse, ""))
}

/// What waits, as `quarantine list --json` tells it.
pub(crate) fn waiting(daemon: &Daemon, more: &[&str]) -> Vec<Value> {
    let (code, out, err) = daemon.run(&[&["--json", "quarantine", "list", "shop"], more].concat());
    assert_eq!(code, 0, "{err}");
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Redrives or discards; what came of it.
pub(crate) fn act(daemon: &Daemon, words: &[&str]) -> Value {
    let (code, out, err) = daemon.run(&[&["--json", "quarantine"], words].concat());
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(&out).unwrap()
}

/// Everything that can be delivered is, and rows are left.
pub(crate) fn all_but_those_that_wait(daemon: &mut Daemon) {
    daemon.start(&["run", "--until-caught-up"], None);
    let ended = daemon.wait(Duration::from_secs(120));
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("wait in quarantine"), "{}", ended.stderr);
}

/// Op and key of each, with the reason.
fn told(rows: &[Value]) -> Vec<String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    rows.iter().map(|row| format!("{} {} {}", text(&row["op"]), row["key"]["id"], text(&row["reason"]))).collect()
}

/// Each committed change once, whenever it was let go, and each row's in the
/// order in which they were committed; nothing has the identity of another.
pub(crate) fn each_once_and_in_order_by_key(stream: &str, truth: &[Truth], events: &[Event]) {
    let mut identities = BTreeSet::new();
    for event in events {
        assert!(identities.insert((event.position.clone(), event.ordinal)), "{stream}: twice {event:?}");
    }
    let mut expected: BTreeMap<Option<String>, Vec<(String, String)>> = BTreeMap::new();
    for change in truth {
        expected.entry(change.id.clone()).or_default().push((change.xid.clone(), change.op.clone()));
    }
    let mut found: BTreeMap<Option<String>, Vec<(String, String)>> = BTreeMap::new();
    for event in events.iter().filter(|event| event.tx.is_some()) {
        let id = if event.op == "truncate" { None } else { event.row["id"].clone() };
        found.entry(id).or_default().push((event.tx.clone().unwrap(), event.op.clone()));
    }
    for (id, changes) in &expected {
        assert_eq!(found.get(id), Some(changes), "{stream} {id:?}");
    }
    assert_eq!(found.len(), expected.len(), "{stream}: keys that no one has written");
}

async fn count(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

async fn there(client: &Client, sql: &str) {
    until(30, sql, || async { count(client, sql).await == 1 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_breaks_a_contract_waits_with_its_key_and_goes_on_in_order() {
    let (source, warehouse) = (Postgres::new(17).await, warehouse(None, 17).await);
    let client = source.client().await;
    client
        .batch_execute(
            "CREATE TABLE orders (id bigint PRIMARY KEY, status text, amount numeric(12,2), body text);
             ALTER TABLE orders ALTER body SET STORAGE EXTERNAL;
             INSERT INTO orders SELECT i, 'new', i, repeat('x', 3000) FROM generate_series(1, 10) i",
        )
        .await
        .unwrap();
    source.publish("highwater_shop", "orders").await;
    Truth::watch(&source).await;
    let folder = folder("quarantine-contract");
    let lake = folder.join("lake");
    let strict = "[sources.shop.table.\"public.orders\"]\n\
                  contract = { required = [\"status\"], range = { amount = { min = 0 } }, allowed = { status = [\"new\", \"paid\"] } }";
    let mut daemon = Daemon::new(&folder, &both(&source, &warehouse, &lake, strict));
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    let here = warehouse.client().await;
    until(30, "the first rows are there", || async {
        here.query_one("SELECT count(*) FROM orders", &[]).await.is_ok_and(|row| row.get::<_, i64>(0) == 10)
    })
    .await;
    for sql in [
        "INSERT INTO orders VALUES (100, 'new', -5, repeat('y', 3000)), (101, 'new', 5, NULL)",
        "UPDATE orders SET status = 'paid' WHERE id = 100",
        "UPDATE orders SET id = 200 WHERE id = 100",
        "INSERT INTO orders VALUES (100, 'new', 1, NULL)",
        "UPDATE orders SET amount = 7 WHERE id = 200",
        "UPDATE orders SET status = NULL WHERE id = 3",
        "DELETE FROM orders WHERE id = 3",
        "UPDATE orders SET status = 'paid' WHERE id = 101",
    ] {
        client.batch_execute(sql).await.unwrap();
    }
    there(&here, "SELECT count(*) FROM orders WHERE id = 101 AND status = 'paid'").await;
    assert_eq!(count(&here, "SELECT count(*) FROM orders WHERE id IN (100, 200)").await, 0, "they wait");
    assert_eq!(count(&here, "SELECT count(*) FROM orders WHERE id = 3 AND status = 'new'").await, 1, "as it was");
    let rows = waiting(&daemon, &[]);
    let expected = [
        "insert 100 contract",
        "update 100 behind",
        "update 200 behind",
        "insert 100 behind",
        "update 200 behind",
        "update 3 contract",
        "delete 3 behind",
    ];
    assert_eq!(told(&rows), expected);
    assert_eq!(rows[0]["detail"], "column \"amount\" is less than 0");
    assert_eq!(rows[0]["table"], "orders");
    assert_eq!(told(&waiting(&daemon, &["--key", "3"])), expected[5..]);
    assert_eq!(waiting(&daemon, &["--reason", "behind"]).len(), 5);
    let waits = daemon.status()["sources"][0]["quarantine"].clone();
    assert_eq!((waits["rows"].clone(), waits["keys"].clone()), (json!(7), json!(3)), "{waits}");
    // Nothing has changed: what is bad stays, with all behind it.
    let done = act(&daemon, &["redrive", "shop"]);
    assert_eq!((done["released"].clone(), done["left"].clone()), (json!(0), json!(7)), "{done}");
    // It survives a kill, and one key goes on by itself.
    daemon.kill();
    let lenient = "[sources.shop.table.\"public.orders\"]\ncontract = { range = { amount = { min = -10 } } }";
    let mut daemon = Daemon::new(&folder, &both(&source, &warehouse, &lake, lenient));
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    let done = act(&daemon, &["redrive", "shop", "--key", "3"]);
    assert_eq!((done["released"].clone(), done["left"].clone()), (json!(2), json!(5)), "{done}");
    there(&here, "SELECT count(*) FROM orders WHERE NOT EXISTS (SELECT FROM orders WHERE id = 3) AND id = 1").await;
    let done = act(&daemon, &["redrive", "shop"]);
    assert_eq!((done["released"].clone(), done["left"].clone()), (json!(5), json!(0)), "{done}");
    daemon.signal("TERM");
    assert_eq!(daemon.wait(Duration::from_secs(60)).code, Some(0));
    daemon.catch_up();
    same(&client, &here, "orders").await;
    let events = landed(&local(&lake), "shop.public.orders").await;
    each_once_and_in_order_by_key("orders", &Truth::of(&source, "public.orders").await, &events);
    highwater_tests::final_state(&client, "orders", &events).await;
    assert_eq!(daemon.status()["sources"][0]["quarantine"]["rows"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_cannot_be_carried_waits_and_the_source_goes_on() {
    let (source, warehouse) = (Postgres::new(17).await, warehouse(None, 17).await);
    let client = source.client().await;
    let values = "('NaN', NULL, NULL, NULL), (1, '294276-12-31 23:59:59.999999', NULL, NULL), \
                  (2, NULL, '[0:1]={1,2}', NULL), (3, NULL, NULL, (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 4000) i)), \
                  (4, now()::timestamp, '{1}', 'good')";
    client
        .batch_execute(&format!(
            "CREATE TABLE t (id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY, a numeric(12,2), b timestamp, c int[], d text);
             CREATE TABLE other (id int PRIMARY KEY);
             INSERT INTO t (a, b, c, d) VALUES {values}; INSERT INTO other VALUES (1)"
        ))
        .await
        .unwrap();
    source.publish("highwater_shop", "t, other").await;
    let folder = folder("quarantine-values");
    let lake = folder.join("lake");
    let config = both(&source, &warehouse, &lake, "").replace("[log]", "on_incompatible = \"evolve\"\n[log]");
    let small = config.replacen("[log]", "max_row = \"64KiB\"\n[log]", 1);
    let mut daemon = Daemon::new(&folder, &small);
    all_but_those_that_wait(&mut daemon);
    client
        .batch_execute(&format!("INSERT INTO t (a, b, c, d) VALUES {values}; INSERT INTO other VALUES (2)"))
        .await
        .unwrap();
    // A row whose key changes and that cannot be carried; and one that comes to its old key.
    client
        .batch_execute("UPDATE t SET a = 'NaN', d = 'changed' WHERE id = 5; DELETE FROM t WHERE id = 1")
        .await
        .unwrap();
    all_but_those_that_wait(&mut daemon);
    let here = warehouse.client().await;
    assert_eq!(same(&client, &here, "other").await, 2);
    assert_eq!(count(&here, "SELECT count(*) FROM t").await, 2, "the two that are good");
    let expected = [
        "read 1 value",
        "read 2 value",
        "read 3 value",
        "read 4 too_large",
        "insert 6 value",
        "insert 7 value",
        "insert 8 value",
        "insert 9 too_large",
        "update 5 value",
        "delete 1 behind",
    ];
    assert_eq!(told(&waiting(&daemon, &[])), expected);
    let (code, out, _) = daemon.run(&["--json", "quarantine", "show", "shop", "--key", "2"]);
    assert_eq!(code, 0);
    let shown: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(shown["as_it_came"]["new"]["b"], "294276-12-31 23:59:59.999999", "{shown}");
    // A stopped daemon's rows too; larger rows are let through now.
    let daemon_large = Daemon::new(&folder, &config);
    let done = act(&daemon_large, &["redrive", "shop", "--reason", "too_large"]);
    assert_eq!((done["released"].clone(), done["left"].clone()), (json!(2), json!(8)), "{done}");
    // The column takes any number now, without its table being rewritten.
    client.batch_execute("ALTER TABLE t ALTER a TYPE numeric; INSERT INTO t (a) VALUES ('Infinity')").await.unwrap();
    let mut daemon = daemon_large;
    all_but_those_that_wait(&mut daemon);
    let done = act(&daemon, &["redrive", "shop"]);
    assert_eq!(done["released"], 4, "{done}");
    assert_eq!(told(&waiting(&daemon, &[])), ["read 2 value", "read 3 value", "insert 7 value", "insert 8 value"]);
    // Nobody wants the rest.
    let (code, out, _) = daemon.run(&["quarantine", "discard", "shop"]);
    assert!(code == 0 && out.contains("4 rows would be given up"), "{out}");
    let done = act(&daemon, &["discard", "shop", "--yes"]);
    assert_eq!((done["discarded"].clone(), done["left"].clone()), (json!(4), json!(0)), "{done}");
    let (_, out, _) = daemon.run(&["--json", "quarantine", "list", "shop", "--discarded"]);
    let discarded: Value = serde_json::from_str(out.trim()).unwrap();
    assert_eq!((discarded["rows"].clone(), discarded["cause"].clone()), (json!(4), json!("asked")));
    daemon.catch_up();
    client.batch_execute("DELETE FROM t WHERE id IN (2, 3, 7, 8)").await.unwrap();
    daemon.catch_up();
    same(&client, &here, "t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_is_as_wide_as_it_must_be_and_ends_where_the_table_is_told_anew() {
    let source = Postgres::new(17).await;
    let client = source.client().await;
    client
        .batch_execute(
            "CREATE TABLE keyed (id int PRIMARY KEY, v int); CREATE TABLE bag (id int, v int);
             ALTER TABLE bag REPLICA IDENTITY FULL; CREATE TABLE odd (id numeric(4,1) PRIMARY KEY, v int);
             INSERT INTO keyed VALUES (1, 1), (2, 2), (3, 3)",
        )
        .await
        .unwrap();
    source.publish("highwater_shop", "keyed, bag, odd").await;
    let folder = folder("quarantine-fences");
    let lake = folder.join("lake");
    let rules = "[sources.shop.table.\"public.*\"]\ncontract = { range = { v = { max = 10 } } }";
    let mut daemon = Daemon::new(&folder, &format!("{}{rules}\n", to_folder(&source, &lake, "200ms")));
    daemon.catch_up();
    client
        .batch_execute(
            "INSERT INTO keyed VALUES (4, 40); UPDATE keyed SET id = 5 WHERE id = 4; UPDATE keyed SET v = 1 WHERE id = 1;
             INSERT INTO bag VALUES (1, 1), (2, 20), (3, 3); DELETE FROM bag WHERE id = 1;
             INSERT INTO odd VALUES ('NaN', 1), (1, 1);",
        )
        .await
        .unwrap();
    all_but_those_that_wait(&mut daemon);
    let of = |daemon: &Daemon, table: &str| told(&waiting(daemon, &["--table", table]));
    assert_eq!(of(&daemon, "public.keyed"), ["insert 4 contract", "update 5 behind"]);
    assert_eq!(of(&daemon, "public.bag"), ["insert null contract", "insert null behind", "delete null behind"]);
    assert_eq!(of(&daemon, "public.odd"), ["insert null value", "insert \"1.0\" behind"]);
    // A truncate tells one anew, and another reading the other.
    client.batch_execute("TRUNCATE bag; INSERT INTO bag VALUES (7, 7)").await.unwrap();
    client.batch_execute("DELETE FROM odd WHERE id = 'NaN'").await.unwrap();
    let (code, _, err) = daemon.run(&["snapshot", "shop", "public.odd"]);
    assert_eq!(code, 0, "{err}");
    all_but_those_that_wait(&mut daemon);
    assert_eq!(told(&waiting(&daemon, &[])), ["insert 4 contract", "update 5 behind"]);
    let (_, out, _) = daemon.run(&["--json", "quarantine", "list", "shop", "--discarded"]);
    let discarded: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let causes: BTreeSet<(String, u64)> = discarded
        .iter()
        .map(|one| {
            (
                format!("{} {}", one["stream"].as_str().unwrap(), one["cause"].as_str().unwrap()),
                one["rows"].as_u64().unwrap(),
            )
        })
        .collect();
    // The delete of what waited came behind it.
    let expected = [("shop.public.bag truncate".to_owned(), 3), ("shop.public.odd new generation".to_owned(), 3)];
    assert_eq!(causes, BTreeSet::from(expected));
    // What was given up leaves what came after it: an update that tells all.
    let done = act(&daemon, &["discard", "shop", "--key", "{\"id\": 4}", "--yes"]);
    assert_eq!((done["discarded"].clone(), done["left"].clone()), (json!(1), json!(1)), "{done}");
    assert_eq!(told(&waiting(&daemon, &[])), ["update 5 contract"], "it breaks the contract by itself");
    act(&daemon, &["discard", "shop", "--yes"]);
    daemon.catch_up();
    let store = local(&lake);
    let ops = async |stream: &str| -> Vec<String> {
        landed(&store, stream).await.iter().map(|event| event.op.clone()).collect()
    };
    assert_eq!(ops("shop.public.bag").await, ["insert", "truncate", "insert"]);
    assert_eq!(
        landed(&store, "shop.public.odd").await.last().unwrap().row["v"].as_deref(),
        None,
        "the end of its reading"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_quarantine_stops_the_source_or_parks_the_table() {
    let source = Postgres::new(17).await;
    let client = source.client().await;
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY)")
        .await
        .unwrap();
    source.publish("highwater_shop", "t, u").await;
    let folder = folder("quarantine-full");
    let lake = folder.join("lake");
    let config = |on_full: &str, contract: &str| {
        format!(
            "[quarantine]\nmax_bytes = \"1KiB\"\non_full = \"{on_full}\"\n{}[sources.shop.table.\"public.t\"]\ncontract = {{ {contract} }}\n",
            to_folder(&source, &lake, "200ms")
        )
    };
    const RULE: &str = "pattern = { v = \"^good\" }";
    let mut daemon = Daemon::new(&folder, &config("halt", RULE));
    daemon.catch_up();
    client
        .batch_execute(
            "INSERT INTO t SELECT i, repeat('bad', 30) FROM generate_series(1, 50) i; INSERT INTO t VALUES (99, 'good');
             INSERT INTO u VALUES (1)",
        )
        .await
        .unwrap();
    daemon.start(&["run"], None);
    let ended = daemon.wait(Duration::from_secs(30));
    assert_eq!(ended.code, Some(1));
    for word in ["is full", "public.t", "does not match", "max_bytes", "what to do"] {
        assert!(ended.stderr.contains(word), "{word}: {}", ended.stderr);
    }
    let mut daemon = Daemon::new(&folder, &config("park", RULE));
    all_but_those_that_wait(&mut daemon);
    assert_eq!(waiting(&daemon, &[]).len(), 51, "the good row too: all of its table waits");
    assert_eq!(daemon.status()["sources"][0]["quarantine"]["parked"], json!(["shop.public.t"]));
    assert_eq!(landed(&local(&lake), "shop.public.u").await.len(), 1);
    let mut daemon = Daemon::new(&folder, &config("park", "pattern = { v = \"d\" }"));
    let done = act(&daemon, &["redrive", "shop"]);
    assert_eq!(done["released"], 51, "{done}");
    client.batch_execute("INSERT INTO t VALUES (100, 'good')").await.unwrap();
    daemon.catch_up();
    assert_eq!(landed(&local(&lake), "shop.public.t").await.len(), 52);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_contract_that_does_not_fit_is_told_before_anything_begins() {
    let source = Postgres::new(17).await;
    let client = source.client().await;
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text)").await.unwrap();
    source.publish("highwater_shop", "t").await;
    let folder = folder("quarantine-unfitting");
    let more = "[sources.shop.table.\"public.t\".contract]\nrequired = [\"w\"]\nrange = { v = { min = 1 } }\n";
    let mut daemon = Daemon::new(&folder, &format!("{}{more}", to_folder(&source, &folder.join("lake"), "200ms")));
    let (code, out, _) = daemon.run(&["check"]);
    assert_eq!(code, 3);
    for word in
        ["highwater.toml:", "contract.required", "no column \"w\"", "contract.range.v", "a range is for numbers"]
    {
        assert!(out.contains(word), "{word}: {out}");
    }
    daemon.start(&["run"], None);
    let ended = daemon.wait(Duration::from_secs(30));
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("no column \"w\""), "{}", ended.stderr);
    let (code, _, err) =
        Daemon::new(&folder, &format!("{}{more}rang = 1\n", to_folder(&source, &folder.join("lake"), "1s")))
            .run(&["check"]);
    assert_eq!(code, 2);
    assert!(err.contains("did you mean `range`"), "{err}");
}

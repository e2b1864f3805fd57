//! Rules that a team keeps in the registry, in the metadata of its subject.

use std::time::Duration;

use highwater_tests::{Daemon, Postgres, folder, free_port, until};
use serde_json::{Value, json};

use super::{act, all_but_those_that_wait, both, count, there, told, waiting};
use crate::pgsink::{same, warehouse};
use crate::registry::http::ask;
use crate::registry::{Registry, body};
use crate::spine::capturing;

const SUBJECT: &str = "/subjects/shop.public.orders.Value/versions";

/// The last version once more, with these properties; its number.
async fn say(port: u16, properties: Value) -> u64 {
    let last = ask(port, "GET", &format!("{SUBJECT}/latest"), "").await.json();
    let new = json!({"schema": last["schema"], "metadata": {"properties": properties}});
    let answer = ask(port, "POST", SUBJECT, &new.to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()["version"].as_u64().unwrap()
}

async fn orders() -> (Postgres, tokio_postgres::Client) {
    let source = Postgres::new(17).await;
    let client = source.client().await;
    let sql = "CREATE TABLE orders (id bigint PRIMARY KEY, status text, amount numeric(12,2));
               CREATE TABLE other (id bigint PRIMARY KEY, v int);
               INSERT INTO orders VALUES (1, 'new', 1), (2, 'new', -2); INSERT INTO other VALUES (1, 1)";
    client.batch_execute(sql).await.unwrap();
    source.publish("highwater_shop", "orders, other").await;
    (source, client)
}

fn held(daemon: &Daemon) -> Vec<Value> {
    daemon.status()["sources"][0]["held"].as_array().cloned().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_of_the_registry_hold_as_those_of_the_configuration_and_go_on_with_new_versions() {
    let ((source, client), warehouse) = (orders().await, warehouse(None, 17).await);
    let (folder, port) = (folder("quarantine-registered"), free_port());
    let lake = folder.join("lake");
    let more = format!(
        "[sources.shop.table.\"public.orders\"]\ncontract = {{ allowed = {{ status = [\"new\", \"paid\"] }} }}\n\
         [registry]\nbind = \"127.0.0.1:{port}\"\n"
    );
    let mut daemon = Daemon::new(&folder, &both(&source, &warehouse, &lake, &more));
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    let here = warehouse.client().await;
    until(30, "the first rows are there", || async {
        here.query_one("SELECT count(*) FROM orders", &[]).await.is_ok_and(|row| row.get::<_, i64>(0) == 2)
    })
    .await;
    let bound = |least: i32| json!({"highwater.contract.amount": format!(r#"{{"range": {{"min": {least}}}}}"#), "owner": "billing"});
    assert_eq!(say(port, bound(0)).await, 2);
    // From the next look on.
    let mut id = 100;
    while waiting(&daemon, &[]).is_empty() {
        id += 1;
        client.batch_execute(&format!("INSERT INTO orders VALUES ({id}, 'new', -1)")).await.unwrap();
        assert!(id < 1_000, "the rule is never followed");
    }
    assert_eq!(waiting(&daemon, &[])[0]["detail"], "column \"amount\" is less than 0");
    // Both count, and the source's next version has what the last one had.
    client
        .batch_execute("ALTER TABLE orders ADD COLUMN note text; INSERT INTO orders VALUES (2000, 'gone', 1), (2001, 'new', -1), (2002, 'new', 5)")
        .await
        .unwrap();
    there(&here, "SELECT count(*) FROM orders WHERE id = 2002").await;
    let last = ask(port, "GET", &format!("{SUBJECT}/latest"), "").await.json();
    assert_eq!((last["version"].clone(), last["metadata"]["properties"].clone()), (json!(3), bound(0)), "{last}");
    let both = ["insert 2000 contract".to_owned(), "insert 2001 contract".to_owned()];
    until(10, "what breaks either waits", || {
        let waits = told(&waiting(&daemon, &[])).ends_with(&both);
        async move { waits }
    })
    .await;
    // After a kill from the first row on.
    daemon.kill();
    client.batch_execute("INSERT INTO orders VALUES (3000, 'new', -1)").await.unwrap();
    all_but_those_that_wait(&mut daemon);
    assert!(told(&waiting(&daemon, &[])).contains(&"insert 3000 contract".into()));
    // Wider rules let go what is asked for again.
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    assert_eq!(say(port, bound(-10)).await, 4);
    until(30, "what the rules allow by now has gone", || {
        let left = act(&daemon, &["redrive", "shop"])["left"].clone();
        async move { left == 1 }
    })
    .await;
    // Beside a daemon that runs, what it did last is there a moment later.
    until(10, "one is left", || {
        let rows = told(&waiting(&daemon, &[]));
        async move { rows == ["insert 2000 contract"] }
    })
    .await;

    // What cannot be followed holds its own table, and says all there is to say.
    assert_eq!(say(port, json!({"highwater.contract.amount": r#"{"rang": {"min": 0}}"#})).await, 5);
    until(30, "the table is held", || {
        let held = held(&daemon);
        async move { held.len() == 1 }
    })
    .await;
    let why = held(&daemon)[0]["rules"].as_str().unwrap().to_owned();
    let place = "subject shop.public.orders.Value, version 5, property highwater.contract.amount: rang";
    assert!(why.contains(place) && why.contains("did you mean `range`"), "{why}");
    client
        .batch_execute(
            "INSERT INTO orders VALUES (4000, 'new', -100), (4001, 'new', 100); INSERT INTO other VALUES (2, 2)",
        )
        .await
        .unwrap();
    there(&here, "SELECT count(*) FROM other WHERE id = 2").await;
    until(30, "its rows wait", || {
        let waits = held(&daemon)[0]["events"] == 2;
        async move { waits }
    })
    .await;
    let (code, out, _) = daemon.run(&["status"]);
    assert!(code == 0 && out.contains(place) && out.contains("mend the property"), "{out}");
    let (code, _, err) = daemon.run(&["schemas", "approve", "shop", "public.orders", "--as-new-version"]);
    assert!(code == 1 && err.contains(place) && err.contains("mend the property"), "{err}");
    // Over a kill, and a rule that its column cannot have.
    daemon.kill();
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    assert_eq!(held(&daemon)[0]["events"], 2);
    assert_eq!(say(port, json!({"highwater.contract": r#"{"pattern": {"amount": "^1"}}"#})).await, 6);
    until(30, "it is held for that", || {
        let held = held(&daemon);
        async move { held.len() == 1 && held[0]["rules"].to_string().contains("a pattern is for text") }
    })
    .await;
    // Mended, it goes on by itself, and is looked at by the rules that hold now.
    for version in [6, 5] {
        assert_eq!(ask(port, "DELETE", &format!("{SUBJECT}/{version}"), "").await.status, 200);
    }
    there(&here, "SELECT count(*) FROM orders WHERE id = 4001").await;
    assert!(held(&daemon).is_empty());
    until(10, "what breaks them waits", || {
        let rows = told(&waiting(&daemon, &[]));
        async move { rows == ["insert 2000 contract", "insert 4000 contract"] }
    })
    .await;
    say(port, json!({})).await;
    client.batch_execute("UPDATE orders SET status = 'new' WHERE id = 2000").await.unwrap();
    let (code, _, err) = daemon.run(&["quarantine", "discard", "shop", "--key", "2000", "--yes"]);
    assert_eq!(code, 0, "{err}");
    until(30, "nothing waits", || {
        let left = act(&daemon, &["redrive", "shop"])["left"].clone();
        async move { left == 0 }
    })
    .await;
    daemon.signal("TERM");
    assert_eq!(daemon.wait(Duration::from_secs(10)).code, Some(0));
    daemon.catch_up();
    same(&client, &here, "orders").await;
    same(&client, &here, "other").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_of_a_registry_elsewhere_hold_from_the_first_row_and_while_it_is_away() {
    let mut elsewhere = Registry::start(&folder("quarantine-elsewhere-registry"), "").await;
    // The team was there first.
    let properties = json!({"highwater.contract": r#"{"range": {"amount": {"min": 0}}}"#});
    let theirs = r#"{"type": "record", "name": "Value", "namespace": "shop.public.orders", "fields": []}"#;
    let mut new: Value = serde_json::from_str(&body(theirs)).unwrap();
    new["metadata"] = json!({"properties": properties});
    let none = r#"{"compatibility": "NONE"}"#;
    assert_eq!(ask(elsewhere.port, "PUT", "/config/shop.public.orders.Value", none).await.status, 200);
    assert_eq!(ask(elsewhere.port, "POST", SUBJECT, &new.to_string()).await.status, 200);
    let ((source, client), warehouse) = (orders().await, warehouse(None, 17).await);
    let folder = folder("quarantine-elsewhere");
    let url = format!("[registry]\nurl = \"http://127.0.0.1:{}\"\ntimeout = \"2s\"\n", elsewhere.port);
    let mut daemon = Daemon::new(&folder, &both(&source, &warehouse, &folder.join("lake"), &url));
    all_but_those_that_wait(&mut daemon);
    assert_eq!(told(&waiting(&daemon, &[])), ["read 2 contract"]);
    let last = ask(elsewhere.port, "GET", &format!("{SUBJECT}/latest"), "").await.json();
    assert_eq!((last["version"].clone(), last["metadata"]["properties"].clone()), (json!(2), properties));
    elsewhere.stop();
    client.batch_execute("INSERT INTO orders VALUES (3, 'new', -3), (4, 'new', 4)").await.unwrap();
    all_but_those_that_wait(&mut daemon);
    assert_eq!(told(&waiting(&daemon, &[])), ["read 2 contract", "insert 3 contract"]);
    let here = warehouse.client().await;
    assert_eq!(count(&here, "SELECT count(*) FROM orders").await, 2);
    // The rules go, and what waited goes with them.
    elsewhere.up().await;
    say(elsewhere.port, json!({})).await;
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    until(60, "nothing waits", || {
        let left = act(&daemon, &["redrive", "shop"])["left"].clone();
        async move { left == 0 }
    })
    .await;
    daemon.signal("TERM");
    assert_eq!(daemon.wait(Duration::from_secs(10)).code, Some(0));
    daemon.catch_up();
    same(&client, &here, "orders").await;
    elsewhere.stop();
}

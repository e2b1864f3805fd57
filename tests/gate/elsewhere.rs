//! A registry elsewhere that refuses, and one that is away: the table
//! concerned waits, and nothing else does.

use std::time::Duration;

use highwater_tests::{folder, until};
use serde_json::Value;

use super::{Case, Writers, takes};
use crate::registry::Registry;
use crate::registry::http::ask;
use crate::spine::capturing;

async fn with(name: &str, elsewhere: &Registry, tables: usize) -> Case {
    let settings = format!("url = \"http://127.0.0.1:{}\"\ntimeout = \"2s\"", elsewhere.port);
    Case::at(name, tables, "", elsewhere.port, &settings).await
}

async fn level(registry: &Registry, subject: &str, level: &str) {
    let body = format!(r#"{{"compatibility": "{level}"}}"#);
    let answer = ask(registry.port, "PUT", &format!("/config{subject}"), &body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
}

/// What `status` says is held of a table, once enough of it waits.
async fn waits(case: &Case, table: &str, events: u64) -> Value {
    let held = || case.held().into_iter().find(|held| held["table"] == table);
    let enough = |held: &Value| held["events"].as_u64().is_some_and(|waiting| waiting >= events);
    until(60, "the table waits", || {
        let there = held().is_some_and(|held| enough(&held));
        async move { there }
    })
    .await;
    held().unwrap()
}

fn said(held: &Value) -> String {
    let all = held["shapes"].as_array().unwrap().iter().flat_map(|shape| shape["violations"].as_array().unwrap());
    all.map(|violation| violation.as_str().unwrap().to_owned()).collect::<Vec<_>>().join("; ")
}

async fn stop(case: &mut Case) {
    case.daemon.signal("TERM");
    assert_eq!(case.daemon.wait(Duration::from_secs(10)).code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_elsewhere_refuses_waits_alone_and_goes_once_it_is_allowed_there() {
    const TABLES: usize = 4;
    let mut elsewhere = Registry::start(&folder("gate-elsewhere-registry"), "").await;
    level(&elsewhere, "", "FULL").await;
    let mut case = with("gate-elsewhere", &elsewhere, TABLES).await;
    case.daemon.start(&["run"], None);
    capturing(&case.daemon).await;
    takes(&case, "t0", 100).await;
    let writers = Writers::start(&case.source, TABLES, 1).await;
    // What widens is forbidden there by FULL, though our own default would let it go.
    case.sql("ALTER TABLE t0 ALTER v TYPE bigint; INSERT INTO t0 VALUES (200, 200)").await;
    let held = waits(&case, "public.t0", 1).await;
    let words = said(&held);
    // Its own words, and the column that they are about.
    assert!(words.contains("column \"v\" (was integer, is bigint)") && words.contains("old schema"), "{words}");
    assert_eq!(held["shapes"][0]["level"], "FULL", "{held}");
    assert_eq!(held["shapes"][0]["undecided"], false, "{held}");
    let versions = ask(elsewhere.port, "GET", "/subjects/shop.public.t0.Value/versions", "").await;
    assert_eq!(versions.json(), serde_json::json!([1]), "nothing was registered");
    takes(&case, "t1", 201).await;
    writers.more(50).await;
    let (code, out, err) = case.daemon.run(&["schemas", "approve", "shop", "public.t0"]);
    assert!(code == 1 && err.contains("incompatible at FULL"), "{out}{err}");
    // Not even by force: it has the last word.
    let (code, out, err) = case.daemon.run(&["schemas", "approve", "shop", "public.t0", "--as-new-version"]);
    assert!(code == 1 && err.contains("40901") && err.contains("PUT /config/"), "{out}{err}");
    // It survives a restart with the registry away, and t1 goes on meanwhile.
    stop(&mut case).await;
    elsewhere.stop();
    case.daemon.start(&["run"], None);
    capturing(&case.daemon).await;
    takes(&case, "t1", 202).await;
    waits(&case, "public.t0", 2).await;
    elsewhere.up().await;
    level(&elsewhere, "/shop.public.t0.Value", "BACKWARD").await;
    let out = case.approve("public.t0", &[]);
    assert!(out.contains("goes on"), "{out}");
    assert!(case.held().is_empty());
    // One that may not be written refuses otherwise than by the level.
    let mode = ask(elsewhere.port, "PUT", "/mode/shop.public.t2.Value", r#"{"mode": "READONLY"}"#).await;
    assert_eq!(mode.status, 200, "{}", mode.body);
    case.sql("ALTER TABLE t2 ADD COLUMN w int; INSERT INTO t2 VALUES (203, 203, 1)").await;
    let words = said(&waits(&case, "public.t2", 1).await);
    assert!(words.contains("the registry refuses it") && words.contains("read-only"), "{words}");
    takes(&case, "t3", 204).await;
    ask(elsewhere.port, "DELETE", "/mode/shop.public.t2.Value", "").await;
    case.approve("public.t2", &[]);
    writers.more(20).await;
    writers.stop().await;
    stop(&mut case).await;
    case.daemon.catch_up();
    case.all_equal(TABLES).await;
    elsewhere.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_shape_waits_for_a_registry_that_is_away_and_goes_by_itself() {
    const TABLES: usize = 4;
    let mut elsewhere = Registry::start(&folder("gate-away-registry"), "").await;
    let mut case = with("gate-away", &elsewhere, TABLES).await;
    case.daemon.start(&["run"], None);
    capturing(&case.daemon).await;
    takes(&case, "t0", 100).await;
    elsewhere.stop();
    let writers = Writers::start(&case.source, TABLES, 1).await;
    case.sql("ALTER TABLE t0 ADD COLUMN w int; INSERT INTO t0 VALUES (200, 200, 1)").await;
    let held = waits(&case, "public.t0", 1).await;
    assert!(said(&held).contains("cannot be asked") && held["shapes"][0]["undecided"] == true, "{held}");
    assert!(held["remedy"].as_str().unwrap().starts_with("nothing: it goes on by itself"), "{held}");
    takes(&case, "t1", 201).await;
    // Another behind it, and one of another table that the level will forbid.
    case.sql("ALTER TABLE t0 ADD COLUMN x text; INSERT INTO t0 VALUES (202, 202, 2, 'x')").await;
    case.sql("ALTER TABLE t2 ALTER v TYPE text; INSERT INTO t2 VALUES (203, 'x')").await;
    assert_eq!(waits(&case, "public.t2", 1).await["shapes"][0]["undecided"], true);
    // A table that is new, too.
    case.sql("CREATE TABLE t9 (id int PRIMARY KEY); INSERT INTO t9 VALUES (1)").await;
    case.sql("ALTER PUBLICATION highwater_shop ADD TABLE t9").await;
    waits(&case, "public.t9", 1).await;
    // A kill, and a start without it.
    case.daemon.kill();
    case.daemon.start(&["run"], None);
    capturing(&case.daemon).await;
    takes(&case, "t3", 204).await;
    let held = waits(&case, "public.t0", 2).await;
    assert_eq!(held["shapes"].as_array().unwrap().len(), 2, "{held}");
    elsewhere.up().await;
    until(60, "what may go has gone", || {
        let held = case.held();
        async move { held.len() == 1 && held[0]["shapes"][0]["undecided"] == false }
    })
    .await;
    let held = case.held();
    assert_eq!(held[0]["table"], "public.t2");
    assert!(said(&held[0]).contains("was integer, is text"), "{held:?}");
    takes(&case, "t1", 205).await;
    let versions = ask(elsewhere.port, "GET", "/subjects/shop.public.t0.Value/versions", "").await;
    assert_eq!(versions.json(), serde_json::json!([1, 2, 3]), "one after the other");
    level(&elsewhere, "/shop.public.t2.Value", "NONE").await;
    case.approve("public.t2", &[]);
    writers.more(20).await;
    writers.stop().await;
    stop(&mut case).await;
    // One that is to catch up waits for it.
    elsewhere.stop();
    case.sql("ALTER TABLE t1 ADD COLUMN w int; INSERT INTO t1 VALUES (206, 206, 1)").await;
    case.daemon.start(&["run", "--until-caught-up"], None);
    waits(&case, "public.t1", 1).await;
    elsewhere.up().await;
    let ended = case.daemon.wait(Duration::from_secs(60));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    case.all_equal(TABLES).await;
    elsewhere.stop();
}

//! Tables that cannot be delivered to an object store: each waits apart, the
//! others go on, and once it is mended it catches up and joins them.

use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use highwater_tests::{Daemon, Postgres, S3, folder, landed, offsets_of, until};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde_json::Value;

use crate::delivery::{lake, ordered, sink, sink_is, source};
use crate::spine::local;
use crate::verify::verify_of;

const PATIENCE: u64 = 60;

/// Three tables, of which `b` has a column more.
async fn tables() -> Postgres {
    let postgres = Postgres::new(17).await;
    let client = postgres.client().await;
    client
        .batch_execute(
            "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY);
             CREATE TABLE b (id int PRIMARY KEY, country text);
             INSERT INTO a VALUES (0); INSERT INTO b VALUES (0, 'AT'); INSERT INTO c VALUES (0)",
        )
        .await
        .unwrap();
    postgres.publish("highwater_shop", "a, b, c").await;
    postgres
}

/// A row in each table, in one transaction, for each number.
async fn insert(postgres: &Postgres, ids: std::ops::Range<i32>) {
    let client = postgres.client().await;
    for id in ids {
        let sql = format!(
            "BEGIN; INSERT INTO a VALUES ({id}); INSERT INTO b VALUES ({id}, 'DE'); INSERT INTO c VALUES ({id}); COMMIT"
        );
        client.batch_execute(&sql).await.unwrap();
    }
}

/// Rows with these numbers, each once and in their order, and no others.
async fn holds(store: &Arc<dyn ObjectStore>, stream: &str, ids: std::ops::Range<i32>) {
    until(PATIENCE, &format!("{} rows of {stream} land", ids.len()), || async {
        landed(store, stream).await.len() >= ids.len()
    })
    .await;
    let events = landed(store, stream).await;
    let found: Vec<i32> = events.iter().map(|event| event.row["id"].as_ref().unwrap().parse().unwrap()).collect();
    assert_eq!(found, ids.collect::<Vec<_>>(), "{stream}");
}

fn behind(daemon: &Daemon) -> Vec<Value> {
    sink(daemon, "lake")["tables_behind"].as_array().cloned().unwrap_or_default()
}

async fn answers(daemon: &Daemon) {
    until(PATIENCE, "it answers", || std::future::ready(daemon.status()["running"] == true)).await;
}

async fn joined(daemon: &Daemon) {
    answers(daemon).await;
    until(PATIENCE, "the table joins the others", || std::future::ready(behind(daemon).is_empty())).await;
}

fn died(daemon: &mut Daemon, point: &str) {
    let ended = daemon.wait(Duration::from_secs(60));
    assert!(ended.stderr.contains(&format!("fault point hit: {point}")), "{point}: {}", ended.stderr);
}

async fn newest(store: &Arc<dyn ObjectStore>, folder: &str) -> Value {
    let listed: Vec<_> = store.list(Some(&Path::from(folder))).try_collect().await.unwrap();
    let newest = listed.into_iter().map(|meta| meta.location).max().unwrap();
    serde_json::from_slice(&store.get(&newest).await.unwrap().bytes().await.unwrap()).unwrap()
}

// A folder that cannot be made is found out when its step is announced already.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_folder_cannot_be_made_waits_apart_and_joins_again_wherever_the_daemon_dies() {
    let postgres = tables().await;
    let folder = folder("lanes-folder");
    let at = folder.join("lake");
    let config = [source(&postgres), lake("lake", &at, "partition = { column = \"country\" }")].concat();
    let mut daemon = Daemon::new(&folder, &config);
    daemon.catch_up();
    let store = local(&at);
    let in_the_way = at.join("shop.public.b/country=DE");
    std::fs::write(&in_the_way, "not a folder").unwrap();
    daemon.start(&["run"], Some("table-parked"));
    insert(&postgres, 1..2).await;
    died(&mut daemon, "table-parked");
    let manifest = newest(&store, "_highwater/sinks/lake/shop").await;
    assert_eq!(manifest["lanes"][0]["stream"], "shop.public.b", "{manifest}");
    let (rest, own) = (&manifest["announced"], &manifest["lanes"][0]["announced"]);
    assert_eq!((&rest["start"], &rest["end"]), (&own["start"], &own["end"]), "the announced step is split: {manifest}");
    assert_eq!(
        own["files"][0]["path"].as_str().map(FilePath::new).and_then(FilePath::parent),
        Some(FilePath::new("shop.public.b/country=DE"))
    );
    daemon.start(&["run"], None);
    insert(&postgres, 2..100).await;
    for stream in ["shop.public.a", "shop.public.c"] {
        holds(&store, stream, 0..100).await;
    }
    holds(&store, "shop.public.b", 0..1).await;
    let state = sink_is(&daemon, "lake", "running").await;
    assert_eq!(state["tables_behind"][0]["stream"], "shop.public.b", "{state}");
    assert!(state["tables_behind"][0]["why"].as_str().unwrap().contains("country=DE"), "{state}");
    let (_, out, _) = daemon.run(&["status"]);
    assert!(out.contains("highwater resume lake --table 'public.b'"), "{out}");
    let told = verify_of(&daemon, "lake", &[]);
    assert_eq!(told.code, 3, "{:?} {}", told.lines, told.stderr);
    assert!(told.verdict("public.b")["why"].as_str().unwrap().contains("waits apart"), "{:?}", told.lines);
    assert_eq!(told.verdict("public.a")["sink_rows"], 100, "{:?}", told.lines);
    // Too early: it waits on.
    ordered(&daemon, &["resume", "lake", "--table", "public.b"]);
    until(PATIENCE, "it has tried", || std::future::ready(behind(&daemon)[0]["resuming"] == false)).await;
    holds(&store, "shop.public.b", 0..1).await;
    std::fs::remove_file(&in_the_way).unwrap();
    // Its steps alone, for the others are idle: the announced one first, then
    // one of its own. What was ordered once outlives the daemon.
    for (nth, point) in ["file-uploaded", "uploaded", "announced", "manifest-lost-answer"].into_iter().enumerate() {
        if nth == 0 {
            daemon.kill();
            daemon.start(&["run"], Some(point));
            answers(&daemon).await;
            ordered(&daemon, &["resume", "lake", "--table", "public.b"]);
        } else {
            daemon.start(&["run"], Some(point));
        }
        died(&mut daemon, point);
    }
    daemon.start(&["run"], None);
    joined(&daemon).await;
    assert_eq!(newest(&store, "_highwater/sinks/lake/shop").await["lanes"], serde_json::json!([]));
    insert(&postgres, 100..103).await;
    for stream in ["shop.public.a", "shop.public.b", "shop.public.c"] {
        holds(&store, stream, 0..103).await;
    }
    verify_of(&daemon, "lake", &[]).is_equal();
    daemon.ends_well();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_folder_is_anothers_waits_apart_on_s3_and_joins_again() {
    let (postgres, s3) = (tables().await, S3::start().await);
    let folder = folder("lanes-s3");
    let on_s3 = |name: &str, tables: &str| {
        format!(
            "[sinks.{name}]\ntype = \"object-store\"\nfrom = [\"shop\"]\nurl = \"s3://lake/cdc\"\noptions = {}\n\
             cut = {{ age = \"100ms\" }}\ntables = [{tables}]\n",
            s3.options()
        )
    };
    let pond = on_s3("pond", "\"public.b\"");
    let config = |tables: &str| [source(&postgres), on_s3("lake", tables)].concat();
    Daemon::new(&folder, &[config("\"public.a\", \"public.c\""), pond].concat()).catch_up();
    let store = s3.store();
    let b = "cdc/shop.public.b";
    holds(&store, b, 0..1).await;
    // Another sink's folder: what it holds stays, and nothing is put beside it.
    let mut daemon = Daemon::new(&folder, &config("\"public.*\""));
    daemon.start(&["run"], Some("table-parked"));
    insert(&postgres, 1..2).await;
    died(&mut daemon, "table-parked");
    daemon.start(&["run"], Some("announced"));
    died(&mut daemon, "announced");
    daemon.start(&["run"], None);
    insert(&postgres, 2..20).await;
    for stream in ["cdc/shop.public.a", "cdc/shop.public.c"] {
        holds(&store, stream, 0..20).await;
    }
    holds(&store, b, 0..1).await;
    let state = sink_is(&daemon, "lake", "running").await;
    let why = state["tables_behind"][0]["why"].as_str().unwrap_or_default();
    assert!(why.contains("belongs to sink \"pond/shop\""), "{state}");
    // A place behind that of the table would leave a gap in it.
    let parked = newest(&store, "cdc/_highwater/sinks/lake/shop").await["lanes"][0].clone();
    let checkpoint = state["checkpoint"].as_u64().unwrap();
    assert!(parked["next_offset"].as_u64() < Some(checkpoint - 10), "{parked}");
    let out = ordered(&daemon, &["replay", "lake", "--from", &(checkpoint - 5).to_string(), "--yes"]);
    assert!(out.contains(&format!("waits apart at offset {}", parked["next_offset"])), "{out}");
    until(PATIENCE, "it has joined, and waits again", || async {
        let now = newest(&store, "cdc/_highwater/sinks/lake/shop").await["lanes"][0].clone();
        now["since"].as_i64() > parked["since"].as_i64()
    })
    .await;
    for stream in ["cdc/shop.public.a", "cdc/shop.public.c"] {
        holds(&store, stream, 0..20).await;
    }
    // It is given up by whoever had it.
    let theirs: Vec<_> = store.list(Some(&Path::from(b))).try_collect().await.unwrap();
    for path in theirs.into_iter().map(|meta| meta.location) {
        store.delete(&path).await.unwrap();
    }
    store.delete(&Path::from("cdc/_highwater/streams/shop.public.b.json")).await.unwrap();
    daemon.kill();
    daemon.start(&["run"], Some("uploaded"));
    answers(&daemon).await;
    ordered(&daemon, &["resume", "lake", "--table", "public.b"]);
    died(&mut daemon, "uploaded");
    daemon.start(&["run"], None);
    joined(&daemon).await;
    insert(&postgres, 20..23).await;
    holds(&store, b, 1..23).await;
    for stream in ["cdc/shop.public.a", "cdc/shop.public.c"] {
        holds(&store, stream, 0..23).await;
    }
    daemon.ends_well();
}

/// The offsets in all files of a stream, in the order of their names, however
/// our own columns are called.
fn offsets(lake: &FilePath, stream: &str) -> Vec<u64> {
    let entries =
        std::fs::read_dir(lake.join(stream)).map_or(Vec::new(), |entries| entries.map(Result::unwrap).collect());
    let mut files: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
    files.sort();
    let read = |file: std::path::PathBuf| {
        let name = Path::from(file.file_name().unwrap().to_str().unwrap());
        offsets_of(&name, std::fs::read(&file).unwrap().into())
    };
    files.into_iter().flat_map(read).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_with_a_name_or_a_column_that_files_cannot_have_waits_apart() {
    let postgres = tables().await;
    let folder = folder("lanes-names");
    let at = folder.join("lake");
    let client = postgres.client().await;
    client
        .batch_execute(
            "CREATE TABLE bare (); GRANT SELECT ON bare TO PUBLIC; CREATE PUBLICATION highwater_shop_inserts FOR TABLE bare
             WITH (publish = 'insert, truncate', publish_via_partition_root = true)",
        )
        .await
        .unwrap();
    let mut daemon = Daemon::new(&folder, &[source(&postgres), lake("lake", &at, "")].concat());
    daemon.catch_up();
    // Encoded, the name has 378 bytes, and a folder's no more than 255.
    let long = "ж".repeat(31);
    client
        .batch_execute(&format!(
            "ALTER TABLE b ADD _hw_op text;
             CREATE SCHEMA {long}; CREATE TABLE {long}.{long} (id int PRIMARY KEY); INSERT INTO {long}.{long} VALUES (1);
             GRANT USAGE ON SCHEMA {long} TO PUBLIC; GRANT SELECT ON {long}.{long} TO PUBLIC;
             ALTER PUBLICATION highwater_shop ADD TABLE {long}.{long}; INSERT INTO bare DEFAULT VALUES"
        ))
        .await
        .unwrap();
    // `check` has them before they are refused.
    let (code, told, _) = daemon.run(&["check", "--json"]);
    let told: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let refused: Vec<_> = told.iter().filter(|told| told["finding"]["severity"] == "error").collect();
    assert_eq!((code, refused.len()), (3, 2), "{refused:#?}");
    for (refused, (what, remedy)) in
        refused.iter().zip([("column \"_hw_op\" of shop.public.b", "meta_prefix"), ("378 bytes", "rename the table")])
    {
        let finding = |member: &str| refused["finding"][member].as_str().unwrap_or_default();
        assert_eq!(refused["of"], "sink lake");
        assert!(finding("what").contains(what) && finding("remedy").contains(remedy), "{refused:#}");
        assert!(finding("why").contains("would wait apart"), "{refused:#}");
    }
    daemon.start(&["run"], None);
    insert(&postgres, 1..10).await;
    holds(&local(&at), "shop.public.a", 0..10).await;
    until(PATIENCE, "both wait", || std::future::ready(behind(&daemon).len() == 2)).await;
    until(PATIENCE, "a table without columns lands", || {
        std::future::ready(offsets(&at, "shop.public.bare").len() == 1)
    })
    .await;
    let why: String = behind(&daemon).iter().map(|table| table["why"].to_string()).collect();
    for words in ["_hw_op", "meta_prefix", "longer than a folder's may be", "leave it out"] {
        assert!(why.contains(words), "{words}: {why}");
    }
    assert_eq!(offsets(&at, "shop.public.b").len(), 1, "what came before");
    daemon.kill();
    let other = "meta_prefix = \"_other_\"\ntables = [\"public.*\"]";
    let mut daemon = Daemon::new(&folder, &[source(&postgres), lake("lake", &at, other)].concat());
    daemon.start(&["run"], None);
    answers(&daemon).await;
    ordered(&daemon, &["resume", "lake", "--table", "*"]);
    joined(&daemon).await;
    insert(&postgres, 10..12).await;
    for stream in ["shop.public.a", "shop.public.b", "shop.public.c"] {
        until(PATIENCE, "all of it lands", || std::future::ready(offsets(&at, stream).len() >= 12)).await;
        let found = offsets(&at, stream);
        assert!(found.len() == 12 && found.is_sorted_by(|a, b| a < b), "{stream}: {found:?}");
    }
    daemon.ends_well();
}

//! Sinks that come later, and sinks that go back.

use std::path::Path;
use std::time::Duration;

use highwater_tests::{Daemon, Postgres, final_state, folder, landed, until};

use crate::delivery::{events, hall, lake, ordered, own_server, sink, sink_is, source};
use crate::pgsink::{number, same, warehouse};
use crate::spine::local;

const PATIENCE: u64 = 60;

/// Two tables, written for a while; `events` of t in the log.
async fn written(postgres: &Postgres) -> usize {
    let client = postgres.client().await;
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, a text); CREATE TABLE u (id int PRIMARY KEY); INSERT INTO t SELECT i, 'read' FROM generate_series(1, 1000) i")
        .await
        .unwrap();
    postgres.publish("highwater_shop", "t, u").await;
    1000
}

/// Some 5 MB: many segments of 64 KiB, whatever goes to the log in one piece.
async fn write(postgres: &Postgres) -> usize {
    let client = postgres.client().await;
    for i in 0..40 {
        client
            .batch_execute(&format!(
                "BEGIN; INSERT INTO t SELECT i, repeat(md5(i::text), 40) FROM generate_series({}, {}) i; INSERT INTO u VALUES ({i}); COMMIT;
                 UPDATE t SET a = 'changed {i}' WHERE id = {i}; DELETE FROM t WHERE id = 500 + {i}",
                2000 + i * 100,
                2099 + i * 100
            ))
            .await
            .unwrap();
    }
    // Of id 0 there is none.
    40 * 102 - 1
}

async fn all(lake: &Path, stream: &str) -> Vec<highwater_tests::Event> {
    landed(&local(lake), stream).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_sink_is_filled_from_the_log_while_the_source_is_away() {
    let postgres = Postgres::on(own_server().await).await;
    let (mirror, history) = (warehouse(None, 17).await, warehouse(None, 17).await);
    let mut count = written(&postgres).await;
    let folder = folder("replay-away");
    let (a, late, part) = (folder.join("a"), folder.join("late"), folder.join("part"));
    let log = "[log]\nsegment_bytes = \"64KiB\"\n";
    let old = [source(&postgres), log.into(), lake("a", &a, "")].concat();
    let mut daemon = Daemon::new(&folder, &old);
    daemon.catch_up();
    count += write(&postgres).await;
    daemon.catch_up();
    assert!(daemon.status()["sources"][0]["log"]["end"].as_u64() > Some(4000));
    let segments = std::fs::read_dir(folder.join("highwater-data/sources/shop")).unwrap().count();
    assert!(segments > 8, "{segments} files");
    let client = postgres.client().await;
    let there: Vec<String> = {
        let rows = client.query("SELECT t::text FROM t ORDER BY id", &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    };
    // Somewhere in the middle, between transactions or not.
    let middle = all(&a, "shop.public.t").await[2500].clone();
    postgres.server.down("immediate");
    let config = [
        old,
        lake("late", &late, ""),
        lake("part", &part, &format!("start = {}", middle.offset)),
        hall("m", &mirror, ""),
        hall("h", &history, "mode = \"history\""),
    ]
    .concat();
    let mut daemon = Daemon::new(&folder, &config);
    // Killed in the middle of it, too.
    daemon.start(&["run"], Some("pre-commit"));
    let ended = daemon.wait(Duration::from_secs(30));
    assert!(ended.stderr.contains("fault point hit"), "{}", ended.stderr);
    daemon.start(&["run"], None);
    events(&late, "shop.public.t", count).await;
    events(&late, "shop.public.u", 40).await;
    // All of it may have been there before the kill: this run has perhaps just begun.
    until(PATIENCE, "the source is away", || {
        let away = daemon.status()["sources"][0]["health"] == "retrying";
        async move { away }
    })
    .await;
    let (here, told) = (mirror.client().await, history.client().await);
    until(PATIENCE, "the warehouses are filled", || async {
        let ends = |name: &str| {
            let state = sink(&daemon, name);
            state["backlog_events"] == 0
        };
        ends("m") && ends("h") && ends("part")
    })
    .await;
    assert_eq!(number(&told, "SELECT count(*) FROM t").await as usize, count);
    let rows = here.query("SELECT t::text FROM t ORDER BY id", &[]).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<String>>(), there);
    // From an offset on: its whole transaction, with those that the log has
    // written with it, and nothing before.
    let (whole, some) = (all(&a, "shop.public.t").await, all(&part, "shop.public.t").await);
    let first = whole.iter().position(|event| event.tx == middle.tx).unwrap();
    assert!(whole.ends_with(&some), "{} of {}", some.len(), whole.len());
    assert!(some.len() >= whole.len() - first && some.len() < whole.len(), "{} of {}", some.len(), whole.len());
    daemon.ends_well();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_sink_of_a_log_that_lost_its_beginning_is_told_and_reads_for_itself() {
    // Of its own: making a slot waits for whatever is in progress on the server.
    let postgres = Postgres::on(own_server().await).await;
    let mirror = warehouse(None, 17).await;
    let mut count = written(&postgres).await;
    let folder = folder("replay-short");
    let (a, late) = (folder.join("a"), folder.join("late"));
    let old = [
        source(&postgres),
        "[log]\nsegment_bytes = \"64KiB\"\nretain = { bytes = \"64KiB\" }\n".into(),
        lake("a", &a, ""),
    ]
    .concat();
    let mut daemon = Daemon::new(&folder, &old);
    daemon.catch_up();
    daemon.start(&["run"], None);
    count += write(&postgres).await;
    events(&a, "shop.public.t", count).await;
    until(PATIENCE, "the log loses its beginning", || {
        std::future::ready(daemon.status()["sources"][0]["log"]["start"].as_u64() > Some(0))
    })
    .await;
    daemon.kill();
    let both = |start: &str| [old.clone(), lake("late", &late, start), hall("m", &mirror, start)].concat();
    let mut daemon = Daemon::new(&folder, &both(""));
    daemon.start(&["run"], None);
    for name in ["late", "m"] {
        let told = sink_is(&daemon, name, "halted").await["problem"].to_string();
        assert!(told.contains("is kept only from offset") && told.contains("start = "), "{told}");
    }
    daemon.kill();
    // Each asks for itself; killed in the middle, it is not asked for twice.
    let mut daemon = Daemon::new(&folder, &both("start = \"snapshot\""));
    daemon.start(&["run"], Some("snapshot-chunk"));
    let ended = daemon.wait(Duration::from_secs(30));
    assert!(ended.stderr.contains("fault point hit"), "{}", ended.stderr);
    daemon.catch_up();
    let (client, here) = (postgres.client().await, mirror.client().await);
    let rows = same(&client, &here, "t").await;
    assert_eq!(same(&client, &here, "u").await, 40);
    let fresh = all(&late, "shop.public.t").await;
    let read = |events: &[highwater_tests::Event]| events.iter().filter(|event| event.op == "read").count();
    assert!(read(&fresh) >= rows, "{} of {rows}", read(&fresh));
    final_state(&client, "t", &fresh).await;
    // Who was there before was not disturbed.
    assert_eq!(read(&all(&a, "shop.public.t").await), 1000);
    client.batch_execute("INSERT INTO t VALUES (90000, 'after')").await.unwrap();
    daemon.catch_up();
    same(&client, &here, "t").await;
    let again = all(&late, "shop.public.t").await;
    assert_eq!(read(&again), read(&fresh), "it is read once");
    events(&a, "shop.public.t", count + 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_and_a_history_go_back_and_come_again_and_no_event_is_there_twice() {
    let postgres = Postgres::new(17).await;
    let history = warehouse(None, 17).await;
    let mut count = written(&postgres).await;
    let folder = folder("replay-back");
    let a = folder.join("a");
    let config = [source(&postgres), lake("a", &a, ""), hall("h", &history, "mode = \"history\"")].concat();
    let mut daemon = Daemon::new(&folder, &config);
    daemon.catch_up();
    count += write(&postgres).await;
    postgres
        .client()
        .await
        .batch_execute("ALTER TABLE t ADD COLUMN b int; UPDATE t SET b = 1 WHERE id = 1")
        .await
        .unwrap();
    count += 1;
    daemon.catch_up();
    daemon.start(&["run"], None);
    events(&a, "shop.public.t", count).await;
    let (before, here) = (all(&a, "shop.public.t").await, history.client().await);
    let sum = "SELECT sum(_hw_offset)::bigint FROM t WHERE a IS NOT NULL OR b IS NULL OR true";
    let whole = (number(&here, "SELECT count(*) FROM t").await, number(&here, sum).await);
    assert_eq!(whole.0 as usize, count);
    let middle = before[1500].offset.to_string();
    for name in ["a", "h"] {
        let out = ordered(&daemon, &["replay", name, "--from", &middle]);
        assert!(out.contains("are delivered again") && out.contains("`--yes` does it"), "{out}");
        assert!(out.contains("deleted"), "{out}");
    }
    // Nothing was done yet.
    assert_eq!(all(&a, "shop.public.t").await, before);
    daemon.kill();
    for (name, fault) in [("a", "rewind-announced"), ("a", "rewind-half"), ("h", "rewound"), ("h", "pre-commit")] {
        daemon.start(&["run"], Some(fault));
        until(PATIENCE, "it answers", || std::future::ready(daemon.status()["running"] == true)).await;
        ordered(&daemon, &["replay", name, "--from", &middle, "--yes"]);
        let ended = daemon.wait(Duration::from_secs(30));
        assert!(ended.stderr.contains(&format!("fault point hit: {fault}")), "{fault}: {}", ended.stderr);
        daemon.catch_up();
        assert_eq!(all(&a, "shop.public.t").await, before, "{fault}");
        let now = (number(&here, "SELECT count(*) FROM t").await, number(&here, sum).await);
        assert_eq!(now, whole, "{fault}");
    }
    let columns = "SELECT count(*) FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0 AND NOT attisdropped AND attname ~ '^[ab]'";
    assert_eq!(number(&here, columns).await, 2, "a column that came later is there once");
    // Of a stopped daemon, and from the beginning.
    let out = ordered(&daemon, &["replay", "a", "--from", "beginning", "--yes"]);
    assert!(out.contains("it is done with the next `run`"), "{out}");
    ordered(&daemon, &["replay", "h", "--from", "1970-01-01T00:00:00Z", "--yes"]);
    daemon.catch_up();
    assert_eq!(all(&a, "shop.public.t").await, before);
    assert_eq!((number(&here, "SELECT count(*) FROM t").await, number(&here, sum).await), whole);
    let (code, _, err) = daemon.run(&["replay", "a", "--from", "yesterday"]);
    assert!(code == 2 && err.contains("snapshot"), "{err}");
    let (code, _, err) = daemon.run(&["replay", "a", "--from", "99999999"]);
    assert!(code == 1 && err.contains("is not in the log"), "{err}");
}

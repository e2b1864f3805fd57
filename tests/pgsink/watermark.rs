//! `_highwater.watermarks` goes on while nothing is written, and never ahead of
//! what the mirror shows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use highwater_tests::{Daemon, Postgres, Server, folder, until};
use tokio_postgres::Client;

use super::{config, number, warehouse};
use crate::spine::capturing;

/// In microseconds, as all times here.
const NOW: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8";
const WATERMARK: &str =
    "SELECT coalesce((extract(epoch FROM (SELECT watermark FROM _highwater.watermarks)) * 1000000)::int8, 0)";

/// Waits until everything of the source until now is said to be there.
async fn said(source: &Client, here: &Arc<Client>) -> i64 {
    let now = number(source, NOW).await;
    until(60, "the watermark comes to now", || {
        let here = here.clone();
        async move { number(&here, WATERMARK).await >= now }
    })
    .await;
    now
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watermark_goes_on_while_the_source_is_idle() {
    // Of its own: others' transactions would be waited for.
    let server = tokio::task::spawn_blocking(|| Server::start(17, "")).await.unwrap();
    let source = Postgres::on(Arc::new(server)).await;
    let warehouse = warehouse(None, 17).await;
    let client = source.client().await;
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)").await.unwrap();
    source.publish("highwater_shop", "t").await;
    let folder = folder("pgsink-idle");
    let config = config(&source, &warehouse, "").replace("[log]", "heartbeat = \"1s\"\n[log]");
    let mut daemon = Daemon::new(&folder, &config);
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    let here = Arc::new(warehouse.client().await);
    until(60, "the row is there", || {
        let here = here.clone();
        async move {
            number(&here, "SELECT CASE WHEN to_regclass('t') IS NULL THEN 0 ELSE 1 END::int8").await == 1
                && number(&here, "SELECT count(*) FROM t").await == 1
        }
    })
    .await;
    said(&client, &here).await;
    // Again and again, and at most once a heartbeat.
    let committed = "SELECT (extract(epoch FROM committed_at) * 1000000)::int8 FROM _highwater.watermarks";
    let mut commits = vec![number(&here, committed).await];
    while commits.len() < 5 {
        let last = commits[commits.len() - 1];
        until(60, "the watermark is told again", || {
            let here = here.clone();
            async move { number(&here, committed).await > last }
        })
        .await;
        commits.push(number(&here, committed).await);
    }
    assert!(commits.windows(2).all(|pair| pair[1] - pair[0] >= 1_000_000), "{commits:?}");
    // One that is open may still commit; what lies before it is said all the same.
    let open = source.client().await;
    open.batch_execute("BEGIN; INSERT INTO t VALUES (2)").await.unwrap();
    said(&client, &here).await;
    open.batch_execute("COMMIT").await.unwrap();
    let now = said(&client, &here).await;
    assert_eq!(number(&here, "SELECT count(*) FROM t").await, 2);
    // What it said stays said.
    daemon.kill();
    daemon.start(&["run"], None);
    said(&client, &here).await;
    assert!(number(&here, WATERMARK).await > now);
    // Nothing is written to the log but that.
    daemon.signal("TERM");
    assert_eq!(daemon.wait(Duration::from_secs(20)).code, Some(0));
    let (code, out, err) = daemon.run(&["log", "check"]);
    assert_eq!(code, 0, "{out}{err}");
}

/// Commits in bursts, one after the other: commits that race might be in the
/// WAL in another order than their times, by so little as that takes.
async fn commit(client: Client, writer: i64, turn: Arc<tokio::sync::Mutex<()>>, stop: Arc<AtomicBool>) -> i64 {
    // The WAL has it long before it is flushed, and the stream after.
    client.batch_execute("SET synchronous_commit = off").await.unwrap();
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        let insert = format!("INSERT INTO t VALUES ({writer}, {n})");
        if writer == 0 {
            let _turn = turn.lock().await;
            client.batch_execute(&insert).await.unwrap();
        } else {
            client.batch_execute(&format!("BEGIN; {insert}")).await.unwrap();
            tokio::time::sleep(Duration::from_millis(400 * writer as u64)).await;
            let _turn = turn.lock().await;
            client.batch_execute("COMMIT").await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(if n % 40 == 0 { 1_300 } else { 5 })).await;
    }
    n
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watermark_is_never_ahead_of_what_is_there() {
    const WRITERS: i64 = 3;
    let settings = "track_commit_timestamp = on\nwal_writer_delay = 1500ms\nwal_writer_flush_after = 0";
    let server = tokio::task::spawn_blocking(move || Server::start(17, settings)).await.unwrap();
    let source = Postgres::on(Arc::new(server)).await;
    let warehouse = warehouse(None, 17).await;
    let client = source.client().await;
    client.batch_execute("CREATE TABLE t (writer int, n int, PRIMARY KEY (writer, n))").await.unwrap();
    source.publish("highwater_shop", "t").await;
    let folder = folder("pgsink-watermark");
    let config = config(&source, &warehouse, "").replace("[log]", "heartbeat = \"1s\"\n[log]");
    let mut daemon = Daemon::new(&folder, &config);
    // Made, and its slot.
    daemon.catch_up();
    let (stop, turn) = (Arc::new(AtomicBool::new(false)), Arc::default());
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(commit(source.client().await, writer, Arc::clone(&turn), stop.clone()));
    }
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    let here = warehouse.client().await;
    let look = format!(
        "{WATERMARK}, ARRAY(SELECT coalesce(max(n), 0) FROM generate_series(0, {WRITERS} - 1) w LEFT JOIN t ON writer = w GROUP BY w ORDER BY w)"
    );
    let (mut looks, mut marks) = (Vec::new(), 0);
    let began = std::time::Instant::now();
    // A reading and a verification meanwhile say nothing that is not there either.
    let mut asked = false;
    while began.elapsed() < Duration::from_secs(12) || marks < 4 {
        assert!(began.elapsed() < Duration::from_secs(120), "{marks} watermarks");
        let row = here.query_one(&look, &[]).await.unwrap();
        let seen: (i64, Vec<i32>) = (row.get(0), row.get(1));
        if looks.last().is_none_or(|(before, _)| *before != seen.0) {
            marks += 1;
        }
        looks.push(seen);
        if began.elapsed() > Duration::from_secs(5) && !asked {
            asked = true;
            let (code, out, err) = daemon.run(&["snapshot", "shop", "public.t"]);
            assert_eq!(code, 0, "{out}{err}");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(written) = writers.join_next().await {
        assert!(written.unwrap() > 1);
    }
    // The commit times of what each look did not show.
    let sql =
        "SELECT writer, n, (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000)::int8 FROM t ORDER BY 1, 2";
    let mut times = vec![Vec::new(); WRITERS as usize];
    for row in client.query(sql, &[]).await.unwrap() {
        let (writer, n, time): (i32, i32, i64) = (row.get(0), row.get(1), row.get(2));
        times[writer as usize].push(time);
        assert_eq!(times[writer as usize].len(), n as usize);
    }
    let mut ahead = Vec::new();
    for (watermark, shown) in &looks {
        for (writer, shown) in shown.iter().enumerate() {
            match times[writer].get(*shown as usize) {
                Some(next) if next <= watermark => ahead.push((*watermark, writer, *shown, *next)),
                _ => {}
            }
        }
    }
    println!("{} looks at {marks} watermarks; ahead: {}", looks.len(), ahead.len());
    assert!(ahead.is_empty(), "{:?}", &ahead[..ahead.len().min(5)]);
    assert_eq!(daemon.run(&["status"]).0, 0);
}

//! What four sinks at once take of the machine.

use std::time::Duration;

use highwater_tests::{Daemon, Postgres, folder};

use crate::delivery::{hall, source};
use crate::pgsink::{number, warehouse};

const LIMIT: u64 = 256 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn four_sinks_of_a_large_backlog_stay_within_their_memory() {
    let postgres = Postgres::new(17).await;
    let (mirror, history) = (warehouse(None, 17).await, warehouse(None, 17).await);
    let client = postgres.client().await;
    client
        .batch_execute(
            "CREATE TABLE narrow (id int PRIMARY KEY, a bigint, b text, c text);
             CREATE TABLE wide (id int PRIMARY KEY, body text, n int); ALTER TABLE wide ALTER body SET STORAGE EXTERNAL;",
        )
        .await
        .unwrap();
    postgres.publish("highwater_shop", "narrow, wide").await;
    let folder = folder("memory");
    let alone = source(&postgres);
    // It captures what comes, and nothing takes it.
    Daemon::new(&folder, &alone).catch_up();
    for part in 0..8 {
        let (from, to) = (part * 25_000 + 1, (part + 1) * 25_000);
        let sql = format!(
            "INSERT INTO narrow SELECT i, i * 7, repeat(md5(i::text), 8), md5((-i)::text) FROM generate_series({from}, {to}) i;
             INSERT INTO wide SELECT {part} * 5 + i, repeat(md5((i + {part})::text), 32768), 0 FROM generate_series(1, 5) i"
        );
        client.batch_execute(&sql).await.unwrap();
    }
    client
        .batch_execute("UPDATE narrow SET c = md5(c), a = a + 1 WHERE id % 3 = 0; UPDATE wide SET n = id")
        .await
        .unwrap();
    Daemon::new(&folder, &alone).catch_up();
    // As large as they are by default: each holds and cuts as it does for users.
    let lake = |name: &str, format: &str| {
        let at = folder.join(name);
        std::fs::create_dir_all(&at).unwrap();
        format!(
            "[sinks.{name}]\ntype = \"object-store\"\nfrom = [\"shop\"]\nurl = \"file://{}\"\nformat = \"{format}\"\n",
            at.display()
        )
    };
    let sinks = [
        hall("mirror", &mirror, ""),
        hall("history", &history, "mode = \"history\""),
        lake("columns", "parquet"),
        lake("lines", "ndjson"),
    ];
    let mut daemon = Daemon::new(&folder, &[alone, sinks.concat()].concat());
    daemon.start(&["run", "--until-caught-up"], None);
    let mut peak = 0;
    while daemon.is_running() {
        peak = peak.max(daemon.peak_memory());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ended = daemon.wait(Duration::from_secs(1));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let status = daemon.status();
    let end = status["sources"][0]["log"]["end"].as_u64().unwrap();
    println!("{end} events to four sinks: {} MiB at the most", peak >> 20);
    for sink in status["sinks"].as_array().unwrap() {
        assert_eq!(sink["checkpoint"].as_u64(), Some(end), "{sink}");
    }
    let sum = "SELECT (SELECT sum(hashtextextended(t::text, 0)::numeric) FROM narrow t)::text
                      || (SELECT sum(hashtextextended(t::text, 0)::numeric) FROM wide t)::text";
    let text = async |client: &tokio_postgres::Client| client.query_one(sum, &[]).await.unwrap().get::<_, String>(0);
    assert_eq!(text(&mirror.client().await).await, text(&client).await);
    let changes = "SELECT (SELECT count(*) FROM narrow) + (SELECT count(*) FROM wide)";
    assert_eq!(number(&history.client().await, changes).await, 200_000 + 66_666 + 80);
    assert!(peak > 0 && peak <= LIMIT, "{} MiB", peak >> 20);
}

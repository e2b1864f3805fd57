//! A server whose clock jumps.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use highwater_tests::{Postgres, Server, folder, must, until};

use super::{Case, line};
use crate::spine::capturing;

const DAY: i64 = 86_400;

/// What tells a process another time.
fn libfaketime() -> Option<PathBuf> {
    let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib"];
    folders.iter().map(|folder| Path::new(folder).join("faketime/libfaketime.so.1")).find(|path| path.exists())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_by_days_leaves_all_exact() {
    let Some(library) = libfaketime() else {
        println!("accident | libfaketime is not installed: not tested");
        return;
    };
    let home = folder("clock");
    let file = home.join("jump");
    // At once for all its processes, and in one piece.
    let jump = |days: i64| {
        std::fs::write(home.join("next"), format!("{days:+}d\n")).unwrap();
        std::fs::rename(home.join("next"), &file).unwrap();
    };
    jump(0);
    must(Command::new("chmod").arg("o+rx").arg(&home));
    // The other clock, of which nobody knows the time, never jumps.
    let environment = [
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME_TIMESTAMP_FILE", file.display().to_string()),
        ("FAKETIME_NO_CACHE", "1".into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ("DONT_FAKE_MONOTONIC", "1".into()),
        ("FAKETIME_DISABLE_SHM", "1".into()),
    ];
    let server = tokio::task::spawn_blocking(move || Server::start_in(17, "", &environment)).await.unwrap();
    let tables =
        "CREATE TABLE a (id bigint PRIMARY KEY, v text); INSERT INTO a SELECT i, 'x' FROM generate_series(1, 100) i;
                  CREATE TABLE b (id bigint PRIMARY KEY, v text)";
    let mut case = Case::on(Postgres::on(Arc::new(server)).await, "clock-case", tables).await;
    case.daemon.start(&["run"], None);
    capturing(&case.daemon).await;
    let jumps = [3, -5, 400, 0, -1];
    for (n, days) in jumps.into_iter().enumerate() {
        jump(days);
        let now: f64 =
            case.client.query_one("SELECT extract(epoch FROM clock_timestamp())::float8", &[]).await.unwrap().get(0);
        let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        assert!((now as i64 - real - days * DAY).abs() < DAY / 2, "the server's clock has jumped by {days} days");
        let before = case.daemon.status()["sources"][0]["position"].clone();
        case.run(&format!("INSERT INTO b VALUES ({n}, 'x'); UPDATE a SET v = v || '!' WHERE id % 10 = {n}")).await;
        case.has("b", n + 1).await;
        until(30, "status goes on", || {
            let source = case.daemon.status()["sources"][0].clone();
            let goes_on = source["health"] == "running" && source["position"] != before;
            async move { goes_on }
        })
        .await;
        // Heartbeats go on: a table that appears is seen by them.
        case.run(&format!("CREATE TABLE t{n} (id bigint PRIMARY KEY, v text); INSERT INTO t{n} VALUES (1, 'x')")).await;
        case.has(&format!("t{n}"), 1).await;
    }
    case.stop().await;
    case.is_exact(&["a", "b", "t0", "t1", "t2", "t3", "t4"]).await;
    // A table is read again by nobody's clock, and events have the time of the server's.
    let events = case.daemon.tail("shop", &["--table", "public.b"]);
    let years: Vec<&str> = events.iter().map(|event| &event["commit_time"].as_str().unwrap()[..4]).collect();
    assert_eq!(years.len(), jumps.len());
    assert!(years[2] > years[1] && years[3] < years[2], "{years:?}");
    line("the server's clock jumps by days, to and fro", "goes on exactly");
}

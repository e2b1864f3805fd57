//! Killed while a table is held, and while it is let go.

use std::time::Duration;

use highwater_tests::until;

use super::{Case, Writers};
use crate::spine::capturing;

const TABLES: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_and_let_go_is_whole_whatever_instant_the_daemon_is_killed_at() {
    let mut case = Case::new("gate-kills", TABLES, "").await;
    case.daemon.catch_up();
    let writers = Writers::start(&case.source, TABLES, 2).await;
    let mut random = 88_172_645_463_325_252u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let (mut kills, mut released) = (0, 0);
    for round in 0..6u64 {
        let ty = if round % 2 == 0 { "text" } else { "int USING v::int" };
        let held_at = 1 + round;
        case.daemon.start(&["run"], Some(&format!("gate-held:{held_at}")));
        capturing(&case.daemon).await;
        // A shape each: one that was approved before goes on at once.
        case.sql(&format!("ALTER TABLE t0 ALTER v TYPE {ty}, ADD COLUMN c{round} int")).await;
        let ended = case.daemon.wait(Duration::from_secs(60));
        assert!(ended.stderr.contains("fault point hit: gate-held"), "{}", ended.stderr);
        kills += 1;
        // Held on, over kills at any instant.
        for _ in 0..3 {
            case.daemon.start(&["run"], None);
            tokio::time::sleep(Duration::from_millis(200 + next() % 800)).await;
            case.daemon.kill();
            kills += 1;
        }
        case.daemon.start(&["run"], Some("gate-release:2"));
        capturing(&case.daemon).await;
        until(30, "it is held", || {
            let held = case.held();
            async move { held.first().is_some_and(|held| held["events"].as_u64().unwrap() > 20) }
        })
        .await;
        let before = case.held()[0]["events"].as_u64().unwrap();
        let (code, out, err) = case.daemon.run(&["schemas", "approve", "shop", "public.t0", "--as-new-version"]);
        assert_eq!(code, 1, "it was killed in the middle: {out}{err}");
        let ended = case.daemon.wait(Duration::from_secs(60));
        assert!(ended.stderr.contains("fault point hit: gate-release"), "{}", ended.stderr);
        kills += 1;
        let held = case.held();
        assert!(held.len() == 1 && held[0]["events"].as_u64().unwrap() > 0, "nothing of it was done: {held:?}");
        // At random instants of a release, until one is whole.
        for attempt in 1.. {
            case.daemon.start(&["run"], None);
            capturing(&case.daemon).await;
            if case.held().is_empty() {
                case.daemon.kill();
                break;
            }
            assert!(case.held()[0]["events"].as_u64().unwrap() >= before, "what waits only grows");
            let words = ["schemas", "approve", "shop", "public.t0", "--as-new-version"];
            let wait = next() % (60 * attempt);
            std::thread::scope(|scope| {
                let approving = scope.spawn(|| case.daemon.run(&words));
                std::thread::sleep(Duration::from_millis(wait));
                case.daemon.signal("KILL");
                let _ = approving.join();
            });
            case.daemon.wait(Duration::from_secs(10));
            kills += 1;
        }
        released += 1;
    }
    let transactions = writers.stop().await;
    case.daemon.catch_up();
    case.all_equal(TABLES).await;
    println!("kills: {kills}; releases: {released}; transactions: {transactions}");
}

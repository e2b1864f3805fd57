//! What was acknowledged is there after a kill, under the same id.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use highwater_tests::{folder, until};

use super::http::ask;
use super::{Registry, body};

#[tokio::test(flavor = "multi_thread")]
async fn what_eight_clients_were_told_survives_every_kill() {
    let mut registry = Registry::start(&folder("registry-kills"), "").await;
    // Subject to id and version, as acknowledged.
    let told: Arc<Mutex<HashMap<String, (u64, u64)>>> = Arc::default();
    let next = Arc::new(AtomicUsize::new(0));
    for round in 0..8 {
        let clients: Vec<_> = (0..8)
            .map(|_| {
                let (told, next, port) = (told.clone(), next.clone(), registry.port);
                tokio::spawn(async move {
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        // Every fourth is a schema that others register at the same time.
                        let schema = if n % 4 == 0 { n / 64 } else { n };
                        let text =
                            format!(r#"{{"type":"record","name":"R{schema}","fields":[{{"name":"f","type":"int"}}]}}"#);
                        let subject = format!("s{n}");
                        let answered = tokio::spawn(async move {
                            let path = format!("/subjects/{subject}/versions");
                            (subject, ask(port, "POST", &path, &body(&text)).await)
                        });
                        // Refused connections panic in `ask`: the registry is gone.
                        let Ok((subject, answer)) = answered.await else { return };
                        if answer.status != 200 {
                            return;
                        }
                        let Ok(json) = serde_json::from_str::<serde_json::Value>(&answer.body) else { return };
                        let (Some(id), Some(version)) = (json["id"].as_u64(), json["version"].as_u64()) else { return };
                        told.lock().unwrap().insert(subject, (id, version));
                    }
                })
            })
            .collect();
        let wanted = told.lock().unwrap().len() + 40 + round * 13;
        until(60, "registrations are acknowledged", || {
            let told = told.clone();
            async move { told.lock().unwrap().len() >= wanted }
        })
        .await;
        registry.daemon.kill();
        for client in clients {
            client.await.unwrap();
        }
        registry.up().await;
        let told = told.lock().unwrap().clone();
        let mut by_id: HashMap<u64, String> = HashMap::new();
        for (subject, (id, version)) in &told {
            let answer = ask(registry.port, "GET", &format!("/subjects/{subject}/versions/{version}"), "").await;
            assert_eq!(answer.status, 200, "{subject} was acknowledged with id {id}: {}", answer.body);
            let json = answer.json();
            assert_eq!(json["id"].as_u64(), Some(*id), "{subject}");
            // One schema, one id, and the other way round.
            let text = json["schema"].as_str().unwrap().to_owned();
            assert_eq!(by_id.entry(*id).or_insert_with(|| text.clone()), &text);
        }
        let texts: std::collections::HashSet<&String> = by_id.values().collect();
        assert_eq!(texts.len(), by_id.len(), "a schema has two ids");
    }
    registry.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_before_or_after_the_sync_loses_nothing_that_was_told() {
    for point in ["after-frame:3", "before-fsync:3", "after-fsync:3"] {
        let mut registry = Registry::start(&folder(&format!("registry-{}", point.replace(':', "-"))), "").await;
        registry.stop();
        registry.daemon.start(&["run"], Some(point));
        let port = registry.port;
        until(20, "the registry answers", || async move {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
        let mut told = Vec::new();
        for n in 0..20 {
            let text = format!(r#"{{"type":"fixed","name":"F{n}","size":4}}"#);
            let asked =
                tokio::spawn(async move { ask(port, "POST", &format!("/subjects/s{n}/versions"), &body(&text)).await });
            match asked.await {
                Ok(answer) if answer.status == 200 => told.push((n, answer.json()["id"].clone())),
                _ => break,
            }
        }
        let ended = registry.daemon.wait(std::time::Duration::from_secs(10));
        assert!(ended.stderr.contains("fault point hit"), "{point}: {}", ended.stderr);
        registry.up().await;
        for (n, id) in told {
            let json = ask(port, "GET", &format!("/subjects/s{n}/versions/1"), "").await.json();
            assert_eq!(json["id"], id, "{point}, s{n}");
        }
        registry.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_while_a_snapshot_is_written_loses_nothing_that_was_told() {
    let text = |n: usize| format!(r#"{{"type":"fixed","name":"F{n}","size":4,"doc":"{}"}}"#, "x".repeat(900_000));
    for point in ["registry-snapshot-written", "registry-snapshot-named"] {
        let mut registry = Registry::start(&folder(point), "").await;
        registry.stop();
        registry.daemon.start(&["run"], Some(point));
        let port = registry.port;
        until(20, "the registry answers", || async move {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
        let mut told = Vec::new();
        // Ends by the kill: a snapshot is written behind 128 MiB.
        for n in 0..180 {
            let asked =
                tokio::spawn(
                    async move { ask(port, "POST", &format!("/subjects/s{n}/versions"), &body(&text(n))).await },
                );
            match asked.await {
                Ok(answer) if answer.status == 200 => told.push((n, answer.json()["id"].clone())),
                _ => break,
            }
        }
        let ended = registry.daemon.wait(std::time::Duration::from_secs(10));
        assert!(ended.stderr.contains("fault point hit"), "{point}: {}", ended.stderr);
        assert!(told.len() > 10, "{point}: only {} were told", told.len());
        // A start writes one too: killed in it again and again, it reads the same.
        for patience in [0, 5, 20, 60] {
            registry.up().await;
            tokio::time::sleep(std::time::Duration::from_millis(patience)).await;
            registry.daemon.kill();
        }
        registry.up().await;
        for (n, id) in &told {
            let json = ask(port, "GET", &format!("/subjects/s{n}/versions/1"), "").await.json();
            assert_eq!(json["id"], *id, "{point}, s{n}");
            let parsed = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
            assert!(parsed(json["schema"].as_str().unwrap()) == parsed(&text(*n)), "{point}, s{n}");
        }
        let new = ask(port, "POST", "/subjects/new/versions", &body("\"int\"")).await.json();
        assert!(new["id"].as_u64() > told.last().and_then(|(_, id)| id.as_u64()), "{new}");
        registry.stop();
    }
}

//! `[http]` of a real daemon: numbers that can be scraped and move, and a
//! readiness that is honest.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use highwater_tests::{Daemon, Postgres, Server, folder, free_port, must, until};

use crate::registry::http::ask;
use crate::spine::{capturing, to_folder};

const PATIENCE: u64 = 60;

/// Everything of an exposition: sample with its labels → value.
#[derive(Debug, Default)]
struct Scraped {
    kinds: BTreeMap<String, String>,
    samples: BTreeMap<(String, BTreeMap<String, String>), f64>,
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Reads `name="value",…}` and gives what follows.
fn labels(mut text: &str) -> (BTreeMap<String, String>, &str) {
    let mut labels = BTreeMap::new();
    loop {
        let (name, rest) = text.split_once("=\"").unwrap();
        assert!(is_name(name), "{name}");
        let mut value = String::new();
        let mut chars = rest.char_indices();
        let end = loop {
            match chars.next().expect("the label ends") {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next().unwrap().1 {
                    'n' => '\n',
                    c @ ('\\' | '"') => c,
                    c => panic!("\\{c} is no escape"),
                }),
                (_, c) => value.push(c),
            }
        };
        assert!(labels.insert(name.to_owned(), value).is_none(), "{name} twice");
        text = &rest[end + 1..];
        match text.split_at(1) {
            (",", rest) => text = rest,
            ("}", rest) => return (labels, rest),
            _ => panic!("behind a label: {text}"),
        }
    }
}

impl Scraped {
    /// Strictly as the format's page has it.
    fn parse(text: &str) -> Self {
        assert!(text.ends_with('\n'));
        let mut this = Self::default();
        let mut helped = BTreeSet::new();
        let mut now = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert!(is_name(name) && name.starts_with("highwater_") && !help.is_empty(), "{line}");
                assert!(helped.insert(name.to_owned()), "a family once: {name}");
                now = name.to_owned();
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(name, now, "behind its help");
                assert!(matches!(kind, "counter" | "gauge"), "{line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                this.kinds.insert(name.to_owned(), kind.to_owned());
            } else {
                let end = line.find(['{', ' ']).unwrap();
                let (name, rest) = line.split_at(end);
                assert_eq!(name, now, "within its family");
                assert!(this.kinds.contains_key(name), "typed: {name}");
                let (labels, rest) = match rest.strip_prefix('{') {
                    Some(rest) => labels(rest),
                    None => (BTreeMap::new(), rest),
                };
                let value: f64 = rest.strip_prefix(' ').unwrap().parse().unwrap_or_else(|_| panic!("{line}"));
                assert!(value.is_finite() && value >= 0.0, "{line}");
                assert!(this.samples.insert((name.into(), labels), value).is_none(), "twice: {line}");
            }
        }
        this
    }

    fn get(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels = labels.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let value = self.samples.get(&(name.to_owned(), labels));
        *value.unwrap_or_else(|| panic!("{name} is not there: {:?}", self.samples.keys()))
    }
}

async fn scrape(port: u16) -> Scraped {
    let answer = ask(port, "GET", "/metrics", "").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(answer.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"), "{}", answer.head);
    Scraped::parse(&answer.body)
}

async fn own_server() -> Postgres {
    let server = tokio::task::spawn_blocking(|| Server::start(17, "max_slot_wal_keep_size = '1GB'\n")).await.unwrap();
    let postgres = Postgres::on(Arc::new(server)).await;
    let sql = "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT g, 0 FROM generate_series(1, 20) g;
               CREATE TABLE \"o\"\"dd\" (id int PRIMARY KEY, v int)";
    postgres.client().await.batch_execute(sql).await.unwrap();
    postgres.publish("highwater_shop", "t, \"o\"\"dd\"").await;
    postgres
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_in_prometheus_format_and_move_with_what_is_captured() {
    let postgres = own_server().await;
    let folder = folder("http-metrics");
    let (port, registry) = (free_port(), free_port());
    let contract = "[sources.shop.table.\"public.o*\".contract]\nrange = { v = { min = 0 } }\n";
    let config = to_folder(&postgres, &folder.join("lake"), "100ms")
        .replace("[log]", &format!("heartbeat = \"1s\"\n{contract}[log]"));
    let config = format!("{config}[http]\nbind = \"127.0.0.1:{port}\"\n[registry]\nbind = \"127.0.0.1:{registry}\"\n");
    let mut daemon = Daemon::new(&folder, &config);
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    let sink = [("sink", "lake"), ("source", "shop")];
    until(PATIENCE, "the snapshot is delivered", || async {
        let found = scrape(port).await;
        found.get("highwater_sink_backlog_events", &sink) == 0.0
            && found.get("highwater_sink_events_total", &sink) >= 20.0
    })
    .await;
    let before = scrape(port).await;
    let op = |op| [("op", op), ("source", "shop")];
    assert_eq!(before.get("highwater_source_events_total", &op("read")), 20.0);
    assert_eq!(before.get("highwater_source_events_total", &op("insert")), 0.0);
    let client = postgres.client().await;
    client
        .batch_execute(
            "INSERT INTO t SELECT g, 0 FROM generate_series(101, 130) g; UPDATE t SET v = 1 WHERE id < 8; DELETE FROM t WHERE id < 3;
             TRUNCATE t; INSERT INTO \"o\"\"dd\" VALUES (1, 1), (2, -1)",
        )
        .await
        .unwrap();
    until(PATIENCE, "what was changed is counted", || async {
        scrape(port).await.get("highwater_source_events_total", &op("insert")) == 32.0
    })
    .await;
    let of = [("source", "shop")];
    until(PATIENCE, "it is delivered, and the slot is looked at", || async {
        let found = scrape(port).await;
        let committed = |found: &Scraped| found.get("highwater_sink_last_commit_timestamp_seconds", &sink);
        found.get("highwater_sink_backlog_events", &sink) == 0.0
            && committed(&found) > committed(&before)
            && found.samples.contains_key(&(
                "highwater_slot_safe_bytes".into(),
                of.map(|(a, b)| (a.to_owned(), b.to_owned())).into(),
            ))
    })
    .await;
    assert_eq!(ask(registry, "GET", "/subjects", "").await.status, 200);
    assert_eq!(ask(registry, "GET", "/subjects/none/versions", "").await.status, 404);
    let after = scrape(port).await;
    for (what, count) in [("update", 7.0), ("delete", 2.0), ("truncate", 1.0), ("read", 20.0)] {
        assert_eq!(after.get("highwater_source_events_total", &op(what)), count, "{what}");
    }
    // Each counter only grows.
    for ((name, labels), value) in &before.samples {
        if before.kinds[name] == "counter" {
            assert!(after.samples[&(name.clone(), labels.clone())] >= *value, "{name} {labels:?}");
        }
    }
    assert_eq!(after.get("highwater_quarantine_rows", &of), 1.0);
    assert!(after.get("highwater_quarantine_bytes", &of) > 0.0);
    assert_eq!(after.get("highwater_source_state", &[("source", "shop"), ("state", "running")]), 1.0);
    assert_eq!(after.get("highwater_sink_state", &[("sink", "lake"), ("source", "shop"), ("state", "running")]), 1.0);
    assert_eq!(after.get("highwater_slot_wal_status", &[("source", "shop"), ("status", "reserved")]), 1.0);
    assert_eq!(after.get("highwater_snapshot_tables", &[("source", "shop"), ("state", "read")]), 2.0);
    assert_eq!(after.get("highwater_held_tables", &of), 0.0);
    assert_eq!(after.get("highwater_registry_subjects", &[]), 4.0);
    assert_eq!(after.get("highwater_registry_requests_total", &[("code", "404")]), 1.0);
    assert!(after.get("highwater_registry_requests_total", &[("code", "200")]) >= 1.0);
    for name in ["highwater_log_bytes", "highwater_slot_retained_bytes"] {
        assert!(after.get(name, &of) > 0.0, "{name}");
    }
    for name in ["highwater_process_memory_bytes", "highwater_disk_free_bytes"] {
        assert!(after.get(name, &[]) > 1e6, "{name}");
    }

    // The same as the command's.
    let answer = ask(port, "GET", "/status", "").await;
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.json()["sources"][0]["slot"], daemon.status()["sources"][0]["slot"]);
    assert_eq!(ask(port, "GET", "/nothing", "").await.status, 404);
    assert_eq!(ask(port, "POST", "/metrics", "").await.status, 405);
    let strange = crate::registry::http::ask_with(port, "GET", "/metrics", &[("Host", "evil.example")], "").await;
    assert_eq!(strange.status, 403);
    daemon.ends_well();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_ready_while_the_source_moves_and_says_why_when_it_does_not() {
    let postgres = own_server().await;
    let folder = folder("http-ready");
    let port = free_port();
    let config = to_folder(&postgres, &folder.join("lake"), "100ms");
    let config = format!("{config}[http]\nbind = \"127.0.0.1:{port}\"\npatience = \"1s\"\n");
    postgres.server.down("fast");
    let mut daemon = Daemon::new(&folder, &config);
    daemon.start(&["run"], None);
    let turns = async |status: u16, word: &str| {
        until(PATIENCE, &format!("/readyz is {status} with {word:?}"), || async {
            if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                return false;
            }
            assert_eq!(ask(port, "GET", "/livez", "").await.status, 200);
            let answer = ask(port, "GET", "/readyz", "").await;
            answer.status == status && answer.body.contains(word)
        })
        .await;
    };
    turns(503, "source shop: fails for").await;
    postgres.server.up();
    turns(200, "ready").await;
    postgres.server.down("fast");
    turns(503, "could not").await;
    let retries = scrape(port).await;
    assert!(retries.get("highwater_source_retries_total", &[("source", "shop")]) >= 1.0);
    assert!(retries.get("highwater_source_failing_seconds", &[("source", "shop")]) >= 1.0);
    postgres.server.up();
    turns(200, "ready").await;

    // The connection stands, and nobody is at its other end.
    let client = postgres.client().await;
    let mut pid = None;
    for _ in 0..PATIENCE * 10 {
        let sql = "SELECT active_pid FROM pg_replication_slots WHERE NOT temporary";
        pid = client.query_one(sql, &[]).await.unwrap().get::<_, Option<i32>>(0);
        if pid.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let pid = pid.expect("the slot is read");
    must(Command::new("kill").args(["-STOP", &pid.to_string()]));
    turns(503, "the server has said nothing for").await;
    must(Command::new("kill").args(["-CONT", &pid.to_string()]));
    turns(200, "ready").await;

    // What a person has ordered is as it should be.
    let (code, _, err) = daemon.run(&["pause", "lake"]);
    assert_eq!(code, 0, "{err}");
    until(PATIENCE, "the sink is paused", || {
        let paused = daemon.status()["sinks"][0]["health"] == "paused";
        async move { paused }
    })
    .await;
    turns(200, "ready").await;
    daemon.ends_well();
}

#[tokio::test(flavor = "multi_thread")]
async fn http_is_open_to_others_only_with_tls_and_who_may_read() {
    let folder = folder("http-tls");
    let port = free_port();
    let source = "[sources.shop]\ntype = \"postgres\"\nurl = \"postgres://u@127.0.0.1:1/x\"\n";
    let open = format!("{source}[http]\nbind = \"0.0.0.0:{port}\"\n");
    let (code, _, stderr) = Daemon::new(&folder, &open).run(&["run"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("http.bind: is not this machine alone: it needs TLS"), "{stderr}");
    let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost \
         -keyout key.pem -out cert.pem -addext subjectAltName=DNS:localhost && printf 0123456789abcdef > token && chmod 600 token";
    must(Command::new("sh").args(["-ec", script]).current_dir(&folder).stderr(Stdio::null()));
    let config = format!(
        "{open}patience = \"1s\"\ntls = {{ cert = \"cert.pem\", key = \"key.pem\" }}\n\
         [http.tokens.prometheus]\ntoken = {{ file = \"token\" }}\nrole = \"read\"\n"
    );
    let mut daemon = Daemon::new(&folder, &config);
    daemon.start(&["run"], None);
    until(20, "it listens", || async move { tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() }).await;
    let curl = |path: &str, words: &[&str]| {
        let mut command = Command::new("curl");
        command.args(["-s", "--cacert", "cert.pem", "-w", "%{http_code}"]).args(words);
        let output = command.arg(format!("https://localhost:{port}{path}")).current_dir(&folder).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let known = ["-H", "Authorization: Bearer 0123456789abcdef"];
    for path in ["/metrics", "/status"] {
        assert!(curl(path, &[]).ends_with("401"), "{path}");
        assert!(curl(path, &known).ends_with("200"), "{path}");
    }
    assert_eq!(curl("/livez", &[]), "alive\n200");
    until(PATIENCE, "who may read is told why it is not ready", || {
        let told = curl("/readyz", &known);
        async move { told.contains("source shop: fails for") && told.ends_with("503") }
    })
    .await;
    assert_eq!(curl("/readyz", &[]), "not ready\n503");
    let (code, out, _) = daemon.run(&["check"]);
    assert_eq!(code, 3, "of a source that is away");
    assert!(!out.contains("http: could not listen"), "a running daemon's own address is not in the way: {out}");
    daemon.ends_well();
}

//! Bodies and clients that mean harm: told no, in bounded time and memory,
//! while others are served.

use std::time::{Duration, Instant};

use highwater_tests::folder;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::http::{ask, raw};
use super::{Registry, body};

/// Others are served quickly.
async fn is_well(port: u16) {
    let started = Instant::now();
    assert_eq!(ask(port, "GET", "/subjects?limit=1", "").await.status, 200);
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_schemas_are_refused_in_bounded_time() {
    let mut registry = Registry::start(&folder("registry-hostile"), "").await;
    let port = registry.port;
    let register = async |subject: &str, schema: &str| {
        let started = Instant::now();
        let answer = ask(port, "POST", &format!("/subjects/{subject}/versions"), &body(schema)).await;
        assert!(started.elapsed() < Duration::from_secs(10), "{subject}: {:?}", started.elapsed());
        let json = answer.json();
        (answer.status, json["error_code"].as_u64().unwrap_or(0))
    };
    let nested = |n: usize| format!("{}\"int\"{}", r#"{"type":"array","items":"#.repeat(n), "}".repeat(n));
    assert_eq!(register("nested", &nested(100)).await.0, 200);
    assert_eq!(register("nested", &nested(1_001)).await, (422, 42201));
    assert_eq!(register("nested", &"[".repeat(500_000)).await, (422, 42201));
    let record = |field: &str| format!(r#"{{"type":"record","name":"R","fields":[{field}]}}"#);
    for (name, field) in [
        ("default", r#"{"name":"x","type":"int","default":"a"}"#),
        ("default", r#"{"name":"x","type":"int","default":1e400}"#),
        ("twice", r#"{"name":"x","type":"int"},{"name":"x","type":"int"}"#),
        ("name", r#"{"name":"../x","type":"int"}"#),
        ("order", r#"{"name":"x","type":"int","order":"sideways"}"#),
    ] {
        assert_eq!(register(name, &record(field)).await, (422, 42201), "{field}");
    }
    // As the reference: what Avro does not know of a logical type is a property.
    assert_eq!(register("decimal", r#"{"type":"bytes","logicalType":"decimal","precision":2147483648}"#).await.0, 200);
    assert_eq!(register("recursive", &record(r#"{"name":"x","type":["null","R"]}"#)).await.0, 200);
    let wide = |prefix: &str| {
        let all: Vec<String> =
            (0..10_000).map(|i| format!(r#"{{"type":"record","name":"{prefix}{i}","fields":[]}}"#)).collect();
        format!("[{}]", all.join(","))
    };
    assert_eq!(register("wide", &wide("A")).await.0, 200);
    assert_eq!(register("wide", &wide("B")).await, (409, 40901));
    is_well(port).await;
    // Names.
    for name in ["..", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "a%2Fb", "%E2%80%AE", &"n".repeat(4_000)] {
        let (status, _) = register(name, r#""int""#).await;
        assert!(matches!(status, 200 | 400 | 404 | 422), "{name}: {status}");
    }
    assert_eq!(register("a%00b", r#""int""#).await, (422, 42208));
    assert_eq!(register(&"n".repeat(10_000), r#""int""#).await, (422, 42208));
    assert!(!registry.daemon.folder.parent().unwrap().join("etc").exists());
    // Bodies of JSON.
    let post = async |text: &str| ask(port, "POST", "/subjects/j/versions", text).await.status;
    assert_eq!(post(&format!("{{\"schema\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000))).await, 400);
    assert_eq!(post(r#"{"schema":"\"int\"","schema":"\"long\""}"#).await, 400);
    assert_eq!(post("{\"schema\":\"\\ud800\"}").await, 400);
    is_well(port).await;
    registry.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_cost_bounded_memory() {
    let mut registry = Registry::start(&folder("registry-large"), "").await;
    let port = registry.port;
    let large = |n: usize, bytes: usize| {
        format!(r#"{{"type":"record","name":"R{n}","doc":"{}","fields":[]}}"#, "x".repeat(bytes))
    };
    let answer = ask(port, "POST", "/subjects/over/versions", &body(&large(0, 1 << 20))).await;
    assert_eq!((answer.status, answer.json()["error_code"].clone()), (413, json!(413)));
    let senders: Vec<_> = (0..48)
        .map(|n| {
            let text = body(&large(n, 900_000));
            tokio::spawn(async move { ask(port, "POST", &format!("/subjects/l{n}/versions"), &text).await.status })
        })
        .collect();
    for sender in senders {
        assert_eq!(sender.await.unwrap(), 200);
    }
    let memory = registry.daemon.peak_memory();
    assert!(memory < 256 << 20, "{} MiB at its highest, 43 of them kept", memory >> 20);
    is_well(port).await;
    // Nodes weigh more than text.
    let fields: Vec<String> = (0..20_000).map(|i| format!(r#"{{"name":"f{i}","type":"int"}}"#)).collect();
    let many = |n: usize| body(&format!(r#"{{"type":"record","name":"M{n}","fields":[{}]}}"#, fields.join(",")));
    assert!(many(0).len() > 700_000);
    let senders: Vec<_> = (0..48)
        .map(|n| {
            let text = many(n);
            tokio::spawn(async move { ask(port, "POST", &format!("/subjects/m{n}/versions"), &text).await.status })
        })
        .collect();
    for sender in senders {
        assert_eq!(sender.await.unwrap(), 200);
    }
    let memory = registry.daemon.peak_memory();
    assert!(memory < 384 << 20, "{} MiB at its highest, 80 of them kept", memory >> 20);
    // Chunks without end.
    let mut endless =
        b"POST /subjects/c/versions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..40 {
        endless.extend_from_slice(b"8000\r\n");
        endless.resize(endless.len() + 0x8000, b' ');
        endless.extend_from_slice(b"\r\n");
    }
    assert_eq!(raw(port, &endless).await.status, 413);
    // Heads without end.
    let mut flood = b"GET /subjects HTTP/1.1\r\nHost: localhost\r\n".to_vec();
    flood.extend_from_slice(format!("X: {}\r\n\r\n", "x".repeat(20_000)).as_bytes());
    assert_eq!(raw(port, &flood).await.status, 431);
    let mut flood = "GET /subjects HTTP/1.1\r\nHost: localhost\r\n".to_owned();
    (0..200).for_each(|i| flood.push_str(&format!("X{i}: 1\r\n")));
    flood.push_str("\r\n");
    assert_eq!(raw(port, flood.as_bytes()).await.status, 431);
    is_well(port).await;
    registry.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_ended_and_keep_nobody_out() {
    let mut registry = Registry::start(&folder("registry-slow"), "max_connections = 64\n").await;
    let port = registry.port;
    let open = async |begin: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(begin.as_bytes()).await.unwrap();
        stream
    };
    let started = Instant::now();
    let mut head = open("GET /subjects HTTP/1.1\r\nHost: local").await;
    let mut sent = open("POST /subjects/s/versions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{").await;
    // Whoever asks later is answered: the two before were heard.
    is_well(port).await;
    // More than there may be: the idle ones go, new ones are served.
    let mut crowd = Vec::new();
    for _ in 0..200 {
        crowd.push(open("GET / HTTP/1.1\r\n").await);
    }
    is_well(port).await;
    drop(crowd);
    let ended = async |stream: &mut TcpStream| {
        let mut all = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(40), stream.read_to_end(&mut all)).await.expect("it is ended");
        String::from_utf8_lossy(&all).into_owned()
    };
    ended(&mut head).await;
    let answer = ended(&mut sent).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    is_well(port).await;
    // One that sends and never reads does not hold up the end.
    let _idle = open("GET /subjects HTTP/1.1\r\nHost: localhost\r\n\r\nGET /subj").await;
    registry.stop();
}

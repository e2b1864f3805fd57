//! What belongs together and does not agree: `highwater schemas check`.

use highwater_tests::{Daemon, Postgres, folder, free_port, until};
use serde_json::Value;

use super::body;
use super::http::ask;

#[tokio::test(flavor = "multi_thread")]
async fn catalogue_registry_and_warehouse_are_compared() {
    let source = Postgres::new(17).await;
    let warehouse = Postgres::on(source.server.clone()).await;
    let (client, there) = (source.client().await, warehouse.client().await);
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')").await.unwrap();
    source.publish("highwater_shop", "t").await;
    let folder = folder("registry-drift");
    let port = free_port();
    let config = format!(
        "[sources.shop]\ntype = \"postgres\"\nurl = \"{}\"\nslot = \"hw_{}\"\n\
         [sinks.wh]\ntype = \"postgres\"\nfrom = [\"shop\"]\nurl = \"postgres://postgres@127.0.0.1:{}/{}\"\n\
         [registry]\nbind = \"127.0.0.1:{port}\"\n",
        source.url(),
        source.database,
        source.server.port,
        warehouse.database
    );
    let mut daemon = Daemon::new(&folder, &config);
    daemon.catch_up();
    let check = |daemon: &Daemon| {
        let (code, out, stderr) = daemon.run(&["schemas", "check", "shop", "--json"]);
        let all: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let of = |it: &Value, member: &str| it[member].as_str().unwrap_or_default().to_owned();
        assert!(all.iter().all(|it| of(it, "stream") == "shop.public.t" && !of(it, "remedy").is_empty()), "{out}");
        let told: Vec<_> = all.iter().map(|it| (of(it, "between"), of(it, "what"), it["by_itself"] == true)).collect();
        (code, told, stderr)
    };
    assert_eq!(check(&daemon), (0, Vec::new(), String::new()));
    let told = |between: &str, what: &str, by_itself: bool| (between.to_owned(), what.to_owned(), by_itself);

    // The source alone: it comes with the next row, and then all agree again.
    client.batch_execute("ALTER TABLE t ADD COLUMN w int").await.unwrap();
    let (code, all, _) = check(&daemon);
    let expected = vec![
        told("source and log", "column \"w\", integer, is new at the source", true),
        told("source and sink wh", "\"public\".\"t\" has no column \"w\" yet", true),
    ];
    assert_eq!((code, all), (3, expected));
    client.batch_execute("INSERT INTO t VALUES (2, 'b', 1)").await.unwrap();
    daemon.catch_up();
    assert_eq!(check(&daemon).0, 0);

    // Somebody in the warehouse, and somebody at the registry.
    there.batch_execute("ALTER TABLE t ALTER v TYPE varchar(9)").await.unwrap();
    daemon.start(&["run"], None);
    let subject = "/subjects/shop.public.t.Value";
    until(
        20,
        "the registry answers",
        || async move { tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() },
    )
    .await;
    let status = daemon.status()["registry"].clone();
    assert_eq!(status["address"], format!("127.0.0.1:{port}"));
    assert!(status["subjects"].as_u64() >= Some(2), "key and value: {status}");
    let id = ask(port, "GET", &format!("{subject}/versions/2"), "").await.json()["id"].clone();
    ask(port, "PUT", "/config/shop.public.t.Value", r#"{"compatibility":"NONE"}"#).await;
    assert_eq!(ask(port, "DELETE", &format!("{subject}/versions/2"), "").await.status, 200);
    assert_eq!(ask(port, "POST", &format!("{subject}/versions"), &body("\"int\"")).await.status, 200);
    let expected = vec![
        told(
            "log and registry",
            &format!("subject shop.public.t.Value has no version with id {id}: it was deleted"),
            false,
        ),
        told(
            "log and registry",
            "version 3 of subject shop.public.t.Value is not of this source: somebody registered it",
            false,
        ),
        told(
            "sink and its table wh",
            "column \"v\" of \"public\".\"t\" is character varying(9), and the sink made it text",
            false,
        ),
    ];
    // Beside a running registry, what it did last is there a moment later.
    until(5, "the registration is told", || {
        let told = check(&daemon).1.len() == expected.len();
        async move { told }
    })
    .await;
    assert_eq!(check(&daemon), (3, expected, String::new()));
    daemon.ends_well();

    // A start says so, by the table's name, and goes on.
    daemon.start(&["run"], None);
    let said = || std::fs::read_to_string(folder.join("stderr.4")).unwrap_or_default();
    until(20, "it is in the log", || async {
        said().lines().filter(|line| line.contains("WARN") && line.contains("shop.public.t")).count() == 3
    })
    .await;
    daemon.ends_well();
    let (code, _, stderr) = daemon.run(&["schemas", "check", "nowhere"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("the configuration has: shop"), "{stderr}");
}

//! Schemas in and out with their ids, and a registry elsewhere.

use highwater_tests::{Daemon, Postgres, folder, until};
use serde_json::{Value, json};

use super::http::ask;
use super::{Registry, body};

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_moves_with_all_its_ids() {
    let (one, two, three) = (folder("registry-from"), folder("registry-to"), folder("registry-file"));
    let mut from = Registry::start(&one, "").await;
    let post = async |port: u16, subject: &str, text: &str| {
        ask(port, "POST", &format!("/subjects/{subject}/versions"), text).await.json()
    };
    post(from.port, "gone", &body("\"bytes\"")).await;
    ask(from.port, "DELETE", "/subjects/gone", "").await;
    ask(from.port, "DELETE", "/subjects/gone?permanent=true", "").await;
    post(from.port, "z%2Finner", &body(r#"{"type":"record","name":"In","fields":[]}"#)).await;
    let outer = json!({"schema": r#"{"type":"record","name":"Out","fields":[{"name":"i","type":"In"}]}"#,
        "references": [{"name": "In", "subject": "z/inner", "version": 1}]});
    assert_eq!(post(from.port, "a", &outer.to_string()).await["id"], 3);
    ask(from.port, "PUT", "/config/b", r#"{"compatibility":"NONE"}"#).await;
    post(from.port, "b", &body("\"int\"")).await;
    post(from.port, "b", &body("\"string\"")).await;
    ask(from.port, "DELETE", "/subjects/b/versions/1", "").await;

    // By url, while it runs; into a folder of a registry that does not.
    let to = Daemon::new(&two, "[registry]\nbind = \"127.0.0.1:1\"\n");
    let url = format!("http://127.0.0.1:{}", from.port);
    let (code, out, stderr) = to.run(&["schemas", "import", &url, "--json"]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["schemas"], 4);
    // Beside a running registry, what it did last is there a moment later.
    until(5, "the deletion is told", || {
        let (_, theirs, _) = from.daemon.run(&["schemas", "export"]);
        async move { theirs.contains("\"deleted\":true") }
    })
    .await;
    let (_, theirs, _) = from.daemon.run(&["schemas", "export"]);
    let (_, ours, _) = to.run(&["schemas", "export"]);
    let lines = |text: &str| {
        let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        all.filter(|line| line.get("schema").is_some()).collect::<Vec<_>>()
    };
    assert_eq!(lines(&theirs), lines(&ours));
    assert_eq!(lines(&ours).len(), 4);
    let (_, listed, _) = to.run(&["schemas", "list", "--json"]);
    assert!(listed.contains(r#"{"subject":"b","versions":[2],"id":5,"compatibility":"NONE"}"#), "{listed}");
    let (_, shown, _) = to.run(&["schemas", "show", "a", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&shown).unwrap()["id"], 3);
    let (code, _, stderr) = to.run(&["schemas", "show", "b", "--version", "7"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("its versions are 1, 2"), "{stderr}");

    // By file, over the API of one that runs; a second time, nothing changes.
    let mut third = Registry::start(&three, "").await;
    std::fs::write(three.join("dump"), &theirs).unwrap();
    let url = format!("http://127.0.0.1:{}", third.port);
    for _ in 0..2 {
        let (code, _, stderr) = third.daemon.run(&["schemas", "import", "dump", "--to", &url]);
        assert_eq!(code, 0, "{stderr}");
        let (_, exported, _) = third.daemon.run(&["schemas", "export"]);
        assert_eq!(lines(&theirs), lines(&exported));
    }
    assert_eq!(ask(third.port, "GET", "/mode", "").await.json(), json!({"mode": "READWRITE"}));
    assert_eq!(post(third.port, "new", &body("\"double\"")).await["id"], 6);
    // Its folder is taken.
    let (code, _, stderr) = third.daemon.run(&["schemas", "import", "dump"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("in use by another daemon") && stderr.contains("what to do"), "{stderr}");
    third.stop();
    from.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_register_elsewhere_and_known_tables_go_on_while_it_is_down() {
    let mut elsewhere = Registry::start(&folder("registry-elsewhere"), "").await;
    ask(elsewhere.port, "POST", "/subjects/other/versions", &body("\"int\"")).await;
    let postgres = Postgres::new(17).await;
    let client = postgres.client().await;
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')").await.unwrap();
    postgres.publish("highwater_shop", "t").await;
    let folder = folder("registry-external");
    let config = format!(
        "[sources.shop]\ntype = \"postgres\"\nurl = \"{}\"\nslot = \"hw_{}\"\n[registry]\nurl = \"http://127.0.0.1:{}\"\n",
        postgres.url(),
        postgres.database,
        elsewhere.port
    );
    let mut daemon = Daemon::new(&folder, &config);
    daemon.start(&["run"], None);
    let value = "/subjects/shop.public.t.Value/versions/latest";
    until(30, "the table's schema is there", || async { ask(elsewhere.port, "GET", value, "").await.status == 200 })
        .await;
    let id = ask(elsewhere.port, "GET", value, "").await.json()["id"].as_u64().unwrap();
    assert!(id > 1, "the ids are its own");
    let (_, out, _) = daemon.run(&["check"]);
    assert!(out.contains("ok      registry: schemas may be registered there"), "{out}");
    assert_eq!(daemon.status()["registry"]["kind"], "external");
    assert_eq!(daemon.status()["registry"]["problem"], Value::Null);
    elsewhere.stop();
    // Nor does a start need it.
    daemon.ends_well();
    daemon.start(&["run"], None);
    until(30, "status says that it is away, and since when", || async {
        let trouble = &daemon.status()["registry"]["problem"];
        trouble["since"].is_i64() && trouble["error"].as_str().is_some_and(|error| error.contains("cannot be reached"))
    })
    .await;
    let (_, out, _) = daemon.run(&["status"]);
    assert!(out.contains("registry at http://127.0.0.1") && out.contains("what to do: check that it is up"), "{out}");
    let (code, out, _) = daemon.run(&["check"]);
    assert_eq!(code, 3, "{out}");
    assert!(out.contains("ERROR   registry: "), "{out}");
    client.batch_execute("INSERT INTO t VALUES (2, 'b')").await.unwrap();
    let events = || daemon.tail("shop", &[]).len();
    until(30, "the row arrives with the registry down", || async { events() == 2 }).await;
    // A new shape waits for it, and says so.
    client.batch_execute("ALTER TABLE t ADD COLUMN w int; INSERT INTO t VALUES (3, 'c', 1)").await.unwrap();
    until(40, "it says why it waits", || async {
        let source = &daemon.status()["sources"][0];
        let shape = &source["held"][0]["shapes"][0];
        source["health"] == "running"
            && shape["undecided"] == true
            && shape["violations"][0].as_str().is_some_and(|why| why.contains("cannot be reached"))
    })
    .await;
    elsewhere.up().await;
    until(60, "the new shape arrives", || async { events() == 3 }).await;
    daemon.ends_well();
    assert!(!folder.join("highwater-data/registry").exists(), "none of our own");
    elsewhere.stop();
}

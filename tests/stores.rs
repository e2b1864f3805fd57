//! Stores of three clouds, in three formats.

mod folders;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use connector::stream_part;
use futures_util::TryStreamExt;
use highwater_tests::{Azure, Daemon, Gcs, Lossy, Postgres, S3, Workload, folder, must, root, until};
use object_store::{ObjectStore, ObjectStoreExt};
use serde_json::{Value, json};

use crate::spine::capturing;

/// A source, to add sinks to.
fn source(postgres: &Postgres) -> String {
    let (url, database) = (postgres.url(), &postgres.database);
    format!("[sources.shop]\ntype = \"postgres\"\nurl = \"{url}\"\nslot = \"hw_{database}\"\n")
}

/// A sink's section.
fn sink(name: &str, url: &str, format: &str, more: &str) -> String {
    format!(
        "[sinks.{name}]\ntype = \"object-store\"\nfrom = [\"shop\"]\nurl = \"{url}\"\nformat = \"{format}\"\n\
         cut = {{ bytes = \"64MiB\", age = \"200ms\" }}\n{more}\n"
    )
}

/// Offsets and ids of every stream, as the log has them.
fn in_log(daemon: &Daemon) -> BTreeMap<String, Value> {
    let mut streams: BTreeMap<String, Vec<(u64, Value)>> = BTreeMap::new();
    for event in daemon.tail("shop", &["--control"]) {
        // A table's first reading is its beginning, and no row tells of it.
        if event["generation"] == 1 {
            continue;
        }
        let part = |name: &str| stream_part(event[name].as_str().unwrap());
        let row = if event["after"].is_null() { &event["key"] } else { &event["after"] };
        let stream = format!("shop.{}.{}", part("schema"), part("table"));
        // A delete's other columns are not in the event as it is printed.
        let id = if event["generation"].is_u64() || (event["op"] == "delete" && row.is_null()) {
            json!("?")
        } else {
            row["id"].clone()
        };
        streams.entry(stream).or_default().push((event["offset"].as_u64().unwrap(), id));
    }
    streams.into_iter().map(|(stream, events)| (stream, json!(events))).collect()
}

/// What lies under a prefix, as files.
async fn download(store: &Arc<dyn ObjectStore>, prefix: &str, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    let under = object_store::path::Path::from(prefix);
    for meta in store.list(Some(&under)).try_collect::<Vec<_>>().await.unwrap() {
        let path = to.join(meta.location.as_ref().strip_prefix(prefix).unwrap().trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, store.get(&meta.location).await.unwrap().bytes().await.unwrap()).unwrap();
    }
}

/// Readers that are not ours find each event of the log once, with its id.
fn readers_agree(lake: &Path, format: &str, truth: &BTreeMap<String, Value>) -> String {
    let file = lake.join("truth.json");
    std::fs::write(&file, json!(truth).to_string()).unwrap();
    let python = root().join("target/servers/python/bin/python");
    must(Command::new(python).arg(root().join("tests/stores/readers.py")).arg(lake).arg(format).arg(file))
}

const FORMATS: [&str; 3] = ["parquet", "avro", "ndjson"];

#[tokio::test(flavor = "multi_thread")]
async fn three_stores_hold_the_same_stream_in_three_formats_once_after_kills_and_lost_answers() {
    let postgres = Postgres::new(17).await;
    Workload::prepare(&postgres, 4_000).await;
    let (s3, azure, gcs) = tokio::join!(S3::start(), Azure::start(), Gcs::start());
    let (to_s3, to_azure) = (Lossy::before(s3.port, 13).await, Lossy::before(azure.port, 13).await);
    gcs.lose_answers(13);
    let home = folder("stores");
    let clouds = [
        ("s3", "s3", s3.options_by(to_s3.port), s3.store(), ["", "zstd", "gzip"]),
        ("gcs", "gs", gcs.options(), gcs.store(), ["", "none", "zstd"]),
        ("azure", "az", azure.options(to_azure.port), azure.store(), ["", "deflate", "none"]),
    ];
    let mut config = source(&postgres);
    for (name, scheme, options, _, compressions) in &clouds {
        for (format, compression) in FORMATS.iter().zip(compressions) {
            let mut more = format!("options = {options}\n");
            if !compression.is_empty() {
                more.push_str(&format!("compression = \"{compression}\"\n"));
            }
            config.push_str(&sink(&format!("{name}_{format}"), &format!("{scheme}://lake/{format}"), format, &more));
        }
    }
    let mut daemon = Daemon::new(&home, &config);
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    let workload = Workload::start(&postgres, 2, 3).await;
    daemon.kill();
    // Each point, and again while the step is done again.
    for (point, nth) in [
        ("staged", 2),
        ("announced", 3),
        ("half-uploaded", 2),
        ("half-uploaded", 1),
        ("uploaded", 4),
        ("uploaded", 1),
        ("manifest-lost-answer", 5),
        ("announced", 9),
    ] {
        daemon.start(&["run"], Some(&format!("{point}:{nth}")));
        let ended = daemon.wait(Duration::from_secs(60));
        assert!(ended.stderr.contains(&format!("fault point hit: {point}")), "{point}: {}", ended.stderr);
    }
    for pause in [700, 300, 1500] {
        daemon.start(&["run"], None);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        daemon.kill();
    }
    let transactions = workload.stop().await;
    let lost = [to_s3.lost(), gcs.lost(), to_azure.lost()];
    assert!(lost.iter().all(|lost| *lost > 0), "answers lost at {lost:?}");
    gcs.lose_answers(0);
    to_s3.lose_answers(0);
    to_azure.lose_answers(0);
    daemon.catch_up();
    let truth = in_log(&daemon);
    assert_eq!(truth.len(), 4, "{:?}", truth.keys());
    for (name, _, _, store, _) in &clouds {
        for format in FORMATS {
            let lake = home.join(format!("read-{name}-{format}"));
            download(store, format, &lake).await;
            println!("{name} {format}: {}", readers_agree(&lake, format, &truth).trim());
        }
    }
    println!("transactions: {transactions}, answers lost: {lost:?}");
}

/// A table of one column that no compression makes smaller, of `mib` MiB.
async fn large(postgres: &Postgres, mib: u32) {
    let client = postgres.client().await;
    client
        .batch_execute(&format!(
            "CREATE TABLE t (id bigint PRIMARY KEY, what text);
             INSERT INTO t SELECT i, (SELECT string_agg(md5(random()::text || i || j), '') FROM generate_series(1, 320) j)
               FROM generate_series(1, {mib} * 100) i"
        ))
        .await
        .unwrap();
    postgres.publish("highwater_shop", "t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_in_parts_that_is_broken_off_is_done_again_and_nothing_of_it_stays() {
    let postgres = Postgres::new(17).await;
    large(&postgres, 24).await;
    let (s3, gcs) = tokio::join!(S3::start(), Gcs::start());
    for (name, url, options, store) in
        [("s3", "s3://lake/p", s3.options(), s3.store()), ("gcs", "gs://lake/p", gcs.options(), gcs.store())]
    {
        let home = folder(&format!("parts-{name}"));
        let slot = format!("parts_{name}");
        let more = format!("options = {options}\ncompression = \"none\"\n");
        let config = format!("{}{}", source(&postgres), sink("lake", url, "ndjson", &more));
        let (database, whole) = (&postgres.database, config.replace("200ms", "30s"));
        let config = whole.replace(&format!("\"hw_{database}\""), &format!("\"{slot}_{database}\""));
        let mut daemon = Daemon::new(&home, &config);
        let unfinished = || match name {
            "gcs" => gcs.uploads(),
            _ => {
                let url = format!("http://127.0.0.1:{}/lake?uploads", s3.port);
                must(Command::new("curl").args(["-sf", &url])).matches("<Upload>").count()
            }
        };
        for point in ["half-uploaded:1", "half-uploaded:2", "before-complete:1", "completed:1"] {
            daemon.start(&["run", "--until-caught-up"], Some(point));
            let ended = daemon.wait(Duration::from_secs(60));
            assert!(ended.stderr.contains("fault point hit"), "{point}: {}", ended.stderr);
            assert_eq!(unfinished(), usize::from(point != "completed:1"), "{name} {point}");
        }
        daemon.catch_up();
        assert_eq!(unfinished(), 0, "{name}");
        let lake = home.join("read");
        download(&store, "p", &lake).await;
        readers_agree(&lake, "ndjson", &in_log(&daemon));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_is_fenced_on_every_store() {
    let (s3, azure, gcs) = tokio::join!(S3::start(), Azure::start(), Gcs::start());
    for (name, url, options, store, format) in [
        ("s3", "s3://lake/z", s3.options(), s3.store(), "ndjson"),
        ("gcs", "gs://lake/z", gcs.options(), gcs.store(), "avro"),
        ("azure", "az://lake/z", azure.options(azure.port), azure.store(), "parquet"),
    ] {
        let postgres = Postgres::new(17).await;
        let client = postgres.client().await;
        client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, status text)").await.unwrap();
        postgres.publish("highwater_shop", "t").await;
        let home = folder(&format!("zombie-{name}"));
        let config = format!("{}{}", source(&postgres), sink("lake", url, format, &format!("options = {options}\n")));
        let mut first = Daemon::new(&home, &config);
        first.start(&["run"], Some("announced:1:STOP"));
        capturing(&first).await;
        client.batch_execute("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 2000) i").await.unwrap();
        until(30, "the first stands still in its step", || {
            let stopped = first.is_stopped();
            async move { stopped }
        })
        .await;
        client.batch_execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active AND database = current_database()").await.unwrap();
        let other = folder(&format!("zombie-heir-{name}"));
        must(Command::new("cp").arg("-a").arg(home.join("highwater-data")).arg(&other));
        let _ = std::fs::remove_file(other.join("highwater-data/control.sock"));
        let mut second = Daemon::new(&other, &config);
        second.catch_up();
        client.batch_execute("INSERT INTO t SELECT i, 'y' FROM generate_series(2001, 3000) i").await.unwrap();
        second.catch_up();
        first.signal("CONT");
        let ended = first.wait(Duration::from_secs(60));
        assert_eq!(ended.code, Some(4), "{name}: {}", ended.stderr);
        let lake = home.join("read");
        download(&store, "z", &lake).await;
        let truth = in_log(&second);
        assert_eq!(truth["shop.public.t"].as_array().unwrap().len(), 3000);
        readers_agree(&lake, format, &truth);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_does_not_mean_its_preconditions_is_refused() {
    let postgres = Postgres::new(17).await;
    let client = postgres.client().await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY); INSERT INTO t VALUES (1)").await.unwrap();
    postgres.publish("highwater_shop", "t").await;
    let gcs = Gcs::start().await;
    gcs.forget_preconditions();
    let home = folder("careless");
    // By a service account's file this time, beside the configuration.
    let account = json!({
        "gcs_base_url": format!("http://127.0.0.1:{}", gcs.port), "disable_oauth": true,
        "client_email": "", "private_key": "", "private_key_id": ""
    });
    std::fs::write(home.join("account.json"), account.to_string()).unwrap();
    let options = gcs.options();
    let config =
        format!("{}{}", source(&postgres), sink("lake", "gs://lake", "parquet", &format!("options = {options}\n")));
    let mut daemon = Daemon::new(&home, &config);
    let (code, out, err) = daemon.run(&["check"]);
    assert_eq!(code, 3, "{out}{err}");
    assert!(format!("{out}{err}").contains("conditional writes"), "{out}{err}");
    daemon.start(&["run", "--until-caught-up"], None);
    let ended = daemon.wait(Duration::from_secs(30));
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("conditional writes"), "{}", ended.stderr);
    let by_account = config.replace(&options, "{ service_account = \"account.json\", allow_http = true }");
    let (code, out, err) = Daemon::new(&home, &by_account).run(&["check"]);
    // The account is read: its server is asked, and knows no empty token.
    assert!(code == 3 && format!("{out}{err}").contains("401"), "{out}{err}");
}

/// The data files under a folder, by their paths in it.
fn found(lake: &Path) -> Vec<String> {
    let mut paths = Vec::new();
    let mut folders: Vec<PathBuf> = vec![lake.into()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                paths.push(path.strip_prefix(lake).unwrap().display().to_string());
            }
        }
    }
    paths.retain(|path| path.starts_with("shop."));
    paths.sort();
    paths
}

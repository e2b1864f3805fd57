//! Partitions, retention, and what is cleared away.

use std::time::Duration;

use highwater_tests::{Daemon, Postgres, folder, must};

use super::*;

/// How many rows each folder of a stream has.
fn rows(lake: &Path, stream: &str) -> BTreeMap<String, u64> {
    let mut rows = BTreeMap::new();
    for path in found(lake).iter().filter(|path| path.starts_with(&format!("{stream}/"))) {
        let (folder, _) = path.rsplit_once('/').unwrap();
        let path = object_store::path::Path::parse(path).unwrap();
        let bytes = std::fs::read(lake.join(path.as_ref())).unwrap();
        let offsets = highwater_tests::offsets_of(&path, bytes.into());
        *rows.entry(folder.trim_start_matches(stream).trim_start_matches('/').to_owned()).or_default() +=
            offsets.len() as u64;
    }
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_lies_in_the_folder_of_its_own_value_and_each_event_is_there_once() {
    let postgres = Postgres::new(17).await;
    let client = postgres.client().await;
    client
        .batch_execute(
            "CREATE TABLE t (id bigint PRIMARY KEY, country text);
             CREATE TABLE other (id bigint PRIMARY KEY);
             INSERT INTO t SELECT i, (ARRAY['DE', 'a/b', '..', NULL, '', 'é', '__HIVE_DEFAULT_PARTITION__'])[i % 7 + 1]
               FROM generate_series(1, 700) i;
             INSERT INTO other VALUES (1)",
        )
        .await
        .unwrap();
    postgres.publish("highwater_shop", "t, other").await;
    for format in FORMATS {
        let home = folder(&format!("partitions-{format}"));
        let lake = home.join("lake");
        let url = format!("file://{}", lake.display());
        let compression = if format == "avro" { "compression = \"deflate\"\n" } else { "" };
        let more = format!("partition = {{ column = \"country\" }}\n{compression}");
        let slot = format!("slot = \"hw_{}\"", postgres.database);
        let config = format!("{}{}", source(&postgres), sink("lake", &url, format, &more));
        let config = config.replace(&slot, &format!("slot = \"{format}_{}\"", postgres.database));
        let mut daemon = Daemon::new(&home, &config);
        // Killed in the midst, and in the midst again.
        for point in ["half-uploaded:3", "half-uploaded:2", "before-link:2"] {
            daemon.start(&["run", "--until-caught-up"], Some(point));
            let ended = daemon.wait(Duration::from_secs(30));
            assert!(ended.stderr.contains("fault point hit"), "{point}: {}", ended.stderr);
        }
        daemon.catch_up();
        let first = rows(&lake, "shop.public.t");
        let folders =
            ["DE", "a%2Fb", "%2E.", "__HIVE_DEFAULT_PARTITION__", "", "%C3%A9", "%5F_HIVE_DEFAULT_PARTITION__"];
        let expected: BTreeMap<String, u64> = folders.iter().map(|value| (format!("country={value}"), 100)).collect();
        assert_eq!(first, expected, "{format}");
        assert_eq!(rows(&lake, "shop.public.other"), BTreeMap::from([(String::new(), 1)]), "no such column");
        // The row moves: each of its events lies where its own value says.
        client
            .batch_execute("UPDATE t SET country = 'FR' WHERE id = 7; DELETE FROM t WHERE id = 7; TRUNCATE t")
            .await
            .unwrap();
        daemon.catch_up();
        let then = rows(&lake, "shop.public.t");
        assert_eq!(then["country=FR"], 1, "{then:?}");
        assert_eq!(
            then["country=__HIVE_DEFAULT_PARTITION__"], 102,
            "a delete and a truncate know no country: {then:?}"
        );
        readers_agree(&lake, format, &in_log(&daemon));
        assert!(
            !lake.join("_highwater/uploads").exists()
                || std::fs::read_dir(lake.join("_highwater/uploads/lake/shop")).unwrap().count() == 0
        );
        client
            .batch_execute(
                "INSERT INTO t SELECT i, (ARRAY['DE', 'a/b', '..', NULL, '', 'é', '__HIVE_DEFAULT_PARTITION__'])[i % 7 + 1]
                   FROM generate_series(1, 700) i",
            )
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_has_a_folder_of_its_own() {
    let postgres = Postgres::new(17).await;
    let client = postgres.client().await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY); INSERT INTO t VALUES (1)").await.unwrap();
    postgres.publish("highwater_shop", "t").await;
    let home = folder("days");
    let lake = home.join("lake");
    let url = format!("file://{}", lake.display());
    let config =
        format!("{}{}", source(&postgres), sink("lake", &url, "ndjson", "partition = { by = \"commit_date\" }\n"));
    let mut daemon = Daemon::new(&home, &config);
    let day = || client.query_one("SELECT (now() AT TIME ZONE 'UTC')::date::text", &[]);
    let before: String = day().await.unwrap().get(0);
    daemon.catch_up();
    let after: String = day().await.unwrap().get(0);
    let rows = rows(&lake, "shop.public.t");
    let days = [format!("_hw_commit_date={before}"), format!("_hw_commit_date={after}")];
    assert!(rows.len() == 1 && rows.keys().all(|folder| days.contains(folder)), "{rows:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn old_files_go_by_the_manifest_first_and_none_comes_back() {
    let postgres = Postgres::new(17).await;
    let client = postgres.client().await;
    client
        .batch_execute("CREATE TABLE t (id bigint PRIMARY KEY); CREATE TABLE u (id bigint PRIMARY KEY)")
        .await
        .unwrap();
    postgres.publish("highwater_shop", "t, u").await;
    let home = folder("retention");
    let lake = home.join("lake");
    let url = format!("file://{}", lake.display());
    let keep = format!("{}{}", source(&postgres), sink("lake", &url, "parquet", ""));
    let policy = format!("{keep}retain = {{ age = \"1h\" }}\n");
    for i in 0..3 {
        client.batch_execute(&format!("INSERT INTO t VALUES ({i}); INSERT INTO u VALUES ({i})")).await.unwrap();
        Daemon::new(&home, &keep).catch_up();
    }
    let all = found(&lake);
    assert_eq!(all.len(), 6, "{all:?}");
    let age = |path: &str| {
        must(Command::new("touch").args(["-d", "2 hours ago"]).arg(lake.join(path)));
    };
    // Of each table the oldest is old; of one also the newest, behind one that is not.
    let of = |table: &str| -> Vec<&String> { all.iter().filter(|path| path.contains(&format!(".{table}/"))).collect() };
    let (t, u) = (of("t"), of("u"));
    for path in [t[0], t[2], u[0]] {
        age(path);
    }
    let late = std::fs::read(lake.join(t[0])).unwrap();
    let mut daemon = Daemon::new(&home, &policy);
    daemon.start(&["run", "--until-caught-up"], Some("retained:1"));
    assert!(daemon.wait(Duration::from_secs(30)).stderr.contains("fault point hit: retained"));
    assert_eq!(found(&lake), all, "nothing is deleted yet");
    let manifest = || {
        let folder = std::fs::read_dir(lake.join("_highwater/sinks/lake/shop")).unwrap();
        let newest = folder.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some()).max().unwrap();
        serde_json::from_str::<Value>(&std::fs::read_to_string(newest).unwrap()).unwrap()
    };
    let from = manifest()["retained_from"].as_u64().expect("the manifest says it first");
    daemon.start(&["run", "--until-caught-up"], Some("half-deleted:1"));
    assert!(daemon.wait(Duration::from_secs(30)).stderr.contains("fault point hit: half-deleted"));
    assert!(found(&lake).len() < all.len());
    daemon.catch_up();
    let left: Vec<String> = all.iter().filter(|path| *path != t[0] && *path != u[0]).cloned().collect();
    assert_eq!(found(&lake), left, "what is behind a younger one stays");
    assert_eq!(manifest()["retained_from"], from);
    // A writer that slept through it all puts its file there after all.
    std::fs::write(lake.join(t[0]), late).unwrap();
    client.batch_execute("INSERT INTO t VALUES (9)").await.unwrap();
    daemon.catch_up();
    assert_eq!(found(&lake).len(), left.len() + 1, "it goes, and the new one is there");
    assert!(!lake.join(t[0]).exists());
}

/// A folder for a lake that ends with this.
struct Elsewhere(std::path::PathBuf);

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn leftovers_of_a_folder_are_cleared_away() {
    let home = folder("leftovers");
    leftovers(&home, &home.join("lake")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_in_another_file_system_is_copied_to() {
    use std::os::unix::fs::MetadataExt;
    let home = folder("elsewhere");
    let lake = Elsewhere(format!("/dev/shm/highwater-{}", std::process::id()).into());
    std::fs::create_dir_all(&lake.0).unwrap();
    assert_ne!(home.metadata().unwrap().dev(), lake.0.metadata().unwrap().dev());
    leftovers(&home, &lake.0.join("lake")).await;
}

async fn leftovers(home: &Path, lake: &Path) {
    let postgres = Postgres::new(17).await;
    let client = postgres.client().await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY); INSERT INTO t VALUES (1)").await.unwrap();
    postgres.publish("highwater_shop", "t").await;
    let url = format!("file://{}", lake.display());
    let mut daemon = Daemon::new(home, &format!("{}{}", source(&postgres), sink("lake", &url, "ndjson", "")));
    daemon.start(&["run", "--until-caught-up"], Some("before-link:1"));
    assert!(daemon.wait(Duration::from_secs(30)).stderr.contains("fault point hit: before-link"));
    assert_eq!(found(lake), Vec::<String>::new(), "not even `*.ndjson*` finds it");
    let waiting = lake.join("_highwater/uploads/lake/shop");
    assert_eq!(std::fs::read_dir(&waiting).unwrap().count(), 1);
    std::fs::write(waiting.join("x#1"), "half").unwrap();
    let stream = lake.join("shop.public.t");
    std::fs::create_dir_all(&stream).unwrap();
    let old = stream.join(format!("{:020}-{:020}.parquet#1", 0, 1));
    let foreign = stream.join("notes#1");
    for path in [&old, &foreign] {
        std::fs::write(path, "half").unwrap();
    }
    daemon.catch_up();
    client.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
    daemon.catch_up();
    assert_eq!(std::fs::read_dir(&waiting).unwrap().count(), 0);
    assert!(!old.exists() && foreign.exists(), "ours goes, another's stays");
}

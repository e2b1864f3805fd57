//! What a crash leaves at an object store, and whatever else may be found there.

use std::path::Path;
use std::time::Duration;

use highwater_tests::{Daemon, Ended, Postgres, folder, landed, must, until};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::spine::{capturing, local, to_folder};

async fn two_tables() -> Postgres {
    let postgres = Postgres::new(17).await;
    let client = postgres.client().await;
    client
        .batch_execute(
            "CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a SELECT generate_series(1, 1000);
             CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b SELECT generate_series(1, 1000)",
        )
        .await
        .unwrap();
    postgres.publish("highwater_shop", "a, b").await;
    postgres
}

fn run(folder: &Path, config: &str) -> Ended {
    let mut daemon = Daemon::new(folder, config);
    daemon.start(&["run", "--until-caught-up"], None);
    daemon.wait(Duration::from_secs(30))
}

/// Each file of a stream in order: how the columns of ours begin, and its rows.
fn files(lake: &Path, stream: &str) -> Vec<(String, usize)> {
    let Ok(found) = std::fs::read_dir(lake.join(stream)) else { return Vec::new() };
    let mut paths: Vec<_> = found.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "parquet"));
    paths.sort();
    let read = |path: &std::path::PathBuf| {
        let file = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(path).unwrap()).unwrap();
        let names = file.schema().fields().iter().filter_map(|field| field.name().strip_suffix("offset"));
        (names.collect::<String>(), file.metadata().file_metadata().num_rows() as usize)
    };
    paths.iter().map(read).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_announced_step_is_finished_as_announced_whatever_the_configuration_says_by_now() {
    let postgres = two_tables().await;
    let folder = folder("announced");
    let (lake, other) = (folder.join("lake"), folder.join("other"));
    let config = to_folder(&postgres, &lake, "1s").replace("2MiB", "64MiB");
    let mut daemon = Daemon::new(&folder, &config);
    daemon.start(&["run", "--until-caught-up"], Some("file-uploaded:1"));
    let ended = daemon.wait(Duration::from_secs(30));
    assert!(ended.stderr.contains("fault point hit: file-uploaded"), "{}", ended.stderr);
    assert_eq!(files(&lake, "shop.public.a").len() + files(&lake, "shop.public.b").len(), 1, "one of two is up");
    // Everything is another now: our columns, the cut, the tables.
    let config = config.replace("64MiB", "1KiB").replace("\"1s\"", "\"10ms\"");
    let config = format!("{config}meta_prefix = \"_x_\"\nbefore = true\ntables = [\"public.a\"]\n");
    Daemon::new(&folder, &config).catch_up();
    for stream in ["shop.public.a", "shop.public.b"] {
        assert_eq!(files(&lake, stream), [("_hw_".to_owned(), 1000)], "{stream}: as it was announced");
    }
    let client = postgres.client().await;
    client.batch_execute("INSERT INTO a VALUES (1001); INSERT INTO b VALUES (1001)").await.unwrap();
    Daemon::new(&folder, &config).catch_up();
    assert_eq!(files(&lake, "shop.public.a"), [("_hw_".to_owned(), 1000), ("_x_".to_owned(), 1)]);
    assert_eq!(files(&lake, "shop.public.b"), [("_hw_".to_owned(), 1000)], "it is no longer taken");

    // Half done again, and the destination moved: the new one has all of it.
    client.batch_execute("INSERT INTO a VALUES (1002)").await.unwrap();
    let mut daemon = Daemon::new(&folder, &config);
    daemon.start(&["run", "--until-caught-up"], Some("announced:1"));
    assert!(daemon.wait(Duration::from_secs(30)).stderr.contains("fault point hit: announced"));
    let moved = config.replace(&lake.display().to_string(), &other.display().to_string());
    Daemon::new(&folder, &moved).catch_up();
    let rows = |lake: &Path| files(lake, "shop.public.a").iter().map(|(_, rows)| rows).sum::<usize>();
    assert_eq!((rows(&lake), rows(&other)), (1001, 1002));
    // And moved back: the first is finished, and goes on.
    client.batch_execute("INSERT INTO a VALUES (1003)").await.unwrap();
    Daemon::new(&folder, &config).catch_up();
    assert_eq!((rows(&lake), rows(&other)), (1003, 1002));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_another_or_is_not_accounted_for_is_not_added_to() {
    let postgres = two_tables().await;
    let folder = folder("claims");
    let lake = folder.join("lake");
    let config = to_folder(&postgres, &lake, "100ms");
    Daemon::new(&folder, &config).catch_up();
    let before = files(&lake, "shop.public.a");
    postgres.client().await.batch_execute("INSERT INTO a VALUES (1001)").await.unwrap();
    let refused = |config: &str, words: &[&str]| {
        let ended = run(&folder, config);
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        for word in words.iter().chain(&["what to do"]) {
            assert!(ended.stderr.contains(word), "{word:?}: {}", ended.stderr);
        }
        assert_eq!(files(&lake, "shop.public.a"), before);
    };
    // The sink under another name is another sink.
    refused(&config.replace("[sinks.lake]", "[sinks.pond]"), &["belongs to sink \"lake/shop\""]);
    // Files without the manifests that know of them.
    let kept = folder.join("kept");
    std::fs::rename(lake.join("_highwater"), &kept).unwrap();
    refused(&config, &["would be there twice", "_highwater/"]);
    std::fs::remove_dir_all(lake.join("_highwater")).unwrap();
    std::fs::rename(&kept, lake.join("_highwater")).unwrap();
    // A manifest of a later version.
    let manifests = lake.join("_highwater/sinks/lake/shop");
    let newest = std::fs::read_dir(&manifests).unwrap().map(|entry| entry.unwrap().path()).max().unwrap();
    let text = std::fs::read_to_string(&newest).unwrap();
    std::fs::write(&newest, text.replace("\"version\": 2", "\"version\": 3")).unwrap();
    refused(&config, &["later version"]);
    std::fs::write(&newest, text).unwrap();
    Daemon::new(&folder, &config).catch_up();
    assert_eq!(landed(&local(&lake), "shop.public.a").await.len(), 1001);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_staging_folder_that_is_swept_away_is_made_anew() {
    let postgres = two_tables().await;
    let folder = folder("swept");
    let lake = folder.join("lake");
    let mut daemon = Daemon::new(&folder, &to_folder(&postgres, &lake, "100ms"));
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    let store = local(&lake);
    for rows in 1001..1004 {
        must(std::process::Command::new("rm").arg("-rf").arg(folder.join("highwater-data/sinks")));
        postgres.client().await.batch_execute(&format!("INSERT INTO a VALUES ({rows})")).await.unwrap();
        until(30, "the row lands", || async { landed(&store, "shop.public.a").await.len() == rows }).await;
    }
    daemon.ends_well();
}

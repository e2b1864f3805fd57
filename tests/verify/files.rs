//! `verify` of files, in every format.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use highwater_tests::{Daemon, Postgres, folder, must};
use serde_json::{Value, json};

use super::{daemon_stops, started, verify_of};

fn files_of(folder: &Path, stream: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder.join("lake").join(stream)).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// The file with another value in one row, written anew as a Parquet file.
fn plant(file: &Path, column: &str) {
    use arrow_array::{Array, ArrayRef, RecordBatch, StringArray, cast::AsArray};
    let open = std::fs::File::open(file).unwrap();
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(open).unwrap().build().unwrap();
    let batches: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
    let schema = batches[0].schema();
    let at = schema.index_of(column).unwrap();
    let out = std::fs::File::create(file).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(out, schema.clone(), None).unwrap();
    for (n, batch) in batches.into_iter().enumerate() {
        let mut columns = batch.columns().to_vec();
        let texts = columns[at].as_string::<i32>();
        let changed: StringArray = (0..texts.len())
            .map(|i| if (n, i) == (0, 400) { Some("planted") } else { texts.is_valid(i).then(|| texts.value(i)) })
            .collect();
        columns[at] = Arc::new(changed) as ArrayRef;
        writer.write(&RecordBatch::try_new(schema.clone(), columns).unwrap()).unwrap();
    }
    writer.close().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_folded_and_a_planted_one_is_found() {
    let source = Postgres::new(17).await;
    let client = source.client().await;
    client
        .batch_execute(
            "CREATE TABLE t (id int, at timestamptz, v text, big text, n numeric(12,2), w numeric, f float8, a int[], j jsonb, PRIMARY KEY (id, at));
             ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
             INSERT INTO t SELECT i, timestamptz '2024-01-01 00:00:00+00' + i * interval '1 hour', 'v' || i, repeat(md5(i::text), 100), i / 4.0,
                                  i / 3.0, i / 7.0, ARRAY[i, NULL], jsonb_build_object('i', i) FROM generate_series(1, 500) i;
             CREATE TABLE bag (v text, n int); ALTER TABLE bag REPLICA IDENTITY FULL;
             INSERT INTO bag SELECT 'same', 1 FROM generate_series(1, 10); INSERT INTO bag VALUES (NULL, 1), ('', 0);",
        )
        .await
        .unwrap();
    source.publish("highwater_shop", "t, bag").await;
    let folder = folder("verify-lake");
    let mut daemon = Daemon::new(
        &folder,
        &format!(
            "[sources.shop]\ntype = \"postgres\"\nurl = \"{}\"\nslot = \"hw_{}\"\n\
             [sinks.lake]\ntype = \"object-store\"\nfrom = [\"shop\"]\nurl = \"file://{}/lake\"\ncut = {{ age = \"1h\" }}\n",
            source.url(),
            source.database,
            folder.display()
        ),
    );
    started(&mut daemon).await;
    verify_of(&daemon, "lake", &[]).is_equal();
    // Not sent, moved, deleted, and read again: all that folding has to know.
    client
        .batch_execute(
            "UPDATE t SET v = 'changed' WHERE id <= 20; UPDATE t SET id = id + 1000 WHERE id BETWEEN 15 AND 25; DELETE FROM t WHERE id = 30;
             UPDATE bag SET v = 'other' WHERE ctid = (SELECT min(ctid) FROM bag); DELETE FROM bag WHERE v = '';",
        )
        .await
        .unwrap();
    // The mark ends the step: nobody waits an hour for it.
    let equal = verify_of(&daemon, "lake", &[]);
    equal.is_equal();
    assert_eq!(equal.verdict("public.t")["source_rows"], 499);
    assert_eq!(equal.verdict("public.bag")["sink_rows"], 11);
    let files = files_of(&folder, "shop.public.t");
    assert_eq!(files.len(), 2, "{files:?}");
    let second = std::fs::read(&files[1]).unwrap();
    std::fs::remove_file(&files[1]).unwrap();
    let found = verify_of(&daemon, "lake", &[]);
    assert_eq!(found.code, 3);
    // 20 changed, of which 6 moved, with 5 more; each that moved is missing and too many.
    assert_eq!(found.summary()["missing"], 11, "{:?} {}", found.summary(), found.stderr);
    assert_eq!(found.summary()["extra"], 12);
    assert_eq!(found.summary()["different"], 14);
    std::fs::write(&files[1], second).unwrap();
    verify_of(&daemon, "lake", &[]).is_equal();
    plant(&files[0], "j");
    let found = verify_of(&daemon, "lake", &["--repair"]);
    let planted = found.of("public.t");
    // Of a row that was not changed since.
    assert_eq!(planted.len(), 1, "{planted:?} {}", found.stderr);
    assert_eq!((planted[0].0.as_str(), &planted[0].2), ("different", &vec!["j".to_owned()]));
    assert_eq!(found.code, 0, "{:#?} {}", found.lines, found.stderr);
    verify_of(&daemon, "lake", &[]).is_equal();
    // A table without a key is read again as a whole.
    let bag = files_of(&folder, "shop.public.bag");
    std::fs::remove_file(&bag[1]).unwrap();
    let found = verify_of(&daemon, "lake", &["--repair"]);
    assert_eq!(found.code, 0, "{:#?} {}", found.lines, found.stderr);
    verify_of(&daemon, "lake", &[]).is_equal();
}

const ALL_KINDS: &str = "
CREATE TYPE pair AS (n numeric(6,2), at date);
CREATE TABLE t (id int, at timestamptz, country text, v text, big text, b bytea, f float8, r real, n numeric(12,2), w numeric,
                d date, tm time, ts timestamp(3), u uuid, a int[], p pair, ps pair[], j jsonb, i interval, ok bool,
                PRIMARY KEY (id, at));
ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
INSERT INTO t SELECT i, timestamptz '2024-01-01 00:00:00.123456+00' + i * interval '1 hour', (ARRAY['DE', 'a/b', NULL, ''])[i % 4 + 1],
                     'v' || i, repeat(md5(i::text), 100), decode(md5(i::text), 'hex'), i / 7.0, i / 7.0, i / 4.0, i / 3.0,
                     date '2024-01-01' + i, time '00:00' + i * interval '1 minute', timestamp '2024-01-01' + i * interval '1 ms',
                     md5(i::text)::uuid, ARRAY[i, NULL], ROW(i / 4.0, date '0044-03-15 BC' + i)::pair,
                     ARRAY[ROW(NULL, 'infinity')::pair, NULL], jsonb_build_object('i', i), i * interval '1 hour', i % 2 = 0
                FROM generate_series(1, 400) i;
INSERT INTO t VALUES (-1, '-infinity', 'DE', '', NULL, '', 'NaN', '-Infinity', -0.01, 'NaN', 'infinity', '24:00', 'infinity'),
                     (-2, '4714-11-24 00:00:00+00 BC', E'q\"\\\\\\né', E'q\"\\\\\\né', NULL, NULL, '-0', 'NaN', 0, 1e100, '4714-11-24 BC', '00:00', '-infinity');
CREATE TABLE bag (v text, f float8); ALTER TABLE bag REPLICA IDENTITY FULL;
INSERT INTO bag SELECT 'same', 0.1 FROM generate_series(1, 10); INSERT INTO bag VALUES (NULL, 1), ('', 'NaN');
CREATE TABLE emptied (id int PRIMARY KEY, country text); INSERT INTO emptied VALUES (1, 'DE'), (2, NULL);";

/// What folding has to know: not sent, moved to another key and to another folder,
/// deleted, emptied and filled again.
const CHANGED: &str = "
UPDATE t SET v = 'changed' WHERE id BETWEEN 1 AND 20;
UPDATE t SET id = id + 1000 WHERE id BETWEEN 15 AND 25;
UPDATE t SET country = 'FR' WHERE id BETWEEN 40 AND 60; UPDATE t SET country = 'DE', v = 'again' WHERE id BETWEEN 50 AND 60;
DELETE FROM t WHERE id = 30; INSERT INTO t (id, at, country) VALUES (5000, now(), 'NL');
UPDATE bag SET v = 'other' WHERE ctid = (SELECT min(ctid) FROM bag); DELETE FROM bag WHERE v = '';
TRUNCATE emptied; INSERT INTO emptied VALUES (2, 'DE'), (3, 'FR');";

/// The data files under a sink's folder of a stream, whatever folders are within.
fn data_files(lake: &Path, stream: &str) -> Vec<PathBuf> {
    let found = must(Command::new("find").arg(lake.join(stream)).args(["-type", "f"]));
    let mut files: Vec<PathBuf> = found.lines().map(PathBuf::from).collect();
    files.sort();
    files
}

/// Each row of an Avro file as somebody else's writer leaves it.
fn avro_rewritten(file: &Path, change: impl Fn(&mut BTreeMap<String, apache_avro::types::Value>)) {
    use apache_avro::types::Value;
    let body = std::fs::read(file).unwrap();
    let reader = apache_avro::Reader::new(&body[..]).unwrap();
    let schema = reader.writer_schema().clone();
    let mut writer = apache_avro::Writer::new(&schema, Vec::new()).unwrap();
    for row in reader {
        let Value::Record(fields) = row.unwrap() else { panic!("a row is a record") };
        let order: Vec<String> = fields.iter().map(|(name, _)| name.clone()).collect();
        let mut fields: BTreeMap<String, Value> = fields.into_iter().collect();
        change(&mut fields);
        let fields = order.into_iter().map(|name| (name.clone(), fields.remove(&name).unwrap())).collect();
        writer.append_value(Value::Record(fields)).unwrap();
    }
    std::fs::write(file, writer.into_inner().unwrap()).unwrap();
}

/// Each line of an NDJSON file, by the row's id; None leaves it out.
fn lines_rewritten(file: &Path, change: impl Fn(i64, &str) -> Option<String>) {
    use std::io::{Read, Write};
    let body = std::fs::read(file).unwrap();
    let gzip = file.extension().is_some_and(|suffix| suffix == "gz");
    let mut text = String::new();
    match gzip {
        true => drop(flate2::read::GzDecoder::new(&body[..]).read_to_string(&mut text).unwrap()),
        false => text = String::from_utf8(zstd::decode_all(&body[..]).unwrap()).unwrap(),
    }
    let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["id"].as_i64().unwrap_or(0);
    let lines = text.lines().filter_map(|line| change(id(line), line));
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    let body = match gzip {
        true => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(text.as_bytes()).unwrap();
            encoder.finish().unwrap()
        }
        false => zstd::encode_all(text.as_bytes(), 3).unwrap(),
    };
    std::fs::write(file, body).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_format_and_folder_is_folded_and_what_was_planted_is_found() {
    let source = Postgres::new(17).await;
    let client = source.client().await;
    client.batch_execute(ALL_KINDS).await.unwrap();
    source.publish("highwater_shop", "t, bag, emptied").await;
    let folder = folder("verify-formats");
    let sinks = [
        ("avro", "format = \"avro\""),
        ("deflate", "format = \"avro\"\ncompression = \"deflate\"\npartition = { column = \"country\" }"),
        ("gzip", "format = \"ndjson\""),
        ("zstd", "format = \"ndjson\"\ncompression = \"zstd\"\npartition = { by = \"commit_date\" }\nbefore = true"),
        ("parts", "partition = { column = \"country\" }\nretain = { age = \"1h\" }"),
    ];
    let mut config =
        format!("[sources.shop]\ntype = \"postgres\"\nurl = \"{}\"\nslot = \"hw_{}\"\n", source.url(), source.database);
    for (name, more) in sinks {
        config.push_str(&format!(
            "[sinks.{name}]\ntype = \"object-store\"\nfrom = [\"shop\"]\nurl = \"file://{}/{name}\"\n\
             cut = {{ age = \"1h\" }}\n{more}\n",
            folder.display()
        ));
    }
    let mut daemon = Daemon::new(&folder, &config);
    started(&mut daemon).await;
    // A step of its own for the first rows in some, and one for all in others.
    verify_of(&daemon, "avro", &[]).is_equal();
    verify_of(&daemon, "parts", &[]).is_equal();
    client.batch_execute(CHANGED).await.unwrap();
    for (name, _) in sinks {
        let equal = verify_of(&daemon, name, &[]);
        equal.is_equal();
        assert_eq!(equal.verdict("public.t")["sink_rows"], 402, "{name}");
        assert_eq!(equal.verdict("public.emptied")["sink_rows"], 2, "{name}");
    }
    let files = |sink: &str, stream: &str| data_files(&folder.join(sink), stream);
    assert!(files("deflate", "shop.public.t").len() > 6, "by country");
    let names = |of: &[(String, Value, Vec<String>)]| -> Vec<String> {
        of.iter().map(|(what, key, columns)| format!("{what} {} {}", key["id"], columns.join(","))).collect()
    };

    // Another's Avro writer, over every file: only what it changed is found.
    for file in files("deflate", "shop.public.t") {
        avro_rewritten(&file, |row| {
            use apache_avro::types::Value;
            let text = |text: &str| Value::Union(1, Box::new(Value::String(text.into())));
            match row["id"] {
                Value::Int(301) => drop(row.insert("v".into(), text("planted"))),
                Value::Int(302) => drop(row.insert("v".into(), Value::Union(0, Box::new(Value::Null)))),
                Value::Int(303) => {
                    let Value::Union(1, value) = &row["f"] else { panic!("it has a value") };
                    let Value::Double(value) = **value else { panic!("a double") };
                    row.insert("f".into(), Value::Union(1, Box::new(Value::Double(value.next_up()))));
                }
                _ => {}
            }
        });
    }
    let found = verify_of(&daemon, "deflate", &["--repair"]);
    assert_eq!(names(&found.of("public.t")), ["different \"301\" v", "different \"302\" v", "different \"303\" f"]);
    assert_eq!((found.code, &found.summary()["after_repair"]), (0, &json!(true)), "{}", found.stderr);

    // What one repair reads again goes to all, so each has rows of its own.
    for (sink, first, odd) in [("gzip", 310, -1), ("zstd", 330, -2)] {
        for file in files(sink, "shop.public.t") {
            lines_rewritten(&file, |id, line| {
                let put = |column: &str, value: &str| {
                    let (before, rest) = line.split_once(&format!("\"{column}\":")).unwrap();
                    let (old, after) = rest.split_once(',').unwrap();
                    let value =
                        value.replace("NEXT", &old.parse().map_or(String::new(), |old: f64| old.next_up().to_string()));
                    Some(format!("{before}\"{column}\":{value},{after}"))
                };
                match id - first {
                    1 => put("v", "\"planted\""),
                    2 => put("d", "\"no date\""),
                    3 => put("f", "NEXT"),
                    4 => None,
                    5 => put("id", "99315"),
                    6 => Some(line.replace("\"infinity\"", "\"-infinity\"")),
                    _ if id == odd => put("w", "null"),
                    _ => Some(line.to_owned()),
                }
            });
        }
        let found = verify_of(&daemon, sink, &["--repair"]);
        let row = |what: &str, id: i64, column: &str| format!("{what} \"{id}\" {column}");
        let expected = [
            row("different", odd, "w"),
            row("different", first + 1, "v"),
            row("different", first + 2, "d"),
            row("different", first + 3, "f"),
            row("missing", first + 4, ""),
            row("missing", first + 5, ""),
            row("different", first + 6, "ps"),
            row("extra", 99_315, ""),
        ];
        assert_eq!(names(&found.of("public.t")), expected, "{sink}: {}", found.stderr);
        assert_eq!((found.code, &found.summary()["after_repair"]), (0, &json!(true)), "{sink}: {}", found.stderr);
    }

    // A file that is gone, of a table that is then read again as a whole.
    let bag = files("avro", "shop.public.bag");
    std::fs::remove_file(&bag[1]).unwrap();
    let found = verify_of(&daemon, "avro", &["--repair"]);
    assert!(found.stderr.contains("read again as a whole"), "{}", found.stderr);
    assert_eq!(found.code, 0, "{:#?} {}", found.lines, found.stderr);
    for (name, _) in sinks {
        verify_of(&daemon, name, &[]).is_equal();
    }

    // A copy of a file has its events twice.
    let copied = files("parts", "shop.public.t").remove(0);
    let copy = folder.join("parts/shop.public.t/country=copy").join(copied.file_name().unwrap());
    std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
    std::fs::copy(&copied, &copy).unwrap();
    let found = verify_of(&daemon, "parts", &[]);
    assert_eq!(found.code, 3);
    let why = &found.verdict("public.t")["why"];
    assert!(why.as_str().unwrap().contains("and in a file before it"), "{why}");
    std::fs::remove_file(&copy).unwrap();
    // One that was cut short is named.
    let cut = files("gzip", "shop.public.t").remove(0);
    let body = std::fs::read(&cut).unwrap();
    std::fs::write(&cut, &body[..body.len() / 2]).unwrap();
    let found = verify_of(&daemon, "gzip", &[]);
    assert!(found.code == 1 && found.stderr.contains(cut.file_name().unwrap().to_str().unwrap()), "{}", found.stderr);
    // Rows of files that `retain` has ended are not taken for missing ones.
    assert_eq!(daemon_stops(&mut daemon), Some(0));
    for file in files("parts", "shop.public.t") {
        must(Command::new("touch").args(["-d", "2 hours ago"]).arg(file));
    }
    for file in files("parts", "shop.public.bag").into_iter().chain(files("parts", "shop.public.emptied")) {
        must(Command::new("touch").args(["-d", "2 hours ago"]).arg(file));
    }
    started(&mut daemon).await;
    let found = verify_of(&daemon, "parts", &[]);
    assert!(found.findings().is_empty(), "{:?}", found.lines);
    assert_eq!(found.code, 3, "{:?} {}", found.lines, found.stderr);
    assert!(found.verdict("public.t")["why"].as_str().unwrap().contains("`retain`"), "{:?}", found.lines);
}

use serde_json::json;

use super::*;
use crate::error::Code;

const INT: &str = "\"int\"";

fn record(fields: &str) -> String {
    format!(r#"{{"type":"record","name":"R","fields":[{fields}]}}"#)
}

fn subject(name: &str) -> Subject {
    Subject::parse(name).unwrap()
}

async fn open(folder: &Path) -> Store {
    Store::open(folder, Limits::default()).await.unwrap()
}

async fn register(store: &Store, name: &str, text: &str) -> Result<Registered> {
    store.register_new(subject(name), NewSchema::avro(text), false).await
}

#[tokio::test]
async fn everything_survives_a_restart_and_ids_are_never_given_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let a = register(&store, "a", INT).await.unwrap();
    let b = store.register("b", "\"long\"").await.unwrap();
    assert_eq!((a.id, b.id), (1, 2));
    store.delete_subject(subject("b"), false).await.unwrap();
    assert_eq!(store.delete_subject(subject("b"), true).await.unwrap(), [1]);
    store.set_mode(Some(subject("a")), Some("readonly".into()), false).await.unwrap();
    store.close().await;
    drop(store);
    assert_eq!(Store::peek(folder.path()).unwrap().versions(&subject("a"), Shown::Live).unwrap().len(), 1);
    let store = open(folder.path()).await;
    assert_eq!(register(&store, "a", INT).await.unwrap(), a, "also when read only");
    let Err(Error::Refused(refusal)) = register(&store, "a", "\"string\"").await else { panic!("read only") };
    assert_eq!(refusal.code, Code::NotPermitted);
    let c = register(&store, "b", "\"long\"").await.unwrap();
    assert_eq!((c.id, c.version), (3, 1), "a new id, and versions from the beginning");
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_registered_by_many_at_once_gets_one_id() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(open(folder.path()).await);
    let tasks: Vec<_> = (0..64)
        .map(|i| {
            let store = store.clone();
            tokio::spawn(async move { register(&store, &format!("s{}", i % 4), INT).await.unwrap() })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), Registered { id: 1, version: 1 });
    }
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_registrations_share_a_sync() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(open(folder.path()).await);
    let before = store.syncs();
    let tasks: Vec<_> = (0..500)
        .map(|i| {
            let store = store.clone();
            let text = record(&format!(r#"{{"name":"f{i}","type":"int","default":0}}"#));
            tokio::spawn(async move { register(&store, &format!("s{i}"), &text).await.unwrap().id })
        })
        .collect();
    let mut ids = Vec::new();
    for task in tasks {
        ids.push(task.await.unwrap());
    }
    ids.sort_unstable();
    assert_eq!(ids, (1..=500).collect::<Vec<_>>(), "dense, each once");
    let syncs = store.syncs() - before;
    assert!(syncs < 250, "{syncs} syncs for 500 registrations");
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_that_race_are_all_compared_with_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(open(folder.path()).await);
    let tasks: Vec<_> = (0..32)
        .map(|i| {
            let store = store.clone();
            // No two of them can follow each other.
            let text = record(&format!(r#"{{"name":"f{i}","type":"int"}}"#));
            tokio::spawn(async move { register(&store, "s", &text).await.is_ok() })
        })
        .collect();
    let mut taken = 0;
    for task in tasks {
        taken += usize::from(task.await.unwrap());
    }
    assert_eq!(taken, 1);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_replaces_the_log_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { tail: 64 << 20, ..Limits::default() };
    let store = Arc::new(Store::open(folder.path(), limits).await.unwrap());
    store.set_config(None, json!({"compatibility": "none"}).as_object().unwrap().clone()).await.unwrap().unwrap();
    let filler = "x".repeat(400_000);
    let fill = async |from: usize, upto: usize| {
        for i in from..upto {
            let text = format!(r#"{{"type":"record","name":"R{i}","doc":"{filler}","fields":[]}}"#);
            assert_eq!(register(&store, &format!("s{}", i % 7), &text).await.unwrap().id, i as u32 + 1);
        }
    };
    let snapshots = || snapshots(folder.path());
    fill(0, 250).await;
    store.delete_version(subject("s3"), Which::Number(1), false).await.unwrap();
    fill(250, 300).await;
    let expected = store.read(Registry::dump);
    store.close().await;
    drop(store);
    assert_eq!(snapshots(), 1);
    let bytes: u64 =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes < 130 << 20, "{bytes} bytes for 120 MB of schemas");
    let first = std::fs::read_dir(folder.path()).unwrap().any(|e| e.unwrap().file_name() == "00000000000000000000.log");
    assert!(!first, "the log's beginning is gone");
    let store = open(folder.path()).await;
    assert_eq!(store.read(Registry::dump), expected);
    assert_eq!(register(&store, "new", INT).await.unwrap().id, 301);
    store.close().await;
    drop(store);
    assert_eq!(Store::peek(folder.path()).unwrap().last_id("."), 301);
    // What does not read back is refused, not passed over.
    let path = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.to_string_lossy().contains("snapshot-"))
        .unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = Store::open(folder.path(), Limits::default()).await.unwrap_err();
    assert!(error.to_string().contains("is corrupt"), "{error}");
}

fn snapshots(folder: &Path) -> usize {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with("snapshot-")).count()
}

#[tokio::test]
async fn a_full_registry_says_so_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Limits { versions: 2, ..Limits::default() }).await.unwrap();
    register(&store, "a", INT).await.unwrap();
    register(&store, "b", INT).await.unwrap();
    let Err(Error::Refused(refusal)) = register(&store, "c", INT).await else { panic!("it is full") };
    assert_eq!(refusal.code, Code::Full);
    register(&store, "a", INT).await.unwrap();
    store.delete_subject(subject("a"), false).await.unwrap();
    store.delete_subject(subject("a"), true).await.unwrap();
    register(&store, "c", INT).await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn what_is_imported_keeps_its_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let new = |text: &str, id, version| NewSchema { id: Some(id), version: Some(version), ..NewSchema::avro(text) };
    let imported = store.import(subject("a"), new(INT, 100, 7)).await.unwrap();
    assert_eq!(imported, Registered { id: 100, version: 7 });
    store.import(subject("b"), new(INT, 100, 1)).await.unwrap();
    let Err(Error::Refused(refusal)) = store.import(subject("c"), new("\"long\"", 100, 1)).await else { panic!() };
    assert_eq!(refusal.code, Code::NotPermitted);
    assert_eq!(register(&store, "c", "\"long\"").await.unwrap().id, 101);
    assert_eq!(register(&store, "a", "\"long\"").await.unwrap(), Registered { id: 101, version: 8 });
    store.close().await;
}

/// Metadata and rules of a subject's last version.
fn said(store: &Store, name: &str) -> (Value, Value) {
    let found = store.read(|registry| registry.version(&subject(name), Which::Latest, Shown::Live)).unwrap();
    let json = |value: &Option<Box<Value>>| value.as_deref().cloned().unwrap_or_default();
    (json(&found.content.metadata), json(&found.content.rule_set))
}

async fn configure(store: &Store, scope: Option<&str>, request: Value) {
    let scope = scope.map(|scope| Subject::scope(scope).unwrap());
    store.set_config(scope, request.as_object().unwrap().clone()).await.unwrap().unwrap();
}

#[tokio::test]
async fn schemas_are_registered_with_what_settings_give() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let at = |id, version| Registered { id, version };
    let of = |properties: Value| json!({"properties": properties});
    let rules = |names: &[&str]| json!({"domainRules": names.iter().map(|name| json!({"name": name, "type": "CEL"})).collect::<Vec<_>>()});
    let with = |text: &str, metadata: Value| NewSchema { metadata: Some(metadata), ..NewSchema::avro(text) };
    register(&store, "before", INT).await.unwrap();
    configure(
        &store,
        None,
        json!({"defaultMetadata": of(json!({"owner": "nobody", "kind": "raw"})), "overrideMetadata": of(json!({"team": "x"})),
            "defaultRuleSet": rules(&["d"]), "overrideRuleSet": rules(&["o"])}),
    )
    .await;
    // Whoever sends nothing, and again.
    for _ in 0..2 {
        assert_eq!(register(&store, "s", INT).await.unwrap(), at(2, 1));
    }
    let whole = of(json!({"owner": "nobody", "kind": "raw", "team": "x"}));
    assert_eq!(said(&store, "s"), (whole.clone(), rules(&["d", "o"])));
    // Own words stand between them; the version before has them too.
    let own = with(INT, of(json!({"owner": "me", "team": "y"})));
    for _ in 0..2 {
        assert_eq!(store.register_new(subject("s"), own.clone(), false).await.unwrap(), at(3, 2));
    }
    let mine = of(json!({"owner": "me", "team": "x", "kind": "raw"}));
    assert_eq!(said(&store, "s"), (mine.clone(), rules(&["d", "o"])));
    assert_eq!(register(&store, "s", INT).await.unwrap(), at(3, 2));
    let lookup =
        async |new: NewSchema| store.lookup(subject("s"), new, false, Shown::Live).await.unwrap().version.version;
    assert_eq!(lookup(own.clone()).await, 2, "as it was sent");
    assert_eq!(lookup(with(INT, mine.clone())).await, 2, "as it is");
    assert_eq!(lookup(NewSchema::avro(INT)).await, 2);
    // A version that was there before it is another one; it is still found as what it is.
    assert_eq!(register(&store, "before", INT).await.unwrap(), at(2, 2));
    let bare = store.lookup(subject("before"), NewSchema::avro(INT), false, Shown::Live).await.unwrap();
    assert_eq!(bare.version.version, 1);
    // What a source has registered stays that, whatever settings say by now.
    assert_eq!(store.register("own", INT).await.unwrap(), at(2, 1));
    configure(&store, None, json!({"overrideMetadata": of(json!({"team": "z"})), "compatibility": "none"})).await;
    assert_eq!(store.register("own", INT).await.unwrap(), at(2, 1));
    assert_eq!(register(&store, "own", INT).await.unwrap(), at(4, 2));
    assert_eq!(said(&store, "own").0["properties"]["team"], "z");
    // The nearest settings, and no others: a subject's own that give nothing.
    configure(&store, Some("s"), json!({"compatibility": "none"})).await;
    assert_eq!(register(&store, "s", "\"long\"").await.unwrap(), at(5, 3));
    assert_eq!(said(&store, "s"), (mine, rules(&["d", "o"])));
    configure(&store, Some(":.c:"), json!({"defaultMetadata": of(json!({"context": "c"}))})).await;
    assert_eq!(register(&store, ":.c:s", INT).await.unwrap(), at(1, 1));
    assert_eq!(said(&store, ":.c:s"), (of(json!({"context": "c"})), Value::Null));
    // What is imported is as it was elsewhere.
    let new = NewSchema { id: Some(90), version: Some(1), ..NewSchema::avro(INT) };
    store.import(subject("imported"), new).await.unwrap();
    assert_eq!(said(&store, "imported"), (Value::Null, Value::Null));
    store.close().await;
}

#[tokio::test]
async fn versions_are_compared_within_the_group_that_settings_give() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let group = |name: &str| json!({"properties": {"major": name}});
    configure(&store, None, json!({"compatibilityGroup": "major", "overrideMetadata": group("1")})).await;
    register(&store, "s", INT).await.unwrap();
    let compare = async || store.compare(subject("s"), None, NewSchema::avro("\"string\""), false).await.unwrap();
    let Err(Error::Refused(refusal)) = register(&store, "s", "\"string\"").await else { panic!("of one group") };
    assert_eq!(refusal.code, Code::Incompatible);
    assert!(!compare().await.messages.is_empty());
    configure(&store, None, json!({"overrideMetadata": group("2")})).await;
    assert!(compare().await.messages.is_empty());
    assert_eq!(register(&store, "s", "\"string\"").await.unwrap().version, 2);
    store.close().await;
}

//! The clients that people have, as they are: round trips with evolution, and
//! an incompatible change refused.

use std::process::Command;

use apache_avro::types::Value;
use highwater_tests::{Daemon, folder, free_port, must, root};
use schema_registry_converter::async_impl::avro::{AvroDecoder, AvroEncoder};
use schema_registry_converter::async_impl::schema_registry::{SrSettings, post_schema};
use schema_registry_converter::schema_registry_common::{
    SchemaType, SubjectNameStrategy, SuppliedReference, SuppliedSchema,
};

use super::Registry;

#[tokio::test(flavor = "multi_thread")]
async fn confluent_kafka_for_python() {
    let mut registry = Registry::start(&folder("registry-python"), "").await;
    let mut command = Command::new(root().join("target/servers/python/bin/python"));
    command.arg(root().join("tests/registry/client.py")).arg(format!("http://127.0.0.1:{}", registry.port));
    let out = tokio::task::spawn_blocking(move || must(&mut command)).await.unwrap();
    assert_eq!(out, "all well\n");
    registry.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn kafkajs_for_node() {
    let mut registry = Registry::start(&folder("registry-node"), "").await;
    let mut command = Command::new("node");
    command
        .arg(root().join("tests/registry/client.js"))
        .arg(format!("http://127.0.0.1:{}", registry.port))
        .arg(root().join("target/servers/kafkajs/node_modules/@kafkajs/confluent-schema-registry"));
    let out = tokio::task::spawn_blocking(move || must(&mut command)).await.unwrap();
    assert_eq!(out, "all well\n");
    registry.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn schema_registry_converter_for_rust() {
    let mut registry = Registry::start(&folder("registry-rust"), "").await;
    let settings = SrSettings::new(format!("http://127.0.0.1:{}", registry.port));
    let schema = |fields: &str| {
        let text = format!(r#"{{"type":"record","name":"Order","namespace":"shop","fields":[{fields}]}}"#);
        SuppliedSchema::new(Some("shop.Order".into()), SchemaType::Avro, text)
    };
    let topic = |schema| SubjectNameStrategy::TopicNameStrategyWithSchema("orders".into(), false, schema);
    let id = r#"{"name":"id","type":"long"}"#;
    let note = r#"{"name":"note","type":["null","string"],"default":null}"#;
    let encoder = AvroEncoder::new(settings.clone());
    let old = encoder.encode(vec![("id", Value::Long(42))], topic(schema(id))).await.unwrap();
    assert_eq!(old[..5], [0, 0, 0, 0, 1]);
    let wider = || topic(schema(&format!("{id},{note}")));
    let noted = Value::Union(1, Box::new(Value::String("hi".into())));
    // It keeps one schema a subject.
    let encoder = AvroEncoder::new(settings.clone());
    let new = encoder.encode(vec![("id", Value::Long(43)), ("note", noted.clone())], wider()).await.unwrap();
    assert_eq!(new[..5], [0, 0, 0, 0, 2]);
    let decoder = AvroDecoder::new(settings.clone());
    let read = async |bytes: &[u8]| decoder.decode(Some(bytes)).await.unwrap().value;
    assert_eq!(read(&old).await, Value::Record(vec![("id".into(), Value::Long(42))]));
    assert_eq!(read(&new).await, Value::Record(vec![("id".into(), Value::Long(43)), ("note".into(), noted)]));
    let refused =
        post_schema(&settings, "orders-value".into(), schema(r#"{"name":"id","type":"string"}"#)).await.unwrap_err();
    assert!(
        format!("{refused:?}").contains("READER_FIELD_MISSING") || format!("{refused:?}").contains("TYPE_MISMATCH"),
        "{refused:?}"
    );
    // With a reference; this client looks for its name without the namespace.
    let inner = r#"{"type":"record","name":"Address","namespace":"shop","fields":[{"name":"city","type":"string"}]}"#;
    let reference = SuppliedReference::new("shop.Address".into(), "address".into(), inner.into());
    let outer =
        r#"{"type":"record","name":"Customer","namespace":"shop","fields":[{"name":"address","type":"Address"}]}"#;
    let outer = SuppliedSchema::new(Some("shop.Customer".into()), SchemaType::Avro, outer.into())
        .with_references(vec![reference]);
    let address = Value::Record(vec![("city".into(), Value::String("Ulm".into()))]);
    let strategy = SubjectNameStrategy::RecordNameStrategyWithSchema(outer);
    let bytes = encoder.encode(vec![("address", address.clone())], strategy).await.unwrap();
    assert_eq!(read(&bytes).await, Value::Record(vec![("address".into(), address)]));
    registry.stop();
}

/// What they wrote under a registry that is gone, they read under ours, which
/// has nothing but `[registry]` and what was exported there.
#[tokio::test(flavor = "multi_thread")]
async fn all_three_go_on_after_a_move_from_another_registry() {
    let folder = folder("registry-moved");
    let port = free_port();
    let daemon = Daemon::new(&folder, &format!("[registry]\nbind = \"127.0.0.1:{port}\"\n"));
    let dump = root().join("tests/fixtures/confluent-schemas.json");
    let (code, out, stderr) = daemon.run(&["schemas", "import", dump.to_str().unwrap()]);
    assert_eq!((code, out.as_str()), (0, "3 versions, 0 settings\n"), "{stderr}");
    let mut registry = Registry { daemon, port };
    registry.up().await;
    let url = format!("http://127.0.0.1:{port}");
    let mut python = Command::new(root().join("target/servers/python/bin/python"));
    python.arg(root().join("tests/registry/moved.py")).arg(&url);
    let mut node = Command::new("node");
    node.arg(root().join("tests/registry/moved.js"))
        .arg(&url)
        .arg(root().join("target/servers/kafkajs/node_modules/@kafkajs/confluent-schema-registry"));
    for mut command in [python, node] {
        let out = tokio::task::spawn_blocking(move || must(&mut command)).await.unwrap();
        assert_eq!(out, "all well\n");
    }
    let settings = SrSettings::new(url);
    let decoder = AvroDecoder::new(settings.clone());
    let old = decoder.decode(Some(&[0, 0, 1, 0x86, 0xa7, 0x2a])).await.unwrap().value;
    assert_eq!(old, Value::Record(vec![("id".into(), Value::Long(21))]));
    let nothing = Value::Union(0, Box::new(Value::Null));
    let encoder = AvroEncoder::new(settings);
    let row = vec![("id", Value::Long(21)), ("qty", Value::Int(2)), ("note", nothing)];
    let new = encoder.encode(row, SubjectNameStrategy::TopicNameStrategy("orders".into(), false)).await.unwrap();
    assert_eq!(new, [0, 0, 1, 0x86, 0xad, 0x2a, 4, 0]);
    registry.stop();
}

//! The schema of an Avro file: a table's row, and our own columns behind it.

use connector::{Shape, avro_name};
use serde_json::{Value, json};

use crate::meta::has_before;

/// `blank`: columns of the key may be null too.
pub(crate) fn event_schema(shape: &Shape, prefix: &str, before: bool, blank: bool) -> serde_json::Result<String> {
    let mut schema: Value = serde_json::from_str(&shape.value)?;
    let mut old = schema.clone();
    let mut more = Vec::new();
    let mut add = |name: &str, ty: Value| {
        let name = format!("{prefix}{name}");
        let avro = avro_name(&name);
        let mut field = json!({"name": avro, "type": ty});
        if field["type"].is_array() {
            field["default"] = Value::Null;
        }
        if avro != name {
            field["highwater.name"] = name.into();
        }
        more.push(field);
    };
    add("op", "string".into());
    add("offset", "long".into());
    add("ordinal", "long".into());
    add("position", "string".into());
    add("tx", json!(["null", "string"]));
    add("commit_time", json!({"type": "long", "logicalType": "timestamp-micros"}));
    add("absent", json!(["null", {"type": "array", "items": "string"}]));
    if let Some(key) = &shape.key {
        let mut key: Value = serde_json::from_str(key)?;
        drop_namespace(&mut key);
        add("old_key", json!(["null", key]));
    }
    if has_before(&shape.table, before) {
        old["name"] = "Before".into();
        drop_namespace(&mut old);
        // Named types stand in the row's own columns already.
        if let Some(fields) = old["fields"].as_array_mut() {
            fields.iter_mut().for_each(|field| refer(&mut field["type"]));
        }
        add("before", json!(["null", old]));
    }
    schema["name"] = "Event".into();
    let fields = schema["fields"].as_array_mut().ok_or_else(|| serde::de::Error::custom("it has no fields"))?;
    if blank {
        for field in fields.iter_mut().filter(|field| !field["type"].is_array()) {
            let ty = field["type"].take();
            field["type"] = json!(["null", ty]);
            field["default"] = Value::Null;
        }
    }
    fields.extend(more);
    Ok(schema.to_string())
}

/// It is the enclosing record's.
fn drop_namespace(record: &mut Value) {
    if let Some(record) = record.as_object_mut() {
        record.shift_remove("namespace");
        record.shift_remove("highwater.name");
    }
}

/// Named types by their names.
fn refer(ty: &mut Value) {
    match ty {
        Value::Array(branches) => branches.iter_mut().for_each(refer),
        Value::Object(object) if object.get("type").is_some_and(|ty| ty == "record") => {
            *ty = object["name"].take();
        }
        Value::Object(object) => object.values_mut().for_each(refer),
        _ => {}
    }
}

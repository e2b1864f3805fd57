//! The schema of an Avro file: a table's row, and our own columns behind it.

use connector::{Shape, avro_name};
use serde_json::{Value, json};

use crate::format::OURS;
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
    let [op, offset, ordinal, position, tx, commit_time, absent, old_key, old_row] = OURS;
    add(op, "string".into());
    add(offset, "long".into());
    add(ordinal, "long".into());
    add(position, "string".into());
    add(tx, json!(["null", "string"]));
    add(commit_time, json!({"type": "long", "logicalType": "timestamp-micros"}));
    add(absent, json!(["null", {"type": "array", "items": "string"}]));
    if let Some(key) = &shape.key {
        let mut key: Value = serde_json::from_str(key)?;
        drop_namespace(&mut key);
        add(old_key, json!(["null", key]));
    }
    if has_before(&shape.table, before) {
        old["name"] = "Before".into();
        drop_namespace(&mut old);
        // Named types stand in the row's own columns already.
        if let Some(fields) = old["fields"].as_array_mut() {
            fields.iter_mut().for_each(|field| refer(&mut field["type"]));
        }
        add(old_row, json!(["null", old]));
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

#[cfg(test)]
mod tests {
    use super::*;
    use connector::{Column, Field, Table, Type};

    #[test]
    fn apache_avro_reads_the_schema_with_named_types_in_the_row_and_in_the_old_one() {
        let inner = Type::Record(vec![Field {
            name: "a.b".into(),
            ty: Type::Array(Box::new(Type::Record(vec![Field {
                name: "x".into(),
                ty: Type::Map,
                db_type: "h".into(),
            }]))),
            db_type: "t".into(),
        }]);
        let types =
            [Type::Long, inner.clone(), Type::Array(Box::new(inner)), Type::Decimal { precision: 12, scale: 2 }];
        let column = |(i, ty)| Column { name: format!("c {i}"), ty, db_type: "t".into(), nullable: true, id: i as i32 };
        let table = Table {
            source: "shop".into(),
            schema: "a.b".into(),
            name: "Größe".into(),
            kind: Default::default(),
            columns: types.into_iter().enumerate().map(column).collect(),
            key: vec![0, 1],
            full_identity: false,
        };
        let shape = Shape::new(1, table, Some(1), 2);
        for (before, blank) in [(false, false), (true, false), (true, true)] {
            let text = event_schema(&shape, "_hw_", before, blank).unwrap();
            apache_avro::Schema::parse_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            let schema: Value = serde_json::from_str(&text).unwrap();
            let fields = schema["fields"].as_array().unwrap();
            assert_eq!(fields[0]["type"].is_array(), blank, "only a blank row has no key");
            let names: Vec<_> = fields[4..].iter().map(|field| field["name"].as_str().unwrap()).collect();
            let ours = OURS.map(|name| format!("_hw_{name}"));
            assert_eq!(names, ours[..ours.len() - usize::from(!before)], "`before` is the last");
        }
    }
}

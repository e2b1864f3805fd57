//! The Avro schemas of a table: `Key` and `Value`.

use serde_json::{Map, Value, json};

use crate::name::avro_name;
use crate::table::{Column, Table, Type};

/// The schema of a row's body, as text: columns of the key are `T`, all others
/// `["null", T]` with default null.
pub fn value_schema(table: &Table) -> String {
    let fields = (0..table.columns.len()).map(|i| field(table, i, table.in_key(i), "Value")).collect();
    record(table, "Value", fields).to_string()
}

/// The schema of a row's key, or None where the table has none.
pub fn key_schema(table: &Table) -> Option<String> {
    if table.key.is_empty() {
        return None;
    }
    let fields = table.key.iter().map(|&i| field(table, i, true, "Key")).collect();
    Some(record(table, "Key", fields).to_string())
}

fn record(table: &Table, name: &str, fields: Vec<Value>) -> Value {
    let stream = table.stream();
    let namespace: Vec<String> = stream.split('.').map(avro_name).collect();
    let namespace = namespace.join(".");
    let mut out = Map::new();
    out.insert("type".into(), "record".into());
    out.insert("name".into(), name.into());
    out.insert("namespace".into(), namespace.as_str().into());
    if namespace != stream {
        out.insert("highwater.name".into(), stream.into());
    }
    out.insert("fields".into(), fields.into());
    Value::Object(out)
}

fn field(table: &Table, index: usize, required: bool, owner: &str) -> Value {
    let column = &table.columns[index];
    let Column { name, ty, db_type, nullable, id } = column;
    let mut out = Map::new();
    let avro = avro_name(name);
    out.insert("name".into(), avro.as_str().into());
    let ty = type_of(ty, &format!("{owner}_{id}"));
    if required {
        out.insert("type".into(), ty);
    } else {
        out.insert("type".into(), json!(["null", ty]));
        out.insert("default".into(), Value::Null);
    }
    if avro != *name {
        out.insert("highwater.name".into(), name.as_str().into());
    }
    out.insert("highwater.type".into(), db_type.as_str().into());
    out.insert("highwater.id".into(), (*id).into());
    out.insert("highwater.nullable".into(), (*nullable).into());
    Value::Object(out)
}

/// `path` names nested records: by ids and places, since joined column names could meet.
fn type_of(ty: &Type, path: &str) -> Value {
    match ty {
        Type::Boolean => "boolean".into(),
        Type::Int => "int".into(),
        Type::Long => "long".into(),
        Type::Float => "float".into(),
        Type::Double => "double".into(),
        Type::String | Type::Json => "string".into(),
        Type::Bytes => "bytes".into(),
        Type::Uuid => json!({"type": "string", "logicalType": "uuid"}),
        Type::Decimal { precision, scale } => {
            json!({"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale})
        }
        Type::Date => json!({"type": "int", "logicalType": "date"}),
        Type::Time => json!({"type": "long", "logicalType": "time-micros"}),
        Type::LocalTimestamp => json!({"type": "long", "logicalType": "local-timestamp-micros"}),
        Type::Timestamp => json!({"type": "long", "logicalType": "timestamp-micros"}),
        Type::Array(element) => {
            json!({"type": "array", "items": ["null", type_of(element, &format!("{path}_e"))]})
        }
        Type::Map => json!({"type": "map", "values": ["null", "string"]}),
        Type::Record(fields) => {
            let fields: Vec<Value> = fields
                .iter()
                .enumerate()
                .map(|(i, f)| {
                    let avro = avro_name(&f.name);
                    let mut out = Map::new();
                    out.insert("name".into(), avro.as_str().into());
                    out.insert("type".into(), json!(["null", type_of(&f.ty, &format!("{path}_{i}"))]));
                    out.insert("default".into(), Value::Null);
                    if avro != f.name {
                        out.insert("highwater.name".into(), f.name.as_str().into());
                    }
                    out.insert("highwater.type".into(), f.db_type.as_str().into());
                    Value::Object(out)
                })
                .collect();
            json!({"type": "record", "name": path, "fields": fields})
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Field;

    #[test]
    fn apache_avro_reads_the_schemas_of_every_type() {
        let column =
            |id: i32, name: &str, ty| Column { name: name.into(), ty, db_type: "t".into(), nullable: true, id };
        let inner = Type::Record(vec![
            Field { name: "a.b".into(), ty: Type::Int, db_type: "integer".into() },
            Field {
                name: "c".into(),
                ty: Type::Array(Box::new(Type::Record(vec![Field {
                    name: "x".into(),
                    ty: Type::Map,
                    db_type: "hstore".into(),
                }]))),
                db_type: "inner[]".into(),
            },
        ]);
        let types = [
            Type::Boolean,
            Type::Int,
            Type::Long,
            Type::Float,
            Type::Double,
            Type::String,
            Type::Bytes,
            Type::Uuid,
            Type::Json,
            Type::Decimal { precision: 12, scale: 2 },
            Type::Date,
            Type::Time,
            Type::LocalTimestamp,
            Type::Timestamp,
            Type::Array(Box::new(Type::Array(Box::new(Type::Int)))),
            Type::Map,
            inner.clone(),
            inner,
        ];
        let table = Table {
            source: "shop".into(),
            schema: "pub.lic".into(),
            name: "Größe \"x\"".into(),
            kind: Default::default(),
            columns: types.into_iter().enumerate().map(|(i, ty)| column(i as i32 + 1, &format!("c {i}"), ty)).collect(),
            key: vec![2, 1],
            full_identity: false,
        };
        apache_avro::Schema::parse_str(&value_schema(&table)).expect("value schema");
        let key = key_schema(&table).expect("it has a key");
        apache_avro::Schema::parse_str(&key).expect("key schema");
        assert!(key.find("c_u20_2").unwrap() < key.find("c_u20_1").unwrap(), "the key's own order");
    }
}

//! An Avro object container file, read by the schema that it carries.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow_schema::{Schema, SchemaRef};
use bytes::Bytes;
use connector::{Field, Malformed, Reader, Type};
use serde_json::Value;

use crate::columns::{Column, field};
use crate::event::Unread;

/// Of a block: ours have little more than a row's size.
const MOST: u64 = 1 << 30;
/// Of types within types.
const DEEPEST: usize = 64;

/// Its blocks, as batches.
pub(crate) struct Container {
    body: Bytes,
    at: usize,
    sync: [u8; 16],
    codec: Codec,
    schema: SchemaRef,
    nodes: Vec<Node>,
    columns: Vec<Column>,
}

#[derive(Clone, Copy)]
enum Codec {
    None,
    Deflate,
    Zstd,
}

/// How a value stands in the file: ours may be null within lists and records
/// or not, which a column does not tell.
#[derive(Clone)]
struct Node {
    nullable: bool,
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    /// As the log has it.
    Plain,
    List(Box<Node>),
    Record(Vec<Node>),
}

impl Container {
    pub(crate) fn open(body: Bytes) -> Result<Self, Unread> {
        let rest = body.strip_prefix(b"Obj\x01").ok_or_else(|| Unread::broken("it does not begin like one"))?;
        let mut reader = Reader::new(rest);
        let mut header = HashMap::new();
        loop {
            let count = reader.block().map_err(Unread::broken)?;
            if count == 0 {
                break;
            }
            for _ in 0..count {
                let key = reader.string().map_err(Unread::broken)?;
                header.insert(key, reader.bytes().map_err(Unread::broken)?);
            }
        }
        let rest = reader.rest();
        let sync: &[u8; 16] = rest.first_chunk().ok_or_else(|| Unread::broken("its header is cut short"))?;
        let codec = match header.get("avro.codec").copied() {
            None | Some(b"null") => Codec::None,
            Some(b"deflate") => Codec::Deflate,
            Some(b"zstandard") => Codec::Zstd,
            Some(other) => {
                let other = String::from_utf8_lossy(other);
                return Err(Unread::Incomparable(format!("a file is packed by {other:?}, which is not read here")));
            }
        };
        let schema = header.get("avro.schema").ok_or_else(|| Unread::broken("it has no schema"))?;
        let schema: Value = serde_json::from_slice(schema).map_err(Unread::broken)?;
        let unknown = || Unread::Incomparable("a file has a schema that is none of ours".into());
        let (ty, node) = parse(&schema, &mut HashMap::new(), 0).ok_or_else(unknown)?;
        let (Type::Record(fields), Kind::Record(nodes)) = (ty, node.kind) else { return Err(unknown()) };
        let schema = Schema::new(fields.iter().map(|f| field(&f.name, &f.ty)).collect::<Vec<_>>());
        Ok(Self {
            at: body.len() - rest.len() + sync.len(),
            sync: *sync,
            codec,
            schema: Arc::new(schema),
            columns: fields.iter().map(|field| Column::new(&field.ty)).collect(),
            nodes,
            body,
        })
    }

    fn block(&mut self) -> Result<RecordBatch, Unread> {
        let mut reader = Reader::new(&self.body[self.at..]);
        let count = reader.long().map_err(Unread::broken)?;
        let packed = reader.bytes().map_err(Unread::broken)?;
        let Some((sync, rest)) = reader.rest().split_first_chunk() else {
            return Err(Unread::broken("it is cut short"));
        };
        if *sync != self.sync {
            return Err(Unread::broken("a block of it does not end where it says"));
        }
        let rows = unpacked(self.codec, packed).map_err(Unread::broken)?;
        self.at = self.body.len() - rest.len();
        // No row is smaller than a byte: it has at least our own columns.
        let count = usize::try_from(count).ok().filter(|&count| count <= rows.len());
        let count = count.ok_or_else(|| Unread::broken("a block of it has another count of rows"))?;
        let mut reader = Reader::new(&rows);
        for _ in 0..count {
            for (node, column) in self.nodes.iter().zip(&mut self.columns) {
                node.read(column, &mut reader).map_err(Unread::broken)?;
            }
        }
        if !reader.is_empty() {
            return Err(Unread::broken("a block of it has more than its rows"));
        }
        let arrays: Vec<ArrayRef> = self.columns.iter_mut().map(Column::finish).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options).map_err(Unread::broken)
    }
}

impl Iterator for Container {
    type Item = Result<RecordBatch, Unread>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.body.len() {
            return None;
        }
        let block = self.block();
        if block.is_err() {
            self.at = self.body.len();
        }
        Some(block)
    }
}

fn unpacked(codec: Codec, packed: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    match codec {
        Codec::None => return Ok(packed.to_vec()),
        Codec::Deflate => flate2::read::DeflateDecoder::new(packed).take(MOST).read_to_end(&mut out)?,
        Codec::Zstd => zstd::stream::read::Decoder::new(packed)?.take(MOST).read_to_end(&mut out)?,
    };
    Ok(out)
}

impl Node {
    fn read(&self, column: &mut Column, reader: &mut Reader<'_>) -> Result<(), Malformed> {
        if self.nullable && !reader.present()? {
            column.null();
            return Ok(());
        }
        match (&self.kind, column) {
            (Kind::Plain, column) => column.value(reader),
            (Kind::List(item), Column::List { element, offsets, nulls, .. }) => {
                let mut end = offsets.last().copied().unwrap_or(0);
                loop {
                    let count = reader.block()?;
                    if count == 0 {
                        break;
                    }
                    for _ in 0..count {
                        item.read(element, reader)?;
                    }
                    let count = i32::try_from(count).ok();
                    end = count.and_then(|count| end.checked_add(count)).ok_or(Malformed("array length"))?;
                }
                offsets.push(end);
                nulls.append_non_null();
                Ok(())
            }
            (Kind::Record(fields), Column::Struct { columns, nulls, .. }) => {
                for (node, column) in fields.iter().zip(columns) {
                    node.read(column, reader)?;
                }
                nulls.append_non_null();
                Ok(())
            }
            _ => Err(Malformed("a value of another type")),
        }
    }
}

/// A type of the kinds that we write; None: another.
fn parse(schema: &Value, names: &mut HashMap<String, (Type, Kind)>, depth: usize) -> Option<(Type, Node)> {
    if depth > DEEPEST {
        return None;
    }
    let plain = |ty: Type| Some((ty, Node { nullable: false, kind: Kind::Plain }));
    let object = match schema {
        Value::Array(branches) => {
            let [null, value] = branches.as_slice() else { return None };
            let (ty, node) = parse(value, names, depth + 1)?;
            return (null == "null" && !node.nullable).then_some((ty, Node { nullable: true, ..node }));
        }
        Value::String(name) => {
            return match simple(name) {
                Some(ty) => plain(ty),
                None => {
                    let (ty, kind) = names.get(bare(name))?.clone();
                    Some((ty, Node { nullable: false, kind }))
                }
            };
        }
        Value::Object(object) => object,
        _ => return None,
    };
    let text = |name: &str| object.get(name).and_then(Value::as_str);
    let number = |name: &str| object.get(name).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    match (text("type")?, text("logicalType")) {
        ("int", Some("date")) => plain(Type::Date),
        ("long", Some("time-micros")) => plain(Type::Time),
        ("long", Some("timestamp-micros")) => plain(Type::Timestamp),
        ("long", Some("local-timestamp-micros")) => plain(Type::LocalTimestamp),
        ("string", Some("uuid")) => plain(Type::Uuid),
        ("bytes", Some("decimal")) => {
            let (precision, scale) = (number("precision")?, number("scale").unwrap_or(0));
            (scale <= precision).then_some(())?;
            plain(Type::Decimal { precision, scale })
        }
        ("array", _) => {
            let (ty, item) = parse(object.get("items")?, names, depth + 1)?;
            let kind = Kind::List(Box::new(item));
            Some((Type::Array(Box::new(ty)), Node { nullable: false, kind }))
        }
        ("map", _) => match parse(object.get("values")?, names, depth + 1)? {
            (Type::String, Node { nullable: true, kind: Kind::Plain }) => plain(Type::Map),
            _ => None,
        },
        ("record", _) => {
            let (mut fields, mut nodes) = (Vec::new(), Vec::new());
            for field in object.get("fields")?.as_array()? {
                let name = field.get("highwater.name").unwrap_or(&field["name"]).as_str()?;
                let (ty, node) = parse(field.get("type")?, names, depth + 1)?;
                fields.push(Field { name: name.into(), ty, db_type: String::new() });
                nodes.push(node);
            }
            let (ty, kind) = (Type::Record(fields), Kind::Record(nodes));
            names.insert(bare(text("name")?).into(), (ty.clone(), kind.clone()));
            Some((ty, Node { nullable: false, kind }))
        }
        (name, _) => plain(simple(name)?),
    }
}

fn simple(name: &str) -> Option<Type> {
    Some(match name {
        "boolean" => Type::Boolean,
        "int" => Type::Int,
        "long" => Type::Long,
        "float" => Type::Float,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        _ => return None,
    })
}

/// Without its namespace, of which a file has one.
fn bare(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

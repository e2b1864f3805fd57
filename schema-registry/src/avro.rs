//! An Avro schema as the registry sees it: parsed with everything that makes
//! it itself (docs, aliases, properties, defaults), and written again in one form.
//!
//! ```text
//!  text ──► parse ──► nodes (an arena: a type that holds itself is an index)
//!                       ├─► render: the canonical text, what is stored and compared
//!                       └─► compatibility: pairs of nodes
//! ```
//!
//! apache-avro is not used for this: it drops or refuses what Confluent's
//! registry keeps (a type defined twice alike, decimals with odd precision,
//! empty unions), and its canonical form leaves out what makes another schema.

mod default;
mod json;
mod parse;
mod render;

pub(crate) use parse::Reference;
pub(crate) use render::Form;

use std::collections::HashMap;

use serde_json::{Map, Value};

/// Where a type stands in its schema's arena.
pub(crate) type NodeId = u32;

/// A schema that parses, and all types it can name.
#[derive(Debug)]
pub(crate) struct Avro {
    nodes: Vec<Node>,
    root: NodeId,
    /// Nodes below come from references.
    external: NodeId,
}

/// A type, with the properties that nobody of Avro knows.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) properties: Map<String, Value>,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    Array(NodeId),
    Map(NodeId),
    Union(Vec<NodeId>),
    Record(Box<Record>),
    Enum(Box<Enum>),
    Fixed(Box<Fixed>),
}

/// A full name, in its two parts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Name {
    pub(crate) space: Box<str>,
    pub(crate) simple: Box<str>,
}

#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) name: Name,
    pub(crate) aliases: Vec<Name>,
    pub(crate) doc: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) named: Named,
    pub(crate) is_error: bool,
    pub(crate) fields: Vec<Field>,
    /// Places of fields by name, where there are too many to look through.
    pub(crate) places: HashMap<Box<str>, u32>,
}

#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) name: Box<str>,
    pub(crate) ty: NodeId,
    pub(crate) default: Option<Value>,
    pub(crate) doc: Option<String>,
    pub(crate) order: Option<&'static str>,
    pub(crate) aliases: Vec<Box<str>>,
    pub(crate) properties: Map<String, Value>,
}

#[derive(Debug)]
pub(crate) struct Enum {
    pub(crate) named: Named,
    pub(crate) symbols: Vec<Box<str>>,
    pub(crate) default: Option<Box<str>>,
}

#[derive(Debug)]
pub(crate) struct Fixed {
    pub(crate) named: Named,
    pub(crate) size: u64,
}

impl Avro {
    pub(crate) fn root(&self) -> NodeId {
        self.root
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    pub(crate) fn kind(&self, id: NodeId) -> &Kind {
        &self.node(id).kind
    }

    /// What it takes in memory, about.
    pub(crate) fn weight(&self) -> usize {
        let weight = |node: &Node| match &node.kind {
            Kind::Union(branches) => 160 + 4 * branches.len(),
            Kind::Record(record) => 384 + 256 * record.fields.len(),
            Kind::Enum(of) => 384 + 48 * of.symbols.len(),
            Kind::Fixed(_) => 384,
            _ => 160,
        };
        self.nodes.iter().map(weight).sum()
    }
}

impl Name {
    /// `text` in a namespace: a dot in it makes it full.
    pub(crate) fn new(text: &str, space: &str) -> Self {
        match text.rsplit_once('.') {
            Some((space, simple)) => Self { space: space.into(), simple: simple.into() },
            None => Self { space: space.into(), simple: text.into() },
        }
    }

    pub(crate) fn full(&self) -> String {
        if self.space.is_empty() { self.simple.to_string() } else { format!("{}.{}", self.space, self.simple) }
    }
}

impl Record {
    pub(crate) fn field(&self, name: &str, hint: usize) -> Option<&Field> {
        // Versions of a schema mostly keep their fields' places.
        if let Some(field) = self.fields.get(hint).filter(|field| &*field.name == name) {
            return Some(field);
        }
        if self.places.is_empty() {
            return self.fields.iter().find(|field| &*field.name == name);
        }
        self.places.get(name).and_then(|&place| self.fields.get(place as usize))
    }
}

impl Kind {
    /// The type's word in Avro.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Kind::Null => "null",
            Kind::Boolean => "boolean",
            Kind::Int => "int",
            Kind::Long => "long",
            Kind::Float => "float",
            Kind::Double => "double",
            Kind::Bytes => "bytes",
            Kind::String => "string",
            Kind::Array(_) => "array",
            Kind::Map(_) => "map",
            Kind::Union(_) => "union",
            Kind::Record(_) => "record",
            Kind::Enum(_) => "enum",
            Kind::Fixed(_) => "fixed",
        }
    }

    pub(crate) fn named(&self) -> Option<&Named> {
        match self {
            Kind::Record(record) => Some(&record.named),
            Kind::Enum(it) => Some(&it.named),
            Kind::Fixed(fixed) => Some(&fixed.named),
            _ => None,
        }
    }

    pub(crate) fn primitive(word: &str) -> Option<Self> {
        Some(match word {
            "null" => Kind::Null,
            "boolean" => Kind::Boolean,
            "int" => Kind::Int,
            "long" => Kind::Long,
            "float" => Kind::Float,
            "double" => Kind::Double,
            "bytes" => Kind::Bytes,
            "string" => Kind::String,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests;

//! Text to types, with a reason and a path where it is none.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::json::{Json, Object};
use super::render::Form;
use super::{Avro, Enum, Field, Fixed, Kind, Name, Named, Node, NodeId, Record};

/// Of a name, in bytes.
const MAX_NAME: usize = 4096;
/// Records with more fields than this are given an index.
const FEW: usize = 16;

/// Why a text is no schema.
pub(crate) type Reason = String;

/// A schema that is referred to: its text, in the order in which types become known.
pub(crate) struct Reference<'a> {
    pub(crate) text: &'a str,
}

impl Avro {
    /// Parses a schema after those it refers to. `strict` checks names and
    /// defaults too, as for a new schema; one that is there already, or is
    /// imported, is taken as it is.
    pub(crate) fn parse(text: &str, references: &[Reference<'_>], strict: bool) -> Result<Self, Reason> {
        // About as many types as there are lines, were it printed.
        let nodes = Vec::with_capacity(text.len() / 48);
        let mut parser = Parser { nodes, strict: false, ..Parser::default() };
        for reference in references {
            parser.whole(reference.text)?;
        }
        let external = parser.nodes.len() as NodeId;
        parser.strict = strict;
        let root = parser.whole(text)?;
        let avro = Self { nodes: parser.nodes, root, external };
        if strict {
            avro.check_defaults()?;
        }
        Ok(avro)
    }
}

#[derive(Default)]
struct Parser {
    nodes: Vec<Node>,
    names: HashMap<Name, NodeId>,
    /// Types of Avro's own without properties: one node each, however often
    /// they are named.
    primitives: Vec<(&'static str, NodeId)>,
    /// Records whose fields are not all known yet.
    open: HashMap<NodeId, Name>,
    strict: bool,
}

/// Where in the text, and in which namespace.
#[derive(Clone, Copy)]
struct Place<'a> {
    space: &'a str,
    owner: &'a str,
    /// Of the owner, if it is one of its fields.
    field: Option<&'a str>,
}

impl Parser {
    fn whole(&mut self, text: &str) -> Result<NodeId, Reason> {
        if text.trim().is_empty() {
            return Err("the schema is empty".into());
        }
        let value = Json::parse(text)?;
        self.schema(&value, Place { space: "", owner: "", field: None })
    }

    fn add(&mut self, kind: Kind, properties: Map<String, Value>) -> NodeId {
        self.nodes.push(Node { kind, properties });
        (self.nodes.len() - 1) as NodeId
    }

    fn primitive(&mut self, kind: Kind, properties: Map<String, Value>) -> NodeId {
        if !properties.is_empty() {
            return self.add(kind, properties);
        }
        let word = kind.word();
        if let Some((_, id)) = self.primitives.iter().find(|(known, _)| *known == word) {
            return *id;
        }
        let id = self.add(kind, properties);
        self.primitives.push((word, id));
        id
    }

    fn schema(&mut self, value: &Json<'_>, place: Place<'_>) -> Result<NodeId, Reason> {
        match value {
            Json::Text(name) => self.by_name(name, place),
            Json::List(branches) => self.union(branches, place),
            Json::Object(object) => self.object(object, place),
            other => Err(at(place, format!("{} is no type", shown(other)))),
        }
    }

    fn by_name(&mut self, name: &str, place: Place<'_>) -> Result<NodeId, Reason> {
        if let Some(kind) = Kind::primitive(name) {
            return Ok(self.primitive(kind, Map::new()));
        }
        self.find(name, place.space).ok_or_else(|| at(place, format!("type {name:?} is not defined")))
    }

    /// As Avro has it: in the namespace around, else without one.
    fn find(&self, name: &str, space: &str) -> Option<NodeId> {
        let inside = self.names.get(&Name::new(name, space));
        inside.or_else(|| self.names.get(&Name::new(name, ""))).copied()
    }

    fn union(&mut self, branches: &[Json<'_>], place: Place<'_>) -> Result<NodeId, Reason> {
        let mut ids = Vec::with_capacity(branches.len());
        let mut names = HashSet::new();
        for branch in branches {
            let id = self.schema(branch, place)?;
            let kind = &self.nodes[id as usize].kind;
            let name = kind.named().map(|named| &named.name).or_else(|| self.open.get(&id));
            let fresh = match name {
                Some(name) => names.insert(name.full()),
                None => !ids.iter().any(|&other: &NodeId| self.nodes[other as usize].kind.word() == kind.word()),
            };
            match kind {
                Kind::Union(_) => return Err(at(place, "a union may not hold a union".into())),
                _ if !fresh => {
                    let word = name.map_or_else(|| kind.word().to_owned(), Name::full);
                    return Err(at(place, format!("a union holds {word:?} twice")));
                }
                _ => ids.push(id),
            }
        }
        Ok(self.add(Kind::Union(ids), Map::new()))
    }

    fn object(&mut self, object: &Object<'_>, place: Place<'_>) -> Result<NodeId, Reason> {
        let word = match object.get("type") {
            Some(Json::Text(word)) => &**word,
            Some(other) => return Err(at(place, format!("\"type\" must be a text, not {}", shown(other)))),
            None => return Err(at(place, "has no \"type\"".into())),
        };
        match word {
            "record" | "error" => self.record(object, word == "error", place),
            "enum" => self.enumeration(object, place),
            "fixed" => self.fixed(object, place),
            "array" | "map" => {
                let (member, make): (_, fn(NodeId) -> Kind) =
                    if word == "array" { ("items", Kind::Array) } else { ("values", Kind::Map) };
                let inner = object.get(member).ok_or_else(|| at(place, format!("{word} has no {member:?}")))?;
                let inner = self.schema(inner, place)?;
                Ok(self.add(make(inner), properties(object, RESERVED)))
            }
            _ => match Kind::primitive(word) {
                Some(kind) => Ok(self.primitive(kind, properties(object, RESERVED))),
                None => self.find(word, place.space).ok_or_else(|| at(place, format!("type {word:?} is not known"))),
            },
        }
    }

    fn named(&self, object: &Object<'_>, place: Place<'_>) -> Result<Named, Reason> {
        let name = text(object, "name", place)?.ok_or_else(|| at(place, "has no \"name\"".into()))?;
        let space = text(object, "namespace", place)?.unwrap_or(place.space);
        let name = Name::new(name, space);
        self.check_name(&name, place)?;
        if name.space.is_empty() && Kind::primitive(&name.simple).is_some() {
            return Err(at(place, format!("{:?} is a type of Avro's own", &*name.simple)));
        }
        let mut aliases = Vec::new();
        for alias in texts(object, "aliases", place)? {
            let alias = Name::new(&alias, &name.space);
            self.check_name(&alias, place)?;
            aliases.push(alias);
        }
        let doc = object.get("doc").and_then(Json::as_str).map(str::to_owned);
        Ok(Named { name, aliases, doc })
    }

    fn check_name(&self, name: &Name, place: Place<'_>) -> Result<(), Reason> {
        let full = name.full();
        if full.len() > MAX_NAME {
            return Err(at(place, format!("a name has {} bytes, {MAX_NAME} are allowed", full.len())));
        }
        let spaces = name.space.split('.').filter(|_| !name.space.is_empty());
        if self.strict && !spaces.chain([&*name.simple]).all(is_name) {
            return Err(at(place, format!("{full:?} is no name: letters of ASCII, digits and _, not a digit first")));
        }
        Ok(())
    }

    /// Makes the node of a definition, or finds that it is there already, alike.
    fn define(
        &mut self,
        name: Name,
        place: Place<'_>,
        make: impl FnOnce(&mut Self, NodeId) -> Result<Node, Reason>,
    ) -> Result<NodeId, Reason> {
        let known = self.names.get(&name).copied();
        let id = self.add(Kind::Null, Map::new());
        if known.is_none() {
            self.names.insert(name.clone(), id);
            self.open.insert(id, name.clone());
        }
        let node = make(self, id)?;
        self.nodes[id as usize] = node;
        self.open.remove(&id);
        let Some(known) = known else { return Ok(id) };
        let alike = !self.open.contains_key(&known) && {
            let text = |id| super::render::definition(&self.nodes, id, Form::Canonical);
            text(known) == text(id)
        };
        if alike { Ok(known) } else { Err(at(place, format!("{:?} is defined twice, differently", name.full()))) }
    }

    fn record(&mut self, object: &Object<'_>, is_error: bool, place: Place<'_>) -> Result<NodeId, Reason> {
        let named = self.named(object, place)?;
        let fields = match object.get("fields") {
            Some(Json::List(fields)) => fields,
            _ => return Err(at(place, format!("record {:?} has no list \"fields\"", named.name.full()))),
        };
        let name = named.name.clone();
        self.define(name, place, |parser, _| {
            let full = named.name.full();
            let mut made = Vec::with_capacity(fields.len());
            let mut places = HashMap::new();
            for (i, field) in fields.iter().enumerate() {
                let field = parser.field(field, &named.name.space, &full)?;
                let twice = match fields.len() {
                    ..=FEW => made.iter().any(|other: &Field| other.name == field.name),
                    _ => places.insert(field.name.clone(), i as u32).is_some(),
                };
                if twice {
                    return Err(format!("record {full:?} has field {:?} twice", &*field.name));
                }
                made.push(field);
            }
            let record = Record { named, is_error, fields: made, places };
            Ok(Node { kind: Kind::Record(Box::new(record)), properties: properties(object, RESERVED) })
        })
    }

    fn field(&mut self, value: &Json<'_>, space: &str, owner: &str) -> Result<Field, Reason> {
        let place = Place { space, owner, field: None };
        let Json::Object(object) = value else {
            return Err(at(place, format!("a field is an object, not {}", shown(value))));
        };
        let name = text(object, "name", place)?.ok_or_else(|| at(place, "a field has no \"name\"".into()))?;
        if self.strict && !is_name(name) {
            return Err(at(place, format!("{name:?} is no name of a field")));
        }
        let place = Place { field: Some(name), ..place };
        let ty = object.get("type").ok_or_else(|| at(place, "has no \"type\"".into()))?;
        let ty = self.schema(ty, place)?;
        let order = match text(object, "order", place)? {
            None => None,
            Some(order) => match order.to_ascii_lowercase().as_str() {
                "ascending" => None,
                "descending" => Some("descending"),
                "ignore" => Some("ignore"),
                _ => return Err(at(place, format!("order {order:?} is not known"))),
            },
        };
        Ok(Field {
            name: name.into(),
            ty,
            default: object.get("default").map(Json::to_value),
            doc: object.get("doc").and_then(Json::as_str).map(str::to_owned),
            order,
            aliases: texts(object, "aliases", place)?.into_iter().map(String::into_boxed_str).collect(),
            properties: properties(object, FIELD_RESERVED),
        })
    }

    fn enumeration(&mut self, object: &Object<'_>, place: Place<'_>) -> Result<NodeId, Reason> {
        let named = self.named(object, place)?;
        let full = named.name.full();
        if !matches!(object.get("symbols"), Some(Json::List(_))) {
            return Err(at(place, format!("enum {full:?} has no list \"symbols\"")));
        }
        let mut seen = HashSet::new();
        let mut symbols: Vec<Box<str>> = Vec::new();
        for symbol in texts(object, "symbols", place)? {
            if self.strict && !is_name(&symbol) {
                return Err(at(place, format!("enum {full:?}: {symbol:?} is no symbol")));
            }
            if !seen.insert(symbol.clone()) {
                return Err(at(place, format!("enum {full:?} has symbol {symbol:?} twice")));
            }
            symbols.push(symbol.into());
        }
        let default: Option<Box<str>> = text(object, "default", place)?.map(Into::into);
        if let Some(default) = &default
            && !seen.contains(&**default)
        {
            return Err(at(place, format!("enum {full:?} has no symbol {default:?}, which is its default")));
        }
        let properties = properties(object, ENUM_RESERVED);
        self.define(named.name.clone(), place, |_, _| {
            Ok(Node { kind: Kind::Enum(Box::new(Enum { named, symbols, default })), properties })
        })
    }

    fn fixed(&mut self, object: &Object<'_>, place: Place<'_>) -> Result<NodeId, Reason> {
        let named = self.named(object, place)?;
        let size = object.get("size").and_then(Json::as_u64).filter(|&size| i32::try_from(size).is_ok());
        let size = size.ok_or_else(|| at(place, format!("fixed {:?} has no valid \"size\"", named.name.full())))?;
        let properties = properties(object, RESERVED);
        self.define(named.name.clone(), place, |_, _| {
            Ok(Node { kind: Kind::Fixed(Box::new(Fixed { named, size })), properties })
        })
    }
}

const RESERVED: &[&str] =
    &["doc", "fields", "items", "name", "namespace", "size", "symbols", "values", "type", "aliases"];
const ENUM_RESERVED: &[&str] =
    &["doc", "fields", "items", "name", "namespace", "size", "symbols", "values", "type", "aliases", "default"];
const FIELD_RESERVED: &[&str] = &["default", "doc", "name", "order", "type", "aliases"];

fn properties(object: &Object<'_>, reserved: &[&str]) -> Map<String, Value> {
    object.members(|name| !reserved.contains(&name))
}

fn text<'a>(object: &'a Object<'_>, member: &str, place: Place<'_>) -> Result<Option<&'a str>, Reason> {
    match object.get(member) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::Text(text)) => Ok(Some(text)),
        Some(other) => Err(at(place, format!("{member:?} must be a text, not {}", shown(other)))),
    }
}

fn texts(object: &Object<'_>, member: &str, place: Place<'_>) -> Result<Vec<String>, Reason> {
    let wrong = |other: &Json<'_>| at(place, format!("{member:?} must be a list of texts, not {}", shown(other)));
    match object.get(member) {
        None | Some(Json::Null) => Ok(Vec::new()),
        Some(Json::List(items)) => {
            items.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(|| wrong(item))).collect()
        }
        Some(other) => Err(wrong(other)),
    }
}

pub(super) fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn at(place: Place<'_>, what: String) -> Reason {
    match (place.owner, place.field) {
        ("", None) => what,
        (owner, None) => format!("{owner}: {what}"),
        (owner, Some(field)) => format!("{owner}.{field}: {what}"),
    }
}

fn shown(value: &Json<'_>) -> String {
    short(&value.to_value())
}

/// A value as a message can bear it.
pub(super) fn short(value: &Value) -> String {
    let mut text = value.to_string();
    if text.len() > 60 {
        let end = (0..=57).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
    }
    text
}

//! Types to text: the members that Avro knows in Avro's own order, the others
//! behind them in theirs.

use std::collections::HashSet;
use std::io::Write;

use serde_json::{Map, Value};

use super::{Avro, Field, Kind, Name, Node, NodeId};

/// How a schema is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// What is stored: types of references by their names.
    Canonical,
    /// Full names and sorted properties.
    Normalized,
    /// As canonical, with the references' types put in where they are first used.
    Resolved,
}

/// Types nested deeper are not put in.
const MAX_INLINE: usize = 1_000;

impl Avro {
    /// The whole schema as text; None if it is too deep to be put together.
    pub(crate) fn text(&self, form: Form) -> Option<String> {
        let external = if form == Form::Resolved { 0 } else { self.external };
        let mut writer = Writer::new(&self.nodes, external, form);
        writer.schema(self.root, "");
        (!writer.too_deep).then(|| writer.done())
    }
}

/// A definition alone.
pub(super) fn definition(nodes: &[Node], id: NodeId, form: Form) -> String {
    let mut writer = Writer::new(nodes, 0, form);
    writer.schema(id, "");
    writer.done()
}

struct Writer<'a> {
    nodes: &'a [Node],
    external: NodeId,
    form: Form,
    written: HashSet<&'a Name>,
    /// Text, always.
    out: Vec<u8>,
    depth: usize,
    too_deep: bool,
}

impl<'a> Writer<'a> {
    fn new(nodes: &'a [Node], external: NodeId, form: Form) -> Self {
        let out = Vec::with_capacity(64 * (nodes.len() - external as usize));
        Self { nodes, external, form, written: HashSet::new(), out, depth: 0, too_deep: false }
    }

    fn done(self) -> String {
        String::from_utf8(self.out).expect("of texts only texts are made")
    }

    fn schema(&mut self, id: NodeId, space: &str) {
        self.depth += 1;
        if self.depth > MAX_INLINE {
            self.too_deep = true;
        } else {
            self.one(id, space);
        }
        self.depth -= 1;
    }

    fn one(&mut self, id: NodeId, space: &str) {
        let nodes = self.nodes;
        let node = &nodes[id as usize];
        if let Some(named) = node.kind.named() {
            if id < self.external || !self.written.insert(&named.name) {
                let name = self.relative(&named.name, space);
                return self.string(&name);
            }
            return self.named(node, space);
        }
        match &node.kind {
            Kind::Union(branches) => {
                self.out.push(b'[');
                for (i, &branch) in branches.iter().enumerate() {
                    if i > 0 {
                        self.out.push(b',');
                    }
                    self.schema(branch, space);
                }
                self.out.push(b']');
            }
            Kind::Array(inner) | Kind::Map(inner) => {
                let (word, member) = (node.kind.word(), if node.kind.word() == "array" { "items" } else { "values" });
                let _ = write!(self.out, "{{\"type\":\"{word}\",\"{member}\":");
                self.schema(*inner, space);
                self.properties(&node.properties);
                self.out.push(b'}');
            }
            kind if node.properties.is_empty() => self.string(kind.word()),
            kind => {
                let _ = write!(self.out, "{{\"type\":\"{}\"", kind.word());
                self.properties(&node.properties);
                self.out.push(b'}');
            }
        }
    }

    fn named(&mut self, node: &'a Node, space: &str) {
        let Some(named) = node.kind.named() else { return };
        let word = match &node.kind {
            Kind::Record(record) if record.is_error => "error",
            kind => kind.word(),
        };
        let _ = write!(self.out, "{{\"type\":\"{word}\",\"name\":");
        if self.form == Form::Normalized {
            self.string(&named.name.full());
        } else {
            self.string(&named.name.simple);
            if *named.name.space != *space {
                self.out.extend_from_slice(b",\"namespace\":");
                self.string(&named.name.space);
            }
        }
        self.doc(named.doc.as_deref());
        match &node.kind {
            Kind::Record(record) => {
                self.out.extend_from_slice(b",\"fields\":[");
                for (i, field) in record.fields.iter().enumerate() {
                    if i > 0 {
                        self.out.push(b',');
                    }
                    self.field(field, &named.name.space);
                }
                self.out.push(b']');
            }
            Kind::Enum(it) => {
                self.out.extend_from_slice(b",\"symbols\":");
                self.value(&it.symbols);
                if let Some(default) = &it.default {
                    self.out.extend_from_slice(b",\"default\":");
                    self.string(default);
                }
            }
            Kind::Fixed(fixed) => {
                let _ = write!(self.out, ",\"size\":{}", fixed.size);
            }
            _ => {}
        }
        self.properties(&node.properties);
        let aliases: Vec<String> = named.aliases.iter().map(|alias| self.relative(alias, &named.name.space)).collect();
        self.aliases(&aliases);
        self.out.push(b'}');
    }

    fn field(&mut self, field: &'a Field, space: &str) {
        self.out.extend_from_slice(b"{\"name\":");
        self.string(&field.name);
        self.out.extend_from_slice(b",\"type\":");
        self.schema(field.ty, space);
        self.doc(field.doc.as_deref());
        if let Some(default) = &field.default {
            self.out.extend_from_slice(b",\"default\":");
            self.value(default);
        }
        if let Some(order) = field.order {
            let _ = write!(self.out, ",\"order\":\"{order}\"");
        }
        self.aliases(&field.aliases);
        self.properties(&field.properties);
        self.out.push(b'}');
    }

    fn relative(&self, name: &Name, space: &str) -> String {
        let plain = *name.space == *space || name.space.is_empty();
        let plain = plain && self.form != Form::Normalized && Kind::primitive(&name.simple).is_none();
        if plain { name.simple.to_string() } else { name.full() }
    }

    fn doc(&mut self, doc: Option<&str>) {
        if let Some(doc) = doc {
            self.out.extend_from_slice(b",\"doc\":");
            self.string(doc);
        }
    }

    fn aliases(&mut self, aliases: &[impl serde::Serialize]) {
        if !aliases.is_empty() {
            self.out.extend_from_slice(b",\"aliases\":");
            self.value(aliases);
        }
    }

    fn properties(&mut self, properties: &Map<String, Value>) {
        let mut all: Vec<(&String, &Value)> = properties.iter().collect();
        if self.form == Form::Normalized {
            all.sort_by_key(|(key, _)| *key);
        }
        for (key, value) in all {
            self.out.push(b',');
            self.string(key);
            self.out.push(b':');
            self.value(value);
        }
    }

    fn string(&mut self, text: &str) {
        self.value(text);
    }

    fn value(&mut self, value: &(impl serde::Serialize + ?Sized)) {
        serde_json::to_writer(&mut self.out, value).expect("JSON and text serialise");
    }
}

//! What an id stands for: text, references, metadata and rules.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::avro::{self, Avro, Form};
use crate::error::{Code, Refusal};
use crate::numbering;

/// Languages of schemas. Only Avro is spoken; the others have their place here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SchemaType {
    /// Apache Avro.
    #[default]
    Avro,
}

impl SchemaType {
    /// All there are.
    pub const ALL: [SchemaType; 1] = [SchemaType::Avro];

    /// As Confluent writes it.
    pub fn name(self) -> &'static str {
        match self {
            SchemaType::Avro => "AVRO",
        }
    }

    /// By its name; none given is Avro.
    pub fn by_name(name: Option<&str>) -> Result<Self, Refusal> {
        let refuse = |why: String| Err(Refusal::new(Code::InvalidSchema, why));
        match name.unwrap_or("AVRO") {
            "AVRO" => Ok(SchemaType::Avro),
            name @ ("JSON" | "PROTOBUF") => {
                refuse(format!("Schemas of type {name} are not supported: this registry holds AVRO"))
            }
            other => refuse(format!("Invalid schema type {other:?}: this registry holds AVRO")),
        }
    }
}

/// A version of another subject that a schema uses types of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Reference {
    /// What it is called there: for Avro, a type's full name.
    #[serde(default)]
    pub name: String,
    /// The subject.
    #[serde(default)]
    pub subject: String,
    /// The version; -1 for the last, when registering.
    #[serde(default)]
    pub version: i32,
}

/// A schema as somebody sends it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NewSchema {
    /// The text.
    pub schema: Option<String>,
    /// The language; none is Avro.
    pub schema_type: Option<String>,
    /// What it uses.
    pub references: Option<Vec<Reference>>,
    /// Tags, properties, sensitive fields.
    pub metadata: Option<Value>,
    /// Rules for serializers.
    pub rule_set: Option<Value>,
    /// Which it must be.
    pub version: Option<i32>,
    /// Only where mode is IMPORT.
    pub id: Option<i32>,
}

impl NewSchema {
    /// Avro, by its text alone.
    pub fn avro(text: impl Into<String>) -> Self {
        Self { schema: Some(text.into()), ..Self::default() }
    }
}

/// 128 bits that only equal contents share.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Guid(pub(crate) [u8; 16]);

impl Guid {
    /// As it is written.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let digits = text.replace('-', "");
        let number = u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32 && text.len() == 36)?;
        Some(Self(number.to_be_bytes()))
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guid({self})")
    }
}

/// What an id stands for; never changed.
#[derive(Debug, PartialEq)]
pub struct Content {
    /// The canonical text.
    pub text: Arc<str>,
    /// What it uses.
    pub references: Box<[Reference]>,
    /// Kept and given back.
    pub metadata: Option<Box<Value>>,
    /// Kept and given back.
    pub rule_set: Option<Box<Value>>,
    /// Its language.
    pub schema_type: SchemaType,
    /// Of all the others.
    guid: Guid,
}

impl Content {
    pub(crate) fn new(
        schema_type: SchemaType,
        text: Arc<str>,
        references: Vec<Reference>,
        metadata: Option<Value>,
        rule_set: Option<Value>,
    ) -> Self {
        let this = Self::stored(Guid([0; 16]), schema_type, text, references, metadata, rule_set);
        Self { guid: this.hash(), ..this }
    }

    /// As it is stored: it is not hashed at every start.
    pub(crate) fn stored(
        guid: Guid,
        schema_type: SchemaType,
        text: Arc<str>,
        references: Vec<Reference>,
        metadata: Option<Value>,
        rule_set: Option<Value>,
    ) -> Self {
        let (metadata, rule_set) = (metadata.map(Box::new), rule_set.map(Box::new));
        Self { text, references: references.into(), metadata, rule_set, schema_type, guid }
    }

    /// What makes it itself.
    pub fn guid(&self) -> Guid {
        self.guid
    }

    /// Not MD5 as Confluent's: whoever can make two schemas meet could have
    /// one read as the other.
    fn hash(&self) -> Guid {
        let mut hash = Sha256::new();
        let mut put = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        put(self.schema_type.name().as_bytes());
        put(self.text.as_bytes());
        for reference in &self.references {
            put(reference.name.as_bytes());
            put(reference.subject.as_bytes());
            put(&reference.version.to_le_bytes());
        }
        for extra in [&self.metadata, &self.rule_set] {
            put(&extra.as_ref().map_or(Vec::new(), |value| sorted(value).to_string().into_bytes()));
        }
        let mut guid = [0; 16];
        for (to, from) in guid.iter_mut().zip(hash.finalize()) {
            *to = from;
        }
        Guid(guid)
    }

    /// The same schema, whatever is said about it.
    pub(crate) fn is_same_schema(&self, other: &Content) -> bool {
        self.schema_type == other.schema_type && self.text == other.text && self.references == other.references
    }

    /// The same in all, but that this one tells its number.
    pub(crate) fn is_same_but_numbered(&self, other: &Content) -> bool {
        self.is_same_schema(other)
            && self.rule_set == other.rule_set
            && numbering::is_numbered_alone(self.metadata.as_deref(), other.metadata.as_deref())
    }
}

/// Members in order of their names: their order in a request means nothing.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let mut members: Vec<_> = object.iter().collect();
            members.sort_by_key(|(key, _)| *key);
            Value::Object(members.into_iter().map(|(key, value)| (key.clone(), sorted(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

/// A schema that parses, with what it is known by.
#[derive(Clone, Debug)]
pub(crate) struct Parsed {
    pub(crate) content: Arc<Content>,
    pub(crate) guid: Guid,
    pub(crate) schema: Arc<Avro>,
    /// Nothing was said beside text and references.
    pub(crate) bare: bool,
}

impl Parsed {
    /// Work for a thread that may be busy for a while: parses `new`, whose
    /// references are resolved to `references`, in order of dependence.
    pub(crate) fn new(
        new: &NewSchema,
        resolved: Vec<Reference>,
        references: &[Arc<Content>],
        normalize: bool,
        strict: bool,
    ) -> Result<Self, Refusal> {
        let schema_type = SchemaType::by_name(new.schema_type.as_deref())?;
        let text = new.schema.as_deref().unwrap_or_default();
        let schema = parse(text, references, strict)?;
        let form = if normalize { Form::Normalized } else { Form::Canonical };
        let text = schema.text(form).ok_or_else(|| invalid(text, "its types nest too deep"))?;
        let mut resolved = resolved;
        if normalize {
            resolved.sort();
            resolved.dedup();
        }
        let content = Content::new(schema_type, text.into(), resolved, new.metadata.clone(), new.rule_set.clone());
        let bare = content.metadata.is_none() && content.rule_set.is_none();
        Ok(Self { guid: content.guid(), content: Arc::new(content), schema: Arc::new(schema), bare })
    }

    /// With other metadata and rules.
    pub(crate) fn with(self, metadata: Option<Value>, rule_set: Option<Value>) -> Self {
        let own = &self.content;
        let content = Content::new(own.schema_type, own.text.clone(), own.references.to_vec(), metadata, rule_set);
        Self { guid: content.guid(), content: Arc::new(content), ..self }
    }
}

pub(crate) fn parse(text: &str, references: &[Arc<Content>], strict: bool) -> Result<Avro, Refusal> {
    let texts: Vec<avro::Reference<'_>> =
        references.iter().map(|content| avro::Reference { text: &content.text }).collect();
    Avro::parse(text, &texts, strict).map_err(|why| invalid(text, &why))
}

/// Whether two texts are one schema, however they are written; none of them
/// refers to others.
pub fn is_same(one: &str, other: &str) -> bool {
    let canonical = |text: &str| parse(text, &[], false).ok()?.text(Form::Canonical);
    one == other || canonical(one).is_some_and(|one| canonical(other) == Some(one))
}

fn invalid(text: &str, why: &str) -> Refusal {
    let mut shown: String = text.chars().take(200).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    Refusal::new(Code::InvalidSchema, format!("Invalid schema {shown} of type AVRO, details: {why}"))
}

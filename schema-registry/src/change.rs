//! What is made durable: changes of the registry, as bytes and back.
//!
//! A change is a kind (u8) and its parts; texts have their length (u32, little
//! endian) before them. Applied in order they give the registry again, so a
//! snapshot is changes too. Values are whole, never differences: applying one
//! twice does no harm.

use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use crate::content::{Content, Guid, SchemaType};
use crate::registry::{Config, Mode, SchemaId};

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change {
    /// An id gets its meaning.
    Schema { context: Arc<str>, id: SchemaId, content: Arc<Content> },
    /// A version is there, or is softly deleted.
    Version { subject: Arc<str>, version: u32, id: SchemaId, deleted: bool },
    /// A version is gone for good.
    Gone { subject: Arc<str>, version: u32 },
    /// Settings of a subject, of a context, or (empty) of all; None takes them away.
    Config { scope: Arc<str>, config: Option<Arc<Config>> },
    /// The mode of the same.
    Mode { scope: Arc<str>, mode: Option<Mode> },
    /// Ids up to here were given.
    LastId { context: Arc<str>, id: SchemaId },
    /// A context is no longer listed.
    Unlisted { context: Arc<str> },
}

impl Change {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Change::Schema { context, id, content } => {
                out.push(1);
                put(out, context.as_bytes());
                out.extend_from_slice(&id.to_le_bytes());
                out.extend_from_slice(&content.guid().0);
                put(out, content.schema_type.name().as_bytes());
                put(out, content.text.as_bytes());
                put(out, &json((!content.references.is_empty()).then_some(&content.references)));
                put(out, &json(content.metadata.as_ref()));
                put(out, &json(content.rule_set.as_ref()));
            }
            Change::Version { subject, version, id, deleted } => {
                out.push(2);
                put(out, subject.as_bytes());
                out.extend_from_slice(&version.to_le_bytes());
                out.extend_from_slice(&id.to_le_bytes());
                out.push(u8::from(*deleted));
            }
            Change::Gone { subject, version } => {
                out.push(3);
                put(out, subject.as_bytes());
                out.extend_from_slice(&version.to_le_bytes());
            }
            Change::Config { scope, config } => {
                out.push(4);
                put(out, scope.as_bytes());
                put(out, &json(config.as_deref()));
            }
            Change::Mode { scope, mode } => {
                out.push(5);
                put(out, scope.as_bytes());
                put(out, mode.map_or("", Mode::name).as_bytes());
            }
            Change::LastId { context, id } => {
                out.push(6);
                put(out, context.as_bytes());
                out.extend_from_slice(&id.to_le_bytes());
            }
            Change::Unlisted { context } => {
                out.push(7);
                put(out, context.as_bytes());
            }
        }
    }

    /// The next change; None if the bytes are none.
    pub(crate) fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let (&kind, rest) = bytes.split_first()?;
        *bytes = rest;
        Some(match kind {
            1 => Change::Schema {
                context: text(bytes)?.into(),
                id: number(bytes)?,
                content: Arc::new(Content::stored(
                    guid(bytes)?,
                    SchemaType::by_name(Some(text(bytes)?)).ok()?,
                    text(bytes)?.into(),
                    match take(bytes)? {
                        [] => Vec::new(),
                        json => serde_json::from_slice(json).ok()?,
                    },
                    extra(bytes)?,
                    extra(bytes)?,
                )),
            },
            2 => Change::Version {
                subject: text(bytes)?.into(),
                version: number(bytes)?,
                id: number(bytes)?,
                deleted: flag(bytes)?,
            },
            3 => Change::Gone { subject: text(bytes)?.into(), version: number(bytes)? },
            4 => Change::Config {
                scope: text(bytes)?.into(),
                config: match take(bytes)? {
                    [] => None,
                    json => Some(Arc::new(serde_json::from_slice(json).ok()?)),
                },
            },
            5 => Change::Mode {
                scope: text(bytes)?.into(),
                mode: match text(bytes)? {
                    "" => None,
                    name => Some(Mode::by_name(name)?),
                },
            },
            6 => Change::LastId { context: text(bytes)?.into(), id: number(bytes)? },
            7 => Change::Unlisted { context: text(bytes)?.into() },
            _ => return None,
        })
    }

    /// All changes in some bytes; None if there is something else among them.
    pub(crate) fn decode_all(mut bytes: &[u8]) -> Option<Vec<Self>> {
        let mut all = Vec::new();
        while !bytes.is_empty() {
            all.push(Self::decode(&mut bytes)?);
        }
        Some(all)
    }
}

/// Nothing for what is not there.
fn json(value: Option<&impl Serialize>) -> Vec<u8> {
    value.map_or(Vec::new(), |value| serde_json::to_vec(value).expect("texts and numbers serialise"))
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn take<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (taken, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *bytes = rest;
    Some(taken)
}

fn text<'a>(bytes: &mut &'a [u8]) -> Option<&'a str> {
    std::str::from_utf8(take(bytes)?).ok()
}

fn guid(bytes: &mut &[u8]) -> Option<Guid> {
    let (guid, rest) = bytes.split_first_chunk::<16>()?;
    *bytes = rest;
    Some(Guid(*guid))
}

fn number(bytes: &mut &[u8]) -> Option<u32> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    Some(u32::from_le_bytes(*number))
}

fn flag(bytes: &mut &[u8]) -> Option<bool> {
    let (&flag, rest) = bytes.split_first()?;
    *bytes = rest;
    Some(flag != 0)
}

/// Some text of JSON, or an empty one.
#[expect(clippy::option_option, reason = "broken, or not there")]
fn extra(bytes: &mut &[u8]) -> Option<Option<Value>> {
    match take(bytes)? {
        [] => Some(None),
        json => Some(Some(serde_json::from_slice(json).ok()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_change_comes_back() {
        let reference = crate::content::Reference { name: "a.B".into(), subject: "b".into(), version: 3 };
        let metadata = serde_json::json!({"properties": {"a": "b"}});
        let content = Content::new(SchemaType::Avro, "\"int\"".into(), vec![reference], Some(metadata), None);
        let subject: Arc<str> = ":.c:größe/\u{202e}".into();
        let config = serde_json::from_value(serde_json::json!({"compatibilityLevel": "FULL", "alias": "x"})).unwrap();
        let all = vec![
            Change::Schema { context: ".c".into(), id: 7, content: Arc::new(content) },
            Change::Version { subject: subject.clone(), version: 2, id: 7, deleted: true },
            Change::Gone { subject: subject.clone(), version: 2 },
            Change::Config { scope: subject.clone(), config: Some(Arc::new(config)) },
            Change::Config { scope: "".into(), config: None },
            Change::Mode { scope: subject, mode: Some(Mode::ReadonlyOverride) },
            Change::LastId { context: ".".into(), id: u32::MAX },
            Change::Unlisted { context: ".c".into() },
        ];
        let mut bytes = Vec::new();
        all.iter().for_each(|change| change.encode(&mut bytes));
        assert_eq!(Change::decode_all(&bytes), Some(all));
    }

    proptest::proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Change::decode_all(&bytes);
        }
    }
}

//! JSON that borrows from its text: a schema has a hundred small texts, and
//! most of them are looked at once.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// JSON nested deeper is refused: every level costs stack, here and in whoever reads it.
const MAX_DEPTH: usize = 256;
/// Objects with more members look for a name by its hash.
const FEW: usize = 16;

/// A value.
#[derive(Debug)]
pub(super) enum Json<'a> {
    Text(Cow<'a, str>),
    List(Vec<Json<'a>>),
    Object(Object<'a>),
    Number(Number),
    Bool(bool),
    Null,
}

/// Members in their order; of a name that comes twice, the last value, as
/// everybody reads it.
#[derive(Debug)]
pub(super) struct Object<'a>(Vec<(Cow<'a, str>, Json<'a>)>);

impl<'a> Json<'a> {
    /// JSON, no deeper than allowed; else the reason.
    pub(super) fn parse(text: &'a str) -> Result<Self, String> {
        if !is_shallow(text.as_bytes()) {
            return Err(format!("it is nested deeper than {MAX_DEPTH}"));
        }
        let mut reader = serde_json::Deserializer::from_str(text);
        // The depth is known; the reader's own limit is lower.
        reader.disable_recursion_limit();
        let value = Self::deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
        value.map_err(|error| format!("it is not JSON: {error}"))
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Number(number) => number.as_u64(),
            _ => None,
        }
    }

    /// To be kept.
    pub(super) fn to_value(&self) -> Value {
        match self {
            Self::Text(text) => Value::String(text.clone().into_owned()),
            Self::List(items) => Value::Array(items.iter().map(Self::to_value).collect()),
            Self::Object(object) => Value::Object(object.members(|_| true)),
            Self::Number(number) => Value::Number(number.clone()),
            Self::Bool(value) => Value::Bool(*value),
            Self::Null => Value::Null,
        }
    }
}

impl<'a> Object<'a> {
    /// A member; null is one.
    pub(super) fn get(&self, name: &str) -> Option<&Json<'a>> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// Some of the members, to be kept.
    pub(super) fn members(&self, wanted: impl Fn(&str) -> bool) -> Map<String, Value> {
        let wanted = self.0.iter().filter(|(key, _)| wanted(key));
        wanted.map(|(key, value)| (key.clone().into_owned(), value.to_value())).collect()
    }
}

impl<'de> Deserialize<'de> for Json<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Json<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json<'de>, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json<'de>, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json<'de>, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json<'de>, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json<'de>, E> {
        Ok(Number::from_f64(value).map_or(Json::Null, Json::Number))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Json<'de>, E> {
        Ok(Json::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json<'de>, E> {
        Ok(Json::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_string<E>(self, text: String) -> Result<Json<'de>, E> {
        Ok(Json::Text(Cow::Owned(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Json<'de>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = from.next_element()? {
            items.push(item);
        }
        Ok(Json::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Json<'de>, A::Error> {
        let mut members: Vec<(Cow<'de, str>, Json<'de>)> = Vec::new();
        let mut places: HashMap<Cow<'de, str>, usize> = HashMap::new();
        while let Some(Key(key)) = from.next_key()? {
            let value = from.next_value()?;
            if members.len() == FEW {
                places = members.iter().enumerate().map(|(at, (key, _))| (key.clone(), at)).collect();
            }
            let known = match members.len() {
                ..FEW => members.iter().position(|(known, _)| *known == key),
                _ => places.get(&key).copied(),
            };
            match known {
                Some(at) => members[at].1 = value,
                None => {
                    if members.len() >= FEW {
                        places.insert(key.clone(), members.len());
                    }
                    members.push((key, value));
                }
            }
        }
        Ok(Json::Object(Object(members)))
    }
}

/// A member's name, borrowed if it has no escapes: of `Cow` alone serde makes a copy.
struct Key<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Name;

        impl<'de> Visitor<'de> for Name {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a member's name")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }

        from.deserialize_str(Name)
    }
}

/// Counts brackets outside of strings; where there are few, it need not look where.
fn is_shallow(text: &[u8]) -> bool {
    if text.iter().filter(|byte| matches!(byte, b'{' | b'[')).count() <= MAX_DEPTH {
        return true;
    }
    let (mut depth, mut inside, mut escaped) = (0usize, false, false);
    for &byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if inside => escaped = true,
            b'"' => inside = !inside,
            b'{' | b'[' if !inside => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return false;
                }
            }
            b'}' | b']' if !inside => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What serde_json makes of a text is what is read here.
    #[test]
    fn a_value_is_what_everybody_reads() {
        let many: String = (0..40).map(|i| format!("\"m{i}\":{i},")).collect();
        for text in [
            r#"{"a":1,"b":[null,true,-3,2.5,1e3,"x\n\u00e9"],"a":{"c":"d"},"":18446744073709551615}"#.to_owned(),
            r#"{"k\u0061":1,"ka":2}"#.to_owned(),
            format!("{{{many}\"m3\":\"last\",\"m39\":\"too\",\"new\":[]}}"),
            format!("{{{many}\"new\":1,\"new\":2}}"),
            "[]".to_owned(),
            "\"text\"".to_owned(),
            "7".to_owned(),
            "1e400".to_owned(),
            "{\"a\":}".to_owned(),
            "[1] 2".to_owned(),
            String::new(),
        ] {
            let theirs = serde_json::from_str::<Value>(&text);
            match (Json::parse(&text), theirs) {
                (Ok(ours), Ok(theirs)) => assert_eq!(ours.to_value().to_string(), theirs.to_string(), "{text}"),
                (Err(ours), Err(theirs)) => assert_eq!(ours, format!("it is not JSON: {theirs}"), "{text}"),
                (ours, theirs) => panic!("{text}: {ours:?}, {theirs:?}"),
            }
        }
        assert!(Json::parse(&"[".repeat(257)).unwrap_err().contains("deeper"));
    }
}

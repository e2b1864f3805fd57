//! `confluent:version`: the property by which metadata tell the number of the
//! version that has them. Where they have it, it is set as the version is made;
//! a schema that comes without it is the version that differs by it alone.

use serde_json::{Map, Value, json};

const PROPERTY: &str = "confluent:version";

fn properties(metadata: Option<&Value>) -> Option<&Map<String, Value>> {
    metadata?.get("properties")?.as_object()
}

/// Whether metadata tell a number, right or not.
pub(crate) fn is_numbered(metadata: Option<&Value>) -> bool {
    properties(metadata).is_some_and(|properties| properties.contains_key(PROPERTY))
}

/// Metadata that tell a number; what is no metadata stays what it is.
pub(crate) fn numbered(metadata: Option<Value>, number: u32) -> Value {
    let mut metadata = metadata.unwrap_or_else(|| json!({}));
    if let Some(members) = metadata.as_object_mut() {
        let properties = members.entry("properties").or_insert_with(|| json!({}));
        if properties.is_null() {
            *properties = json!({});
        }
        if let Some(properties) = properties.as_object_mut() {
            properties.insert(PROPERTY.into(), number.to_string().into());
        }
    }
    metadata
}

/// Whether numbered metadata are these, which are not.
pub(crate) fn is_numbered_alone(numbered: Option<&Value>, other: Option<&Value>) -> bool {
    if !is_numbered(numbered) || is_numbered(other) {
        return false;
    }
    let rest = |metadata: Option<&Value>| {
        let mut rest = metadata.cloned().unwrap_or_else(|| json!({}));
        if let Some(properties) = rest.get_mut("properties").and_then(Value::as_object_mut) {
            properties.remove(PROPERTY);
        }
        if let Some(members) = rest.as_object_mut() {
            members.retain(|_, member| !member.is_null() && member.as_object().is_none_or(|inside| !inside.is_empty()));
        }
        rest
    };
    rest(numbered) == rest(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_tell_a_number() {
        let check = |metadata: Option<Value>, expected: Value| {
            let told = numbered(metadata.clone(), 7);
            assert_eq!(told, expected);
            assert!(is_numbered(Some(&told)));
            assert_eq!(is_numbered_alone(Some(&told), metadata.as_ref()), !is_numbered(metadata.as_ref()));
            assert_eq!(numbered(Some(told), 7), expected, "once more changes nothing");
        };
        check(None, json!({"properties": {"confluent:version": "7"}}));
        check(Some(json!({"properties": null})), json!({"properties": {"confluent:version": "7"}}));
        check(
            Some(json!({"properties": {"confluent:version": "0"}})),
            json!({"properties": {"confluent:version": "7"}}),
        );
        check(
            Some(json!({"tags": {"a": ["B"]}, "properties": {"a": "1"}})),
            json!({"tags": {"a": ["B"]}, "properties": {"a": "1", "confluent:version": "7"}}),
        );
        // What is no metadata is not mended.
        for no in [json!(7), json!([]), json!({"properties": 7})] {
            assert_eq!(numbered(Some(no.clone()), 7), no);
            assert!(!is_numbered(Some(&no)));
        }
        let two = json!({"properties": {"a": "2", "confluent:version": "7"}});
        assert!(!is_numbered_alone(Some(&two), Some(&json!({"properties": {"a": "1"}}))));
        assert!(!is_numbered_alone(Some(&two), Some(&two)), "a number that is told counts");
        assert!(!is_numbered_alone(None, None));
    }
}

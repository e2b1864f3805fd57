//! Metadata and rule sets of two origins made one, as Confluent merges them:
//! where both have something of a name, the newer one's counts.

use std::collections::BTreeSet;

use serde_json::Value;

/// Tags by path and properties by name; what either calls sensitive is.
pub(crate) fn metadata(old: Option<&Value>, new: Option<&Value>) -> Option<Value> {
    members(old, new, |old, new| match (old, new) {
        (Value::Object(old), Value::Object(new)) => old.extend(new.clone()),
        (Value::Array(old), Value::Array(new)) => {
            let all: BTreeSet<&str> = old.iter().chain(new).filter_map(Value::as_str).collect();
            *old = all.into_iter().map(Value::from).collect();
        }
        (old, new) => *old = new.clone(),
    })
}

/// Rules by name, list by list: those of the newer come last.
pub(crate) fn rule_set(old: Option<&Value>, new: Option<&Value>) -> Option<Value> {
    members(old, new, |old, new| match (old, new) {
        (Value::Array(old), Value::Array(new)) => {
            old.retain(|rule| !new.iter().any(|other| other.get("name") == rule.get("name")));
            old.extend_from_slice(new);
        }
        (old, new) => *old = new.clone(),
    })
}

/// Member by member, if there are two of them.
fn members(old: Option<&Value>, new: Option<&Value>, both: fn(&mut Value, &Value)) -> Option<Value> {
    let (Some(old), Some(new)) = (old, new) else { return new.or(old).cloned() };
    let mut all = old.clone();
    match (&mut all, new) {
        (Value::Object(all), Value::Object(new)) => {
            for (name, new) in new.iter().filter(|(_, new)| !new.is_null()) {
                match all.get_mut(name) {
                    Some(old) => both(old, new),
                    None => drop(all.insert(name.clone(), new.clone())),
                }
            }
        }
        (all, new) => *all = new.clone(),
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn metadata_are_merged_member_by_member() {
        let check = |old: Value, new: Value, merged: Value| {
            assert_eq!(metadata(Some(&old), Some(&new)), Some(merged), "{old} and {new}");
        };
        check(
            json!({"properties": {"a": "1", "b": "1"}, "tags": {"R.x": ["A", "B"], "R.y": ["C"]}, "sensitive": ["a", "z"]}),
            json!({"properties": {"b": "2", "c": "2"}, "tags": {"R.x": ["D"]}, "sensitive": ["c", "a"]}),
            json!({"properties": {"a": "1", "b": "2", "c": "2"}, "tags": {"R.x": ["D"], "R.y": ["C"]},
                "sensitive": ["a", "c", "z"]}),
        );
        let one = json!({"properties": {"a": "1"}});
        for nothing in [json!({}), json!({"properties": {}}), json!({"properties": null})] {
            check(one.clone(), nothing, one.clone());
        }
        // What is no metadata at all is not mended.
        check(one.clone(), json!(7), json!(7));
        check(json!({"sensitive": "a"}), json!({"sensitive": ["b"]}), json!({"sensitive": ["b"]}));
        assert_eq!(metadata(Some(&one), None), Some(one.clone()));
        assert_eq!(metadata(None, Some(&one)), Some(one));
        assert_eq!(metadata(None, None), None);
    }

    #[test]
    fn rules_are_merged_by_their_names() {
        let rule = |name: &str, doc: &str| json!({"name": name, "doc": doc});
        let old = json!({"domainRules": [rule("a", "old"), rule("b", "old")], "migrationRules": [rule("m", "old")]});
        let new = json!({"domainRules": [rule("c", "new"), rule("a", "new")], "encodingRules": [rule("e", "new")],
            "enableAt": "CLIENT"});
        let merged = json!({"domainRules": [rule("b", "old"), rule("c", "new"), rule("a", "new")],
            "migrationRules": [rule("m", "old")], "encodingRules": [rule("e", "new")], "enableAt": "CLIENT"});
        assert_eq!(rule_set(Some(&old), Some(&new)), Some(merged.clone()));
        assert_eq!(rule_set(Some(&merged), Some(&new)), Some(merged), "once more changes nothing");
        assert_eq!(rule_set(Some(&old), Some(&json!({"domainRules": []}))), Some(old));
    }
}

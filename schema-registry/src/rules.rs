//! What a rule set must be. The rules are those of Confluent's `RuleSet.validate`:
//! serializers that find others in a schema fail only when they write.

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::error::{Code, Refusal};

const DOMAIN: &[&str] = &["WRITE", "READ", "WRITEREAD"];
const MIGRATION: &[&str] = &["UPGRADE", "DOWNGRADE", "UPDOWN"];

/// The lists of a set: member, what it is called, and the modes of its rules.
const LISTS: &[(&str, &str, &[&str])] = &[
    ("migrationRules", "Migration rules", MIGRATION),
    ("domainRules", "Domain rules", DOMAIN),
    ("encodingRules", "Encoding rules", DOMAIN),
];

/// Of a rule that names none.
const MODE: &str = "WRITEREAD";

/// Refuses what is no rule set.
pub(crate) fn check(rule_set: &Value) -> Result<(), Refusal> {
    let set = rule_set.as_object().ok_or_else(|| invalid("A rule set is an object"))?;
    for (member, called, modes) in LISTS {
        let rules = match set.get(*member) {
            None | Some(Value::Null) => continue,
            Some(rules) => rules.as_array().ok_or_else(|| invalid(format!("{called} are a list")))?,
        };
        let mut names = HashSet::new();
        for rule in rules {
            let rule = rule.as_object().ok_or_else(|| invalid(format!("{called} are objects")))?;
            let name = name(rule)?;
            if !names.insert(name) {
                return Err(invalid(format!("Found rule with duplicate name '{name}'")));
            }
            if text(rule, "type")?.is_none() {
                return Err(invalid(format!("Missing rule type of rule '{name}'")));
            }
            if !modes.contains(&text(rule, "mode")?.unwrap_or(MODE)) {
                return Err(invalid(format!("{called} can only be {}: rule '{name}' is not", modes.join(", "))));
            }
            if !matches!(text(rule, "kind")?, None | Some("TRANSFORM" | "CONDITION")) {
                return Err(invalid(format!("Rule kind of rule '{name}' is neither TRANSFORM nor CONDITION")));
            }
        }
    }
    Ok(())
}

fn name(rule: &Map<String, Value>) -> Result<&str, Refusal> {
    let name = text(rule, "name")?.ok_or_else(|| invalid("Missing rule name"))?;
    let mut letters = name.chars();
    match letters.next() {
        None => return Err(invalid("Empty rule name")),
        Some(first) if first.is_alphabetic() || first == '_' => {}
        Some(_) => return Err(invalid(format!("Illegal initial character in rule name: {name}"))),
    }
    match letters.all(|letter| letter.is_alphanumeric() || letter == '_' || letter == '-') {
        true => Ok(name),
        false => Err(invalid(format!("Illegal character in rule name: {name}"))),
    }
}

fn text<'a>(rule: &'a Map<String, Value>, member: &str) -> Result<Option<&'a str>, Refusal> {
    match rule.get(member) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(invalid(format!("The {member} of a rule is a text"))),
    }
}

fn invalid(why: impl Into<String>) -> Refusal {
    Refusal::new(Code::InvalidRules, why)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_no_rule_set_is_refused() {
        let domain = |rules: Value| json!({"domainRules": rules});
        for right in [
            json!({}),
            json!({"domainRules": null, "migrationRules": [], "other": 7}),
            domain(
                json!([{"name": "a", "type": "CEL"}, {"name": "_b-2", "type": "CEL", "mode": "WRITE", "kind": "CONDITION"}]),
            ),
            json!({"migrationRules": [{"name": "a", "type": "JSONATA", "mode": "UPDOWN", "kind": null}],
                "domainRules": [{"name": "a", "type": "CEL", "mode": "READ"}],
                "encodingRules": [{"name": "a", "type": "ENCRYPT"}]}),
        ] {
            assert_eq!(check(&right), Ok(()), "{right}");
        }
        for (wrong, why) in [
            (json!([]), "object"),
            (domain(json!({})), "Domain rules are a list"),
            (domain(json!(["a"])), "Domain rules are objects"),
            (domain(json!([{"type": "CEL"}])), "Missing rule name"),
            (domain(json!([{"name": 7, "type": "CEL"}])), "name of a rule is a text"),
            (domain(json!([{"name": "", "type": "CEL"}])), "Empty rule name"),
            (domain(json!([{"name": "1a", "type": "CEL"}])), "Illegal initial character in rule name: 1a"),
            (domain(json!([{"name": "a b", "type": "CEL"}])), "Illegal character in rule name: a b"),
            (domain(json!([{"name": "a"}])), "Missing rule type"),
            (domain(json!([{"name": "a", "type": "CEL"}, {"name": "a", "type": "CEL"}])), "duplicate name 'a'"),
            (domain(json!([{"name": "a", "type": "CEL", "mode": "UPGRADE"}])), "only be WRITE, READ, WRITEREAD"),
            (domain(json!([{"name": "a", "type": "CEL", "kind": "OTHER"}])), "neither TRANSFORM nor CONDITION"),
            (json!({"migrationRules": [{"name": "a", "type": "JSONATA"}]}), "only be UPGRADE, DOWNGRADE, UPDOWN"),
        ] {
            let refused = check(&wrong).unwrap_err();
            assert_eq!(refused.code, Code::InvalidRules, "{wrong}");
            assert!(refused.message.contains(why), "{wrong}: {refused}");
        }
    }
}

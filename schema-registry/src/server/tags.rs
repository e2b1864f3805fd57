//! `…/versions/{v}/tags`: a version with other tags, metadata or rules becomes
//! the next version.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::content::{Content, NewSchema};
use crate::error::{Code, Refusal};
use crate::{merge, numbering};

/// Where tags stand in a schema: on a record or a field.
const TAGS: &str = "confluent:tags";
/// Types inside of types, at most.
const DEEPEST: usize = 256;

/// What is to be different.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Changes {
    new_version: Option<i32>,
    tags_to_add: Vec<Tagged>,
    tags_to_remove: Vec<Tagged>,
    metadata: Option<Map<String, Value>>,
    rule_set: Option<Map<String, Value>>,
    rules_to_merge: Option<Map<String, Value>>,
    rules_to_remove: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Tagged {
    schema_entity: Entity,
    tags: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entity {
    entity_type: String,
    entity_path: String,
}

impl Changes {
    /// The schema to be registered.
    pub(super) fn of(self, content: &Content) -> Result<NewSchema, Refusal> {
        let mut schema: Value = serde_json::from_str(&content.text).map_err(|error| invalid(error.to_string()))?;
        for (tagged, add) in
            self.tags_to_add.iter().map(|t| (t, true)).chain(self.tags_to_remove.iter().map(|t| (t, false)))
        {
            let Tagged { schema_entity: Entity { entity_type, entity_path }, tags } = tagged;
            let is_field = match entity_type.as_str() {
                "sr_field" => true,
                "sr_record" => false,
                other => return Err(invalid(format!("entityType {other:?} is neither sr_field nor sr_record"))),
            };
            let mut found = false;
            each(&mut schema, "", DEEPEST, &mut |path, field, node| {
                let it = field.map_or_else(|| path.to_owned(), |field| format!("{path}.{field}"));
                if field.is_some() == is_field && it == *entity_path {
                    found = true;
                    tag(node, tags, add);
                }
            });
            if !found {
                return Err(invalid(format!("the schema has no {entity_type} {entity_path:?}")));
            }
        }
        // It is another version whatever is changed, and tells its number, which is not known yet.
        let metadata = self.metadata.map(Value::Object).or(content.metadata.as_deref().cloned());
        let metadata = Some(numbering::numbered(metadata, 0));
        let more = self.rules_to_merge.map(Value::Object);
        // What is merged into, or taken from, is what was there.
        let own = self.rule_set.map(Value::Object).filter(|_| more.is_none() && self.rules_to_remove.is_empty());
        let mut rule_set = merge::rule_set(own.as_ref().or(content.rule_set.as_deref()), more.as_ref());
        // One without rules stays one: without any, it would be the last version's.
        for rules in rule_set.iter_mut().filter_map(Value::as_object_mut).flat_map(Map::values_mut) {
            let gone = |rule: &Value| self.rules_to_remove.iter().any(|name| rule["name"] == **name);
            rules.as_array_mut().into_iter().for_each(|rules| rules.retain(|rule| !gone(rule)));
        }
        Ok(NewSchema {
            schema: Some(schema.to_string()),
            references: (!content.references.is_empty()).then(|| content.references.to_vec()),
            metadata,
            rule_set,
            version: self.new_version,
            ..NewSchema::default()
        })
    }
}

/// Gets a record's full name, a field's if it is one, and what it is.
type Take<'a> = dyn FnMut(&str, Option<&str>, &mut Map<String, Value>) + 'a;

/// Every record with its full name, and every field of it.
fn each(node: &mut Value, namespace: &str, left: usize, take: &mut Take<'_>) {
    let Some(left) = left.checked_sub(1) else { return };
    match node {
        Value::Array(branches) => branches.iter_mut().for_each(|branch| each(branch, namespace, left, take)),
        Value::Object(object) => {
            let text = |name: &str| object.get(name).and_then(Value::as_str).map(str::to_owned);
            let (kind, name) = (text("type"), text("name").unwrap_or_default());
            if !matches!(kind.as_deref(), Some("record" | "error")) {
                for inside in ["type", "items", "values"] {
                    if let Some(inside) = object.get_mut(inside).filter(|inside| !inside.is_string()) {
                        each(inside, namespace, left, take);
                    }
                }
                return;
            }
            let space = text("namespace").unwrap_or_else(|| namespace.to_owned());
            let full = if name.contains('.') || space.is_empty() { name } else { format!("{space}.{name}") };
            take(&full, None, object);
            let space = full.rsplit_once('.').map_or("", |(space, _)| space);
            for field in object.get_mut("fields").and_then(Value::as_array_mut).into_iter().flatten() {
                let Value::Object(field) = field else { continue };
                let name = field.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
                take(&full, Some(&name), field);
                if let Some(ty) = field.get_mut("type") {
                    each(ty, space, left, take);
                }
            }
        }
        _ => {}
    }
}

fn tag(node: &mut Map<String, Value>, tags: &[String], add: bool) {
    let there = node.get(TAGS).and_then(Value::as_array).into_iter().flatten();
    let mut all: BTreeSet<String> = there.filter_map(|tag| tag.as_str().map(str::to_owned)).collect();
    for tag in tags {
        let _ = if add { all.insert(tag.clone()) } else { all.remove(tag) };
    }
    if all.is_empty() { drop(node.shift_remove(TAGS)) } else { drop(node.insert(TAGS.into(), json!(all))) }
}

fn invalid(why: String) -> Refusal {
    Refusal::new(Code::InvalidSchema, why)
}

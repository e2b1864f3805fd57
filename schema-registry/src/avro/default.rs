//! Whether defaults are of their fields' types.

use serde_json::Value;

use super::parse::{Reason, short};
use super::{Avro, Kind, NodeId};

impl Avro {
    pub(super) fn check_defaults(&self) -> Result<(), Reason> {
        for node in &self.nodes[self.external as usize..] {
            let Kind::Record(record) = &node.kind else { continue };
            for field in &record.fields {
                let Some(default) = &field.default else { continue };
                if !self.fits(default, field.ty) {
                    let (owner, word) = (record.named.name.full(), self.kind(field.ty).word());
                    let what = short(default);
                    return Err(format!("{owner}.{}: the default {what} is none of type {word}", field.name));
                }
            }
        }
        Ok(())
    }

    fn fits(&self, value: &Value, ty: NodeId) -> bool {
        match self.kind(ty) {
            Kind::Null => value.is_null(),
            Kind::Boolean => value.is_boolean(),
            Kind::Int => value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
            Kind::Long => value.as_i64().is_some(),
            // Text for what JSON has no number for.
            Kind::Float | Kind::Double => {
                value.is_number() || matches!(value.as_str(), Some("NaN" | "Infinity" | "-Infinity"))
            }
            Kind::Bytes | Kind::String => value.is_string(),
            Kind::Fixed(_) => value.is_string(),
            Kind::Enum(it) => value.as_str().is_some_and(|symbol| it.symbols.iter().any(|s| &**s == symbol)),
            Kind::Array(items) => value.as_array().is_some_and(|all| all.iter().all(|v| self.fits(v, *items))),
            Kind::Map(values) => value.as_object().is_some_and(|all| all.values().all(|v| self.fits(v, *values))),
            // Of any branch: older readers wanted the first.
            Kind::Union(branches) => branches.iter().any(|&branch| self.fits(value, branch)),
            Kind::Record(record) => value.as_object().is_some_and(|object| {
                record.fields.iter().all(|field| match object.get(&*field.name) {
                    Some(value) => self.fits(value, field.ty),
                    // Checked where it stands.
                    None => field.default.is_some(),
                })
            }),
        }
    }
}

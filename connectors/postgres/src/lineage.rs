//! A table as it was when the WAL was written, where the catalog is already
//! further: which column each one is.
//!
//! pgoutput tells names and types, not numbers. A column's number (attnum) is
//! what tells a rename from a drop and an add, so it is looked for in the shape
//! that the log knew last, then in the catalog. Numbers grow from left to
//! right, in every relation message and for ever, which settles most of what a
//! name leaves open.

use connector::{Column, Table, Type};

use crate::catalog::{CatalogColumn, CatalogTable};
use crate::pgoutput::Relation;

/// The table of a relation message. `types` are the names of its columns'
/// types, `shapes` those it had before, the newest first.
pub(crate) fn as_it_was(
    relation: &Relation,
    types: &[String],
    now: Option<&CatalogTable>,
    shapes: &[Table],
) -> CatalogTable {
    let is_it = |table: &&Table| {
        let known = table.columns.iter().map(|column| (column.name.as_str(), column.db_type.as_str()));
        relation.columns.iter().map(|column| column.name.as_str()).zip(types.iter().map(String::as_str)).eq(known)
    };
    let before = shapes.iter().find(is_it).or(shapes.first());
    let newer = now.map(|table| table.columns.as_slice()).unwrap_or_default();
    let older = before.map(|table| table.columns.as_slice()).unwrap_or_default();
    let names: Vec<&str> = relation.columns.iter().map(|column| column.name.as_str()).collect();
    let numbers = numbers(&names, types, older, newer);
    let columns: Vec<CatalogColumn> = relation
        .columns
        .iter()
        .zip(types)
        .zip(&numbers)
        .map(|((column, db_type), &number)| {
            let old = older.iter().find(|other| other.id == i32::from(number) && other.name == column.name);
            let new = newer.iter().find(|other| other.number == number);
            CatalogColumn {
                number,
                name: column.name.clone(),
                type_oid: column.type_oid,
                typmod: column.typmod,
                dimensions: old.map(|o| depth(&o.ty)).filter(|d| *d > 0).or(new.map(|n| n.dimensions)).unwrap_or(1),
                not_null: old.map(|o| !o.nullable).or(new.map(|n| n.not_null)).unwrap_or(false),
                db_type: db_type.clone(),
            }
        })
        .collect();
    let flagged: Vec<i16> =
        relation.columns.iter().zip(&numbers).filter(|(column, _)| column.key).map(|(_, number)| *number).collect();
    let full = relation.identity == b'f';
    let primary = match now {
        Some(table) if full => table.primary.clone(),
        now => in_its_order(&flagged, now, before),
    };
    CatalogTable {
        oid: relation.id,
        schema: relation.namespace.clone(),
        name: relation.name.clone(),
        kind: now.map_or('r', |table| table.kind),
        persistence: 'p',
        identity: relation.identity as char,
        is_partition: false,
        row_security: false,
        readable: true,
        file_node: now.map_or(0, |table| table.file_node),
        published: now.map_or(0, |table| table.published),
        publication: now.map_or(0, |table| table.publication),
        identity_index: primary.clone(),
        primary,
        columns,
    }
}

/// The relation flags a key's columns; only an index knows their order.
fn in_its_order(flagged: &[i16], now: Option<&CatalogTable>, before: Option<&Table>) -> Vec<i16> {
    let same = |candidate: &[i16]| candidate.len() == flagged.len() && candidate.iter().all(|n| flagged.contains(n));
    let older: Vec<i16> = before
        .map(|table| table.key.iter().filter_map(|&i| i16::try_from(table.columns[i].id).ok()).collect())
        .unwrap_or_default();
    let newer = now.map(|table| [&table.primary, &table.identity_index]).into_iter().flatten();
    std::iter::once(&older).chain(newer).find(|candidate| same(candidate)).cloned().unwrap_or_else(|| flagged.to_vec())
}

fn depth(ty: &Type) -> u32 {
    match ty {
        Type::Array(element) => 1 + depth(element),
        _ => 0,
    }
}

fn numbers(names: &[&str], types: &[String], older: &[Column], newer: &[CatalogColumn]) -> Vec<i16> {
    let mut found: Vec<Option<i16>> = Vec::with_capacity(names.len());
    let mut last = 0;
    for (name, db_type) in names.iter().zip(types) {
        let old = older.iter().find(|column| column.name == *name && column.id > i32::from(last));
        let new = newer.iter().find(|column| column.name == *name && column.number > last);
        let old_number = old.and_then(|column| i16::try_from(column.id).ok());
        let number = match (old, new) {
            (Some(old), Some(new)) if old.id != i32::from(new.number) && old.db_type != *db_type => Some(new.number),
            (Some(_), _) => old_number,
            (None, new) => new.map(|column| column.number),
        };
        last = number.unwrap_or(last);
        found.push(number);
    }
    let mut out = Vec::with_capacity(names.len());
    let mut last = 0;
    for (i, number) in found.iter().enumerate() {
        let number = number.unwrap_or_else(|| {
            // Called something else before and after: a place that nobody else has.
            let next = found[i..].iter().flatten().next().copied().unwrap_or(i16::MAX);
            let free = |n: &i16| *n > last && *n < next;
            let old =
                older.iter().filter(|c| c.db_type == types[i]).filter_map(|c| i16::try_from(c.id).ok()).find(free);
            let new = || newer.iter().filter(|c| c.db_type == types[i]).map(|c| c.number).find(free);
            old.or_else(new).unwrap_or(last + 1)
        });
        last = number;
        out.push(number);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(relation: &[(&str, &str)], older: &[(i32, &str, &str)], newer: &[(i16, &str, &str)], expected: &[i16]) {
        let older: Vec<Column> = older
            .iter()
            .map(|&(id, name, ty)| Column {
                name: name.into(),
                ty: Type::String,
                db_type: ty.into(),
                nullable: true,
                id,
            })
            .collect();
        let newer: Vec<CatalogColumn> = newer
            .iter()
            .map(|&(number, name, ty)| CatalogColumn {
                number,
                name: name.into(),
                type_oid: 25,
                typmod: -1,
                dimensions: 0,
                not_null: false,
                db_type: ty.into(),
            })
            .collect();
        let names: Vec<&str> = relation.iter().map(|(name, _)| *name).collect();
        let types: Vec<String> = relation.iter().map(|(_, ty)| (*ty).to_owned()).collect();
        assert_eq!(numbers(&names, &types, &older, &newer), expected, "{relation:?}");
    }

    #[test]
    fn a_column_is_found_by_the_name_it_had_or_got() {
        let older = [(1, "id", "int"), (2, "a", "int"), (3, "b", "text")];
        // Since then: c was added, a renamed to z and made text, b dropped.
        let newer = [(1, "id", "int"), (2, "z", "text"), (4, "c", "date")];
        check(&[("id", "int"), ("a", "int"), ("b", "text")], &older, &newer, &[1, 2, 3]);
        check(&[("id", "int"), ("a", "int"), ("b", "text"), ("c", "date")], &older, &newer, &[1, 2, 3, 4]);
        check(&[("id", "int"), ("z", "int"), ("b", "text"), ("c", "date")], &older, &newer, &[1, 2, 3, 4]);
        check(&[("id", "int"), ("z", "int"), ("c", "date")], &older, &newer, &[1, 2, 4]);
    }

    #[test]
    fn a_column_dropped_and_added_again_is_another() {
        let older = [(1, "id", "int"), (2, "a", "int"), (3, "b", "text")];
        let newer = [(1, "id", "int"), (3, "b", "text"), (4, "a", "int")];
        check(&[("id", "int"), ("a", "int"), ("b", "text")], &older, &newer, &[1, 2, 3]);
        check(&[("id", "int"), ("b", "text"), ("a", "int")], &older, &newer, &[1, 3, 4]);
    }

    #[test]
    fn a_name_that_neither_knows_takes_the_free_place() {
        let older = [(1, "id", "int"), (2, "a", "int"), (3, "b", "text")];
        let newer = [(1, "id", "int"), (2, "z", "int"), (3, "b", "text")];
        check(&[("id", "int"), ("m", "int"), ("b", "text")], &older, &newer, &[1, 2, 3]);
    }
}

//! The short way for a few changes: prepared statements, all sent before the
//! first answer is waited for.

use bytes::BytesMut;
use connector::Result;
use futures_util::future::try_join_all;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Client, Statement};

use crate::error::failed;
use crate::fold::{Fold, Image};
use crate::merge::{Made, Merge};
use crate::wire;

/// Applies every image of a fold of which none was moved.
pub(crate) async fn apply(client: &Client, made: &mut Made, merge: &Merge<'_>, fold: &Fold) -> Result<()> {
    let mut gone = Vec::new();
    let mut put = Vec::new();
    for (key, image, row) in fold.in_turn() {
        match image {
            Image::Gone => gone.push((statement(client, made, merge, Kind::Gone, &[]).await?, fields(key))),
            Image::Whole => put.push((statement(client, made, merge, Kind::Whole, &[]).await?, fields(row))),
            Image::Patch { .. } => {
                let known = merge.plan.known(row);
                let fields = fields(row).into_iter().filter(|field| !field.is_absent()).collect();
                put.push((statement(client, made, merge, Kind::Patch, &known).await?, fields));
            }
        }
    }
    let attempt = || format!("could not merge into {}", merge.mirror.quoted());
    // What goes makes room for what comes.
    for kind in [gone, put] {
        let sent = kind.iter().map(|(statement, fields)| client.execute_raw(statement, fields.iter()));
        try_join_all(sent).await.map_err(|error| failed(error, attempt()))?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Kind {
    Gone,
    Whole,
    Patch,
}

/// Prepared once a session, shape and set of known columns.
async fn statement(client: &Client, made: &mut Made, merge: &Merge<'_>, kind: Kind, known: &[u8]) -> Result<Statement> {
    let mut id = vec![kind as u8];
    id.extend_from_slice(known);
    let id = (merge.plan.shape.number, id);
    if let Some(statement) = made.statements.get(&id) {
        return Ok(statement.clone());
    }
    let plan = merge.plan;
    let table = merge.mirror.quoted();
    let place = |n: usize, i: usize| merge.value(i, &format!("${n}::{}", plan.targets[i].wire.sql()));
    let is_known = |i: usize| known.get(i / 8).is_some_and(|byte| byte & (1 << (i % 8)) != 0);
    let (sql, columns): (String, Vec<usize>) = match kind {
        Kind::Gone => {
            let key = &plan.shape.table.key;
            let parts: Vec<String> =
                key.iter().enumerate().map(|(n, &i)| format!("{} = {}", merge.names[i], place(n + 1, i))).collect();
            (format!("DELETE FROM {table} WHERE {}", parts.join(" AND ")), key.clone())
        }
        Kind::Whole => {
            let values: Vec<String> = (0..plan.width()).map(|i| place(i + 1, i)).collect();
            (merge.upsert(&format!("VALUES ({})", values.join(", "))), (0..plan.width()).collect())
        }
        Kind::Patch => {
            let columns: Vec<usize> = (0..plan.width()).filter(|&i| is_known(i)).collect();
            let part = |(n, &i): (usize, &usize)| format!("{} = {}", merge.names[i], place(n + 1, i));
            let in_key = |&(_, i): &(usize, &usize)| plan.shape.table.in_key(*i);
            let sets: Vec<String> = columns.iter().enumerate().filter(|c| !in_key(c)).map(part).collect();
            let keys: Vec<String> = columns.iter().enumerate().filter(in_key).map(part).collect();
            let sets = if sets.is_empty() { keys.join(", ") } else { sets.join(", ") };
            (format!("UPDATE {table} SET {sets} WHERE {}", keys.join(" AND ")), columns)
        }
    };
    let types: Vec<Type> = columns.iter().map(|&i| plan.targets[i].wire.parameter()).collect();
    let prepared = client.prepare_typed(&sql, &types).await;
    let prepared = prepared.map_err(|error| failed(error, format!("could not prepare a change of {table}")))?;
    made.statements.insert(id, prepared.clone());
    Ok(prepared)
}

/// A value in the type's binary form, as it is.
#[derive(Debug)]
struct Field<'a>(i32, &'a [u8]);

impl Field<'_> {
    fn is_absent(&self) -> bool {
        self.0 == wire::ABSENT
    }
}

impl ToSql for Field<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        if self.0 < 0 {
            return Ok(IsNull::Yes);
        }
        out.extend_from_slice(self.1);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

fn fields(mut row: &[u8]) -> Vec<Field<'_>> {
    let mut fields = Vec::new();
    while let Some((length, value)) = wire::next(&mut row) {
        fields.push(Field(length, value));
    }
    fields
}

//! A bag into a table without a key: images that came are inserted, of those
//! that went exactly so many rows are deleted, found by the whole row.
//!
//! Rows are compared by their text, in which every type has an equality, and
//! which the server can hash: one pass over the table a step that deletes.

use bytes::BufMut;
use connector::Result;
use indexmap::IndexMap;
use tokio_postgres::Client;

use crate::copy::Copy;
use crate::fold::Fold;
use crate::merge::{Made, Merge, run, too_wide};
use crate::sql::quote;
use crate::table::Mirror;

/// Writes a fold to its table. While a later reading is gathered aside, its rows
/// go there alone, and what changed meanwhile to both.
pub(crate) async fn merge(client: &Client, made: &mut Made, mirror: &Mirror, fold: &Fold) -> Result<()> {
    let table = mirror.quoted();
    let aside = mirror.seen.as_deref().map(|aside| format!("_highwater.{}", quote(aside)));
    let both: Vec<&str> = [Some(table.as_str()), aside.as_deref()].into_iter().flatten().collect();
    if fold.emptied {
        for table in &both {
            run(client, mirror, &format!("DELETE FROM {table}")).await?;
        }
    }
    let reading = aside.as_deref().unwrap_or(&table);
    apply(client, made, mirror, fold, &fold.read, &[reading]).await?;
    apply(client, made, mirror, fold, &fold.bag, &both).await
}

async fn apply(
    client: &Client,
    made: &mut Made,
    mirror: &Mirror,
    fold: &Fold,
    bag: &IndexMap<Box<[u8]>, i64>,
    tables: &[&str],
) -> Result<()> {
    if bag.values().all(|count| *count == 0) {
        return Ok(());
    }
    let merge = Merge::new(mirror, &fold.plan)?;
    let width = fold.plan.width();
    let staging = format!("_hw_bag_{}", fold.plan.shape.number);
    let mut columns = vec!["_n bigint".to_owned()];
    columns.extend(fold.plan.targets.iter().enumerate().map(|(i, target)| format!("c{i} {}", target.wire.sql())));
    made.staging(client, mirror, &staging, &columns).await?;
    let stage = format!("pg_temp.{staging}");
    let list: Vec<String> = std::iter::once("_n".to_owned()).chain((0..width).map(|i| format!("c{i}"))).collect();
    let count_of_fields = i16::try_from(list.len()).map_err(|_| too_wide(mirror))?;
    let mut copy = Copy::begin(client, &stage, &list.join(", ")).await?;
    let (mut came, mut went) = (false, false);
    for (row, count) in bag.iter().filter(|(_, count)| **count != 0) {
        (came, went) = (came || *count > 0, went || *count < 0);
        let out = copy.row();
        out.put_i16(count_of_fields);
        out.put_i32(8);
        out.put_i64(*count);
        out.put_slice(row);
        copy.flow().await?;
    }
    copy.finish().await?;
    let values: Vec<String> = (0..width).map(|i| merge.value(i, &format!("s.c{i}"))).collect();
    let here: Vec<String> = merge.names.iter().map(|name| format!("t.{name}")).collect();
    for table in tables {
        if went {
            let sql = format!(
                "DELETE FROM {table} WHERE ctid = ANY (ARRAY(
                   SELECT m.ctid FROM (
                     SELECT t.ctid, s._n, row_number() OVER (PARTITION BY s.image) AS i
                       FROM {table} t JOIN (SELECT _n, ROW({})::text AS image FROM {stage} s WHERE _n < 0) s
                         ON ROW({})::text = s.image) m
                    WHERE m.i <= -m._n))",
                assigned(&merge, &values),
                here.join(", ")
            );
            run(client, mirror, &sql).await?;
        }
        if came {
            let sql = format!(
                "INSERT INTO {table} ({}) SELECT {} FROM {stage} s, generate_series(1, s._n) WHERE s._n > 0",
                merge.names.join(", "),
                values.join(", ")
            );
            run(client, mirror, &sql).await?;
        }
    }
    Ok(())
}

/// The staged values as the table would hold them: `numeric` as `numeric(12,2)`.
fn assigned(merge: &Merge<'_>, values: &[String]) -> String {
    let typed: Vec<String> = values.iter().zip(&merge.types).map(|(value, ty)| format!("({value})::{ty}")).collect();
    typed.join(", ")
}

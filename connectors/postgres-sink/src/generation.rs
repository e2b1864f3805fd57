//! A table that is read again: what was neither read nor changed between begin
//! and end is not at the source any more, and goes in the transaction of the end.
//!
//! A table with a key notes the keys that it sees, in a table of `_highwater`
//! that outlives a restart. One without a key gathers the reading aside, and
//! exchanges all rows at the end. The first reading of a table sweeps nothing.

use connector::Result;
use tokio_postgres::Client;

use crate::merge::run;
use crate::sql::{literal, quote};
use crate::table::Mirror;

/// Begins a generation; one that is under way was broken off.
pub(crate) async fn begin(client: &Client, mirror: &mut Mirror, generation: u64) -> Result<()> {
    abandon(client, mirror).await?;
    mirror.generation = generation;
    // Named after the table, and no longer than a name may be.
    let sql = format!("SELECT 'seen_' || {}::regclass::oid::text", literal(&mirror.quoted()));
    let row = client.query_one(&sql, &[]).await;
    let seen: String = row.map_err(|error| crate::error::failed(error, "could not begin a generation"))?.get(0);
    let table = format!("_highwater.{}", quote(&seen));
    let columns = if mirror.key.is_empty() { "*".into() } else { mirror.key_list("") };
    run(client, mirror, &format!("CREATE TABLE {table} AS SELECT {columns} FROM {} WITH NO DATA", mirror.quoted()))
        .await?;
    if !mirror.key.is_empty() {
        run(client, mirror, &format!("ALTER TABLE {table} ADD PRIMARY KEY ({})", mirror.key_list(""))).await?;
    }
    tracing::info!(stream = mirror.stream, generation, "generation begun");
    mirror.seen = Some(seen);
    Ok(())
}

/// Ends a generation, if it is the one that was begun.
pub(crate) async fn end(client: &Client, mirror: &mut Mirror, generation: u64) -> Result<()> {
    let Some(seen) = mirror.seen.as_deref().filter(|_| mirror.generation == generation) else {
        tracing::warn!(
            stream = mirror.stream,
            generation,
            "the end of a generation whose begin is not known: nothing is swept"
        );
        return Ok(());
    };
    let (table, seen) = (mirror.quoted(), format!("_highwater.{}", quote(seen)));
    if mirror.key.is_empty() {
        let names: Vec<String> =
            mirror.columns.iter().filter(|column| !column.dropped).map(|column| quote(&column.name)).collect();
        let names = names.join(", ");
        run(client, mirror, &format!("DELETE FROM {table}")).await?;
        run(client, mirror, &format!("INSERT INTO {table} ({names}) SELECT {names} FROM {seen}")).await?;
    } else {
        let same: Vec<String> = mirror.key.iter().map(|name| format!("s.{0} = t.{0}", quote(name))).collect();
        let sql =
            format!("DELETE FROM {table} t WHERE NOT EXISTS (SELECT 1 FROM {seen} s WHERE {})", same.join(" AND "));
        let swept = client.execute(&sql, &[]).await;
        let swept = swept.map_err(|error| crate::error::failed(error, format!("could not sweep {table}")))?;
        tracing::info!(stream = mirror.stream, generation, swept, "generation ended");
    }
    abandon(client, mirror).await
}

/// Forgets what was seen: the generation will not be ended.
pub(crate) async fn abandon(client: &Client, mirror: &mut Mirror) -> Result<()> {
    if let Some(seen) = mirror.seen.take() {
        run(client, mirror, &format!("DROP TABLE IF EXISTS _highwater.{}", quote(&seen))).await?;
    }
    Ok(())
}

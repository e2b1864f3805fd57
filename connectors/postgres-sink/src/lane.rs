//! Tables that wait apart, each with a row of its own in
//! `_highwater.checkpoints`; and the move to another place in the log.
//!
//! The sink's own row is locked whatever is written: it says who may write.

use config::{PostgresSink as Config, WarehouseMode};
use connector::{Error, Parked, Result, Step, fault};
use storage::Offset;
use tokio_postgres::Client;

use crate::error::failed;
use crate::ledger::Ledger;
use crate::settings::Settings;
use crate::sql::quote;
use crate::table::Mirror;

impl Ledger {
    /// Tables that wait apart.
    pub(crate) async fn parked(&self, client: &Client) -> Result<Vec<Parked>> {
        let sql = "SELECT c.lane, c.next_offset, coalesce((extract(epoch FROM t.behind_since) * 1000000)::bigint, 0),
                          coalesce(t.behind_why, '')
                     FROM _highwater.checkpoints c
                     LEFT JOIN _highwater.tables t ON (t.sink, t.source, t.stream) = (c.sink, c.source, c.lane)
                    WHERE c.sink = $1 AND c.source = $2 AND c.lane <> '' AND c.next_offset IS NOT NULL";
        let rows = client.query(sql, &[&self.sink, &self.source]).await;
        let rows = rows.map_err(|error| failed(error, "could not read _highwater.checkpoints"))?;
        let parked = |row: &tokio_postgres::Row| Parked {
            stream: row.get(0),
            next: Offset(row.get::<_, i64>(1) as u64),
            since: row.get(2),
            why: row.get(3),
            promised: None,
        };
        Ok(rows.iter().map(parked).collect())
    }

    /// Has a table wait apart, from `at` on unless it does already.
    pub(crate) async fn park(
        &self,
        client: &Client,
        stream: &str,
        place: Option<(String, String)>,
        mode: &str,
        at: Offset,
        why: &str,
    ) -> Result<()> {
        let attempt = || format!("could not have {stream} wait apart");
        self.begin(client).await?;
        let sql = "INSERT INTO _highwater.checkpoints
                          (sink, source, lane, log_id, epoch, writer, next_offset, position, event_time, committed_at)
                   SELECT sink, source, $3, log_id, epoch, writer, $4, position, event_time, committed_at
                     FROM _highwater.checkpoints WHERE sink = $1 AND source = $2 AND lane = ''
                       ON CONFLICT DO NOTHING";
        let parked = client.execute(sql, &[&self.sink, &self.source, &stream, &(at.0 as i64)]).await;
        parked.map_err(|error| failed(error, attempt()))?;
        let sql = "UPDATE _highwater.tables SET behind_since = coalesce(behind_since, now()), behind_why = $4
                    WHERE sink = $1 AND source = $2 AND stream = $3";
        let told = client.execute(sql, &[&self.sink, &self.source, &stream, &why]).await;
        let told = told.map_err(|error| failed(error, attempt()))?;
        if let (0, Some((schema, name))) = (told, place) {
            // It could not even be made.
            let sql =
                "INSERT INTO _highwater.tables (schema_name, table_name, sink, source, stream, mode, shape, columns,
                              key_columns, generation, behind_since, behind_why)
                       VALUES ($1, $2, $3, $4, $5, $6, -1, '[]', '{}', 0, now(), $7) ON CONFLICT DO NOTHING";
            let new = client.execute(sql, &[&schema, &name, &self.sink, &self.source, &stream, &mode, &why]).await;
            new.map_err(|error| failed(error, attempt()))?;
        }
        fault::point("table-parked");
        client.batch_execute("COMMIT").await.map_err(|error| failed(error, attempt()))
    }

    /// Moves the checkpoint of a table that waits apart on, within the step's
    /// transaction; where it meets that of the others, it joins them.
    pub(crate) async fn advance_lane(
        &self,
        client: &Client,
        others: Option<Offset>,
        stream: &str,
        step: &Step,
        position: Option<String>,
    ) -> Result<()> {
        let range = step.range();
        let attempt = || format!("could not move the checkpoint of {stream}");
        let time = (step.event_time.0 > 0).then_some(step.event_time.0);
        let sql = "UPDATE _highwater.checkpoints
                      SET next_offset = $5, position = coalesce($6, position), committed_at = now(),
                          event_time = greatest(event_time, timestamptz 'epoch' + $7::bigint * interval '1 microsecond')
                    WHERE sink = $1 AND source = $2 AND lane = $3 AND next_offset = $4";
        let (start, end) = (range.start.0 as i64, range.end.0 as i64);
        let moved = client.execute(sql, &[&self.sink, &self.source, &stream, &start, &end, &position, &time]).await;
        if moved.map_err(|error| failed(error, attempt()))? != 1 {
            return Err(Error::retry(format!(
                "{stream} does not wait apart at offset {} any more: sink {:?} is opened again",
                range.start, self.sink
            )));
        }
        // A sink that is new has no place yet: the others begin where the table does.
        if others.is_none_or(|others| others <= range.end) {
            self.join(client, Some(stream)).await?;
        }
        fault::point("lane-advanced");
        Ok(())
    }

    /// Tables join the others; None: all that wait.
    async fn join(&self, client: &Client, stream: Option<&str>) -> Result<()> {
        let attempt = || "could not have tables join the others";
        for sql in [
            "DELETE FROM _highwater.checkpoints
              WHERE sink = $1 AND source = $2 AND lane <> '' AND lane = coalesce($3, lane)",
            "DELETE FROM _highwater.tables
              WHERE sink = $1 AND source = $2 AND shape < 0 AND stream = coalesce($3, stream)",
            "UPDATE _highwater.tables SET behind_since = NULL, behind_why = NULL
              WHERE sink = $1 AND source = $2 AND behind_since IS NOT NULL AND stream = coalesce($3, stream)",
        ] {
            let joined = client.execute(sql, &[&self.sink, &self.source, &stream]).await;
            joined.map_err(|error| failed(error, attempt()))?;
        }
        Ok(())
    }

    async fn end_at(&self, client: &Client, to: Offset, back: bool) -> Result<()> {
        let sql = "UPDATE _highwater.checkpoints
                      SET next_offset = $3, committed_at = now(),
                          position = CASE WHEN $4 THEN NULL ELSE position END,
                          event_time = CASE WHEN $4 THEN NULL ELSE event_time END
                    WHERE sink = $1 AND source = $2 AND lane = ''";
        let moved = client.execute(sql, &[&self.sink, &self.source, &(to.0 as i64), &back]).await;
        moved.map_err(|error| failed(error, "could not move the checkpoint"))?;
        self.join(client, None).await
    }
}

/// Whether a sink of this configuration can go back to an offset.
pub fn may_move_back(config: &Config, sink: &str) -> Result<()> {
    match config.mode {
        WarehouseMode::History => Ok(()),
        WarehouseMode::Mirror => Err(refused(sink)),
    }
}

fn refused(sink: &str) -> Error {
    Error::halt(format!(
        "sink {sink:?} is a mirror, which goes only forward: older changes over newer rows would show states that the \
         source never had"
    ))
    .hint(format!(
        "`highwater replay {sink} --from snapshot` reads its tables again while readers go on. Or, without the source: \
         drop its tables, their rows in _highwater.tables and its row in _highwater.checkpoints, and it is filled from \
         the log's beginning"
    ))
}

/// Ends the sink at `to`: what a history holds from there on goes, in the same
/// transaction.
pub(crate) async fn move_to(
    client: &Client,
    ledger: &Ledger,
    mirrors: impl Iterator<Item = &Mirror>,
    settings: &Settings,
    to: Offset,
) -> Result<()> {
    let held = ledger.begin(client).await?;
    let back = held.is_none_or(|held| to < held);
    if back && held.is_some() && settings.mode == WarehouseMode::Mirror {
        // The order cannot be obeyed, and the transaction ends with the session.
        return Err(refused(&settings.sink));
    }
    if settings.mode == WarehouseMode::History {
        for mirror in mirrors {
            let column = quote(&format!("{}offset", settings.meta_prefix));
            let table = mirror.quoted();
            let sql = format!("DELETE FROM {table} WHERE {column} >= $1");
            let deleted = client.execute(&sql, &[&(to.0 as i64)]).await;
            let deleted = deleted.map_err(|error| failed(error, format!("could not delete from {table}")))?;
            tracing::info!(stream = mirror.stream, offset = to.0, deleted, "rows from there on are deleted");
        }
    }
    ledger.end_at(client, to, back).await?;
    fault::point("rewound");
    client.batch_execute("COMMIT").await.map_err(|error| failed(error, "could not commit the move"))?;
    Ok(())
}

//! The sink's own schema in the warehouse, `_highwater`: how far it has come,
//! whose tables are whose, and up to when all is there. Written in the same
//! transaction as the rows.

use connector::{Checkpoint, Error, Result, Step};
use futures_util::future::join;
use storage::{Epoch, LogId, Offset};
use tokio_postgres::{Client, Statement};

use crate::error::failed;
use crate::settings::Settings;
use crate::table::Mirror;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS _highwater.checkpoints (
    sink text, source text, lane text NOT NULL DEFAULT '',
    log_id text NOT NULL, epoch bigint NOT NULL, writer text NOT NULL,
    next_offset bigint, position text, event_time timestamptz, committed_at timestamptz,
    pid int, backend_start timestamptz,
    PRIMARY KEY (sink, source, lane));
COMMENT ON TABLE _highwater.checkpoints IS 'how far each sink has come: everything below next_offset is here';
CREATE TABLE IF NOT EXISTS _highwater.tables (
    schema_name text, table_name text, sink text NOT NULL, source text NOT NULL, stream text NOT NULL,
    mode text NOT NULL, shape bigint NOT NULL, columns jsonb NOT NULL, key_columns text[] NOT NULL,
    generation bigint NOT NULL, seen text, behind_since timestamptz, behind_why text,
    PRIMARY KEY (schema_name, table_name), UNIQUE (sink, source, stream));
ALTER TABLE _highwater.tables ADD COLUMN IF NOT EXISTS behind_why text;
COMMENT ON TABLE _highwater.tables IS 'whose each table is, and which columns of the source it has; behind_since: it waits apart from the others';
CREATE OR REPLACE VIEW _highwater.watermarks AS
    SELECT sink, source, min(event_time) AS watermark, max(committed_at) AS committed_at,
           count(*) FILTER (WHERE lane <> '') AS tables_behind
      FROM _highwater.checkpoints GROUP BY sink, source;
COMMENT ON VIEW _highwater.watermarks IS 'commit time at the source up to which all is here';";

/// The sink's row of `_highwater.checkpoints`, held by this process.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    pub(crate) sink: String,
    pub(crate) source: String,
    log: LogId,
    epoch: Epoch,
    writer: String,
    /// Prepared, as each step needs them.
    lock: Statement,
    advance: Statement,
}

const LOCK: &str = "SELECT log_id, epoch, writer, next_offset FROM _highwater.checkpoints
                     WHERE sink = $1 AND source = $2 AND lane = '' FOR UPDATE";
const ADVANCE: &str = "UPDATE _highwater.checkpoints
                          SET next_offset = $3, position = coalesce($4, position), committed_at = now(),
                              event_time = greatest(event_time, timestamptz 'epoch' + $5::bigint * interval '1 microsecond')
                        WHERE sink = $1 AND source = $2 AND lane = ''";

impl Ledger {
    /// Takes over: fences every lower epoch and refuses another log. The
    /// checkpoint, if there is one.
    pub(crate) async fn take_over(
        client: &mut Client,
        settings: &Settings,
        log: LogId,
        epoch: Epoch,
        writer: &str,
    ) -> Result<(Self, Option<Checkpoint>)> {
        create(client).await?;
        let attempt = || format!("could not take over the checkpoint of sink {:?}", settings.sink);
        let lock = client.prepare(LOCK).await.map_err(|error| failed(error, attempt()))?;
        let advance = client.prepare(ADVANCE).await.map_err(|error| failed(error, attempt()))?;
        let (sink, source, writer) = (settings.sink.clone(), settings.source.clone(), writer.into());
        let ledger = Self { sink, source, log, epoch, writer, lock, advance };
        if !ledger.free(client).await? {
            let sql =
                "INSERT INTO _highwater.checkpoints (sink, source, log_id, epoch, writer) VALUES ($1, $2, $3, 0, $4)
                       ON CONFLICT DO NOTHING";
            let new = client.execute(sql, &[&ledger.sink, &ledger.source, &log.to_string(), &ledger.writer]).await;
            new.map_err(|error| failed(error, attempt()))?;
        }
        let transaction = client.transaction().await.map_err(|error| failed(error, attempt()))?;
        let held = ledger.lock(&transaction).await?;
        ledger.belongs(&held)?;
        let sql = "UPDATE _highwater.checkpoints
                      SET epoch = $3, writer = $4, pid = pg_backend_pid(),
                          backend_start = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid())
                    WHERE sink = $1 AND source = $2 AND lane = ''";
        let epoch = epoch.0 as i64;
        let updated = transaction.execute(sql, &[&ledger.sink, &ledger.source, &epoch, &ledger.writer]).await;
        updated.map_err(|error| failed(error, attempt()))?;
        transaction.commit().await.map_err(|error| failed(error, attempt()))?;
        let checkpoint = held.next.map(|next| Checkpoint { next: Offset(next as u64) });
        Ok((ledger, checkpoint))
    }

    /// Whether the row is there. Ends the session of a predecessor, which may
    /// stand still in a transaction and so hold the row.
    async fn free(&self, client: &Client) -> Result<bool> {
        let sql = "SELECT c.log_id, c.epoch, c.writer, a.pid FROM _highwater.checkpoints c
                     LEFT JOIN pg_stat_activity a
                       ON a.pid = c.pid AND a.backend_start = c.backend_start AND a.pid <> pg_backend_pid()
                    WHERE c.sink = $1 AND c.source = $2 AND c.lane = ''";
        let attempt = || format!("could not look for a predecessor of sink {:?}", self.sink);
        let row = client.query_opt(sql, &[&self.sink, &self.source]).await.map_err(|error| failed(error, attempt()))?;
        let Some(row) = row else { return Ok(false) };
        let held = Held { log: row.get(0), epoch: row.get(1), writer: row.get(2), next: None };
        // Only whom we fence anyway, or ourselves before the line was lost.
        self.belongs(&held)?;
        if let Some(pid) = row.get::<_, Option<i32>>(3) {
            tracing::info!(sink = self.sink, pid, "ending the session of a predecessor");
            let ended = client.execute("SELECT pg_terminate_backend($1)", &[&pid]).await;
            ended.map_err(|error| failed(error, attempt()))?;
        }
        Ok(true)
    }

    async fn lock(&self, client: &impl tokio_postgres::GenericClient) -> Result<Held> {
        let row = client.query_opt(&self.lock, &[&self.sink, &self.source]).await;
        let row =
            row.map_err(|error| failed(error, format!("could not lock the checkpoint of sink {:?}", self.sink)))?;
        let row = row.ok_or_else(|| {
            Error::halt(format!("the checkpoint of sink {:?} is gone from _highwater.checkpoints", self.sink))
                .hint("put the row back; or drop the sink's tables and their rows in _highwater.tables to begin anew")
        })?;
        Ok(Held { log: row.get(0), epoch: row.get(1), writer: row.get(2), next: row.get(3) })
    }

    /// Whether what is held there is this log's, and not a newer daemon's.
    fn belongs(&self, held: &Held) -> Result<()> {
        let log = self.log.to_string();
        if held.log != log {
            return Err(Error::halt(format!(
                "sink {:?} holds the changes of log {}, and this is log {log}: going on would mix both",
                self.sink, held.log
            ))
            .hint(
                "put back the data folder that the sink was filled from; or drop its tables, their rows in \
                 _highwater.tables and its row in _highwater.checkpoints, and it is filled from this log's beginning",
            ));
        }
        let epoch = self.epoch.0 as i64;
        if held.epoch > epoch || (held.epoch == epoch && held.writer != self.writer) {
            return Err(Error::superseded(format!(
                "another daemon, of epoch {}, has taken over sink {:?}",
                held.epoch, self.sink
            ))
            .hint("this one must not be started again while the other runs"));
        }
        Ok(())
    }

    /// Begins the transaction of a step: locks the row and compares.
    pub(crate) async fn begin(&self, client: &Client) -> Result<Option<Offset>> {
        // Sent together: without its BEGIN the lock would be gone at once, and nothing done.
        let (begun, held) = join(client.batch_execute("BEGIN"), self.lock(client)).await;
        begun.map_err(|error| failed(error, "could not begin a transaction"))?;
        let held = held?;
        self.belongs(&held)?;
        Ok(held.next.map(|next| Offset(next as u64)))
    }

    /// Whether a step begins where the checkpoint was locked.
    pub(crate) fn goes_on(&self, from: Option<Offset>, step: &Step) -> Result<()> {
        let range = step.range();
        if from.is_some_and(|from| from != range.start) {
            return Err(Error::retry(format!(
                "sink {:?} stands at offset {}, the step begins at {}",
                self.sink,
                from.unwrap_or_default(),
                range.start
            )));
        }
        Ok(())
    }

    /// Moves the checkpoint on, within the step's transaction.
    pub(crate) async fn advance(&self, client: &Client, step: &Step, position: Option<String>) -> Result<()> {
        // Nothing has a time before the first event: the watermark stays.
        let time = (step.event_time.0 > 0).then_some(step.event_time.0);
        let next = step.range().end.0 as i64;
        let moved = client.execute(&self.advance, &[&self.sink, &self.source, &next, &position, &time]).await;
        moved.map_err(|error| failed(error, "could not move the checkpoint"))?;
        Ok(())
    }

    /// The tables of this sink, which all are of one mode.
    pub(crate) async fn tables(&self, client: &Client, mode: &str) -> Result<Vec<Mirror>> {
        let sql = format!(
            "SELECT {}, mode FROM _highwater.tables WHERE sink = $1 AND source = $2 AND shape >= 0",
            Mirror::COLUMNS
        );
        let rows = client.query(&sql, &[&self.sink, &self.source]).await;
        let rows = rows.map_err(|error| failed(error, "could not read _highwater.tables"))?;
        let modes = rows.iter().map(|row| row.get::<_, String>(Mirror::FIELDS));
        if let Some(other) = modes.into_iter().find(|other| other != mode) {
            return Err(Error::halt(format!(
                "sink {:?} is set to {mode}, and its tables are of mode {other}",
                self.sink
            ))
            .hint(format!("set `mode` back to \"{other}\"; or give a sink of another name a `schema` of its own")));
        }
        rows.iter()
            .map(|row| {
                Mirror::from_row(row).map_err(|error| {
                    Error::halt("_highwater.tables cannot be read").because(error).hint("was it changed by hand?")
                })
            })
            .collect()
    }

    /// Remembers a table, within the step's transaction.
    pub(crate) async fn remember(&self, client: &Client, mirror: &Mirror, mode: &str) -> Result<()> {
        let sql =
            "INSERT INTO _highwater.tables AS t (schema_name, table_name, sink, source, stream, mode, shape, columns,
                          key_columns, generation, seen)
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8::text::jsonb, $9, $10, $11)
                   ON CONFLICT (schema_name, table_name) DO UPDATE
                      SET shape = excluded.shape, columns = excluded.columns, key_columns = excluded.key_columns,
                          generation = excluded.generation, seen = excluded.seen
                    WHERE t.sink = excluded.sink AND t.source = excluded.source AND t.stream = excluded.stream";
        let columns = serde_json::to_string(&mirror.columns).expect("columns serialise");
        let (shape, generation) = (i64::from(mirror.shape), mirror.generation as i64);
        let done = client
            .execute(
                sql,
                &[
                    &mirror.schema,
                    &mirror.name,
                    &self.sink,
                    &self.source,
                    &mirror.stream,
                    &mode,
                    &shape,
                    &columns,
                    &mirror.key,
                    &generation,
                    &mirror.seen,
                ],
            )
            .await
            .map_err(|error| failed(error, format!("could not remember table {}", mirror.quoted())))?;
        if done == 0 {
            let sql = "SELECT sink, source, stream FROM _highwater.tables WHERE schema_name = $1 AND table_name = $2";
            let row = client.query_one(sql, &[&mirror.schema, &mirror.name]).await;
            let row = row.map_err(|error| failed(error, "could not ask whose the table is"))?;
            let (sink, source, stream): (String, String, String) = (row.get(0), row.get(1), row.get(2));
            return Err(Error::halt(format!(
                "table {} belongs to stream {stream} of sink {sink:?} from source {source:?}",
                mirror.quoted()
            ))
            .hint("give one of the sinks a `schema` of its own, or take the table out of its `tables`"));
        }
        Ok(())
    }
}

struct Held {
    log: String,
    epoch: i64,
    writer: String,
    next: Option<i64>,
}

/// Makes the schema where it is not; may be repeated.
async fn create(client: &Client) -> Result<()> {
    let attempt = || "could not make the schema _highwater";
    let sql = "SELECT EXISTS (SELECT 1 FROM pg_attribute
                 WHERE attrelid = to_regclass('_highwater.watermarks') AND attname = 'tables_behind')";
    let there = client.query_one(sql, &[]).await;
    if there.map_err(|error| failed(error, attempt()))?.get(0) {
        return Ok(());
    }
    // Two sinks that begin at once take turns. IF NOT EXISTS would ask for the
    // right to make schemas even where an administrator has made this one.
    let sql = format!(
        "BEGIN; SELECT pg_advisory_xact_lock(7205759403792793);
         DO $$ BEGIN IF to_regnamespace('_highwater') IS NULL THEN CREATE SCHEMA _highwater; END IF; END $$; {SCHEMA} COMMIT"
    );
    client.batch_execute(&sql).await.map_err(|error| failed(error, attempt()))
}

//! A point of the log: the source under a snapshot that has seen what was
//! committed up to there, the destination with the checkpoint that lies there.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use compare::{Pace, Side};
use config::Postgres;
use connector::{Error, Result};
use serde_json::{Value, json};

use crate::control;

/// Between two questions.
const SOON: Duration = Duration::from_millis(20);
const LATER: Duration = Duration::from_millis(250);
/// After so long it is said what is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// How the running daemon is asked.
#[derive(Clone, Debug)]
pub(crate) struct Daemon {
    pub(crate) socket: PathBuf,
    pub(crate) source: String,
    pub(crate) sink: String,
    pub(crate) id: String,
}

/// Where both stand.
pub(crate) struct Point {
    /// The source there.
    pub(crate) source: Side,
    /// The consistent point.
    pub(crate) position: String,
    /// Streams whose reading is under way there.
    pub(crate) reading: Vec<String>,
    /// The sink's, which stands still for a moment.
    pub(crate) checkpoint: u64,
}

impl Daemon {
    pub(crate) async fn ask(&self, id: &str, what: &str, more: Value) -> Result<Value> {
        let mut request = json!({"command": "verify", "do": what, "id": id, "source": self.source, "sink": self.sink});
        if let (Value::Object(request), Value::Object(more)) = (&mut request, more) {
            request.extend(more);
        }
        let answer = control::ask(&self.socket, &request).await.ok_or_else(|| {
            Error::halt(format!("no daemon answers at {}", self.socket.display()))
                .hint("verify compares what a running daemon delivers: `highwater run`, then verify again")
        })?;
        match answer["error"].as_str() {
            None => Ok(answer),
            Some(error) => Err(told(error, &answer["remedy"])),
        }
    }

    /// Has both come to a point. `say` is told what is waited for.
    pub(crate) async fn point(&self, config: &Postgres, pace: Pace, mut say: impl FnMut(String)) -> Result<Point> {
        let holder = connector_postgres::connect(config).await?;
        let worker = connector_postgres::connect(config).await?;
        let mut sessions = Some((holder, worker, pace));
        self.ask(&self.id, "begin", json!({})).await?;
        let begun = Instant::now();
        let mut source = None;
        loop {
            let now = self.ask(&self.id, "look", json!({})).await?;
            let point = &now["point"];
            let is = point["is"].as_str().unwrap_or("gone");
            match is {
                // Capture may have begun anew for a table that appeared.
                "failed" => {
                    let error = Error::retry(point["error"].as_str().unwrap_or("the point cannot be had"));
                    return Err(match point["remedy"].as_str() {
                        Some(remedy) => error.hint(remedy),
                        None => error,
                    });
                }
                "gone" => return Err(Error::retry("the daemon has been started anew meanwhile").hint("verify again")),
                _ => {}
            }
            if let Some(error) = now["halted"]["error"].as_str() {
                return Err(told(error, &now["halted"]["remedy"]));
            }
            if is != "waiting"
                && let Some((holder, worker, pace)) = sessions.take()
            {
                let snapshot = point["snapshot"].as_str().unwrap_or_default();
                source = Some(Side::source(holder, worker, snapshot, pace).await?);
                self.ask(&self.id, "taken", json!({})).await?;
                continue;
            }
            if is == "marked" && now["checkpoint"].is_u64() {
                let source = source.ok_or_else(|| Error::halt("the source's snapshot was not taken over"))?;
                let reading = point["reading"].as_array().into_iter().flatten();
                return Ok(Point {
                    source,
                    position: point["position"].as_str().unwrap_or_default().to_owned(),
                    reading: reading.filter_map(Value::as_str).map(str::to_owned).collect(),
                    checkpoint: now["checkpoint"].as_u64().unwrap_or_default(),
                });
            }
            let waited = begun.elapsed();
            if waited > PATIENCE {
                say(waits_for(is, &now));
            }
            tokio::time::sleep(if waited > PATIENCE { LATER } else { SOON }).await;
        }
    }

    /// Both go on.
    pub(crate) async fn release(&self) {
        // They do so soon, whoever says so or not.
        let _ = self.ask(&self.id, "release", json!({})).await;
    }
}

fn waits_for(is: &str, now: &Value) -> String {
    let problem = now["waits"]["error"].as_str().map(|error| format!(" ({error})")).unwrap_or_default();
    match is {
        "waiting" => format!(
            "waiting for a point at the source: transactions in progress there end first, and a reading of tables that is under way{problem}"
        ),
        "ready" => format!("waiting for the log to come to the point{problem}"),
        _ => match now["behind"].as_u64() {
            Some(behind) => format!("waiting for the sink, {behind} events behind{problem}"),
            None => format!("waiting for the sink{problem}"),
        },
    }
}

fn told(error: &str, remedy: &Value) -> Error {
    let error = Error::halt(error);
    match remedy.as_str() {
        Some(remedy) => error.hint(remedy),
        None => error,
    }
}

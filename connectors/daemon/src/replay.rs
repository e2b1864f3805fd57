//! Moves a sink to another place in the log, after saying what that means for
//! it. The order stands in the log's state, and is obeyed by the delivery.

use config::{Config, Destination};
use connector::{Error, Result};
use connector_runtime::{Order, Replay};
use serde_json::json;
use storage::Offset;
use storage::outside::LogFiles;

use crate::exit::{Exit, failure, log_error};
use crate::tail::Place;
use crate::{layout, order, out, sinks};

/// What would be done.
struct Plan {
    replay: Replay,
    steps: Vec<String>,
}

pub(crate) async fn run(
    config: &Config,
    sink: &str,
    from: &str,
    source: Option<&str>,
    yes: bool,
    as_json: bool,
) -> Exit {
    let Some(wanted) = config.sinks.get(sink) else {
        let known: Vec<&str> = config.sinks.keys().map(String::as_str).collect();
        eprintln!("there is no sink {sink:?}; there is: {}", known.join(", "));
        return Exit::Usage;
    };
    let source = match (source, wanted.from.as_slice()) {
        (Some(source), from) if from.iter().any(|one| one == source) => source,
        (Some(source), from) => {
            eprintln!("sink {sink} takes nothing from {source:?}, but from {}", from.join(", "));
            return Exit::Usage;
        }
        (None, [source]) => source,
        (None, from) => {
            eprintln!("sink {sink} takes from {}: say which with --source", from.join(", "));
            return Exit::Usage;
        }
    };
    let place = match from {
        "snapshot" => None,
        from => match Place::parse(from) {
            Some(place) => Some(place),
            None => {
                eprintln!(
                    "{from:?} is neither `beginning`, an offset, a time like 2026-11-22T10:00:00Z, nor `snapshot`"
                );
                return Exit::Usage;
            }
        },
    };
    let done = async {
        let plan = plan(config, sink, source, place).await?;
        let running = if yes {
            Some(order::give(config, source, &Order::Replay(sink.into(), plan.replay.clone())).await?)
        } else {
            None
        };
        Ok::<_, Error>((plan, running))
    };
    match done.await {
        Ok((plan, running)) => {
            if as_json {
                out::line(json!({
                    "sink": sink, "source": source, "to": plan.replay, "steps": plan.steps,
                    "ordered": yes, "running": running,
                }));
                return Exit::Done;
            }
            for step in &plan.steps {
                out::line(format!("{sink}: {step}"));
            }
            out::line(match running {
                None => "`--yes` does it",
                Some(true) => "ordered; `highwater status` shows how it goes on",
                Some(false) => "ordered; it is done with the next `run`",
            });
            Exit::Done
        }
        Err(error) => {
            failure("replay", &error);
            Exit::Halted
        }
    }
}

async fn plan(config: &Config, sink: &str, source: &str, place: Option<Place>) -> Result<Plan> {
    let folder = layout::log(config, source);
    layout::has_log(&folder)?;
    let failed = |error| log_error(&folder, error);
    let files = LogFiles::open(&folder).map_err(failed)?;
    let standing = files.standing().map_err(failed)?;
    let Some(standing) = standing else {
        return Err(Error::halt(format!("there is no log in {}", folder.display())).hint("`highwater run` makes it"));
    };
    let Some(place) = place else {
        return Ok(Plan { replay: Replay::Snapshot, steps: sinks::read_again(&config.sinks[sink], source) });
    };
    let asked = match place {
        Place::Beginning => standing.start,
        Place::Offset(offset) => Offset(offset),
        Place::Time(time) => files.offset_at(time).map_err(failed)?,
    };
    if asked < standing.start || asked > standing.end {
        return Err(Error::halt(format!(
            "offset {asked} is not in the log, which holds {} to {}",
            standing.start, standing.end
        ))
        .hint("`--from beginning` goes as far back as there is; `--from snapshot` reads the tables again"));
    }
    let asked = files.transaction_at(asked).map_err(failed)?;
    let apart = connector_runtime::lanes(&standing.state, sink).min_by_key(|(_, lane)| lane.next);
    let apart = apart.filter(|(_, lane)| lane.next < asked.0);
    if let Some((stream, lane)) = apart.as_ref().filter(|(_, lane)| lane.next < standing.start.0) {
        return Err(Error::halt(format!(
            "{stream} waits apart at offset {}, and the log is kept only from {} on: moved back, it would lack what lies between",
            lane.next, standing.start
        ))
        .hint("`--from snapshot` reads the tables again"));
    }
    let asked = apart.as_ref().map_or(asked, |(_, lane)| Offset(lane.next));
    let (to, mut steps) =
        sinks::move_back(&config.sinks[sink], sink, source, asked, standing.start, place == Place::Beginning).await?;
    let to = files.transaction_at(to).map_err(failed)?;
    if standing.start.0 > 0 && place == Place::Beginning {
        steps.insert(
            0,
            format!("the log is kept only from offset {} on: what came before stays as it is", standing.start),
        );
    }
    if let Some((stream, lane)) = apart {
        let what = format!("{stream} waits apart at offset {}: from there on, so that it lacks nothing", lane.next);
        steps.insert(0, what);
    }
    let events = standing.end.0.saturating_sub(to.0);
    steps.push(format!("offsets {to} to {} are delivered again, {events} at most, and then what comes", standing.end));
    if matches!(config.sinks[sink].destination, Destination::ObjectStore(_)) {
        steps.push("a reader that lists the folder meanwhile sees fewer events, and none twice".into());
    }
    Ok(Plan { replay: Replay::To(to.0), steps })
}

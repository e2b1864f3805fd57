//! What a comparison asks of the running daemon.

use std::collections::BTreeMap;

use connector_postgres::PointState;
use connector_runtime::Health;
use serde_json::{Value, json};

use storage::EventLog;

use crate::status::Live;

/// Answers one question. Every one of them is short; whoever waits asks again.
pub(crate) fn running(lives: &[Live], asked: &Value) -> Value {
    let text = |name: &str| asked[name].as_str().unwrap_or_default();
    let (id, source, sink) = (text("id"), text("source"), text("sink"));
    let Some(live) = lives.iter().find(|live| live.name == source) else {
        return json!({"error": format!("the running daemon has no source {source:?}"), "remedy": RESTART});
    };
    match text("do") {
        "begin" => {
            if !live.sinks.iter().any(|of| of.name == sink) {
                return json!({"error": format!("the running daemon has no sink {sink:?}"), "remedy": RESTART});
            }
            live.holds.expect(id);
            live.watch.end_step(id, sink);
            json!({})
        }
        "look" => look(live, id, sink),
        "taken" => {
            live.watch.snapshot_taken(id);
            json!({})
        }
        "release" => {
            live.holds.release(id);
            live.watch.forget_point(id);
            json!({})
        }
        "mend" => {
            let keys = asked["keys"].as_array().into_iter().flatten();
            let key = |key: &Value| -> Option<Vec<String>> {
                key.as_array()?.iter().map(|value| value.as_str().map(str::to_owned)).collect()
            };
            let keys: Option<Vec<Vec<String>>> = keys.map(key).collect();
            let Some(keys) = keys else { return json!({"error": "not a list of keys"}) };
            live.watch.mend(id, BTreeMap::from([(text("stream").to_owned(), keys)]));
            json!({})
        }
        "read_again" => {
            let streams: Vec<&str> =
                asked["streams"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            json!({"streams": live.watch.read_again(|stream| streams.contains(&stream))})
        }
        _ => json!({"error": "this daemon does not know what is asked for", "remedy": RESTART}),
    }
}

const RESTART: &str = "was it started with another configuration or version? Start it again";

fn look(live: &Live, id: &str, sink: &str) -> Value {
    let high_water = live.log.high_water().0;
    let state = live.sinks.iter().find(|of| of.name == sink).map(|of| of.status.get());
    let source = live.status.get();
    let problem = match &state {
        Some(state) if state.health == Health::Halted => json!(state.problem),
        _ if source.health == Health::Halted => json!(source.problem),
        _ => Value::Null,
    };
    let waits = state.as_ref().and_then(|state| state.problem.clone()).or(source.problem);
    json!({
        "point": live.watch.point(id).map(|point: PointState| json!(point)),
        "checkpoint": live.holds.reached(id),
        "behind": state.and_then(|state| state.checkpoint).map(|at| high_water.saturating_sub(at)),
        "halted": problem,
        "waits": waits,
    })
}

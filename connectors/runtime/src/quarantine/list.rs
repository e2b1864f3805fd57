//! What waits, for people: read from the log's frames, beside a running daemon too.

use std::sync::Arc;

use connector::{
    Batch, Change, EventJson, RawCell, RawCells, Reader, Result, Shape, Shapes, Table, Transaction, Unfit, ValueJson,
    timestamp,
};
use serde_json::{Map, Value, json};
use storage::State;

use super::act::Filter;
use super::fence::Keys;
use super::held::frames_of;
use super::{broken, reason_of};

/// A row that waits.
pub struct HeldRow<'a> {
    shape: &'a Arc<Shape>,
    transaction: Transaction<'a>,
    change: Change<'a>,
    /// Why it is here itself; None: it waits behind another.
    reason: Option<String>,
}

/// Goes over all that waits, in order. `read` gives the pending frame at an offset.
pub fn held_rows(
    state: &State,
    filter: &Filter,
    mut read: impl FnMut(u64) -> Result<Batch>,
    mut each: impl FnMut(&HeldRow<'_>) -> Result<()>,
) -> Result<()> {
    let shapes = Shapes::from_state(state.iter())
        .map_err(|error| connector::Error::halt("could not read the schemas in the log's state").because(error))?;
    for (from, held) in frames_of(state)? {
        let batch = read(from)?;
        let mut row = 0;
        for run in batch.runs() {
            let run = run.map_err(|error| broken(from, error))?;
            let Some(shape) = shapes.get(run.schema) else { continue };
            for change in run.changes() {
                let change = change.map_err(|error| broken(from, error))?;
                let place = row;
                row += 1;
                if !held.waits(place) {
                    continue;
                }
                let reason = match held.reason(place) {
                    None if change.unfit => {
                        let unfit = Unfit::read(change.value).map_err(|error| broken(from, error))?;
                        Some(reason_of(&unfit, &shape.table))
                    }
                    reason => reason.map(str::to_owned),
                };
                let told = reason.as_deref().unwrap_or("behind");
                if filter.picks(&shape.table, told, || key_of(shape, &change)) {
                    each(&HeldRow { shape, transaction: run.transaction, change, reason })?;
                }
            }
        }
    }
    Ok(())
}

impl HeldRow<'_> {
    /// The end of its transaction in the source's stream.
    pub fn position(&self) -> &[u8] {
        self.transaction.position
    }

    /// Without the row itself, or with it.
    pub fn json(&self, position: &str, whole: bool) -> Value {
        let table = &self.shape.table;
        let (code, detail) = match &self.reason {
            None => ("behind", "an earlier change of its key waits"),
            Some(reason) => reason.split_once(": ").unwrap_or((reason, "")),
        };
        let tx = (!self.transaction.tx.is_empty()).then_some(self.transaction.tx);
        let mut out = json!({
            "source": table.source,
            "schema": table.schema,
            "table": table.name,
            "op": self.change.op.name(),
            "key": key_of(self.shape, &self.change),
            "reason": code,
            "detail": detail,
            "position": position,
            "ordinal": self.change.ordinal,
            "tx": tx,
            "commit_time": timestamp(self.transaction.commit_time.0, true),
            "offset": self.change.offset.0,
        });
        if whole && let Some(out) = out.as_object_mut() {
            if self.change.unfit {
                out.insert("as_it_came".into(), as_it_came(table, self.change.value));
            } else {
                let (shape, transaction, change) = (self.shape, self.transaction, self.change);
                let event = EventJson::Change { shape, transaction, change, position };
                let event = serde_json::to_value(event).unwrap_or_default();
                for part in ["old_key", "before", "after", "absent"] {
                    out.insert(part.into(), event[part].clone());
                }
            }
        }
        out
    }
}

/// The columns as the database's text; those that were not sent are left out.
fn as_it_came(table: &Table, body: &[u8]) -> Value {
    let row = |cells: RawCells<'_>| {
        let mut out = Map::new();
        for (column, cell) in table.columns.iter().zip(cells.iter()) {
            match cell {
                RawCell::Text(text) => {
                    out.insert(column.name.clone(), String::from_utf8_lossy(text).into());
                }
                RawCell::Null => {
                    out.insert(column.name.clone(), Value::Null);
                }
                RawCell::Unchanged => {}
            }
        }
        Value::Object(out)
    };
    match Unfit::read(body) {
        Ok(unfit) => json!({
            "old": unfit.old.map(|(_, cells)| row(cells)),
            "new": unfit.new.map(row),
            "bytes": unfit.size,
        }),
        Err(error) => json!({"error": error.to_string()}),
    }
}

/// A row's key as `tail` prints it; null where it has none or it cannot be carried.
pub(crate) fn key_of(shape: &Shape, change: &Change<'_>) -> Value {
    let table = &shape.table;
    let mut keys = Keys::default();
    if keys.read(table, change).is_err() || !keys.known {
        return Value::Null;
    }
    let mut reader = Reader::new(&keys.key);
    let mut out = Map::new();
    for &i in &table.key {
        let column = &table.columns[i];
        let value = ValueJson::read(&mut reader, column, true).ok().and_then(|value| serde_json::to_value(value).ok());
        out.insert(column.name.clone(), value.unwrap_or_default());
    }
    Value::Object(out)
}

/// Whether a key is the one that somebody typed: an object, or the value of a
/// key of one column; numbers and texts alike.
pub(crate) fn key_is(key: &Value, wanted: &Value) -> bool {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let Some(key) = key.as_object() else { return false };
    match wanted {
        Value::Object(wanted) => {
            wanted.len() == key.len()
                && wanted.iter().all(|(name, value)| key.get(name).is_some_and(|k| text(k) == text(value)))
        }
        wanted => key.len() == 1 && key.values().all(|value| text(value) == text(wanted)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_by_what_somebody_types() {
        let key = json!({"id": 42});
        for wanted in [json!(42), json!("42"), json!({"id": 42}), json!({"id": "42"})] {
            assert!(key_is(&key, &wanted), "{wanted}");
        }
        for wanted in [json!(4), json!({"id": 42, "x": 1}), json!({"no": 42})] {
            assert!(!key_is(&key, &wanted), "{wanted}");
        }
        assert!(!key_is(&Value::Null, &json!(42)));
    }
}

//! A table against the files of an object store: both folded to rows, here.

use compare::{Finding, Found, Limits, Outcome};
use connector::{Error, Result};
use connector_object_store::{Files, State, Wrong};
use connector_postgres::SourceRows;

/// Compares one table at an offset.
pub(crate) async fn compare(
    files: &Files,
    rows: SourceRows,
    upto: u64,
    rows_per_second: u64,
    limits: Limits,
) -> Result<Outcome> {
    let table = rows.table().clone();
    let mut state = State::new(&table);
    if let Err(why) = files.fold(&table.stream(), upto, &mut state).await? {
        return Ok(Outcome::skipped(why));
    }
    let sink_rows = state.rows();
    let read = tokio::task::spawn_blocking(move || {
        let whole = rows.read(rows_per_second, |body| state.meet(body));
        whole.map(|whole| (whole, state))
    });
    let (whole, state) = read.await.map_err(|error| Error::halt("could not compare").because(error))??;
    if !whole {
        return Ok(Outcome::skipped(
            "it was rewritten, truncated or altered while it was compared: its rows of before are gone; verify again",
        ));
    }
    let (source_rows, wrong) = state.finish();
    let mut outcome = Outcome { source_rows, sink_rows, keys: Some(Vec::new()), ..Outcome::default() };
    for Wrong { there, here, key, columns } in wrong {
        let found = match (there, here) {
            (true, true) => Found::Different,
            (true, false) => Found::Missing,
            _ => Found::Extra,
        };
        match found {
            Found::Missing => outcome.missing += 1,
            Found::Extra => outcome.extra += 1,
            Found::Different => outcome.different += 1,
        }
        if outcome.findings.len() < limits.findings {
            let names = table.key.iter().map(|&i| table.columns[i].name.clone());
            // Of a file's values only hashes are held.
            let columns = columns.into_iter().map(|i| (table.columns[i].name.clone(), None)).collect();
            let key = names.zip(key.iter().cloned()).collect();
            outcome.findings.push(Finding { found, key, times: 1, columns });
        }
        match &mut outcome.keys {
            Some(keys) if !table.key.is_empty() && keys.len() < limits.keys => keys.push(key),
            keys => *keys = None,
        }
    }
    Ok(outcome)
}

//! How a snapshot goes on: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use connector_postgres::Watch;
use indicatif::{ProgressBar, ProgressStyle};
use tokio_util::sync::CancellationToken;

const LINE: Duration = Duration::from_secs(5);

/// Shows progress until cancelled.
pub(crate) async fn show(source: String, watch: Watch, stop: CancellationToken) {
    let terminal = std::io::stderr().is_terminal();
    let mut bar: Option<ProgressBar> = None;
    let mut begun: Option<(Instant, u64)> = None;
    let mut said = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(Duration::from_millis(250)) => {}
        }
        if !watch.is_reading() {
            if let Some(bar) = bar.take() {
                bar.finish_and_clear();
            }
            begun = None;
            continue;
        }
        let tables = watch.tables();
        let (done, total) =
            tables.iter().fold((0, 0), |(d, t), table| (d + table.chunks, t + table.total.max(table.chunks)));
        let rows: u64 = tables.iter().map(|table| table.rows).sum();
        let (since, rows_before) = *begun.get_or_insert_with(|| (Instant::now(), rows));
        let seconds = since.elapsed().as_secs_f64().max(0.001);
        let rate = rows.saturating_sub(rows_before) as f64 / seconds;
        if terminal {
            let bar = bar.get_or_insert_with(|| {
                let template = "{prefix} {bar:30} {pos}/{len} chunks, {msg}, {eta} left";
                let style = ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar());
                ProgressBar::new(total).with_style(style).with_prefix(format!("snapshot of {source}"))
            });
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(format!("{rows} rows, {rate:.0} rows/s"));
        } else if said.elapsed() >= LINE {
            said = Instant::now();
            let left = (total - done) as f64 * seconds / (done as f64).max(1.0);
            tracing::info!(
                source,
                chunks = format!("{done}/{total}"),
                rows,
                rows_per_second = rate as u64,
                seconds_left = left as u64,
                "snapshot"
            );
        }
    }
}

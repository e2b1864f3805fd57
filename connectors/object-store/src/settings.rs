//! What the sink was told.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use config::ObjectStore as Config;

use crate::format::Form;

/// S3 takes no smaller parts than 5 MiB.
const PART: usize = 8 << 20;

/// Everything the sink needs.
#[derive(Clone)]
pub struct Settings {
    /// Its name among all that write there: `<sink>/<source>`.
    pub sink: String,
    /// Where rows wait before they go up; emptied at every opening.
    pub staging: PathBuf,
    /// A step is full at so many bytes of rows.
    pub cut_bytes: u64,
    /// What files are.
    pub form: Form,
    /// How long they stay; None: for ever.
    pub retain: Option<Duration>,
    /// Larger files go up in parts of this size.
    pub part_bytes: usize,
    /// How positions are printed.
    pub position: fn(&[u8]) -> String,
    /// Microseconds since 1970.
    pub now: fn() -> i64,
}

impl Settings {
    /// From the configuration's section.
    pub fn new(sink: &str, source: &str, config: &Config, staging: PathBuf, position: fn(&[u8]) -> String) -> Self {
        Self {
            sink: format!("{sink}/{source}"),
            staging,
            cut_bytes: config.cut_bytes,
            form: Form::new(config),
            retain: config.retain,
            part_bytes: PART,
            position,
            now: || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as i64),
        }
    }
}

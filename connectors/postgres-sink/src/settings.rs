//! What the sink was told.

use config::{DroppedColumns, PostgresSink as Config, WarehouseMode};

/// Everything the sink needs.
#[derive(Clone)]
pub struct Settings {
    /// Its name.
    pub sink: String,
    /// The source's name.
    pub source: String,
    /// Mirror or history.
    pub mode: WarehouseMode,
    /// All tables go there; else as at the source.
    pub schema: Option<String>,
    /// What becomes of dropped columns.
    pub drop: DroppedColumns,
    /// A step is full at so many bytes of rows.
    pub cut_bytes: usize,
    /// So many of them are held in memory.
    pub held_bytes: usize,
    /// Of our own columns.
    pub meta_prefix: String,
    /// How positions are printed.
    pub position: fn(&[u8]) -> String,
}

/// More is of no use: the server is given its work in smaller pieces.
const HELD: usize = 32 << 20;

impl Settings {
    /// From the configuration's section.
    pub fn new(sink: &str, source: &str, config: &Config, position: fn(&[u8]) -> String) -> Self {
        let cut_bytes = usize::try_from(config.cut_bytes).unwrap_or(usize::MAX);
        Self {
            sink: sink.into(),
            source: source.into(),
            mode: config.mode,
            schema: config.schema.clone(),
            drop: config.drop,
            cut_bytes,
            held_bytes: cut_bytes.min(HELD),
            meta_prefix: config.meta_prefix.clone(),
            position,
        }
    }
}

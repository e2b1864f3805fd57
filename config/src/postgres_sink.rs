//! `type = "postgres"` of a sink: tables in a PostgreSQL warehouse.

use std::time::Duration;

use crate::postgres::{PostgresServer, Session};
use crate::section::Section;

/// A PostgreSQL warehouse.
#[derive(Clone, Debug)]
pub struct PostgresSink {
    /// Where it is.
    pub server: PostgresServer,
    /// What its tables are.
    pub mode: WarehouseMode,
    /// All tables go into this schema; else into the source's.
    pub schema: Option<String>,
    /// What becomes of a column that the source has dropped.
    pub drop: DroppedColumns,
    /// A step ends when so many bytes of rows were taken.
    pub cut_bytes: u64,
    /// Or when its first event has waited so long.
    pub cut_age: Duration,
    /// Of our own columns.
    pub meta_prefix: String,
}

/// What the tables of a warehouse are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WarehouseMode {
    /// The source's tables as they are now.
    Mirror,
    /// Every change a row.
    History,
}

/// What becomes of a column that the source has dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DroppedColumns {
    /// It stays, and is no longer written.
    Keep,
    /// It is dropped too.
    Drop,
}

impl PostgresSink {
    pub(crate) fn read(mut section: Section<'_>) -> Self {
        let server = PostgresServer::read(&mut section);
        if !matches!(server.session, Session::Any | Session::ReadWrite) {
            section.fault("url", "a warehouse must take writes", Some("target_session_attrs=read-write"));
        }
        let mode = match section.choice("mode", &["mirror", "history"]) {
            "history" => WarehouseMode::History,
            _ => WarehouseMode::Mirror,
        };
        let drop = match section.choice("drop", &["keep", "drop"]) {
            "drop" => DroppedColumns::Drop,
            _ => DroppedColumns::Keep,
        };
        let schema = section.text("schema");
        if schema.as_deref().is_some_and(|schema| schema.is_empty() || schema.len() > 63) {
            section.fault("schema", "a schema's name has 1 to 63 bytes", None);
        }
        if schema.as_deref().is_some_and(|schema| schema == "_highwater" || schema.starts_with("pg_")) {
            section.fault("schema", "is reserved", Some("leave it out: the source's schemas"));
        }
        // So short that a change is visible at once, so long that one commit
        // takes many transactions along when they come fast.
        let (mut cut_bytes, mut cut_age) = (128 << 20, Duration::from_millis(20));
        if let Some(mut cut) = section.section("cut") {
            cut_bytes = cut.bytes("bytes").unwrap_or(cut_bytes).max(1);
            cut_age = cut.duration("age").unwrap_or(cut_age);
            cut.finish();
        }
        let meta_prefix = section.text("meta_prefix").unwrap_or_else(|| "_hw_".into());
        if meta_prefix.is_empty() || meta_prefix.len() > 32 {
            section.fault("meta_prefix", "has 1 to 32 bytes", None);
        }
        section.finish();
        Self { server, mode, schema, drop, cut_bytes, cut_age, meta_prefix }
    }
}

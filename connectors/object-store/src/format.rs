//! How a step's files are formed: announced with it, and kept to.

use config::{Compression, FileFormat, PartitionBy};
use connector::{Error, Table};
use serde::{Deserialize, Serialize};

/// What a file is, whatever it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Form {
    /// Its format.
    pub format: Format,
    /// Its compression. Parquet has one and does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Codec>,
    /// Of our own columns.
    pub meta_prefix: String,
    /// `_hw_before` in every table.
    pub before: bool,
    /// Folders within the stream's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<Partition>,
}

/// The formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Columns.
    Parquet,
    /// Object container files.
    Avro,
    /// A JSON object a line.
    Ndjson,
}

impl Format {
    /// Pieces of a file that wait to be packed, at most: a piece of Parquet is some
    /// MiB, one of the others 128 KiB. (Avro without compression: 4.2 M rows a second
    /// with 2 of them, 4.5 with 4, 4.9 with 16.)
    pub(crate) fn waiting(self) -> usize {
        match self {
            Self::Parquet => 2,
            Self::Avro | Self::Ndjson => 16,
        }
    }
}

/// The compressions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Codec {
    /// zstd, level 1.
    Zstd,
    /// gzip.
    Gzip,
    /// Deflate without a header, as Avro has it.
    Deflate,
    /// None.
    None,
}

/// What chooses a file's folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Partition {
    /// The day of the commit.
    CommitDate,
    /// A column's value, in tables that have it.
    Column(String),
}

impl Form {
    /// As the configuration says.
    pub fn new(config: &config::ObjectStore) -> Self {
        let format = match config.format {
            FileFormat::Parquet => Format::Parquet,
            FileFormat::Avro => Format::Avro,
            FileFormat::Ndjson => Format::Ndjson,
        };
        let codec = match config.compression {
            Compression::Zstd => Codec::Zstd,
            Compression::Gzip => Codec::Gzip,
            Compression::Deflate => Codec::Deflate,
            Compression::None => Codec::None,
        };
        Self {
            format,
            compression: (format != Format::Parquet).then_some(codec),
            meta_prefix: config.meta_prefix.clone(),
            before: config.before,
            partition: config.partition.as_ref().map(|partition| match partition {
                PartitionBy::CommitDate => Partition::CommitDate,
                PartitionBy::Column(column) => Partition::Column(column.clone()),
            }),
        }
    }

    /// How names of such files end.
    pub(crate) fn suffix(&self) -> &'static str {
        match (self.format, self.codec()) {
            (Format::Parquet, _) => "parquet",
            (Format::Avro, _) => "avro",
            (Format::Ndjson, Codec::Gzip) => "ndjson.gz",
            (Format::Ndjson, Codec::Zstd) => "ndjson.zst",
            (Format::Ndjson, _) => "ndjson",
        }
    }

    /// Why a table cannot be delivered: a column that would stand beside one of
    /// ours of the same name.
    pub(crate) fn refusal(&self, table: &Table) -> Option<Error> {
        let ours = |name: &str| name.strip_prefix(&self.meta_prefix).is_some_and(|name| OURS.contains(&name));
        let column = table.columns.iter().map(|column| &column.name).find(|name| ours(name))?;
        let stream = table.stream();
        let refused = Error::halt(format!("column {column:?} of {stream} has the name of one of ours"));
        Some(refused.hint("set another `meta_prefix` of the sink").of_stream(&stream))
    }

    pub(crate) fn codec(&self) -> Codec {
        self.compression.unwrap_or(Codec::Zstd)
    }
}

/// Our own columns, behind the prefix, in their order. Whoever writes or reads
/// one takes its name from here.
pub(crate) const OURS: [&str; 9] =
    ["op", "offset", "ordinal", "position", "tx", "commit_time", "absent", "old_key", "before"];

/// First and end offset of a data file of any format, by its name.
pub(crate) fn offsets(name: &str) -> Option<(u64, u64)> {
    let (range, suffix) = name.split_once('.')?;
    if !matches!(suffix, "parquet" | "avro" | "ndjson" | "ndjson.gz" | "ndjson.zst") {
        return None;
    }
    let (first, end) = range.split_once('-')?;
    let number = |digits: &str| (digits.len() == 20).then(|| digits.parse().ok()).flatten();
    Some((number(first)?, number(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_file_is_known_by_its_name() {
        let name = "00000000000000000003-00000000000000000203";
        for suffix in ["parquet", "avro", "ndjson", "ndjson.gz", "ndjson.zst"] {
            assert_eq!(offsets(&format!("{name}.{suffix}")), Some((3, 203)));
        }
        for other in ["x.parquet", "3-203.parquet", "_SUCCESS", "00000000000000000003-00000000000000000203.parquet#1"] {
            assert_eq!(offsets(other), None, "{other}");
        }
    }

    #[test]
    fn an_announcement_of_the_first_version_is_read() {
        let form: Form =
            serde_json::from_str(r#"{"format": "parquet", "meta_prefix": "_hw_", "before": false}"#).unwrap();
        assert_eq!((form.suffix(), form.partition), ("parquet", None));
    }
}

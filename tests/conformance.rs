//! The object-store sink by the suite that every sink must pass: in memory, in a
//! folder, on S3, Google's and Azure's stores, in each format; small files and
//! such as go up in parts.

mod watched;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use connector::conformance::{Configured, Destination, Process, apart, suite};
use connector_object_store::{Codec, Form, Format, ObjectStoreSink, Settings, Store};
use highwater_tests::{Azure, Gcs, S3, folder, offsets_of};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt};

use watched::{Reader, Watched, files};

struct Lake {
    store: Arc<dyn ObjectStore>,
    /// Where it is a folder.
    folder: Option<PathBuf>,
    format: Format,
    staging: PathBuf,
    sinks: AtomicUsize,
    part: usize,
    reader: Arc<Mutex<Reader>>,
}

impl Lake {
    fn new(store: Arc<dyn ObjectStore>, format: Format, staging: PathBuf, part: usize) -> Self {
        Self { store, folder: None, format, staging, sinks: AtomicUsize::new(0), part, reader: Arc::default() }
    }
}

impl Drop for Lake {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.staging);
    }
}

impl Destination for Lake {
    type Sink = ObjectStoreSink;

    fn sink(&self, process: &Arc<Process>, configured: Configured) -> ObjectStoreSink {
        let nth = self.sinks.fetch_add(1, Ordering::Relaxed).to_string();
        let changed = configured == Configured::Changed;
        let settings = Settings {
            sink: "lake/shop".into(),
            staging: self.staging.join(nth),
            cut_bytes: if changed { 1 } else { 1 << 20 },
            form: form(self.format, changed),
            retain: None,
            part_bytes: self.part,
            position: |bytes| format!("{bytes:02x?}"),
            now: || 0,
        };
        let (store, process, reader) = (self.store.clone(), process.clone(), self.reader.clone());
        let folder = self.folder.clone();
        let connect = move || -> connector::Result<Store> {
            let watched = Watched { store: store.clone(), process: process.clone(), reader: reader.clone() };
            Ok(Store { folder: folder.clone(), ..Store::from(Arc::new(watched) as Arc<dyn ObjectStore>) })
        };
        ObjectStoreSink::on(settings, connect).unwrap()
    }

    async fn held(&self) -> BTreeMap<String, Vec<u64>> {
        assert_eq!(self.reader.lock().unwrap().wrong, None, "what a reader sees at every moment");
        let mut held: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (stream, files) in files(&*self.store).await {
            for file in files {
                let bytes = self.store.get(&file.path).await.unwrap().bytes().await.unwrap();
                held.entry(stream.clone()).or_default().extend(offsets_of(&file.path, bytes));
            }
        }
        held
    }
}

/// Another configuration has another format too.
fn form(format: Format, changed: bool) -> Form {
    let format = match (format, changed) {
        (format, false) => format,
        (Format::Parquet, true) => Format::Avro,
        (Format::Avro, true) => Format::Ndjson,
        (Format::Ndjson, true) => Format::Parquet,
    };
    let compression = match (format, changed) {
        (Format::Parquet, _) => None,
        (Format::Avro, false) => Some(Codec::Deflate),
        (Format::Ndjson, false) => Some(Codec::Gzip),
        (Format::Ndjson, true) => Some(Codec::Zstd),
        (Format::Avro, true) => Some(Codec::None),
    };
    let meta_prefix = if changed { "_other_" } else { "_hw_" }.into();
    Form { format, compression, meta_prefix, before: changed, partition: None }
}

const FORMATS: [Format; 3] = [Format::Parquet, Format::Avro, Format::Ndjson];

/// A folder of its own each time.
fn scratch(name: &str) -> impl Fn() -> PathBuf + use<> {
    let (root, count) = (folder(name), AtomicUsize::new(0));
    move || root.join(count.fetch_add(1, Ordering::Relaxed).to_string())
}

const WHOLE: usize = 8 << 20;
/// Most of the suite's files are larger.
const IN_PARTS: usize = 1 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn the_sink_keeps_its_promise_in_memory_whatever_operation_fails() {
    for format in FORMATS {
        for part in [WHOLE, IN_PARTS] {
            let staging = scratch(&format!("conform-memory-{format:?}-{part}"));
            let make = async || Lake::new(Arc::new(InMemory::new()), format, staging(), part);
            assert_eq!(suite(make, 1).await, [], "{format:?} {part}");
        }
    }
}

// In one format each operation; what another changes of it, some tell.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_waits_apart_is_there_once_whatever_operation_fails() {
    for (format, part, stride) in [(Format::Parquet, IN_PARTS, 1), (Format::Avro, WHOLE, 7), (Format::Ndjson, WHOLE, 7)]
    {
        let staging = scratch(&format!("conform-apart-{format:?}"));
        let make = async || Lake::new(Arc::new(InMemory::new()), format, staging(), part);
        assert_eq!(apart(make, stride).await, [], "{format:?}");
    }
}

// Each operation is tried in memory; elsewhere some, for the store to mean the
// same by them.
#[tokio::test(flavor = "multi_thread")]
async fn the_sink_keeps_its_promise_in_a_folder_whatever_operation_fails() {
    for format in FORMATS {
        for part in [WHOLE, IN_PARTS] {
            let name = format!("{format:?}-{part}");
            let (staging, lakes) = (scratch(&format!("conform-{name}")), scratch(&format!("conform-lake-{name}")));
            let make = async || {
                let folder = lakes();
                std::fs::create_dir_all(&folder).unwrap();
                let store = LocalFileSystem::new_with_prefix(&folder).unwrap();
                let mut lake = Lake::new(Arc::new(store), format, staging(), part);
                lake.folder = Some(folder);
                lake
            };
            assert_eq!(suite(&make, 5).await, [], "{name}");
            if part == WHOLE {
                assert_eq!(apart(make, 23).await, [], "{name}");
            }
        }
    }
}

async fn conform(name: &str, store: Arc<dyn ObjectStore>, stride: usize) {
    for format in FORMATS {
        let (staging, count) = (scratch(&format!("conform-{name}-{format:?}")), AtomicUsize::new(0));
        let make = async || {
            let prefix = format!("{format:?}/{}", count.fetch_add(1, Ordering::Relaxed));
            Lake::new(Arc::new(PrefixStore::new(store.clone(), prefix)), format, staging(), WHOLE)
        };
        assert_eq!(suite(&make, stride).await, [], "{name} {format:?}");
        if format == Format::Parquet {
            assert_eq!(apart(make, stride * 2).await, [], "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sink_keeps_its_promise_on_s3_whatever_operation_fails() {
    let s3 = S3::start().await;
    conform("s3", s3.store(), 23).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sink_keeps_its_promise_on_googles_store_whatever_operation_fails() {
    let gcs = Gcs::start().await;
    conform("gcs", gcs.store(), 7).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sink_keeps_its_promise_on_azures_store_whatever_operation_fails() {
    let azure = Azure::start().await;
    conform("azure", azure.store(), 23).await;
}

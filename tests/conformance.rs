//! The object-store sink by the suite that every sink must pass: on a folder, in
//! memory, and on S3; small files and such as go up in parts.

mod watched;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use connector::conformance::{Configured, Destination, Process, suite};
use connector_object_store::{ObjectStoreSink, Settings};
use highwater_tests::{S3, folder};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use watched::{Reader, Watched, files};

struct Lake {
    store: Arc<dyn ObjectStore>,
    staging: PathBuf,
    sinks: AtomicUsize,
    part: usize,
    reader: Arc<Mutex<Reader>>,
}

impl Lake {
    fn new(store: Arc<dyn ObjectStore>, staging: PathBuf, part: usize) -> Self {
        Self { store, staging, sinks: AtomicUsize::new(0), part, reader: Arc::default() }
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
            before: changed,
            meta_prefix: if changed { "_other_" } else { "_hw_" }.into(),
            part_bytes: self.part,
            position: |bytes| format!("{bytes:02x?}"),
        };
        let (store, process, reader) = (self.store.clone(), process.clone(), self.reader.clone());
        let connect = move || -> connector::Result<Arc<dyn ObjectStore>> {
            Ok(Arc::new(Watched { store: store.clone(), process: process.clone(), reader: reader.clone() }))
        };
        ObjectStoreSink::on(settings, connect).unwrap()
    }

    async fn held(&self) -> BTreeMap<String, Vec<u64>> {
        assert_eq!(self.reader.lock().unwrap().wrong, None, "what a reader sees at every moment");
        let mut held: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (stream, files) in files(&*self.store).await {
            for (first, end) in files {
                let path = Path::parse(format!("{stream}/{first:020}-{end:020}.parquet")).unwrap();
                let bytes = self.store.get(&path).await.unwrap().bytes().await.unwrap();
                for batch in ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap() {
                    let batch = batch.unwrap();
                    let offsets = batch.column_by_name("_hw_offset").or(batch.column_by_name("_other_offset"));
                    let offsets = offsets.unwrap().as_primitive::<Int64Type>().values().iter();
                    held.entry(stream.clone()).or_default().extend(offsets.map(|&offset| offset as u64));
                }
            }
        }
        held
    }
}

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
    for part in [WHOLE, IN_PARTS] {
        let staging = scratch(&format!("conform-memory-{part}"));
        assert_eq!(suite(async || Lake::new(Arc::new(InMemory::new()), staging(), part), 1).await, []);
    }
}

// Each operation is tried in memory; elsewhere some, for the store to mean the
// same by them.
#[tokio::test(flavor = "multi_thread")]
async fn the_sink_keeps_its_promise_in_a_folder_whatever_operation_fails() {
    for part in [WHOLE, IN_PARTS] {
        let (staging, lakes) = (scratch(&format!("conform-{part}")), scratch(&format!("conform-lake-{part}")));
        let make = async || {
            let lake = lakes();
            std::fs::create_dir_all(&lake).unwrap();
            let store = LocalFileSystem::new_with_prefix(lake).unwrap();
            Lake::new(Arc::new(store), staging(), part)
        };
        assert_eq!(suite(make, 3).await, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sink_keeps_its_promise_on_s3_whatever_operation_fails() {
    let s3 = S3::start().await;
    let (staging, count) = (scratch("conform-s3"), AtomicUsize::new(0));
    let make = async || {
        let prefix = format!("at/{}", count.fetch_add(1, Ordering::Relaxed));
        Lake::new(Arc::new(PrefixStore::new(s3.store(), prefix)), staging(), WHOLE)
    };
    assert_eq!(suite(make, 7).await, []);
}

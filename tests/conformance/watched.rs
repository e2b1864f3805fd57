//! A store of which every operation is a process's, and after every write a
//! look at what a reader finds who lists `<stream>/*` of any format and no more.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use connector::conformance::Process;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

/// First and end offsets of each stream's files, and whether they were ever wrong.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    files: BTreeMap<String, Vec<File>>,
    pub(crate) wrong: Option<String>,
}

impl Reader {
    /// Files only come, behind all that are there, and never overlap.
    async fn look(this: &Mutex<Self>, store: &dyn ObjectStore) {
        let files = files(store).await;
        let mut this = this.lock().unwrap();
        for (stream, now) in &files {
            let before = this.files.get(stream).cloned().unwrap_or_default();
            if !now.starts_with(&before) || now.windows(2).any(|pair| pair[0].end > pair[1].first) {
                this.wrong.get_or_insert(format!("{stream} had files {before:?}, then {now:?}"));
            }
        }
        if this.files.keys().any(|stream| !files.contains_key(stream)) {
            this.wrong.get_or_insert("a stream is gone".into());
        }
        this.files = files;
    }
}

/// A data file, by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct File {
    first: u64,
    end: u64,
    pub(crate) path: Path,
}

/// Each stream's files by their names, in order.
pub(crate) async fn files(store: &dyn ObjectStore) -> BTreeMap<String, Vec<File>> {
    let mut files: BTreeMap<String, Vec<File>> = BTreeMap::new();
    for meta in store.list(None).try_collect::<Vec<_>>().await.unwrap() {
        let Some((stream, name)) = meta.location.as_ref().rsplit_once('/') else { continue };
        let Some((name, suffix)) = name.split_once('.') else { continue };
        if !["parquet", "avro", "ndjson", "ndjson.gz", "ndjson.zst"].contains(&suffix) {
            continue;
        }
        let (first, end) = name.split_once('-').unwrap();
        let (first, end) = (first.parse().unwrap(), end.parse().unwrap());
        files.entry(stream.into()).or_default().push(File { first, end, path: meta.location });
    }
    files.values_mut().for_each(|files| files.sort_unstable());
    files
}

/// See the module.
pub(crate) struct Watched {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) process: Arc<Process>,
    pub(crate) reader: Arc<Mutex<Reader>>,
}

fn lost() -> Error {
    Error::Generic { store: "watched", source: "the answer is lost".into() }
}

impl Watched {
    async fn write<T>(&self, operation: impl Future<Output = Result<T>>) -> Result<T> {
        let written = async {
            let done = operation.await;
            Reader::look(&self.reader, &*self.store).await;
            done
        };
        self.process.operation(written, lost).await
    }

    fn listed(&self, listing: BoxStream<'static, Result<ObjectMeta>>) -> BoxStream<'static, Result<ObjectMeta>> {
        let process = self.process.clone();
        let all = async move {
            match process.operation(listing.try_collect::<Vec<_>>(), lost).await {
                Ok(all) => stream::iter(all.into_iter().map(Ok).collect::<Vec<_>>()),
                Err(error) => stream::iter(vec![Err(error)]),
            }
        };
        all.into_stream().flatten().boxed()
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watched")
    }
}

impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a watched store")
    }
}

#[async_trait]
impl ObjectStore for Watched {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.write(self.store.put_opts(location, payload, options)).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let begun = self.process.operation(self.store.put_multipart_opts(location, options), lost).await?;
        let (store, process, reader) = (self.store.clone(), self.process.clone(), self.reader.clone());
        Ok(Box::new(WatchedUpload { upload: begun, watched: Self { store, process, reader } }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.process.operation(self.store.get_opts(location, options), lost).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (store, process) = (self.store.clone(), self.process.clone());
        let deleted = async move {
            let done = process.operation(store.delete_stream(locations).try_collect::<Vec<_>>(), lost).await;
            match done {
                Ok(all) => stream::iter(all.into_iter().map(Ok).collect::<Vec<_>>()),
                Err(error) => stream::iter(vec![Err(error)]),
            }
        };
        deleted.into_stream().flatten().boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listed(self.store.list(prefix))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listed(self.store.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.process.operation(self.store.list_with_delimiter(prefix), lost).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.write(self.store.copy_opts(from, to, options)).await
    }
}

#[derive(Debug)]
struct WatchedUpload {
    upload: Box<dyn MultipartUpload>,
    watched: Watched,
}

#[async_trait]
impl MultipartUpload for WatchedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (part, process) = (self.upload.put_part(data), self.watched.process.clone());
        async move { process.operation(part, lost).await }.boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let Self { upload, watched } = self;
        watched.write(upload.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.watched.process.operation(self.upload.abort(), lost).await
    }
}

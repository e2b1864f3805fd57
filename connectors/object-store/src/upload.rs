//! Files on their way up: each appears whole under its name or not at all, and
//! nothing that was broken off stays.
//!
//! - Small ones go up in one conditional write.
//! - Larger ones go up in parts. The upload's id is noted on this machine before
//!   its first part, so whoever comes after a crash aborts it.
//! - In a folder a file lies under `_highwater/uploads/` first, and is linked to
//!   its name: not even a pattern like `*.ndjson*` sees it before. Where the
//!   staging folder is in the same file system, it is the staged file itself.

use std::os::unix::fs::MetadataExt;
use std::path::{Path as FilePath, PathBuf};

use connector::{Error, Result, fault};
use futures_util::TryStreamExt;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{CopyMode, CopyOptions, Error as StoreError, ObjectStoreExt, PutMode, PutOptions, WriteMultipart};
use serde::{Deserialize, Serialize};
use tokio::fs::File;
use tokio::io::AsyncReadExt;

use crate::error::failed;
use crate::format::offsets;
use crate::store::Store;

/// Puts a sink's files up.
pub(crate) struct Uploads {
    store: Store,
    part_bytes: usize,
    /// Where ids of uploads in parts are noted.
    notes: PathBuf,
    /// In a folder: where files are before they have their names.
    waiting: String,
    writer: String,
    begun: u64,
}

/// An upload in parts.
#[derive(Serialize, Deserialize)]
struct Note {
    path: String,
    id: String,
}

impl Uploads {
    pub(crate) fn new(store: Store, part_bytes: usize, staging: &FilePath, sink: &str, writer: &str) -> Self {
        let mut notes = staging.as_os_str().to_owned();
        notes.push(".uploads");
        Self {
            store,
            part_bytes,
            notes: notes.into(),
            waiting: format!("_highwater/uploads/{sink}"),
            writer: writer.into(),
            begun: 0,
        }
    }

    /// Clears away what was broken off. Best effort: it costs room, and no more.
    pub(crate) async fn clear(&self) {
        if let Err(error) = self.clear_notes().await {
            tracing::warn!(error = error.chain(), "uploads that were broken off are not all aborted yet");
        }
        if let Some(folder) = &self.store.folder
            && let Ok(waiting) = parse(&self.waiting)
        {
            let listed: Vec<_> = self.store.objects.list(Some(&waiting)).try_collect().await.unwrap_or_default();
            for meta in listed {
                let _ = self.store.objects.delete(&meta.location).await;
            }
            sweep(&folder.join(&self.waiting), |_| true);
        }
    }

    /// Earlier versions wrote beside the files' names.
    pub(crate) fn clear_stream(&self, stream: &str, before: u64) {
        if let Some(folder) = &self.store.folder {
            sweep(&folder.join(stream), |name| offsets(name).is_some_and(|(first, _)| first < before));
        }
    }

    async fn clear_notes(&self) -> Result<()> {
        let Some(multipart) = &self.store.multipart else { return Ok(()) };
        let Ok(notes) = std::fs::read_dir(&self.notes) else { return Ok(()) };
        for note in notes.flatten() {
            let read = std::fs::read(note.path()).ok().and_then(|text| serde_json::from_slice::<Note>(&text).ok());
            if let Some(read) = read {
                let path = parse(&read.path)?;
                match multipart.abort_multipart(&path, &read.id).await {
                    // It was completed, or somebody has aborted it.
                    Ok(()) | Err(StoreError::NotFound { .. }) => {}
                    Err(error) => return Err(failed(error, format!("could not abort the upload of {path}"))),
                }
            }
            let _ = std::fs::remove_file(note.path());
        }
        Ok(())
    }

    /// A file under its announced name. One that is there is these very rows:
    /// put there by whoever announced it.
    pub(crate) async fn put(&mut self, path: &str, staged: &FilePath, redone: bool) -> Result<()> {
        let path = parse(path)?;
        let attempt = || format!("could not write {path}");
        if redone {
            match self.store.objects.head(&path).await {
                Ok(_) => return Ok(()),
                Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(failed(error, attempt())),
            }
        }
        let mut file = Parts { file: File::open(staged).await.map_err(|e| unreadable(staged, e))?, staged };
        let length = file.file.metadata().await.map_err(|e| unreadable(staged, e))?.len();
        if self.store.folder.is_some() {
            return self.link(&path, &mut file).await;
        }
        if length <= self.part_bytes as u64 {
            let body = file.next(length as usize).await?;
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            return match self.store.objects.put_opts(&path, body.into(), options).await {
                Ok(_) => Ok(()),
                // S3 also answers so while another's is under way, which may fail yet.
                Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
                    self.store.objects.head(&path).await.map(drop).map_err(|error| failed(error, attempt()))
                }
                Err(error) => Err(failed(error, attempt())),
            };
        }
        match self.store.multipart.clone() {
            Some(multipart) => self.noted(&*multipart, &path, &mut file).await,
            None => in_parts(&self.store, &path, &mut file, self.part_bytes).await,
        }
    }

    /// In parts, under an id that is noted.
    async fn noted(&mut self, multipart: &dyn MultipartStore, path: &Path, file: &mut Parts<'_>) -> Result<()> {
        let attempt = || format!("could not write {path}");
        let unnotable =
            |error: std::io::Error| Error::retry(format!("could not write to {}", self.notes.display())).because(error);
        let id = multipart.create_multipart(path).await.map_err(|error| failed(error, attempt()))?;
        self.begun += 1;
        let note = self.notes.join(self.begun.to_string());
        let text = serde_json::to_vec(&Note { path: path.to_string(), id: id.clone() }).expect("a note serialises");
        let noted = std::fs::create_dir_all(&self.notes).and_then(|()| std::fs::write(&note, text));
        let sent = async {
            noted.map_err(unnotable)?;
            let mut parts = Vec::new();
            let send = async |number: usize, body: Vec<u8>| {
                multipart.put_part(path, &id, number, body.into()).await.map_err(|error| failed(error, attempt()))
            };
            loop {
                // Two at a time.
                let (one, two) = (file.next(self.part_bytes).await?, file.next(self.part_bytes).await?);
                let number = parts.len();
                match (one.is_empty(), two.is_empty()) {
                    (true, _) => break,
                    (_, true) => parts.push(send(number, one).await?),
                    _ => {
                        let (one, two) = futures_util::try_join!(send(number, one), send(number + 1, two))?;
                        parts.extend([one, two]);
                    }
                }
                fault::point("half-uploaded");
            }
            fault::point("before-complete");
            multipart.complete_multipart(path, &id, parts).await.map_err(|error| failed(error, attempt()))?;
            fault::point("completed");
            Ok(())
        };
        let sent = sent.await;
        // What failed stays noted, unless it is known to be gone.
        if sent.is_ok() || multipart.abort_multipart(path, &id).await.is_ok() {
            let _ = std::fs::remove_file(note);
        }
        sent
    }

    /// The staged file itself, durable, under the name that it waits by; false: it
    /// has to be copied.
    async fn link_staged(&self, waiting: &Path, file: &Parts<'_>) -> Result<bool> {
        let Some(folder) = &self.store.folder else { return Ok(false) };
        let to = folder.join(waiting.as_ref());
        let unwritable = |error| Error::retry(format!("could not write {}", to.display())).because(error);
        let (from, name) = (file.staged.to_owned(), to.clone());
        let linked = tokio::task::spawn_blocking(move || link(&from, &name)).await;
        if !linked.map_err(|_| Error::retry("linking a file has broken off"))?.map_err(unwritable)? {
            return Ok(false);
        }
        fault::point("half-uploaded");
        Ok(true)
    }

    async fn link(&mut self, path: &Path, file: &mut Parts<'_>) -> Result<()> {
        self.begun += 1;
        let waiting = parse(&format!("{}/{}-{}", self.waiting, self.writer, self.begun))?;
        if !self.link_staged(&waiting, file).await? {
            in_parts(&self.store, &waiting, file, self.part_bytes).await?;
        }
        fault::point("before-link");
        let options = CopyOptions::new().with_mode(CopyMode::Create);
        let linked = match self.store.objects.copy_opts(&waiting, path, options).await {
            Ok(()) | Err(StoreError::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(failed(error, format!("could not write {path}"))),
        };
        let _ = self.store.objects.delete(&waiting).await;
        linked
    }
}

/// Gives a file another name, and makes it durable; false if that lies elsewhere,
/// if a file has but one name here, or would have other rights if it was made there.
fn link(from: &FilePath, to: &FilePath) -> std::io::Result<bool> {
    let folder = to.parent().unwrap_or(FilePath::new("."));
    std::fs::create_dir_all(folder)?;
    if gives_rights(folder, from)? || std::fs::hard_link(from, to).is_err() {
        return Ok(false);
    }
    let file = std::fs::File::open(to)?;
    file.sync_all()?;
    // Its memory is for the next ones: pages that are used again are written faster
    // than fresh ones, and the database beside us keeps its own. It is advice, and
    // nobody waits for it.
    tokio::task::spawn_blocking(move || rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed));
    Ok(true)
}

/// Whether a folder gives what is made in it another group than a file has, or an
/// access list: readers may count on it.
fn gives_rights(folder: &FilePath, file: &FilePath) -> std::io::Result<bool> {
    const SETGID: u32 = 0o2000;
    let of = folder.metadata()?;
    let has_list = rustix::fs::getxattr(folder, "system.posix_acl_default", &mut [0u8; 0][..]).is_ok();
    Ok(has_list || (of.mode() & SETGID != 0 && of.gid() != file.metadata()?.gid()))
}

async fn in_parts(store: &Store, path: &Path, file: &mut Parts<'_>, part_bytes: usize) -> Result<()> {
    let attempt = || format!("could not write {path}");
    let upload = store.objects.put_multipart(path).await.map_err(|error| failed(error, attempt()))?;
    let mut upload = WriteMultipart::new_with_chunk_size(upload, part_bytes);
    loop {
        let part = file.next(part_bytes).await?;
        if part.is_empty() {
            break;
        }
        if let Err(error) = upload.wait_for_capacity(2).await {
            // Parts that nobody completes cost money until somebody clears them.
            let _ = upload.abort().await;
            return Err(failed(error, attempt()));
        }
        upload.put(part.into());
        fault::point("half-uploaded");
    }
    upload.finish().await.map(drop).map_err(|error| failed(error, attempt()))
}

/// A staged file, read part by part.
struct Parts<'a> {
    file: File,
    staged: &'a FilePath,
}

impl Parts<'_> {
    /// The next so many bytes, or what is left.
    async fn next(&mut self, size: usize) -> Result<Vec<u8>> {
        let mut part = Vec::with_capacity(size);
        let mut rest = (&mut self.file).take(size as u64);
        rest.read_to_end(&mut part).await.map_err(|error| unreadable(self.staged, error))?;
        Ok(part)
    }
}

fn unreadable(staged: &FilePath, error: std::io::Error) -> Error {
    Error::retry(format!("could not read {}", staged.display())).because(error)
}

fn parse(path: &str) -> Result<Path> {
    Path::parse(path).map_err(|error| Error::halt(format!("{path:?} is no path")).because(error))
}

/// Removes files `name#digits` of a folder, which no listing of the store shows.
fn sweep(folder: &FilePath, ours: impl Fn(&str) -> bool) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let parts = name.to_str().and_then(|name| name.split_once('#'));
        if let Some((name, number)) = parts
            && !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit())
            && ours(name)
        {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::*;

    #[tokio::test]
    async fn a_file_is_linked_where_it_would_be_made_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (staged, lake) = (folder.path().join("staged"), folder.path().join("lake"));
        std::fs::write(&staged, "rows").unwrap();
        let to = lake.join("one");
        assert!(link(&staged, &to).unwrap());
        assert_eq!((to.metadata().unwrap().nlink(), std::fs::read(&to).unwrap()), (2, b"rows".to_vec()));
        assert!(!link(&staged, &to).unwrap(), "what is there stays");
        std::fs::set_permissions(&lake, PermissionsExt::from_mode(0o2775)).unwrap();
        assert!(link(&staged, &lake.join("two")).unwrap(), "the group is the same");
        // Only root can give a folder to any group.
        if chown(&lake, None, Some(54_321)).is_ok() {
            std::fs::set_permissions(&lake, PermissionsExt::from_mode(0o2775)).unwrap();
            assert!(!link(&staged, &lake.join("three")).unwrap());
            assert!(!lake.join("three").exists());
        }
    }
}

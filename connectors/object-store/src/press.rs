//! The thread that packs: pieces of files are encoded, compressed and written
//! there, in the order in which they were gathered, while more is gathered.
//!
//! (On two processors a backlog came to Parquet at 1.25 M rows a second when
//! gathering and packing took turns, and comes at 1.3 to 1.6 M beside each other.)

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::writer::Failed;

/// Pieces of a file that are kept to be filled again.
const SPARE: usize = 4;

/// Writes a file piece by piece. One that gets no piece makes no file.
pub(crate) trait Packer: Send + 'static {
    /// Rows that are gathered; empty again once they are packed.
    type Piece: Default + Send + 'static;

    /// Takes a piece.
    fn pack(&mut self, piece: &mut Self::Piece) -> Result<(), Failed>;

    /// Bytes in memory.
    fn memory(&self) -> usize {
        0
    }

    /// Writes what can be written, so that its memory is free again.
    fn flush(&mut self) -> Result<(), Failed> {
        Ok(())
    }

    /// Ends the file.
    fn close(&mut self) -> Result<(), Failed>;
}

type Job = Box<dyn FnOnce() + Send>;

/// The thread. It is to be dropped behind all that it packs.
pub(crate) struct Press {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Press {
    /// So many pieces wait at most: beyond, gathering does.
    pub(crate) fn new(waiting: usize) -> io::Result<Self> {
        let (jobs, taken) = sync_channel::<Job>(waiting);
        let packing = move || taken.into_iter().for_each(|job| job());
        let thread = std::thread::Builder::new().name("packer".into()).spawn(packing)?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// A file whose pieces are packed here.
    pub(crate) fn file<P: Packer>(&self, packer: P) -> Pressed<P> {
        let told = Mutex::new(Told { failed: None, broken: false, spare: Vec::new() });
        let shared = Shared { packer: Mutex::new(packer), told, memory: AtomicUsize::new(0) };
        Pressed { jobs: self.jobs.clone(), shared: Arc::new(shared), begun: false }
    }
}

impl Drop for Press {
    /// Waits for what is under way: whoever comes next may empty its folder.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // It has said so where somebody waited for it.
            let _ = thread.join();
        }
    }
}

/// A file at the press.
pub(crate) struct Pressed<P: Packer> {
    jobs: Option<SyncSender<Job>>,
    shared: Arc<Shared<P>>,
    begun: bool,
}

struct Shared<P: Packer> {
    packer: Mutex<P>,
    told: Mutex<Told<P::Piece>>,
    memory: AtomicUsize,
}

struct Told<T> {
    failed: Option<Failed>,
    /// A piece is missing: the file is never whole.
    broken: bool,
    spare: Vec<T>,
}

impl<P: Packer> Pressed<P> {
    /// Sends a piece behind those before it; an empty one for what comes next.
    /// An error may be that of a piece before.
    pub(crate) fn push(&mut self, mut piece: P::Piece) -> Result<P::Piece, Failed> {
        let spare = self.told()?.spare.pop();
        self.begun = true;
        let shared = self.shared.clone();
        self.send(move || {
            if lock(&shared.told).broken {
                return;
            }
            let mut packer = lock(&shared.packer);
            let packed = packer.pack(&mut piece);
            shared.memory.store(packer.memory(), Ordering::Relaxed);
            let mut told = lock(&shared.told);
            match packed {
                Ok(()) if told.spare.len() < SPARE => told.spare.push(piece),
                Ok(()) => {}
                Err(error) => (told.failed, told.broken) = (Some(error), true),
            }
        })?;
        Ok(spare.unwrap_or_default())
    }

    /// See [`Packer::memory`]; as of the last piece that was packed.
    pub(crate) fn memory(&self) -> usize {
        self.shared.memory.load(Ordering::Relaxed)
    }

    /// See [`Packer::flush`]; returns when it is done.
    pub(crate) fn flush(&mut self) -> Result<(), Failed> {
        self.last(P::flush)
    }

    /// Ends the file; it is whole when this returns.
    pub(crate) fn close(&mut self) -> Result<(), Failed> {
        self.last(P::close)
    }

    /// Does something behind all that was sent, and waits for it.
    fn last(&mut self, what: fn(&mut P) -> Result<(), Failed>) -> Result<(), Failed> {
        if !self.begun {
            return Ok(());
        }
        let (done, answer) = channel();
        let shared = self.shared.clone();
        self.send(move || {
            let mut packer = lock(&shared.packer);
            let result = what(&mut packer);
            shared.memory.store(packer.memory(), Ordering::Relaxed);
            // Whoever waited may be gone.
            let _ = done.send(result);
        })?;
        let result = answer.recv().map_err(|_| broken_off())?;
        drop(self.told()?);
        result
    }

    /// What is told of the pieces before; or how one of them failed.
    fn told(&self) -> Result<MutexGuard<'_, Told<P::Piece>>, Failed> {
        let mut told = lock(&self.shared.told);
        match (told.failed.take(), told.broken) {
            (Some(error), _) => Err(error),
            (None, true) => Err(io::Error::other("a piece of it was not written").into()),
            (None, false) => Ok(told),
        }
    }

    fn send(&self, job: impl FnOnce() + Send + 'static) -> Result<(), Failed> {
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(Box::new(job)));
        if matches!(sent, Some(Ok(()))) { Ok(()) } else { Err(broken_off()) }
    }
}

fn broken_off() -> Failed {
    io::Error::other("packing has broken off").into()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps its pieces; fails at "bad".
    struct Kept(Arc<Mutex<Vec<String>>>);

    impl Packer for Kept {
        type Piece = String;

        fn pack(&mut self, piece: &mut String) -> Result<(), Failed> {
            if piece == "bad" {
                return Err(io::Error::other("as asked").into());
            }
            lock(&self.0).push(std::mem::take(piece));
            Ok(())
        }

        fn memory(&self) -> usize {
            lock(&self.0).len()
        }

        fn close(&mut self) -> Result<(), Failed> {
            lock(&self.0).push("end".into());
            Ok(())
        }
    }

    #[test]
    fn pieces_are_packed_in_their_order() {
        let press = Press::new(2).unwrap();
        let all = Arc::new(Mutex::new(Vec::new()));
        let (mut one, mut other) = (press.file(Kept(all.clone())), press.file(Kept(all.clone())));
        for i in 0..50 {
            assert_eq!(one.push(format!("a{i}")).unwrap(), "");
            assert_eq!(other.push(format!("b{i}")).unwrap(), "");
        }
        one.flush().unwrap();
        assert_eq!(one.memory(), 100, "behind all that was sent before it");
        other.close().unwrap();
        let expected: Vec<_> = (0..50).flat_map(|i| [format!("a{i}"), format!("b{i}")]).chain(["end".into()]).collect();
        assert_eq!(*lock(&all), expected);
        // One that got nothing makes no file.
        press.file(Kept(all.clone())).close().unwrap();
        assert_eq!(lock(&all).len(), expected.len());
    }

    #[test]
    fn a_file_that_lacks_a_piece_is_never_whole() {
        let press = Press::new(2).unwrap();
        let all = Arc::new(Mutex::new(Vec::new()));
        let (mut bad, mut good) = (press.file(Kept(all.clone())), press.file(Kept(Arc::default())));
        bad.push("first".into()).unwrap();
        bad.push("bad".into()).unwrap();
        let mut failed = Vec::new();
        for _ in 0..20 {
            failed.extend(bad.push("behind".into()).err());
        }
        failed.extend(bad.close().err());
        failed.extend(bad.close().err());
        assert!(matches!(&failed[0], Failed::File(error) if error.to_string() == "as asked"), "{failed:?}");
        assert!(failed.len() >= 2, "told again, however often it is asked");
        assert!(lock(&all).iter().all(|piece| piece != "behind"), "{all:?}");
        good.push("of another".into()).unwrap();
        good.close().unwrap();
    }

    #[test]
    fn whoever_drops_it_waits_for_what_is_under_way() {
        struct Slow(Arc<AtomicUsize>);
        impl Packer for Slow {
            type Piece = ();
            fn pack(&mut self, (): &mut ()) -> Result<(), Failed> {
                std::thread::yield_now();
                self.0.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            fn close(&mut self) -> Result<(), Failed> {
                Ok(())
            }
        }
        let count = Arc::new(AtomicUsize::new(0));
        let press = Press::new(2).unwrap();
        let mut file = press.file(Slow(count.clone()));
        (0..30).for_each(|_| file.push(()).unwrap());
        drop(file);
        drop(press);
        assert_eq!(count.load(Ordering::Relaxed), 30);
    }
}

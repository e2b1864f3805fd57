//! The conformance suite, on logs that are whole and on logs that are not.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use tokio::sync::watch;

use crate::conformance::{Opened, Place, Property, check, suite};
use crate::files::{Disk, Files};
use crate::simulated::{Simulated, Survival};
use crate::{
    Appended, Epoch, EventLog, Frame, Kind, Log, LogBatch, LogId, Offset, OffsetRange, Options, Position, Result, State,
};

struct Folder<F> {
    files: F,
    path: PathBuf,
    _kept: Option<tempfile::TempDir>,
}

impl Folder<Disk> {
    fn on_disk() -> Self {
        let kept = tempfile::tempdir().unwrap();
        Self { files: Disk, path: kept.path().join("sources/shop"), _kept: Some(kept) }
    }
}

impl Folder<Simulated> {
    fn simulated() -> Self {
        Self { files: Simulated::new(), path: "/sources/shop".into(), _kept: None }
    }
}

fn opened<F: Files>(folder: &Folder<F>) -> Result<Opened<Log<F>>> {
    let options = Options { segment_bytes: 3000, ..Options::default() };
    let (log, _) = Log::open_on(folder.files.clone(), &folder.path, options)?;
    Ok(Opened { id: log.id(), epoch: log.epoch(), start: log.start(), log })
}

impl<F: Files> Place for Folder<F> {
    type Log = Log<F>;

    async fn open(&mut self) -> Result<Opened<Log<F>>> {
        opened(self)
    }
}

/// Every opening comes after a power cut that leaves nothing that was not synced.
struct PowerCuts(Folder<Simulated>);

impl Place for PowerCuts {
    type Log = Log<Simulated>;

    async fn open(&mut self) -> Result<Opened<Self::Log>> {
        self.0.files = self.0.files.power_cut(Survival::Nothing);
        opened(&self.0)
    }
}

#[tokio::test]
async fn a_log_on_a_real_disk_conforms() {
    suite(Folder::on_disk).await.unwrap();
}

#[tokio::test]
async fn a_log_on_a_simulated_disk_conforms() {
    suite(Folder::simulated).await.unwrap();
}

#[tokio::test]
async fn a_log_conforms_whose_power_is_cut_instead_of_closed() {
    suite(|| PowerCuts(Folder::simulated())).await.unwrap();
}

/// What is wrong with a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    AcknowledgesAndDrops,
    AppendsTwice,
    ShowsWhatIsNotDurable,
    TearsTransactions,
    KeepsWhatIsAborted,
    ForgetsThePosition,
    MovesThePositionEarly,
    DropsState,
    AppliesStateEarly,
    TrimsTooMuch,
    TrimsNothing,
    BeginsAnew,
    UsesOffsetsAgain,
    KeepsItsEpoch,
    FinishesWhatWasNot,
    DoesNotClose,
}

impl Defect {
    /// Each, and what it breaks.
    const ALL: [(Self, Property); 16] = [
        (Self::AcknowledgesAndDrops, Property::Order),
        (Self::AppendsTwice, Property::Order),
        (Self::ShowsWhatIsNotDurable, Property::HighWater),
        (Self::TearsTransactions, Property::Whole),
        (Self::KeepsWhatIsAborted, Property::Abort),
        (Self::ForgetsThePosition, Property::Position),
        (Self::MovesThePositionEarly, Property::Position),
        (Self::DropsState, Property::State),
        (Self::AppliesStateEarly, Property::State),
        (Self::TrimsTooMuch, Property::Trim),
        (Self::TrimsNothing, Property::Trim),
        (Self::BeginsAnew, Property::Reopen),
        (Self::UsesOffsetsAgain, Property::Reopen),
        (Self::KeepsItsEpoch, Property::Epoch),
        (Self::FinishesWhatWasNot, Property::Unfinished),
        (Self::DoesNotClose, Property::Close),
    ];
}

/// A log that is whole but for one defect.
#[derive(Clone)]
struct Broken {
    log: Log<Simulated>,
    defect: Defect,
    /// Where this opening began.
    began: u64,
}

struct BrokenPlace(Folder<Simulated>, Defect);

impl Place for BrokenPlace {
    type Log = Broken;

    async fn open(&mut self) -> Result<Opened<Broken>> {
        if self.1 == Defect::BeginsAnew {
            self.0 = Folder::simulated();
        }
        let Opened { log, id, mut epoch, start } = opened(&self.0)?;
        if self.1 == Defect::KeepsItsEpoch {
            epoch = Epoch(1);
        }
        let began = log.high_water().0;
        Ok(Opened { log: Broken { log, defect: self.1, began }, id, epoch, start })
    }
}

type BoxedCommit = Pin<Box<dyn Future<Output = Result<Appended>> + Send>>;

impl EventLog for Broken {
    type Commit = BoxedCommit;

    async fn append(&self, mut batch: LogBatch) -> Result<BoxedCommit> {
        match self.defect {
            Defect::AcknowledgesAndDrops => {
                let end = Offset(self.log.high_water().0 + u64::from(batch.records));
                let offsets = OffsetRange { start: self.log.high_water(), end };
                let position = crate::Durable(batch.position);
                return Ok(Box::pin(std::future::ready(Ok(Appended { offsets, position }))));
            }
            Defect::AppendsTwice => drop(self.log.append(batch.clone()).await?),
            Defect::TearsTransactions => batch.ends_transaction = true,
            Defect::DropsState => batch.state.clear(),
            Defect::AppliesStateEarly if !batch.state.is_empty() => {
                let state = std::mem::take(&mut batch.state);
                let payload = Default::default();
                let early = LogBatch { state, payload, records: 0, ends_transaction: true, ..batch.clone() };
                drop(self.log.append(LogBatch { position: None, ..early }).await?);
            }
            _ => {}
        }
        let commit = self.log.append(batch).await?;
        let (again, began) = (self.defect == Defect::UsesOffsetsAgain, self.began);
        Ok(Box::pin(async move {
            let mut appended = commit.await?;
            if again {
                appended.offsets.start.0 -= began;
                appended.offsets.end.0 -= began;
            }
            Ok(appended)
        }))
    }

    async fn abort(&self) -> Result<()> {
        if self.defect != Defect::KeepsWhatIsAborted {
            return self.log.abort().await;
        }
        self.end().await
    }

    async fn position(&self) -> Result<Option<Position>> {
        match self.defect {
            Defect::ForgetsThePosition => Ok(None),
            Defect::MovesThePositionEarly => Ok(Some(Position::new(b"early".to_vec())?)),
            _ => self.log.position().await,
        }
    }

    fn high_water(&self) -> Offset {
        let mark = self.log.high_water();
        if self.defect == Defect::ShowsWhatIsNotDurable { Offset(mark.0.saturating_sub(1)) } else { mark }
    }

    fn subscribe(&self) -> watch::Receiver<Offset> {
        self.log.subscribe()
    }

    fn read(&self, from: Offset) -> impl Stream<Item = Result<Frame>> + Send + 'static {
        self.log.read(from).boxed()
    }

    async fn trim(&self, upto: Offset) -> Result<()> {
        match self.defect {
            Defect::TrimsNothing => Ok(()),
            Defect::TrimsTooMuch => self.log.trim(Offset(u64::MAX)).await,
            _ => self.log.trim(upto).await,
        }
    }

    fn state(&self) -> Arc<State> {
        self.log.state()
    }

    async fn close(&self) {
        match self.defect {
            Defect::DoesNotClose => return,
            Defect::FinishesWhatWasNot => drop(self.end().await),
            _ => {}
        }
        self.log.close().await;
    }
}

impl Broken {
    /// Ends a transaction, whatever became of it.
    async fn end(&self) -> Result<()> {
        let batch = LogBatch {
            kind: Kind::Control,
            position: None,
            records: 0,
            event_time: crate::Micros(0),
            payload: Default::default(),
            state: Vec::new(),
            ends_transaction: true,
        };
        self.log.append(batch).await?.await.map(drop)
    }
}

#[tokio::test]
async fn no_broken_log_conforms() {
    for (defect, property) in Defect::ALL {
        let mut place = BrokenPlace(Folder::simulated(), defect);
        let wrong = check(property, &mut place).await.expect_err(&format!("{defect:?} goes unnoticed"));
        println!("{defect:?}: {wrong}");
        assert!(suite(|| BrokenPlace(Folder::simulated(), defect)).await.is_err());
    }
}

#[test]
fn every_property_has_a_broken_log() {
    for property in Property::ALL {
        assert!(Defect::ALL.iter().any(|(_, broken)| *broken == property), "{property:?}");
    }
}

#[test]
fn a_log_id_is_read_as_it_is_written() {
    let id = LogId([7; 16]);
    assert_eq!(id.to_string().parse::<LogId>().unwrap(), id);
}

//! The power fails at every change of the disk, and leaves of what was not
//! synced now this and now that. Taking away any one sync must show.

use super::history::{Life, Model, Step, block_on, eventful, going_on, options};
use crate::files::SyncPoint;
use crate::simulated::{Simulated, Survival};
use crate::{Kind, Options};

const SURVIVALS: [Survival; 12] = [
    Survival::Nothing,
    Survival::Everything,
    Survival::Names,
    Survival::Content,
    Survival::Prefix(1),
    Survival::Prefix(2),
    Survival::Any { seed: 3, sector: 512 },
    Survival::Any { seed: 4, sector: 512 },
    Survival::Any { seed: 5, sector: 4096 },
    Survival::Any { seed: 6, sector: 512 },
    Survival::Any { seed: 7, sector: 512 },
    Survival::Any { seed: 8, sector: 512 },
];

fn varied(survival: Survival, salt: usize) -> Survival {
    let salt = salt as u64 * 1000;
    match survival {
        Survival::Prefix(seed) => Survival::Prefix(seed + salt),
        Survival::Any { seed, sector } => Survival::Any { seed: seed + salt, sector },
        other => other,
    }
}

/// What is left after the cut holds everything, can be written, and holds that
/// too after another cut.
async fn survives(disk: &Simulated, model: &Model, survival: Survival, options: Options) -> Result<(), String> {
    let after = disk.copy().power_cut(survival);
    let mut life = Life::new(after, model.clone(), options);
    life.open().await?;
    life.live(&[Step::Append { frames: 1, size: 30, each: false, kind: Kind::Data, state: None }]).await?;
    if let Some(error) = &life.failure {
        return Err(format!("cannot be written: {error:?}"));
    }
    life.step(&Step::Cut(Survival::Nothing)).await
}

/// Searches for a violation; the number of cuts if there is none.
async fn search(ignored: Option<SyncPoint>, steps: &[Step], options: Options) -> Result<usize, String> {
    let mut life = Life::new(Simulated::new().ignoring(ignored), Model::default(), options);
    life.live(steps).await?;
    let trace = life.disk.kill();
    let mut cuts = 0;
    for at in 0..=trace.changes() {
        let disk = trace.at(at);
        let model = life.model_at(at);
        for survival in SURVIVALS {
            let survival = varied(survival, at);
            cuts += 1;
            let survived = survives(&disk, model, survival, options).await;
            survived.map_err(|wrong| format!("cut at change {at}, {survival:?}: {wrong}"))?;
        }
        // Here the process is killed, and the power fails while the next one recovers.
        let mut next = Life::new(disk.copy(), model.clone(), options);
        next.open().await.map_err(|wrong| format!("killed at change {at}: {wrong}"))?;
        next.live(&going_on()).await?;
        let second = next.disk.kill();
        // Only the changes since are in the trace of the copy.
        for later in 0..=second.changes() {
            let disk = second.after(&disk, later);
            for survival in [SURVIVALS[0], SURVIVALS[3], SURVIVALS[7 + later % 5]] {
                let survival = varied(survival, at + later);
                cuts += 1;
                let survived = survives(&disk, next.model_at(later), survival, options).await;
                survived.map_err(|wrong| format!("killed at {at}, cut at change {later}, {survival:?}: {wrong}"))?;
            }
        }
    }
    Ok(cuts)
}

#[test]
fn what_was_acknowledged_survives_every_power_cut() {
    let cuts = block_on(search(None, &eventful(), options())).unwrap();
    println!("{cuts} power cuts");
    assert!(cuts > 4000);
}

#[test]
fn a_transaction_without_an_end_is_not_taken_for_damage() {
    // Its frames are synced one by one, and nothing ends it.
    let life = [Step::Begin(5, 600), Step::Begin(5, 40), Step::Begin(3, 3000)];
    for steps in
        life.map(|begin| [Step::Append { frames: 1, size: 200, each: false, kind: Kind::Data, state: None }, begin])
    {
        block_on(search(None, &steps, options())).unwrap();
        block_on(search_openings(None, &steps)).unwrap();
    }
}

#[test]
fn a_row_held_back_outlives_a_release_that_is_not_durable() {
    let append = |size, kind| Step::Append { frames: 1, size, each: false, kind, state: None };
    let life = [append(2000, Kind::Pending), append(1500, Kind::Data), append(10, Kind::Data), Step::ReleaseAndTrim];
    block_on(search(None, &life, options())).unwrap();
}

#[track_caller]
fn shows_without(point: SyncPoint, how: &str) {
    let wrong = block_on(search(Some(point), &eventful(), options())).expect_err("a sync that nobody needs");
    println!("without {point:?}: {wrong}");
    assert!(wrong.contains(how), "{wrong}");
}

#[test]
fn a_group_that_is_not_synced_is_lost() {
    shows_without(SyncPoint::Group, "frames are lost");
}

#[test]
fn a_segment_whose_head_is_not_synced_is_lost() {
    shows_without(SyncPoint::NewSegment, "it has no head");
}

#[test]
fn a_segment_whose_name_is_not_synced_is_lost() {
    shows_without(SyncPoint::NewSegmentName, "another log");
}

#[test]
fn a_recovered_tail_that_is_not_synced_is_taken_for_corruption() {
    let append = Step::Append { frames: 1, size: 1400, each: false, kind: Kind::Data, state: None };
    let wrong =
        block_on(search_openings(Some(SyncPoint::RecoveredTail), &vec![append; 4])).expect_err("a sync nobody needs");
    println!("{wrong}");
    assert!(wrong.contains("were durable"), "{wrong}");
}

/// As `search`, but only the openings after a kill or a power cut, each cut in
/// many ways: the first frames of what such an opening cuts off or keeps are gone,
/// and later ones there.
async fn search_openings(ignored: Option<SyncPoint>, steps: &[Step]) -> Result<(), String> {
    let mut life = Life::new(Simulated::new().ignoring(ignored), Model::default(), options());
    life.live(steps).await?;
    let trace = life.disk.kill();
    let torn = (0..4).map(|seed| Some(Survival::Any { seed, sector: 512 }));
    for at in 0..=trace.changes() {
        for first in std::iter::once(None).chain(torn.clone()) {
            let disk = trace.at(at);
            let disk = first.map_or(disk.clone(), |survival| disk.power_cut(survival));
            let mut next = Life::new(disk.copy(), life.model_at(at).clone(), options());
            next.open().await?;
            let second = next.disk.kill();
            for later in 0..=second.changes() {
                for seed in 0..12 {
                    let survival = Survival::Any { seed, sector: 512 };
                    let cut = second.after(&disk, later);
                    let survived = survives(&cut, next.model_at(later), survival, options()).await;
                    survived.map_err(|wrong| format!("{first:?} at {at}, {survival:?} at {later}: {wrong}"))?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn an_epoch_that_is_not_synced_comes_twice() {
    shows_without(SyncPoint::Epoch, "again");
}

#[test]
fn a_log_whose_folder_is_not_synced_is_lost() {
    shows_without(SyncPoint::NewFolder, "another log");
}

#[test]
fn a_segment_that_was_found_without_its_name_synced_is_lost() {
    shows_without(SyncPoint::RecoveredNames, "another log");
}

#[test]
fn segments_removed_without_a_sync_between_leave_a_hole() {
    shows_without(SyncPoint::Removed, "are missing");
}

#[test]
fn every_sync_has_a_test() {
    // A new point does not compile here until it has one above.
    for point in SyncPoint::ALL {
        match point {
            SyncPoint::Group | SyncPoint::NewSegment | SyncPoint::NewSegmentName | SyncPoint::RecoveredTail => {}
            SyncPoint::Epoch | SyncPoint::NewFolder | SyncPoint::RecoveredNames | SyncPoint::Removed => {}
        }
    }
}

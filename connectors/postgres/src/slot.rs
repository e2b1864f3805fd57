//! The replication slot, and whether it still fits what the log holds.

use config::Postgres;
use connector::{Error, Result};
use serde::{Deserialize, Serialize};
use storage::{State, StateChange};
use tokio_postgres::Client;

use crate::error::control_failed;
use crate::lsn::Lsn;
use crate::replication::SystemIdentity;

/// Which server, database and slot a log belongs to; in the log's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) system_identifier: String,
    pub(crate) timeline: u32,
    pub(crate) database: String,
    pub(crate) database_oid: u32,
    pub(crate) slot: String,
    /// It was a standby.
    #[serde(default)]
    pub(crate) standby: bool,
    /// The slot has kept WAL only from here on, on this timeline; 0: not seen yet.
    #[serde(default)]
    pub(crate) kept_from: u64,
}

impl Identity {
    const STATE_KEY: &'static str = "source/identity";

    /// As the log's state has it.
    pub(crate) fn of(state: &State) -> Option<Self> {
        serde_json::from_slice(state.get(Self::STATE_KEY.as_bytes())?).ok()
    }

    /// For the log's state.
    pub(crate) fn change(&self) -> StateChange {
        let value = serde_json::to_vec(self).expect("an identity serialises");
        StateChange { key: Self::STATE_KEY.into(), value: Some(value.into()) }
    }
}

/// A slot as the server shows it.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) plugin: String,
    pub(crate) database: String,
    pub(crate) active_pid: Option<i32>,
    pub(crate) confirmed: Lsn,
    /// From where on WAL is kept for it; None: for one that is lost none is.
    pub(crate) restart: Option<Lsn>,
    pub(crate) wal_status: String,
    /// Why it is of no use any more; empty: it is, or the server does not say.
    pub(crate) invalidated: String,
    pub(crate) two_phase: bool,
    /// It was made by a standby's keeping in step with its primary.
    pub(crate) synced: bool,
    /// The server is a standby.
    pub(crate) standby: bool,
}

impl Slot {
    /// What has become of it, in words, and what is to be done before it is mended.
    fn loss(&self) -> Option<(&'static str, &'static str)> {
        const FEEDBACK: &str = "set hot_standby_feedback = on and primary_slot_name at the standby, so that it does not happen again; then ";
        Some(match self.invalidated.as_str() {
            "rows_removed" => {
                ("the server has removed rows of its catalog that it needed (hot_standby_feedback was off)", FEEDBACK)
            }
            "wal_level_insufficient" => {
                ("the server, or a standby's primary, was run with a lower wal_level meanwhile", "")
            }
            // 16 tells one from the other no further.
            "conflict" => (
                "the primary has removed rows of its catalog that it needed (hot_standby_feedback was off), or was run \
                 with a lower wal_level meanwhile",
                FEEDBACK,
            ),
            "idle_timeout" => ("it was idle for longer than idle_replication_slot_timeout", ""),
            "" if self.wal_status != "lost" => return None,
            "" | "wal_removed" => ("the server has removed WAL that it needed (max_slot_wal_keep_size)", ""),
            _ => ("the server says no more than that it is lost", ""),
        })
    }
}

/// The slot of a name; None if there is none.
pub(crate) async fn read(client: &Client, name: &str) -> Result<Option<Slot>> {
    let failed = |error| control_failed(error, format!("could not read slot {name:?}"));
    // Columns came with versions: the row as JSON has those that there are.
    let row = client
        .query_opt(
            "SELECT coalesce(plugin::text, ''), coalesce(database::text, ''), active_pid,
                    coalesce(confirmed_flush_lsn::text, '0/0'), coalesce(wal_status, ''),
                    coalesce((to_jsonb(s) ->> 'two_phase')::bool, false),
                    coalesce((to_jsonb(s) ->> 'synced')::bool, false), pg_is_in_recovery(),
                    coalesce(to_jsonb(s) ->> 'invalidation_reason',
                             CASE WHEN to_jsonb(s) ->> 'conflicting' = 'true' THEN 'conflict' END, ''),
                    restart_lsn::text
               FROM pg_replication_slots s WHERE slot_name = $1",
            &[&name],
        )
        .await
        .map_err(failed)?;
    Ok(row.map(|row| Slot {
        plugin: row.get(0),
        database: row.get(1),
        active_pid: row.get(2),
        confirmed: row.get::<_, String>(3).parse().unwrap_or_default(),
        wal_status: row.get(4),
        two_phase: row.get(5),
        synced: row.get(6),
        standby: row.get(7),
        invalidated: row.get(8),
        restart: row.get::<_, Option<String>>(9).and_then(|restart| restart.parse().ok()),
    }))
}

/// What the configuration says of the slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ours<'a> {
    source: &'a str,
    slot: &'a str,
    database: &'a str,
}

impl<'a> From<&'a Postgres> for Ours<'a> {
    fn from(config: &'a Postgres) -> Self {
        Self { source: &config.name, slot: &config.slot, database: &config.database }
    }
}

impl Ours<'_> {
    /// The command that mends a gap.
    fn repair(&self) -> String {
        repair(self.source)
    }
}

/// The command that mends a gap in a source.
pub(crate) fn repair(source: &str) -> String {
    format!("`highwater repair {source}` says what mends it: a new slot, and every table read again")
}

/// Compares the server with what the log was filled from.
/// On a later timeline it is the same as long as the log does not reach beyond
/// where the two part: what a promoted standby never had would be ours alone.
/// A slot of a standby's own goes on through its promotion, though: what was
/// confirmed to it beyond that place was read there.
/// On the same timeline an older copy may have written past all that we know by
/// now. What tells is the slot, which came with the copy: the server saves the
/// place from where it keeps WAL before it acts on it, and moves it only on.
/// (What was confirmed may go back in a crash.)
pub(crate) fn same_server(
    ours: Ours<'_>,
    known: &Identity,
    now: &Identity,
    system: &SystemIdentity,
    slot: Option<&Slot>,
    durable: Option<Lsn>,
) -> Result<()> {
    if now.standby
        && (&known.system_identifier, known.timeline) == (&now.system_identifier, now.timeline)
        && let Some(durable) = durable.filter(|durable| *durable > system.flushed)
    {
        // One that has restarted replays again what it has.
        let behind = format!("the standby has {}, and the log holds changes up to {durable}", system.flushed);
        return Err(Error::retry(behind).hint("nothing, if the standby is catching up: it is waited for"));
    }
    let parted = system.history.iter().find(|(timeline, _)| *timeline == known.timeline).map(|(_, at)| *at);
    let read_on = |parted: Lsn| known.standby && slot.is_some_and(|slot| !slot.synced && slot.confirmed > parted);
    let changed = if known.system_identifier != now.system_identifier {
        format!(
            "this is another server: its system identifier is {}, the log was filled from {}",
            now.system_identifier, known.system_identifier
        )
    } else if known.database_oid != now.database_oid {
        format!(
            "this is another database: {:?} (oid {}), the log was filled from {:?} (oid {})",
            now.database, now.database_oid, known.database, known.database_oid
        )
    } else if let (true, Some(parted), Some(durable)) = (known.timeline < now.timeline, parted, durable)
        && durable > parted
        && !read_on(parted)
    {
        format!(
            "the server was promoted to timeline {} at {parted}, and the log holds changes up to {durable} of timeline \
             {}: those from {parted} to {durable} never were on this server",
            now.timeline, known.timeline
        )
    } else if known.timeline > now.timeline || (known.timeline < now.timeline && parted.is_none()) {
        format!(
            "the server is on timeline {}, the log was filled from timeline {}, which is none of its past: an older \
             backup was restored, or this is another branch",
            now.timeline, known.timeline
        )
    } else if known.timeline == now.timeline && durable.is_some_and(|durable| durable > system.flushed) {
        format!(
            "the server's WAL ends at {}, and the log holds changes up to {}: an older backup was restored",
            system.flushed,
            durable.unwrap_or_default()
        )
    } else if let Some(restart) = slot.and_then(|slot| slot.restart)
        && (known.timeline, &known.slot) == (now.timeline, &now.slot)
        && restart.0 < known.kept_from
    {
        format!(
            "slot {:?} kept WAL from {} on, and now from {restart} on: a slot never goes back, so an older backup was \
             restored, and what the server has written since it, up to {}, is not what the log holds",
            now.slot,
            Lsn(known.kept_from),
            durable.unwrap_or_default()
        )
    } else if known.slot != now.slot {
        format!("the log was filled through slot {:?}, the configuration says {:?}", known.slot, now.slot)
    } else {
        return Ok(());
    };
    let remedy = ours.repair();
    Err(Error::halt(changed).hint(format!("put back the server, database and slot that the log knows; or {remedy}")))
}

/// Whether the slot can go on from where the log stands.
pub(crate) fn fits(ours: Ours<'_>, slot: Option<&Slot>, durable: Option<Lsn>) -> Result<()> {
    let Ours { slot: name, database, .. } = ours;
    let Some(slot) = slot else {
        let Some(durable) = durable else { return Ok(()) };
        return Err(Error::halt(format!(
            "slot {name:?} is gone: the log ends at {durable}, and what the server did since is not kept for us"
        ))
        .hint(ours.repair()));
    };
    if slot.plugin != "pgoutput" {
        let what = format!("slot {name:?} is of plugin {:?}, not pgoutput", slot.plugin);
        return Err(Error::halt(what).hint("set `slot` of the source to another name"));
    }
    if slot.database != database {
        let what = format!("slot {name:?} is of database {:?}, not {database:?}", slot.database);
        return Err(Error::halt(what).hint("set `slot` of the source to another name"));
    }
    if slot.two_phase {
        let what = format!("slot {name:?} decodes two-phase transactions at PREPARE, where a crash could lose rows");
        return Err(Error::halt(what).hint(format!("drop it: SELECT pg_drop_replication_slot('{name}')")));
    }
    if slot.synced && slot.standby {
        let what = format!(
            "slot {name:?} is the primary's, kept in step on this standby: until it is promoted, it can only be read there"
        );
        return Err(Error::retry(what)
            .hint("name the primary in `url`; or give the source another `slot`, to be made on this standby"));
    }
    if let Some((loss, first)) = slot.loss() {
        let from = durable.unwrap_or(slot.confirmed);
        let what = format!("slot {name:?} was invalidated: {loss}; changes from {from} on do not come any more");
        return Err(Error::halt(what).hint(format!("{first}{}", ours.repair())));
    }
    if let Some(durable) = durable
        && slot.confirmed > durable
    {
        return Err(Error::halt(format!(
            "changes from {durable} to {} are missing: slot {name:?} was moved on to {1} by someone else, or made \
             anew, and the log ends at {durable}",
            slot.confirmed, slot.confirmed
        ))
        .hint(ours.repair()));
    }
    Ok(())
}

/// What a slot costs its server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlotState {
    /// WAL that is kept for it, in bytes.
    pub retained_bytes: u64,
    /// What may still be written before it is in danger; None: no bound is set.
    pub safe_bytes: Option<i64>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
    #[serde(skip)]
    pub(crate) restart: Lsn,
}

/// Looks at a source's slot; None: it is not there.
pub async fn slot_state(config: &Postgres) -> Result<Option<SlotState>> {
    let client = crate::target::Servers::of(config)?.connect().await?.1;
    measure(&client, &config.slot).await
}

pub(crate) async fn measure(client: &Client, name: &str) -> Result<Option<SlotState>> {
    let sql = "SELECT coalesce(greatest(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                               ELSE pg_current_wal_lsn() END, restart_lsn), 0)::bigint, 0),
                      safe_wal_size, coalesce(wal_status, ''), coalesce(restart_lsn, '0/0')::text
                 FROM pg_replication_slots WHERE slot_name = $1";
    let failed = |error| control_failed(error, format!("could not measure slot {name:?}"));
    let row = client.query_opt(sql, &[&name]).await.map_err(failed)?;
    Ok(row.map(|row| SlotState {
        retained_bytes: row.get::<_, i64>(0).max(0) as u64,
        safe_bytes: row.get(1),
        wal_status: row.get(2),
        restart: row.get::<_, String>(3).parse().unwrap_or_default(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot_at(confirmed: u64, restart: Option<Lsn>) -> Slot {
        Slot {
            plugin: "pgoutput".into(),
            database: "shop".into(),
            active_pid: None,
            confirmed: Lsn(confirmed),
            restart,
            wal_status: "reserved".into(),
            invalidated: String::new(),
            two_phase: false,
            synced: false,
            standby: false,
        }
    }

    fn known(standby: bool, kept_from: u64) -> Identity {
        Identity {
            system_identifier: "7".into(),
            timeline: 1,
            database: "shop".into(),
            database_oid: 5,
            slot: "s".into(),
            standby,
            kept_from,
        }
    }

    #[test]
    fn a_slot_ahead_of_the_log_is_a_gap_and_is_named() {
        let slot = slot_at(0x200, Some(Lsn(0x180)));
        let ours = Ours { source: "shop", slot: "s", database: "shop" };
        assert!(fits(ours, Some(&slot), Some(Lsn(0x200))).is_ok());
        assert!(fits(ours, Some(&slot), None).is_ok());
        let error = fits(ours, Some(&slot), Some(Lsn(0x100))).unwrap_err();
        assert!(error.to_string().contains("0/100 to 0/200"), "{error}");
        assert!(fits(ours, None, Some(Lsn(1))).unwrap_err().to_string().contains("is gone"));
        for (wal_status, reason, word) in [
            ("lost", "", "max_slot_wal_keep_size"),
            ("lost", "wal_removed", "max_slot_wal_keep_size"),
            ("lost", "rows_removed", "hot_standby_feedback"),
            ("reserved", "wal_level_insufficient", "wal_level"),
            ("lost", "idle_timeout", "idle_replication_slot_timeout"),
            ("lost", "a reason to come", "invalidated"),
        ] {
            let lost = Slot { wal_status: wal_status.into(), invalidated: reason.into(), ..slot.clone() };
            let error = fits(ours, Some(&lost), Some(Lsn(0x200))).unwrap_err();
            assert!(error.to_string().contains(word) && error.to_string().contains("from 0/200 on"), "{error}");
            assert!(error.remedy().unwrap().contains("highwater repair shop"));
        }
        let other = Ours { database: "other", ..ours };
        assert!(fits(other, Some(&slot), None).is_err());
        let synced = Slot { synced: true, standby: true, ..slot };
        assert_eq!(fits(ours, Some(&synced), None).unwrap_err().action(), connector::Action::Retry);
    }

    #[test]
    fn a_slot_that_went_back_is_of_an_older_backup() {
        let known = known(false, 0x200);
        let system =
            SystemIdentity { system_identifier: "7".into(), timeline: 1, flushed: Lsn(0x900), history: Vec::new() };
        let ours = Ours { source: "shop", slot: "s", database: "shop" };
        let same = |known: &Identity, now: &Identity, restart: Option<u64>| {
            same_server(ours, known, now, &system, Some(&slot_at(0x280, restart.map(Lsn))), Some(Lsn(0x300)))
        };
        for (restart, goes_on) in [(Some(0x200), true), (Some(0x201), true), (Some(0x1FF), false), (None, true)] {
            assert_eq!(same(&known, &known, restart).is_ok(), goes_on, "{restart:?}");
        }
        let error = same(&known, &known, Some(0x100)).unwrap_err();
        assert!(error.to_string().contains("from 0/200 on, and now from 0/100 on"), "{error}");
        assert!(same(&Identity { kept_from: 0, ..known.clone() }, &known, Some(1)).is_ok(), "an older log");
    }

    #[test]
    fn a_standby_is_read_on_through_its_promotion_and_no_other_is() {
        let known = known(true, 0x180);
        let now = Identity { timeline: 2, standby: false, ..known.clone() };
        let system = SystemIdentity {
            system_identifier: "7".into(),
            timeline: 2,
            flushed: Lsn(0x500),
            history: vec![(1, Lsn(0x200))],
        };
        let slot = slot_at(0x280, Some(Lsn(0x180)));
        let ours = Ours { source: "shop", slot: "s", database: "shop" };
        let same =
            |known: &Identity, slot: &Slot| same_server(ours, known, &now, &system, Some(slot), Some(Lsn(0x300)));
        assert!(same(&known, &slot).is_ok());
        let never = |known: &Identity, slot: &Slot| same(known, slot).unwrap_err().to_string().contains("never were");
        assert!(never(&Identity { standby: false, ..known.clone() }, &slot), "a primary's was read to there");
        assert!(never(&known, &Slot { confirmed: Lsn(0x200), ..slot.clone() }), "nothing was read here beyond");
        assert!(never(&known, &Slot { synced: true, ..slot.clone() }), "it is the old primary's");
        // One that restarts has not yet replayed what it had.
        let system = SystemIdentity { timeline: 1, flushed: Lsn(0x100), history: Vec::new(), ..system.clone() };
        let error = same_server(ours, &known, &known, &system, Some(&slot), Some(Lsn(0x300))).unwrap_err();
        assert_eq!(error.action(), connector::Action::Retry, "{error}");
    }
}

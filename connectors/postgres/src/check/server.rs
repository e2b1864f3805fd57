//! The server's settings, and the role.

use std::collections::HashMap;

use config::Postgres;
use tokio_postgres::Client;

use super::Finding;
use crate::control;
use crate::error::control_failed;
use crate::plan::quote;
use crate::slot::Slot;

/// Connections besides those that read tables: control, watcher, stream, and a
/// round's slot.
const CONNECTIONS: i64 = 4;
/// What `check`, `status` and `verify` take beside a running daemon.
const COMMANDS: i64 = 4;
/// A slot that may hold back less is lost by a burst of writes.
const LEAST_KEPT: i64 = 1024;
/// The server hears from us each second, and a loaded machine is late.
const LEAST_SENDER_TIMEOUT: i64 = 10_000;
const RELOAD: &str = "SELECT pg_reload_conf();";

/// As a session of the role begins with it.
struct Setting {
    value: String,
    /// It is another in the server's files.
    waits_for_restart: bool,
}

struct Server<'a> {
    client: &'a Client,
    config: &'a Postgres,
    role: String,
    settings: HashMap<String, Setting>,
}

/// All of it.
pub(super) async fn look(client: &Client, config: &Postgres, slot: Option<&Slot>) -> connector::Result<Vec<Finding>> {
    let rows = client.query("SELECT name, reset_val, pending_restart FROM pg_settings", &[]).await;
    let rows = rows.map_err(|error| control_failed(error, "could not read the server's settings"))?;
    let setting = |row: &tokio_postgres::Row| Setting {
        value: row.get::<_, Option<String>>(1).unwrap_or_default(),
        waits_for_restart: row.get(2),
    };
    let settings = rows.iter().map(|row| (row.get(0), setting(row))).collect();
    let server = Server { client, config, role: quote(&config.user), settings };
    let mut findings = Vec::new();
    server.version(&mut findings).await?;
    server.wal_level(&mut findings);
    server.role(&mut findings).await?;
    server.room(slot, &mut findings).await?;
    server.kept(slot, &mut findings);
    server.timeouts(&mut findings);
    Ok(findings)
}

impl Server<'_> {
    fn setting(&self, name: &str) -> Option<&Setting> {
        self.settings.get(name)
    }

    /// 0 where there is none.
    fn number(&self, name: &str) -> i64 {
        self.setting(name).and_then(|setting| setting.value.parse().ok()).unwrap_or(0)
    }

    async fn scalar(&self, sql: &str) -> connector::Result<String> {
        control::scalar(self.client, sql).await
    }

    async fn version(&self, findings: &mut Vec<Finding>) -> connector::Result<()> {
        let version = self.number("server_version_num");
        let text = format!("server version {}.{}", version / 10_000, version % 10_000);
        findings.push(if version >= 130_000 {
            Finding::ok(text)
        } else {
            Finding::error(format!("{text}: 13 or later is needed"))
        });
        if control::is_standby(self.client).await? {
            findings.push(self.standby(version));
        }
        Ok(())
    }

    fn standby(&self, version: i64) -> Finding {
        let is = |name: &str, value: &str| self.setting(name).is_some_and(|setting| setting.value == value);
        if version < 160_000 {
            Finding::error("the server is a standby, from which logical decoding is possible from version 16 on")
                .remedy("point `url` of the source at the primary")
        } else if is("hot_standby_feedback", "off") || is("primary_slot_name", "") {
            Finding::warning("the server is a standby, and hot_standby_feedback is off or primary_slot_name not set")
                .why("vacuum at the primary may remove rows of the catalog that the slot needs, which invalidates it")
                .sql(format!("ALTER SYSTEM SET hot_standby_feedback = on;\n{RELOAD}"))
                .remedy("and set primary_slot_name, to a slot of the primary's for this standby")
        } else {
            Finding::ok("the server is a standby: the slot is its own, and the publication the primary's")
        }
    }

    fn wal_level(&self, findings: &mut Vec<Finding>) {
        let Some(level) = self.setting("wal_level") else { return };
        if level.value == "logical" {
            findings.push(Finding::ok("wal_level = logical"));
            return;
        }
        let finding = Finding::error(format!("wal_level = {}, capture needs logical", level.value))
            .why("less is in the WAL, and no slot for changes can be made");
        findings.push(self.restarted("wal_level", "logical", finding));
    }

    /// What takes a restart: by whom, and whether it is all that is left to do.
    fn restarted(&self, name: &str, value: &str, finding: Finding) -> Finding {
        if self.setting(name).is_some_and(|setting| setting.waits_for_restart) {
            return finding.remedy(format!("restart the server: {name} is another in its files already"));
        }
        finding
            .sql(format!("ALTER SYSTEM SET {name} = '{value}'; -- then restart the server\n{RELOAD}"))
            .remedy("then restart the server")
    }

    async fn role(&self, findings: &mut Vec<Finding>) -> connector::Result<()> {
        let sql = "SELECT r.rolreplication OR r.rolsuper, CASE WHEN r.rolsuper THEN -1 ELSE r.rolconnlimit END::int8,
                          coalesce(r.rolvaliduntil < now() + interval '7 days', false), coalesce(r.rolvaliduntil::text, ''),
                          CASE WHEN r.rolsuper THEN -1 ELSE d.datconnlimit END::int8
                     FROM pg_roles r, pg_database d
                    WHERE r.rolname = current_user AND d.datname = current_database()";
        let row = self.client.query_one(sql, &[]).await;
        let row = row.map_err(|error| control_failed(error, "could not ask what the role is"))?;
        let role = &self.role;
        findings.push(if row.get(0) {
            Finding::ok("the role has REPLICATION")
        } else {
            Finding::error(format!("role {} lacks REPLICATION", self.config.user))
                .why("without it no slot can be made or read")
                .sql(format!("ALTER ROLE {role} REPLICATION;"))
        });
        let need = self.connections();
        let few = |limit: i64| (0..need).contains(&limit);
        let limit: i64 = row.get(1);
        if few(limit) {
            findings.push(
                Finding::error(format!("the role may have {limit} connections, {need} are needed"))
                    .why("the stream, a round's slot, what watches, and those that read tables")
                    .sql(format!("ALTER ROLE {role} CONNECTION LIMIT {};", need + COMMANDS)),
            );
        }
        let limit: i64 = row.get(4);
        if few(limit) {
            findings.push(
                Finding::error(format!("the database may have {limit} connections, {need} are needed by this source"))
                    .sql(format!("ALTER DATABASE {} CONNECTION LIMIT -1;", quote(&self.config.database))),
            );
        }
        if row.get(2) {
            let until: String = row.get(3);
            findings.push(
                Finding::warning(format!("the role's password is valid until {until} only"))
                    .why("from then on the role cannot log in, and its slot holds back WAL")
                    .sql(format!("ALTER ROLE {role} VALID UNTIL 'infinity';")),
            );
        }
        Ok(())
    }

    fn connections(&self) -> i64 {
        CONNECTIONS + self.config.snapshot_connections as i64
    }

    /// Slots, senders and connections that are left.
    async fn room(&self, slot: Option<&Slot>, findings: &mut Vec<Finding>) -> connector::Result<()> {
        let running = slot.is_some_and(|slot| slot.active_pid.is_some());
        for (name, used, need, why) in [
            (
                "max_replication_slots",
                "count(*) FROM pg_replication_slots",
                1 + i64::from(slot.is_none()),
                "one for good, and one more while tables are read",
            ),
            (
                "max_wal_senders",
                "count(*) FROM pg_stat_replication",
                2 - i64::from(running),
                "one for the stream, and one more while tables are read",
            ),
            (
                "max_connections",
                "coalesce(sum(numbackends), 0)::bigint FROM pg_stat_database",
                if running { 0 } else { self.connections() - 2 },
                "the stream, what watches, and those that read tables",
            ),
        ] {
            let used: i64 = self.scalar(&format!("SELECT {used}")).await?.parse().unwrap_or(0);
            let reserved = if name == "max_connections" {
                self.number("superuser_reserved_connections") + self.number("reserved_connections")
            } else {
                0
            };
            let most = self.number(name);
            let free = (most - used - reserved).max(0);
            if free < need {
                let finding = Finding::error(format!("{name} = {most}: {free} free, {need} needed")).why(why);
                findings.push(self.restarted(name, &(most + 10).to_string(), finding));
            }
        }
        Ok(())
    }

    /// What a slot may hold back, and what takes it away.
    fn kept(&self, slot: Option<&Slot>, findings: &mut Vec<Finding>) {
        let kept = self.setting("max_slot_wal_keep_size").map(|_| self.number("max_slot_wal_keep_size"));
        let sql = format!("ALTER SYSTEM SET max_slot_wal_keep_size = '100GB';\n{RELOAD}");
        match kept {
            Some(-1) => findings.push(
                Finding::warning("max_slot_wal_keep_size = -1: what the slot may hold back has no bound")
                    .why("should this daemon be away for long, its slot fills the server's disk")
                    .sql(sql),
            ),
            Some(kept) if kept < LEAST_KEPT => findings.push(
                Finding::warning(format!("max_slot_wal_keep_size = {kept} MB is little"))
                    .why("a burst of writes while this daemon is away costs it the slot, and all tables are read again")
                    .sql(sql),
            ),
            _ => {}
        }
        let idle = self.number("idle_replication_slot_timeout");
        if idle > 0 {
            findings.push(
                Finding::warning(format!("idle_replication_slot_timeout is set ({idle})"))
                    .why("a daemon that is away for longer loses its slot, and all tables are read again; max_slot_wal_keep_size bounds the disk")
                    .sql(format!("ALTER SYSTEM SET idle_replication_slot_timeout = 0;\n{RELOAD}")),
            );
        }
        if let Some(slot) = slot.filter(|slot| slot.wal_status == "unreserved") {
            findings.push(
                Finding::warning(format!("slot {:?} holds back more than max_slot_wal_keep_size", self.config.slot))
                    .why(format!(
                        "it is lost with the server's next checkpoint, and changes from {} on with it",
                        slot.confirmed
                    ))
                    .remedy("have the daemon run now, or raise max_slot_wal_keep_size"),
            );
        }
        let names = self.setting("synchronous_standby_names").map_or("", |setting| setting.value.as_str());
        let ours = names.split(|c: char| c != '*' && c != '_' && !c.is_alphanumeric());
        if ours.into_iter().any(|name| name == "*" || name.eq_ignore_ascii_case("highwater")) {
            findings.push(
                Finding::warning(format!("synchronous_standby_names = {names} means this daemon too"))
                    .why("commits at the server would wait for it")
                    .remedy("name the standbys that are meant"),
            );
        }
    }

    /// Sessions of ours set them to 0 where they can, which a very short one does not wait for.
    fn timeouts(&self, findings: &mut Vec<Finding>) {
        let (role, database) = (&self.role, quote(&self.config.database));
        for name in [
            "statement_timeout",
            "lock_timeout",
            "idle_in_transaction_session_timeout",
            "transaction_timeout",
            "idle_session_timeout",
        ] {
            let Some(setting) = self.setting(name).filter(|setting| setting.value != "0") else { continue };
            findings.push(
                Finding::warning(format!("{name} = {} ms for sessions of the role", setting.value))
                    .why("each session of ours has to set it to 0 first, or tables could not be read")
                    .sql(format!("ALTER ROLE {role} IN DATABASE {database} SET {name} = 0;")),
            );
        }
        let sender = self.number("wal_sender_timeout");
        if (1..LEAST_SENDER_TIMEOUT).contains(&sender) {
            findings.push(
                Finding::warning(format!("wal_sender_timeout = {sender} ms is short"))
                    .why("a loaded machine answers late, and the server cuts the stream")
                    .sql(format!("ALTER ROLE {role} IN DATABASE {database} SET wal_sender_timeout = '1min';")),
            );
        }
    }
}

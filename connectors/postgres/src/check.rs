//! Looks at a server, says what would fail or hurt, and what mends it. Changes nothing.

mod server;
mod tables;

use config::{Postgres, Session};
use connector::Table;
use serde::Serialize;
use storage::State;
use tokio_postgres::Client;

use crate::catalog::Types;
use crate::control;
use crate::lsn::Lsn;
use crate::setup;
use crate::shape;
use crate::slot::{self, Identity, Slot};
use crate::source::identity;
use crate::tables::matching;
use crate::target::{Servers, Target};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Works; somebody should know.
    Warning,
    /// Would fail.
    Error,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub what: String,
    /// Why it matters.
    pub why: Option<String>,
    /// SQL that mends it, a statement a line: some must not be in a transaction.
    pub sql: Option<String>,
    /// What else to do.
    pub remedy: Option<String>,
}

impl Finding {
    fn new(severity: Severity, what: impl Into<String>) -> Self {
        Self { severity, what: what.into(), why: None, sql: None, remedy: None }
    }

    /// As it should be.
    pub fn ok(what: impl Into<String>) -> Self {
        Self::new(Severity::Ok, what)
    }

    /// Works; somebody should know.
    pub fn warning(what: impl Into<String>) -> Self {
        Self::new(Severity::Warning, what)
    }

    /// Would fail.
    pub fn error(what: impl Into<String>) -> Self {
        Self::new(Severity::Error, what)
    }

    /// What was tried has failed.
    pub fn failed(error: &connector::Error) -> Self {
        Self { remedy: error.remedy().map(str::to_owned), ..Self::error(error.chain()) }
    }

    /// Why it matters.
    pub fn why(self, why: impl Into<String>) -> Self {
        Self { why: Some(why.into()), ..self }
    }

    /// SQL that mends it, a statement a line.
    pub fn sql(self, sql: impl Into<String>) -> Self {
        Self { sql: Some(sql.into()), ..self }
    }

    /// What else to do.
    pub fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }
}

/// The shapes that tables would be captured in now: what a sink will be given.
pub async fn shapes(config: &Postgres) -> connector::Result<Vec<Table>> {
    let client = Servers::of(config)?.connect().await?.1;
    let types = Types::read(&client).await?;
    let tables = matching(&client, config).await?;
    tables.iter().map(|table| Ok(shape::of(config, &types, table)?.0)).collect()
}

/// Where a source's log stands.
#[derive(Debug, Default)]
pub struct Standing {
    /// What is durable; None: there is no log yet.
    pub durable: Option<Lsn>,
    /// Its state.
    pub state: State,
}

/// Everything that can be seen before it hurts.
pub async fn check(config: &Postgres, standing: &Standing) -> Vec<Finding> {
    let reached = async { Servers::of(config)?.connect().await };
    let (target, client) = match reached.await {
        Ok(reached) => reached,
        Err(error) => {
            let finding = Finding::failed(&error);
            // Whoever cannot get in sees nothing: what a role needs is said whole.
            return vec![if setup::is_wanted(&error) { finding.sql(setup::script(config)) } else { finding }];
        }
    };
    let mut findings = vec![Finding::ok(format!("reached {}:{} as {}", target.host, target.port, config.user))];
    if config.hosts.len() > 1 && config.session == Session::Any {
        findings.push(
            Finding::warning("of several servers the first that can be reached is taken, be it a standby")
                .why("behind a failover that is the old primary, if it is there again")
                .remedy("add ?target_session_attrs=read-write to `url`"),
        );
    }
    if let Err(error) = look(&client, &target, config, standing, &mut findings).await {
        findings.push(Finding::failed(&error));
    }
    findings
}

async fn look(
    client: &Client,
    target: &Target,
    config: &Postgres,
    standing: &Standing,
    findings: &mut Vec<Finding>,
) -> connector::Result<()> {
    let found = slot::read(client, &config.slot).await?;
    findings.extend(server::look(client, config, found.as_ref()).await?);
    // What hinders a replication connection has been told.
    if !findings.iter().any(|finding| finding.severity == Severity::Error) {
        findings.push(as_replication(client, target, config, found.as_ref(), standing).await);
    }
    findings.extend(tables::look(client, config).await?);
    findings.push(match slot::fits(config.into(), found.as_ref(), standing.durable) {
        Ok(()) => Finding::ok(match &found {
            Some(found) => format!("slot {:?} confirmed up to {}", config.slot, found.confirmed),
            None => format!("slot {:?} is not there yet; `run` makes it", config.slot),
        }),
        Err(error) => Finding::failed(&error),
    });
    Ok(())
}

/// Whether the stream's own connection can be had: a pooler, or a line of
/// pg_hba.conf, may be in its way alone. And whether this is the log's server.
async fn as_replication(
    client: &Client,
    target: &Target,
    config: &Postgres,
    slot: Option<&Slot>,
    standing: &Standing,
) -> Finding {
    let attempt = || async {
        let system = crate::source::system(target).await?.1;
        let now = identity(client, &system, control::is_standby(client).await?, config).await?;
        match Identity::of(&standing.state) {
            Some(known) => {
                slot::same_server(config.into(), &known, &now, &system, slot, standing.durable).map(|()| true)
            }
            None => Ok(false),
        }
    };
    match attempt().await {
        Ok(true) => Finding::ok("a replication connection, to the server that the log was filled from"),
        Ok(false) => Finding::ok("a replication connection"),
        Err(error) => Finding::failed(&error),
    }
}

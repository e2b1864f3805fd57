//! The command line.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};

/// Moves changes out of databases, and loses none.
#[derive(Debug, Parser)]
#[command(name = "highwater", version, max_term_width = 100)]
pub(crate) struct Args {
    /// The configuration [default: highwater.toml, or $HIGHWATER_CONFIG]
    #[arg(long, short, global = true)]
    pub(crate) config: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The daemon, in the foreground
    Run {
        /// Capture what was committed before now, deliver it to every sink, and end
        #[arg(long)]
        until_caught_up: bool,
    },
    /// Looks at configuration, sources, sinks and disk; says what would fail and what mends it
    Check {
        /// Print only the SQL
        #[arg(long)]
        sql: bool,
    },
    /// What runs, how far it is, and why not; of a stopped daemon, what its files tell
    Status,
    /// Events of a source as NDJSON
    Tail(Tail),
    /// Reads tables again, while following goes on
    Snapshot {
        /// The source
        source: String,
        /// Which, as schema.table; patterns allowed
        #[arg(required = true)]
        tables: Vec<String>,
    },
    /// Mends a gap, after saying what it will do
    Repair {
        /// The source
        source: String,
        /// Do it
        #[arg(long)]
        yes: bool,
    },
    /// Has a source or a sink stand still, until `resume`, whatever restarts
    Pause {
        /// The source or sink; where both have the name: source:NAME or sink:NAME
        name: String,
    },
    /// Lets a source or a sink go on; one that has halted tries again
    Resume {
        /// The source or sink; where both have the name: source:NAME or sink:NAME
        name: String,
        /// Of a sink: tables that wait apart, as schema.table; patterns allowed
        #[arg(long)]
        table: Vec<String>,
    },
    /// Moves a sink to another place in the log, after saying what that means for it
    Replay {
        /// The sink
        sink: String,
        /// `beginning`, an offset, a time (2026-11-22T10:00:00Z), or `snapshot`: its tables are read again
        #[arg(long)]
        from: String,
        /// Of this source, where it takes from several
        #[arg(long)]
        source: Option<String>,
        /// Do it
        #[arg(long)]
        yes: bool,
    },
    /// Compares a destination with its source at one position, while both go on
    Verify(Verify),
    /// Looks into the registry, and moves it
    Schemas {
        #[command(subcommand)]
        command: Schemas,
    },
    /// Rows that wait for a person: what they are, and what becomes of them
    Quarantine {
        #[command(subcommand)]
        command: Quarantine,
    },
    /// Looks into the logs
    Log {
        #[command(subcommand)]
        command: Log,
    },
    /// Writes a configuration: an example, or one for a database, which is looked at first
    Init {
        /// postgres://role@host/database
        url: Option<String>,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Verify {
    /// The source
    pub(crate) source: String,
    /// The sink
    pub(crate) sink: String,
    /// Only these tables, as schema.table; patterns allowed, may be repeated
    #[arg(long)]
    pub(crate) table: Vec<String>,
    /// Read again what differs, delete what is too many, then compare again
    #[arg(long)]
    pub(crate) repair: bool,
    /// Show the values that differ, and not only their columns
    #[arg(long)]
    pub(crate) show_values: bool,
    /// Rows of a table to name one by one; all are counted
    #[arg(long, default_value_t = 1000)]
    pub(crate) limit: usize,
    /// Read no more rows a second on each side [default: as fast as it goes]
    #[arg(long)]
    pub(crate) rows_per_second: Option<u64>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Tail {
    /// The source
    pub(crate) source: String,
    /// The last N events [default: 10]; with --from the first N
    #[arg(short = 'n')]
    pub(crate) count: Option<usize>,
    /// Go on as events come
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// From here: `beginning`, an offset, or a time (2026-11-22T10:00:00Z)
    #[arg(long)]
    pub(crate) from: Option<String>,
    /// Only these tables, as schema.table; may be repeated
    #[arg(long)]
    pub(crate) table: Vec<String>,
    /// Marks too
    #[arg(long)]
    pub(crate) control: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Log {
    /// Every frame's header
    Inspect {
        /// Only this source's
        source: Option<String>,
    },
    /// Reads everything: CRCs, chain, borders
    Check {
        /// Only this source's
        source: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Quarantine {
    /// A line for each row
    List {
        /// The source
        source: String,
        #[command(flatten)]
        picked: Picked,
        /// What was given up so far, instead
        #[arg(long)]
        discarded: bool,
    },
    /// The rows themselves
    Show {
        /// The source
        source: String,
        #[command(flatten)]
        picked: Picked,
    },
    /// Looks at rows again, as they would be taken now, and lets them go on in order
    Redrive {
        /// The source
        source: String,
        #[command(flatten)]
        picked: Picked,
    },
    /// Gives rows up; what waits behind them goes on
    Discard {
        /// The source
        source: String,
        #[command(flatten)]
        picked: Picked,
        /// Do it
        #[arg(long)]
        yes: bool,
    },
}

/// Which rows; all, if nothing is said.
#[derive(Debug, ClapArgs)]
pub(crate) struct Picked {
    /// Only of these tables, as schema.table; patterns allowed, may be repeated
    #[arg(long)]
    pub(crate) table: Vec<String>,
    /// Only with this key: its value, or JSON like {"id": 42}
    #[arg(long)]
    pub(crate) key: Option<String>,
    /// Only for this reason
    #[arg(long, value_parser = ["contract", "value", "too_large", "incomplete", "shape", "behind"])]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Schemas {
    /// Subjects, with their versions and levels
    List {
        /// Softly deleted ones too
        #[arg(long)]
        deleted: bool,
    },
    /// A subject's schema
    Show {
        /// The subject
        subject: String,
        /// Which version [default: the last]
        #[arg(long)]
        version: Option<u32>,
    },
    /// Compares a source's tables with its log, the registry and the destinations' tables
    Check {
        /// The source
        source: String,
    },
    /// Why a table is held back: both sides, what changed, and all that forbids it
    Diff {
        /// The source
        source: String,
        /// As schema.table
        table: String,
    },
    /// Lets a table that is held back go on, if its subject's level allows it by now
    Approve {
        /// The source
        source: String,
        /// As schema.table
        table: String,
        /// Whatever the level says
        #[arg(long)]
        as_new_version: bool,
        /// Whatever the level says; what waits is given up, and the table read anew
        #[arg(long, conflicts_with = "as_new_version")]
        reset_table: bool,
    },
    /// What an ALTER would do: run in a transaction on the source that is rolled back
    Plan {
        /// The source
        source: String,
        /// The statements
        #[arg(long)]
        sql: PathBuf,
        /// Another role on the same database, who may alter: postgres://role@host/database
        #[arg(long)]
        url: Option<String>,
        /// File with that role's password
        #[arg(long, requires = "url")]
        password_file: Option<PathBuf>,
    },
    /// Everything, as lines of JSON
    Export {
        /// Where to [default: stdout]
        file: Option<PathBuf>,
    },
    /// Takes schemas in, with their ids and versions as they are
    Import {
        /// A file of `export` or of `GET /schemas`, or the http(s) url of a registry
        from: String,
        /// Another registry to take them in [default: the one of this configuration]
        #[arg(long)]
        to: Option<String>,
        #[command(flatten)]
        login: Login,
    },
    /// Reads a password from stdin and prints its hash, for `[registry.users]`
    Password,
}

/// For the registry of the url.
#[derive(Debug, ClapArgs)]
pub(crate) struct Login {
    /// Name, for a password
    #[arg(long, requires = "password_file")]
    pub(crate) user: Option<String>,
    /// File with the password
    #[arg(long, requires = "user")]
    pub(crate) password_file: Option<PathBuf>,
    /// File with a token
    #[arg(long, conflicts_with = "user")]
    pub(crate) token_file: Option<PathBuf>,
    /// File of certificates that sign the registry's
    #[arg(long)]
    pub(crate) ca: Option<PathBuf>,
}

impl Args {
    pub(crate) fn config_file(&self) -> PathBuf {
        let named = self.config.clone().or_else(|| std::env::var_os("HIGHWATER_CONFIG").map(PathBuf::from));
        named.unwrap_or_else(|| "highwater.toml".into())
    }
}

//! `highwater schemas`: looks into the registry beside a running daemon, and
//! moves it in and out with all ids kept.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::time::Duration;

use config::Config;
use connector::{Error, Result};
use connector_runtime::{Approval, Hold, Parked};
use schema_registry::{Client, Elsewhere, Entry, Imported, SchemaEntry, Store};
use serde_json::json;

use crate::args::{Login, Schemas};
use crate::exit::{Exit, failure};
use crate::out::line;
use crate::{drift, held, layout, registry};

pub(crate) async fn run(config: &Config, command: &Schemas, as_json: bool) -> Exit {
    let done = match command {
        Schemas::List { deleted } => list(config, *deleted, as_json).await,
        Schemas::Show { subject, version } => show(config, subject, *version, as_json).await,
        Schemas::Check { source } => return drift::run(config, source, as_json).await,
        Schemas::Diff { source, table } => diff(config, source, table, as_json),
        Schemas::Approve { source, table, as_new_version, reset_table } => {
            let how = match (as_new_version, reset_table) {
                (_, true) => Approval::ResetTable,
                (true, _) => Approval::AsNewVersion,
                _ => Approval::AtLevel,
            };
            approve(config, source, table, how, as_json).await
        }
        Schemas::Plan { source, sql, url, password_file } => {
            return crate::plan::run(config, source, sql, url.as_deref(), password_file.as_deref(), as_json).await;
        }
        Schemas::Export { file } => export(config, file.as_deref()).await,
        Schemas::Import { from, to, login } => import(config, from, to.as_deref(), login, as_json).await,
        Schemas::Password => return password(),
    };
    match done {
        Ok(()) => Exit::Done,
        Err(error) => {
            failure("schemas", &error);
            Exit::Halted
        }
    }
}

/// Everything, from ours or from the one that is used instead.
async fn entries(config: &Config) -> Result<Vec<Entry>> {
    if let Some(config::Registry::External(external)) = &config.registry {
        return all_of(&registry::client(registry::elsewhere(external))?).await;
    }
    let folder = layout::registry(config);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let read = tokio::task::spawn_blocking(move || Store::peek(&folder).map(|registry| registry.export())).await;
    let read = read.map_err(|error| Error::halt("could not read the registry").because(error))?;
    read.map_err(|error| Error::halt("could not read the registry").because(error))
}

async fn all_of(client: &Client) -> Result<Vec<Entry>> {
    client.export().await.map_err(|error| {
        Error::halt(format!("could not read the registry at {}", client.url()))
            .because(error)
            .hint("check that it is up, and who may ask it")
    })
}

async fn list(config: &Config, deleted: bool, as_json: bool) -> Result<()> {
    let entries = entries(config).await?;
    let mut subjects: BTreeMap<&str, Vec<&SchemaEntry>> = BTreeMap::new();
    for entry in entries.iter().filter_map(Entry::schema).filter(|entry| deleted || !entry.deleted) {
        subjects.entry(&entry.subject).or_default().push(entry);
    }
    let level = |subject: &str| {
        entries.iter().find_map(|entry| match entry {
            Entry::Config { scope, config } if scope == subject => config.compatibility_level,
            _ => None,
        })
    };
    for (subject, mut versions) in subjects {
        versions.sort_by_key(|entry| entry.version);
        let level = level(subject).map(schema_registry::Level::name);
        let numbers: Vec<u32> = versions.iter().map(|entry| entry.version).collect();
        let last = versions.last().map(|entry| (entry.version, entry.id));
        if as_json {
            let id = last.map(|(_, id)| id);
            line(json!({"subject": subject, "versions": numbers, "id": id, "compatibility": level}));
        } else {
            let (version, id) = last.unwrap_or_default();
            let level = level.unwrap_or("inherited");
            line(format!("{subject}  version {version} of {}  id {id}  level {level}", numbers.len()));
        }
    }
    for table in held::all(config).await? {
        if as_json {
            line(json!({"held": table}));
        } else {
            held::print(&table);
        }
    }
    Ok(())
}

async fn approve(config: &Config, source: &str, table: &str, how: Approval, as_json: bool) -> Result<()> {
    let done = held::approve(config, source, table, how).await?;
    if as_json {
        line(json!({"source": source, "table": table, "reset": how == Approval::ResetTable, "approved": done}));
    } else if how == Approval::ResetTable {
        line(format!("{table} is read anew; {} events that waited are given up when that begins", done.events));
    } else {
        line(format!("{table} goes on: {} events, {} bytes were let go", done.events, done.bytes));
    }
    Ok(())
}

/// Both sides of a table that is held.
fn diff(config: &Config, source: &str, table: &str, as_json: bool) -> Result<()> {
    if !config.sources.contains_key(source) {
        let known: Vec<&str> = config.sources.keys().map(String::as_str).collect();
        return Err(
            Error::halt(format!("there is no source {source:?}")).hint(format!("there is: {}", known.join(", ")))
        );
    }
    let folder = layout::log(config, source);
    layout::has_log(&folder)?;
    let log = storage::outside::LogFiles::open(&folder);
    let standing = log.and_then(|log| log.standing()).map_err(|error| crate::exit::log_error(&folder, error))?;
    let state = standing.map(|standing| standing.state).unwrap_or_default();
    let holds = Hold::from_state(&state)?;
    let hold = holds.iter().find(|hold| format!("{}.{}", hold.schema, hold.table) == table || hold.stream == table);
    let hold = hold.ok_or_else(|| {
        Error::halt(format!("{table} is not held back")).hint("`highwater schemas list` shows which tables are")
    })?;
    let told = held::told(source, &state, std::slice::from_ref(hold)).pop().unwrap_or_default();
    let parked = Parked::from_state(&state)?;
    let shapes = connector::Shapes::from_state(state.iter())
        .map_err(|error| Error::halt("could not read the schemas in the log's state").because(error))?;
    let of_stream = || parked.iter().filter(|parked| parked.shape.table.stream() == hold.stream);
    let good = of_stream().find_map(|parked| shapes.get(parked.good?));
    if as_json {
        let new: Vec<_> = of_stream()
            .map(|parked| json!({"number": parked.shape.number, "value": parked.shape.value, "key": parked.shape.key}))
            .collect();
        let old = good.map(|shape| json!({"number": shape.number, "value": shape.value, "key": shape.key}));
        line(json!({"held": told, "old": old, "new": new}));
        return Ok(());
    }
    let side = |title: String, table: &connector::Table| {
        line(title);
        for (i, column) in table.columns.iter().enumerate() {
            let null = if column.nullable { "" } else { " NOT NULL" };
            let key = if table.in_key(i) { ", of the key" } else { "" };
            line(format!("  {} {}{null}{key}", column.name, column.db_type));
        }
    };
    if let Some(good) = good {
        side(format!("approved, shape {}:", good.number), &good.table);
    }
    for parked in of_stream() {
        side(format!("waits, shape {}:", parked.shape.number), &parked.shape.table);
    }
    held::print(&told);
    Ok(())
}

async fn show(config: &Config, subject: &str, version: Option<u32>, as_json: bool) -> Result<()> {
    let entries = entries(config).await?;
    let of = entries.iter().filter_map(Entry::schema).filter(|entry| entry.subject == subject);
    let found = match version {
        Some(version) => of.clone().find(|entry| entry.version == version),
        None => of.clone().filter(|entry| !entry.deleted).max_by_key(|entry| entry.version),
    };
    let Some(found) = found else {
        let known: Vec<String> = of.map(|entry| entry.version.to_string()).collect();
        let hint = match known.is_empty() {
            true => "`highwater schemas list` shows all subjects".to_owned(),
            false => format!("its versions are {}", known.join(", ")),
        };
        return Err(Error::halt(format!("there is no such version of subject {subject:?}")).hint(hint));
    };
    if as_json {
        line(serde_json::to_string(found).expect("an entry serialises"));
    } else {
        let text: Option<serde_json::Value> = serde_json::from_str(&found.schema).ok();
        line(text.map_or_else(|| found.schema.clone(), |text| format!("{text:#}")));
    }
    Ok(())
}

async fn export(config: &Config, file: Option<&std::path::Path>) -> Result<()> {
    let entries = entries(config).await?;
    let mut text = String::new();
    for entry in &entries {
        text.push_str(&serde_json::to_string(entry).expect("an entry serialises"));
        text.push('\n');
    }
    match file {
        None => {
            let _ = std::io::stdout().write_all(text.as_bytes());
        }
        Some(file) => {
            let written = std::fs::write(file, text);
            written.map_err(|error| Error::halt(format!("could not write {}", file.display())).because(error))?;
            eprintln!("{} entries", entries.len());
        }
    }
    Ok(())
}

async fn import(config: &Config, from: &str, to: Option<&str>, login: &Login, as_json: bool) -> Result<()> {
    let is_url = |text: &str| text.starts_with("http://") || text.starts_with("https://");
    let entries = if is_url(from) {
        all_of(&registry::client(at(from, login)?)?).await?
    } else {
        let text = std::fs::read_to_string(from)
            .map_err(|error| Error::halt(format!("could not read {from}")).because(error))?;
        Entry::parse(&text).map_err(|why| {
            Error::halt(format!("could not read {from}: {why}"))
                .hint("give it what `highwater schemas export` or `GET /schemas?deleted=true` wrote")
        })?
    };
    let external = match &config.registry {
        Some(config::Registry::External(external)) => Some(registry::elsewhere(external)),
        _ => None,
    };
    let target = match to {
        Some(url) => Some(at(url, login)?),
        None => external,
    };
    let refused = |error: schema_registry::Error| {
        Error::halt("could not import")
            .because(error)
            .hint("what was taken in before stays, with its ids; mend the cause and import again")
    };
    let imported: Imported = match target {
        Some(at) => registry::client(at)?.import(&entries).await.map_err(refused)?,
        None => {
            std::fs::create_dir_all(&config.data_dir)
                .map_err(|error| Error::halt("could not make the data folder").because(error))?;
            let store = registry::open_store(config).await?;
            let imported = store.import_all(&entries).await;
            store.close().await;
            imported.map_err(refused)?
        }
    };
    if as_json {
        line(json!(imported));
    } else {
        line(format!("{} versions, {} settings", imported.schemas, imported.settings));
    }
    Ok(())
}

fn at(url: &str, login: &Login) -> Result<Elsewhere> {
    let parsed = url.parse::<url::Url>();
    let url = parsed.map_err(|error| Error::halt("the registry's url cannot be used").because(error))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Error::halt("the url holds a name or password, which others can see")
            .hint("use --user and --password-file, or --token-file"));
    }
    let secret = |file: &Option<std::path::PathBuf>| match file {
        None => Ok(None),
        Some(file) => std::fs::read_to_string(file)
            .map(|text| Some(text.trim_end_matches(['\r', '\n']).to_owned()))
            .map_err(|error| Error::halt(format!("could not read {}", file.display())).because(error)),
    };
    Ok(Elsewhere {
        url,
        basic: login.user.clone().zip(secret(&login.password_file)?),
        bearer: secret(&login.token_file)?,
        ca: login.ca.clone(),
        timeout: Duration::from_secs(30),
    })
}

/// The hash of what stands on stdin.
pub(crate) fn password() -> Exit {
    let mut text = String::new();
    let read = std::io::stdin().take(4_096).read_to_string(&mut text);
    let password = text.trim_end_matches(['\r', '\n']);
    if read.is_err() || password.is_empty() {
        eprintln!("no password on stdin\nwhat to do: echo it in, as in `highwater schemas password < FILE`");
        return Exit::Usage;
    }
    match listener::hash_password(password) {
        Some(hash) => {
            line(hash);
            Exit::Done
        }
        None => {
            eprintln!("the password cannot be hashed");
            Exit::Halted
        }
    }
}

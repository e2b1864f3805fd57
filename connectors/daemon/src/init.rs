//! Writes a configuration: the example, or one for a database that was looked at.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use config::{Config, Secret, Source};
use connector_postgres::{Finding, Severity, Survey};
use url::Url;

use crate::args::Args;
use crate::exit::{Exit, failure, faults};
use crate::out;

/// More tables than that are counted, not listed.
const LISTED: usize = 200;

pub(crate) async fn run(args: &Args, url: Option<&str>) -> Exit {
    let file = args.config_file();
    if file.exists() {
        eprintln!("{} is there already\nwhat to do: --config names another", file.display());
        return Exit::Usage;
    }
    let (text, fails) = match url {
        None => (config::EXAMPLE.to_owned(), false),
        Some(url) => match looked_at(&file, url).await {
            Ok(looked) => looked,
            Err(exit) => return exit,
        },
    };
    let made = std::fs::OpenOptions::new().write(true).create_new(true).open(&file);
    if let Err(error) = made.and_then(|mut made| made.write_all(text.as_bytes())) {
        eprintln!("could not write {}: {error}", file.display());
        eprintln!("what to do: check that this user may write there; --config names another place");
        return Exit::Usage;
    }
    out::line(file.display());
    if fails {
        eprintln!("next: do what the file says is still to be done on the server, then `highwater check`");
    } else {
        eprintln!("next: look through it, then `highwater check` and `highwater run`");
    }
    Exit::Done
}

/// A configuration for a database, and whether something there would fail.
async fn looked_at(file: &Path, given: &str) -> Result<(String, bool), Exit> {
    let url = Url::parse(given).ok().filter(|url| matches!(url.scheme(), "postgres" | "postgresql"));
    let Some(mut url) = url.filter(|_| !given.contains(['"', '\\', '\n'])) else {
        // The text may hold a password: it is not repeated.
        eprintln!("that is no postgres url\nwhat to do: write it like postgres://role@host:5432/database");
        return Err(Exit::Usage);
    };
    let name = source_name(url.path());
    let variable = format!("{}_PASSWORD", name.to_uppercase());
    let in_url = url.password().map(|password| percent_decode(password).map_err(|()| Exit::Usage)).transpose()?;
    let password = in_url.or_else(|| std::env::var(&variable).ok());
    let _ = url.set_password(None);

    let probe = format!("[sources.{name}]\ntype = \"postgres\"\nurl = \"{url}\"\n");
    let probe = Config::from_text(file, &probe).map_err(|found| faults(&found))?;
    let Some(Source::Postgres(mut source)) = probe.sources.into_values().next() else { return Err(Exit::Usage) };
    source.password = password.clone().map(Secret::new);
    let survey = connector_postgres::survey(&source).await.map_err(|error| {
        failure("could not look at the database", &error);
        eprintln!("`highwater init` without a url writes an example to fill in");
        Exit::Halted
    })?;
    let fails = survey.findings.iter().any(|finding| finding.severity == Severity::Error);
    if password.is_some() {
        eprintln!("the password is not written: `run` reads it from {variable}, or from a file (see `password`)");
    }
    Ok((rendered(&name, url.as_str(), &variable, password.is_some(), &survey), fails))
}

/// The database's name, where it can be a source's.
fn source_name(path: &str) -> String {
    let name: String = path
        .trim_matches('/')
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' })
        .collect();
    // `highwater_<source>` is a slot's name, of 63 characters at most.
    let name: String = name.chars().take(50).collect();
    let begins = name.chars().next().is_some_and(|c| c.is_ascii_lowercase());
    if begins { name } else { format!("db_{name}").trim_end_matches('_').to_owned() }
}

fn percent_decode(text: &str) -> Result<String, ()> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = (byte == b'%').then(|| tail.get(..2)).flatten().and_then(|hex| std::str::from_utf8(hex).ok());
        let decoded = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(decoded.unwrap_or(byte));
        rest = if decoded.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8(out).map_err(|_| eprintln!("the password in the url is no UTF-8"))
}

/// The example, about this database.
fn rendered(name: &str, url: &str, variable: &str, password: bool, survey: &Survey) -> String {
    const URL: &str = "postgres://highwater@localhost:5432/shop";
    const TABLES: &str =
        "tables   = [\"public.*\"]                # \"!public.tmp_*\" takes away, whatever the order\n";
    let url_at = "\u{0}";
    let mut text = config::EXAMPLE.replace(URL, url_at).replace(TABLES, "\u{1}");
    text = text.replace("SHOP_PASSWORD", variable).replace("shop.password", &format!("{name}.password"));
    text = text.replace("sources.shop", &format!("sources.{name}")).replace("\"shop\"", &format!("{name:?}"));
    text = text.replace("highwater_shop", &format!("highwater_{name}"));
    if password {
        text = text.replace("# password =", "password =");
    }
    text.replace(url_at, url).replace('\u{1}', &tables(survey))
}

fn tables(survey: &Survey) -> String {
    let schemas: BTreeSet<&str> = survey.tables.iter().map(|table| table.schema.as_str()).collect();
    let patterns: Vec<String> = schemas.iter().map(|schema| quoted(&format!("{}.*", glob_escape(schema)))).collect();
    let patterns = if patterns.is_empty() { quoted("public.*") } else { patterns.join(", ") };
    let mut out = format!("tables   = [{patterns}]    # \"!public.tmp_*\" takes away, whatever the order\n");
    // Writing into a String cannot fail.
    let _ = writeln!(out, "# That is now, by the planner's statistics ({} tables):", survey.tables.len());
    for table in survey.tables.iter().take(LISTED) {
        let name = format!("{}.{}", one_line(&table.schema), one_line(&table.name));
        let rows = table.rows.map_or_else(|| "rows not counted yet".to_owned(), |rows| format!("{rows} rows"));
        let identity = if table.has_identity { "" } else { ", no replica identity: only inserts and truncates" };
        let _ = writeln!(out, "#   {name:<32} {rows}, {} KiB{identity}", table.bytes / 1024);
    }
    if survey.tables.len() > LISTED {
        let _ = writeln!(out, "#   … and {} more", survey.tables.len() - LISTED);
    }
    let open: Vec<&Finding> = survey.findings.iter().filter(|finding| finding.severity != Severity::Ok).collect();
    for (severity, title) in [
        (Severity::Error, "Still to be done on the server before `run`:"),
        (Severity::Warning, "Worth a look (`highwater check` says it again):"),
    ] {
        let mut found = open.iter().filter(|finding| finding.severity == severity).peekable();
        if found.peek().is_some() {
            let _ = writeln!(out, "# {title}");
        }
        for finding in found {
            let _ = writeln!(out, "#   {}", one_line(&finding.what));
            for (word, mends) in [("SQL", &finding.sql), ("what to do", &finding.remedy)] {
                if let Some(mends) = mends {
                    let _ = writeln!(out, "#     {word}: {}", one_line(mends));
                }
            }
        }
    }
    out
}

/// As TOML's text, of which JSON's is a kind.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A schema's name, as a pattern that means just it.
fn glob_escape(name: &str) -> String {
    name.chars().fold(String::new(), |mut out, c| {
        if matches!(c, '*' | '?' | '[' | ']' | '{' | '}' | '!' | '\\') {
            out.push('\\');
        }
        out.push(c);
        out
    })
}

/// Names of a database may hold anything, and a comment must stay one.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_named_after_its_database() {
        for (path, expected) in
            [("/shop", "shop"), ("/My-Shop", "my_shop"), ("/1st", "db_1st"), ("", "db"), ("/ü", "db")]
        {
            assert_eq!(source_name(path), expected, "{path}");
        }
    }

    #[test]
    fn what_is_written_can_be_read_whatever_the_names() {
        let table = |schema: &str, name: &str| connector_postgres::SurveyedTable {
            schema: schema.into(),
            name: name.into(),
            rows: None,
            bytes: 0,
            has_identity: false,
        };
        let survey =
            Survey { tables: vec![table("a*b\n", "x\ny = 1"), table("öffentlich", "t")], findings: Vec::new() };
        let text = rendered("crm", "postgres://me@localhost/crm", "CRM_PASSWORD", false, &survey);
        let config = Config::from_text(Path::new("/x/highwater.toml"), &text).unwrap();
        let Source::Postgres(source) = &config.sources["crm"];
        assert_eq!((source.database.as_str(), source.slot.as_str()), ("crm", "highwater_crm"));
        assert!(
            source.tables.matches("a*b\n.t")
                && !source.tables.matches("aXb\n.t")
                && source.tables.matches("öffentlich.t")
        );
        assert_eq!(config.sinks["lake"].from, ["crm"]);
    }
}

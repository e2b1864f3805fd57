//! Writes an example configuration.

use std::io::Write;

use crate::args::Args;
use crate::exit::Exit;

pub(crate) fn run(args: &Args, url: Option<&str>) -> Exit {
    let file = args.config_file();
    let mut text = config::EXAMPLE.to_owned();
    if let Some(url) = url {
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") || url.contains(['"', '\\', '\n']) {
            eprintln!("{url:?} is no postgres url\nwhat to do: write it like postgres://role@host:5432/database");
            return Exit::Usage;
        }
        text = text.replace("postgres://highwater@localhost:5432/shop", url);
    }
    let made = std::fs::OpenOptions::new().write(true).create_new(true).open(&file);
    match made.and_then(|mut made| made.write_all(text.as_bytes())) {
        Ok(()) => {
            println!("{}", file.display());
            eprintln!("next: look through it, then `highwater check` and `highwater run`");
            Exit::Done
        }
        Err(error) => {
            eprintln!("could not write {}: {error}", file.display());
            if error.kind() == std::io::ErrorKind::AlreadyExists {
                eprintln!("what to do: it is there already; --config names another");
            }
            Exit::Usage
        }
    }
}

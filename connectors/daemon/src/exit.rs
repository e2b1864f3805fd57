//! How the program ends, and the last thing it says.

use std::process::ExitCode;

use config::Faults;
use connector::Error;

/// Exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Done,
    /// A person must act.
    Halted,
    /// Usage or configuration.
    Usage,
    /// Something would fail.
    Unequal,
    /// Another daemon has taken over.
    Superseded,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(match exit {
            Exit::Done => 0,
            Exit::Halted => 1,
            Exit::Usage => 2,
            Exit::Unequal => 3,
            Exit::Superseded => 4,
        })
    }
}

/// All faults of a configuration.
pub(crate) fn faults(faults: &Faults) -> Exit {
    for fault in &faults.faults {
        eprintln!("{fault}");
    }
    let count = faults.faults.len();
    eprintln!("{}: {count} {}", faults.file.display(), if count == 1 { "fault" } else { "faults" });
    Exit::Usage
}

/// The reason and the remedy, as the last lines.
pub(crate) fn failure(what: &str, error: &Error) {
    eprintln!("{what}: {}", error.chain());
    if let Some(remedy) = error.remedy() {
        eprintln!("what to do: {remedy}");
    }
}

/// An error of the log, as one of the program.
pub(crate) fn log_error(folder: &std::path::Path, error: storage::Error) -> Error {
    let hint = match &error {
        storage::Error::Locked(_) => {
            "another daemon runs on this data folder: stop it first; `highwater status` shows it".to_owned()
        }
        error if error.is_corruption() => {
            "what was durable does not read back: look at the disk, keep a copy of the folder; \
             `highwater log check` shows all there is to see"
                .to_owned()
        }
        storage::Error::Version { .. } => "it was written by a later version: run that one".to_owned(),
        _ => format!("check that {} is there and may be written", folder.display()),
    };
    Error::halt(format!("could not open the log in {}", folder.display())).because(error).hint(hint)
}

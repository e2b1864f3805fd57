//! What can go wrong at a warehouse, and what is to be done about it.

use connector::{Action, Error};

/// Whether an SQLSTATE may pass by itself.
fn may_pass(code: &str) -> bool {
    // Values and constraints, privileges, names and syntax, login and limits of
    // the server stay as they are until a person acts. Everything else (restart,
    // serialization, deadlock, a lock not had in time, disk full) may pass.
    const STAYS: [&str; 12] = ["22", "23", "42", "0A", "28", "3D", "3F", "2B", "2F", "0L", "54", "F0"];
    !STAYS.iter().any(|class| code.starts_with(class)) && code != "55000"
}

fn remedy(code: &str) -> Option<&'static str> {
    Some(match code {
        "28P01" => "the password is wrong: set `password` of the sink, e.g. password = { env = \"…\" }",
        "28000" => "the role is unknown, may not log in, or pg_hba.conf has no line for it",
        "3D000" => "the database in the sink's url does not exist",
        "42501" => "the role lacks a privilege: docs/postgres-sink.md has the grants",
        "42P01" | "42703" => {
            "something was dropped or renamed by hand: put it back, or drop the table together with its row in \
             _highwater.tables and read it again with `highwater snapshot`"
        }
        "23505" | "23502" | "23503" | "23514" => {
            "a constraint that the source does not have refuses the row: drop the constraint from the mirror"
        }
        "22P02" => "a type of the warehouse does not know a value that the source's has: ALTER TYPE … ADD VALUE …",
        "22001" | "22003" => "a column of the warehouse is too narrow: alter its type",
        "0A000" | "2BP01" => "an object that depends on the table stands in the way: drop it, and make it again after",
        "55P03" => "a session of the warehouse holds a lock for long: look at pg_stat_activity",
        "25P03" => "the session stood still in a transaction for too long and was ended; it begins again",
        _ => return None,
    })
}

/// With what was attempted.
pub(crate) fn failed(error: tokio_postgres::Error, attempt: impl Into<String>) -> Error {
    let (action, hint) = match error.code() {
        Some(code) if may_pass(code.code()) => (Action::Retry, remedy(code.code())),
        Some(code) => (Action::Halt, remedy(code.code())),
        None => {
            // The crate tells a refused certificate only in its causes.
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                text.push_str(&error.to_string());
                cause = error.source();
            }
            if text.contains("certificate") {
                (Action::Halt, Some("the server's certificate is not for this name, or not signed by `ca` of the sink"))
            } else if text.contains("password missing") {
                (Action::Halt, Some("set `password` of the sink, e.g. password = { env = \"…\" }"))
            } else {
                (Action::Retry, None)
            }
        }
    };
    let error = Error::new(action, attempt).because(error);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// The table that the server says refuses: schema and name.
pub(crate) fn table_of(error: &tokio_postgres::Error) -> Option<(&str, &str)> {
    let error = error.as_db_error()?;
    error.schema().zip(error.table())
}

/// An error while one table was written: what stays as it is, and a lock that
/// is not had, concern it alone.
pub(crate) fn of_table(error: Error, stream: &str) -> Error {
    let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<tokio_postgres::Error>());
    let locked = cause.and_then(|cause| cause.code()).is_some_and(|code| code.code() == "55P03");
    match error.action() {
        Action::Halt => error.of_stream(stream),
        Action::Retry if locked => error.of_stream(stream),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_tried_again_and_the_rest_calls_a_person() {
        for code in ["08006", "40001", "40P01", "57P01", "57P03", "53300", "53100", "55P03", "25P03", "XX000", "58030"]
        {
            assert!(may_pass(code), "{code}");
        }
        for code in ["42501", "42P01", "22P02", "23505", "28P01", "3D000", "0A000", "54011", "55000"] {
            assert!(!may_pass(code), "{code}");
        }
    }
}

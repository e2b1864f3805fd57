//! Named instants at which a test kills the process. There are none in a
//! release build: only where debug assertions are on.

/// Ends the process as SIGKILL would if `HIGHWATER_FAULT` names this point:
/// `point`, or `point:n` for its n-th passing. With `point:n:STOP` it is
/// stopped instead, until somebody sends SIGCONT.
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    use std::io::Write;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static WANTED: OnceLock<Option<(String, u64, String)>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("HIGHWATER_FAULT").ok()?;
        let mut parts = text.split(':');
        let (name, nth, signal) = (parts.next()?, parts.next().unwrap_or("1"), parts.next().unwrap_or("KILL"));
        Some((name.to_owned(), nth.parse().ok()?, signal.to_owned()))
    });
    let Some((point, nth, signal)) = wanted else { return };
    if point == name && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *nth {
        // The line is the test's proof that the point was hit.
        let _ = writeln!(std::io::stderr(), "fault point hit: {name}");
        let pid = std::process::id().to_string();
        let _ = std::process::Command::new("kill").args([&format!("-{signal}"), &pid]).status();
        if signal == "KILL" {
            std::process::abort();
        }
    }
}

/// Nothing.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_name: &str) {}

//! The real binary, as a user runs it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::root;

/// A configured daemon in a folder of its own.
pub struct Daemon {
    pub folder: PathBuf,
    /// For it and all commands.
    pub environment: Vec<(String, String)>,
    child: Option<Child>,
    starts: u32,
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stderr: String,
}

impl Daemon {
    /// In `folder`, with this configuration.
    pub fn new(folder: &Path, config: &str) -> Self {
        std::fs::write(folder.join("highwater.toml"), config).unwrap();
        Self { folder: folder.into(), environment: Vec::new(), child: None, starts: 0 }
    }

    /// The binary that `tests/run` has built.
    pub fn binary() -> PathBuf {
        root().join("target/debug/highwater")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(Self::binary());
        command.current_dir(&self.folder).args(words).env_remove("HIGHWATER_CONFIG").stdin(Stdio::null());
        // What is said to a test is no setting of the daemon.
        for ours in [
            "PROPERTY_SEED",
            "PROPERTY_SECONDS",
            "TORTURE_SECONDS",
            "SHOP_SECONDS",
            "ADDED_ROWS",
            "ADDED_RATE",
            "ADDED_LIMIT",
        ] {
            command.env_remove(format!("HIGHWATER_{ours}"));
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    fn stderr_file(&self) -> PathBuf {
        self.folder.join(format!("stderr.{}", self.starts))
    }

    /// Starts `run`, with a fault point if one is named.
    pub fn start(&mut self, words: &[&str], fault: Option<&str>) {
        assert!(self.child.is_none(), "it runs already");
        self.starts += 1;
        let stderr = std::fs::File::create(self.stderr_file()).unwrap();
        let mut command = self.command(words);
        command.stdout(Stdio::null()).stderr(stderr);
        if let Some(fault) = fault {
            command.env("HIGHWATER_FAULT", fault);
        }
        self.child = Some(command.spawn().unwrap());
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Ended {
        self.signal("KILL");
        self.wait(Duration::from_secs(10))
    }

    /// Any signal.
    pub fn signal(&self, name: &str) {
        let pid = self.child.as_ref().expect("it runs").id().to_string();
        let _ = Command::new("kill").args([&format!("-{name}"), &pid]).status();
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// Whether SIGSTOP holds it.
    pub fn is_stopped(&self) -> bool {
        let pid = self.child.as_ref().expect("it runs").id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("State:\tT"))
    }

    /// Memory at its highest, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let pid = self.child.as_ref().expect("it runs").id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
    }

    /// Asks it to end, which it does within 5 s, and well.
    pub fn ends_well(&mut self) {
        self.signal("TERM");
        let ended = self.wait(Duration::from_secs(5));
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }

    /// Waits for its end.
    pub fn wait(&mut self, patience: Duration) -> Ended {
        let deadline = Instant::now() + patience;
        loop {
            let child = self.child.as_mut().expect("it runs");
            if let Some(status) = child.try_wait().unwrap() {
                self.child = None;
                let stderr = std::fs::read_to_string(self.stderr_file()).unwrap();
                return Ended { code: status.code(), stderr };
            }
            if Instant::now() > deadline {
                let stderr = std::fs::read_to_string(self.stderr_file()).unwrap();
                panic!("the daemon has not ended in {patience:?}: {stderr}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// `run --until-caught-up`, which must end well.
    pub fn catch_up(&mut self) {
        self.start(&["run", "--until-caught-up"], None);
        let ended = self.wait(Duration::from_secs(120));
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }

    /// Runs a command: exit code, stdout, stderr.
    pub fn run(&self, words: &[&str]) -> (i32, String, String) {
        let output = self.command(words).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }

    /// `status --json`.
    pub fn status(&self) -> Value {
        let (code, out, err) = self.run(&["status", "--json"]);
        assert_eq!(code, 0, "{err}");
        serde_json::from_str(&out).unwrap()
    }

    /// `tail SOURCE --from beginning`, parsed.
    pub fn tail(&self, source: &str, more: &[&str]) -> Vec<Value> {
        let (code, out, err) = self.run(&[&["tail", source, "--from", "beginning"], more].concat());
        assert_eq!(code, 0, "{err}");
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

//! R1 to R4: the registry alone, `highwater run` with nothing but `[registry]`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::http::{Client, crowd, request};
use crate::machine::{Calm, fdatasync, memory, quantile};
use crate::report::Figure;
use crate::server::must;
use crate::{Bench, Result};

/// Connections, each with one request under way.
const CLIENTS: usize = 8;

/// A daemon that is a registry; it ends with this.
struct Registry {
    folder: PathBuf,
    port: u16,
    child: Child,
}

impl Registry {
    /// In a new folder.
    fn new(bench: &Bench, name: &str) -> Result<Self> {
        let folder = prepare(bench, name)?;
        Self::start(&folder).map(|(this, _)| this)
    }

    /// In a folder that is prepared; how long until it had answered for the first time.
    fn start(folder: &Path) -> Result<(Self, Duration)> {
        let port = free_port()?;
        let config = format!("data_dir = \"data\"\n[registry]\nbind = \"127.0.0.1:{port}\"\n");
        std::fs::write(folder.join("highwater.toml"), config)?;
        let started = Instant::now();
        let stderr = std::fs::File::create(folder.join("stderr"))?;
        let child = program(folder)?.arg("run").stdin(Stdio::null()).stderr(stderr).spawn()?;
        let mut this = Self { folder: folder.into(), port, child };
        while Client::connect(port).and_then(|mut client| client.ask("GET", "/schemas/types", "")).is_err() {
            if started.elapsed() > Duration::from_secs(60) || this.child.try_wait()?.is_some() {
                let said = std::fs::read_to_string(folder.join("stderr")).unwrap_or_default();
                return Err(format!("the registry does not answer: {said}").into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok((this, started.elapsed()))
    }

    fn client(&self) -> Result<Client> {
        Client::connect(self.port)
    }

    fn stop(mut self) -> Result<PathBuf> {
        must(Command::new("kill").arg(self.child.id().to_string()))?;
        self.child.wait()?;
        Ok(self.folder.clone())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A route that knows one answer, or syncs what it is sent; it ends with this.
struct Bare {
    port: u16,
    child: Child,
}

impl Bare {
    fn start(folder: &Path, body: &[u8]) -> Result<Self> {
        let file = folder.join("answer");
        std::fs::write(&file, body)?;
        Self::of("bare-route", &file)
    }

    fn of(kind: &str, file: &Path) -> Result<Self> {
        let port = free_port()?;
        let mut command = Command::new(std::env::current_exe()?);
        let child = command.args([kind, &port.to_string()]).arg(file).stdin(Stdio::null()).spawn()?;
        let this = Self { port, child };
        let deadline = Instant::now() + Duration::from_secs(10);
        while Client::connect(port).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(this)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn prepare(bench: &Bench, name: &str) -> Result<PathBuf> {
    let folder = bench.folder.join(name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn program(folder: &Path) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?.with_file_name("highwater"));
    command.current_dir(folder).env("HIGHWATER_LOG", "warn").env_remove("HIGHWATER_CONFIG");
    Ok(command)
}

/// A record of so many nullable columns, as a table has; `n` tells it from others.
fn schema(n: usize, fields: usize) -> String {
    let fields: Vec<_> = (0..fields)
        .map(|i| json!({"name": format!("column_{i}"), "type": ["null", if i % 3 == 0 { "long" } else { "string" }], "default": null}))
        .collect();
    json!({"type": "record", "name": format!("Table{n}"), "namespace": "shop.public", "fields": fields}).to_string()
}

fn body(schema: &str) -> String {
    json!({"schema": schema}).to_string()
}

pub(crate) fn registry(bench: &Bench, wants: &impl Fn(&[&str]) -> bool) -> Result<Vec<Figure>> {
    eprintln!("registry");
    let mut figures = Vec::new();
    if wants(&["R1"]) {
        figures.push(lookup(bench)?);
    }
    if wants(&["R2", "R2s"]) {
        figures.extend(register(bench)?);
    }
    if wants(&["R3", "R3b"]) {
        figures.extend(many(bench)?);
    }
    if wants(&["R4"]) {
        figures.push(compare(bench)?);
    }
    Ok(figures)
}

/// What all clients do again and again, each on a connection and a thread of its own; a second.
fn rate(port: u16, time: Duration, one: impl Fn(&mut Client) -> Result<(), String> + Sync) -> Result<f64> {
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let started = Instant::now();
    std::thread::scope(|scope| -> Result<()> {
        let work = || -> Result<(), String> {
            let mut client = Client::connect(port).map_err(|error| error.to_string())?;
            while !stop.load(Ordering::Relaxed) {
                one(&mut client)?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        let all: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(work)).collect();
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        for one in all {
            one.join().map_err(|_| "a client panicked")??;
        }
        Ok(())
    })?;
    Ok(count.into_inner() as f64 / started.elapsed().as_secs_f64())
}

/// R1.
fn lookup(bench: &Bench) -> Result<Figure> {
    let registry = Registry::new(bench, "lookup")?;
    let mut client = registry.client()?;
    // A thousand others beside it.
    for n in 0..1_000 {
        client.ask("POST", &format!("/subjects/t{n}/versions"), &body(&schema(n, 12)))?;
    }
    let asked = request("GET", "/schemas/ids/500", "");
    let expected = client.send(&asked)?.1.to_vec();
    let bare = Bare::start(&registry.folder, &expected)?;
    let time = Duration::from_millis(if bench.quick { 500 } else { 2_000 });
    let mut rounds = Vec::new();
    let mut rates = Vec::new();
    for round in 0..bench.rounds {
        let calm = Calm::look(round);
        let ask = |client: &mut Client| {
            let (status, body) = client.send(&asked).map_err(|error| error.to_string())?;
            if status == 200 && body == expected { Ok(()) } else { Err(format!("a wrong answer: {status}")) }
        };
        let rate = |port| rate(port, time, ask);
        let (ours, theirs) = match round % 2 {
            0 => (rate(registry.port)?, rate(bare.port)?),
            _ => {
                let theirs = rate(bare.port)?;
                (rate(registry.port)?, theirs)
            }
        };
        eprintln!("    {ours:.0} and {theirs:.0} a second");
        rounds.push((calm, ours / theirs));
        rates.push(ours);
    }
    let what = "schemas looked up by id over HTTP, against a bare axum route";
    let figure = Figure::of("R1", what, "x", (">=", 0.8), &rounds).verified(true);
    Ok(figure.note(format!("{:.0} a second by {CLIENTS} clients", quantile(&mut rates, 0.5))))
}

/// New schemas by all clients, each under a subject of its own; a second.
fn registrations(port: u16, time: Duration, next: &mut u64) -> Result<f64> {
    let template = body(&schema(0, 12));
    let (head, tail) = template.split_once("Table0").ok_or("a schema has its name")?;
    let ask = |asked: &mut Vec<u8>| {
        let n = *next;
        *next += 1;
        let length = head.len() + "Table".len() + n.checked_ilog10().unwrap_or(0) as usize + 1 + tail.len();
        // A vector takes all that is written.
        let _ = write!(
            asked,
            "POST /subjects/t{n}/versions HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{head}Table{n}{tail}"
        );
    };
    crowd(port, CLIENTS, time, ask, |status, answer| status == 200 && answer.starts_with(b"{\"id\":"))
}

/// R2: the same clients with the same bodies, against a route that syncs each;
/// R2s: against a sync alone, without anything else to do for the processors.
fn register(bench: &Bench) -> Result<[Figure; 2]> {
    let registry = Registry::new(bench, "register")?;
    let bare = Bare::of("bare-sync", &registry.folder.join("synced"))?;
    let time = Duration::from_millis(if bench.quick { 1_000 } else { 4_000 });
    let (mut rounds, mut alone, mut rates, mut syncs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut next, mut others) = (1, 1);
    for round in 0..bench.rounds {
        let calm = Calm::look(round);
        let mut took = fdatasync(&bench.folder, 200)?;
        let mut ours = || registrations(registry.port, time, &mut next);
        let mut theirs = || registrations(bare.port, time / 2, &mut others);
        let (rate, each) = match round % 2 {
            0 => (ours()?, theirs()?),
            _ => {
                let each = theirs()?;
                (ours()?, each)
            }
        };
        took.extend(fdatasync(&bench.folder, 200)?);
        // A mean, as the rate is one.
        let sync = took.iter().sum::<f64>() / took.len() as f64;
        eprintln!("    {rate:.0} a second, {each:.0} with a sync each, a sync alone of {sync:.3} ms");
        rounds.push((calm, rate / each));
        alone.push((calm, rate * sync / 1e3));
        rates.push(rate);
        syncs.push(sync);
    }
    // All that was acknowledged is there after a kill, one id each.
    let total = next - 1;
    let folder = registry.folder.clone();
    drop(registry);
    let (registry, _) = Registry::start(&folder)?;
    let mut client = registry.client()?;
    let subjects = client.ask("GET", "/subjects", "")?.as_array().map_or(0, Vec::len);
    let greatest = client.ask("GET", "/schemas/ids/1?fetchMaxId=true", "")?["maxId"].as_u64();
    let right = subjects as u64 == total && greatest == Some(total);
    let (rate, sync) = (quantile(&mut rates, 0.5), quantile(&mut syncs, 0.5));
    let what = "new schemas registered by 8 clients, against a route that syncs each";
    let figure = Figure::of("R2", what, "x", (">=", 4.0), &rounds).verified(right);
    let figure = figure.note(format!("{rate:.0} a second; read back after a kill"));
    let what = "the same, against as many syncs of 4 KiB with nothing between";
    let alone = Figure::of("R2s", what, "x", (">=", 4.0), &alone).verified(right);
    Ok([figure, alone.note(format!("4 KiB synced in {sync:.2} ms"))])
}

/// R3 and R3b.
fn many(bench: &Bench) -> Result<[Figure; 2]> {
    const SUBJECTS: usize = 100_000;
    let folder = prepare(bench, "many")?;
    let mut dump = String::new();
    for n in 1..=SUBJECTS {
        let line =
            json!({"subject": format!("shop.public.table_{n}.Value"), "version": 1, "id": n, "schema": schema(n, 12)});
        dump += &format!("{line}\n");
    }
    std::fs::write(folder.join("dump"), dump)?;
    std::fs::write(folder.join("highwater.toml"), "data_dir = \"data\"\n[registry]\nbind = \"127.0.0.1:1\"\n")?;
    must(program(&folder)?.args(["schemas", "import", "dump"]))?;
    let (mut starts, mut sizes, mut right) = (Vec::new(), Vec::new(), true);
    for round in 0..bench.rounds {
        let calm = Calm::look(round);
        let (registry, took) = Registry::start(&folder)?;
        let mut client = registry.client()?;
        let n = 1 + round * 7_919;
        let found = client.ask("GET", &format!("/subjects/shop.public.table_{n}.Value/versions/latest"), "")?;
        right &= found["id"].as_u64() == Some(n as u64) && found["schema"].as_str() == Some(&schema(n, 12));
        right &= client.ask("GET", "/subjects", "")?.as_array().map_or(0, Vec::len) == SUBJECTS;
        let peak = memory(registry.child.id(), "VmHWM");
        eprintln!("    {} ms, {peak:.0} MiB at its highest", took.as_millis());
        starts.push((calm, took.as_secs_f64()));
        sizes.push((calm, peak));
        registry.stop()?;
    }
    let start = Figure::of("R3", "start with 100,000 subjects to the first answer", "s", ("<=", 1.0), &starts);
    let size = Figure::of("R3b", "memory at its highest with 100,000 subjects", "MiB", ("<=", 256.0), &sizes);
    let note = format!("a schema of {} bytes each; all subjects listed once", schema(1, 12).len());
    Ok([start.verified(right), size.verified(right).note(note)])
}

/// R4.
fn compare(bench: &Bench) -> Result<Figure> {
    const VERSIONS: usize = 100;
    let registry = Registry::new(bench, "compare")?;
    let mut client = registry.client()?;
    client.ask("PUT", "/config/s", r#"{"compatibility":"NONE"}"#)?;
    let text = |version: usize| schema(1, 1_000).replace("column_999\"", &format!("column_999_{version}\""));
    for version in 0..VERSIONS {
        client.ask("POST", "/subjects/s/versions", &body(&text(version)))?;
    }
    client.ask("PUT", "/config/s", r#"{"compatibility":"FULL_TRANSITIVE"}"#)?;
    let folder = registry.stop()?;
    let (mut rounds, mut firsts, mut right) = (Vec::new(), Vec::new(), true);
    for round in 0..bench.rounds {
        let calm = Calm::look(round);
        let (registry, _) = Registry::start(&folder)?;
        let mut client = registry.client()?;
        let mut times = Vec::new();
        for n in 0..20 {
            let asked = request("POST", "/compatibility/subjects/s/versions", &body(&text(VERSIONS + n)));
            let started = Instant::now();
            let (status, answer) = client.send(&asked)?;
            right &= status == 200 && answer == br#"{"is_compatible":true}"#;
            times.push(started.elapsed().as_secs_f64() * 1e3);
        }
        let first = times.remove(0);
        let median = quantile(&mut times, 0.5);
        eprintln!("    {median:.1} ms, the first {first:.1} ms");
        rounds.push((calm, median));
        firsts.push(first);
        // Nor is all compatible.
        let bad = body(&text(VERSIONS).replace("\"long\"", "\"int\""));
        right &= client.ask("POST", "/compatibility/subjects/s/versions", &bad)?["is_compatible"] == false;
        registry.stop()?;
    }
    let what = "1,000 fields compared with 100 versions, both ways";
    let figure = Figure::of("R4", what, "ms", ("<=", 50.0), &rounds).verified(right);
    Ok(figure.note(format!("the first after a start, which parses them all, {:.0} ms", quantile(&mut firsts, 0.5))))
}

//! What commands take as whole processes beside a warm server: `run --rm`, `ps` with a thousand containers, what it costs a
//! process that its output is kept, and how soon `logs -f` shows a line. Needs root; leaves nothing.
//!
//! `./dev bench commands`, or `cargo bench --package wardian --bench commands -- [--containers N] [--dir DIR]`.
#![allow(clippy::print_stdout, reason = "it prints figures")]

use std::error::Error;
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use wardian_garden::wire::ContainerSpec;
use wardian_garden::{Client, Error as Refusal};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How often a process is started that takes milliseconds.
const ROUNDS: usize = 100;
/// Creates at a time.
const AT_ONCE: usize = 4;
/// Bytes that a process prints, whose output is kept or not.
const PRINTED: u64 = 4 << 30;
/// How often it does.
const PRINTS: usize = 7;

struct Server {
    base: tempfile::TempDir,
    run: tempfile::TempDir,
    child: Child,
    image: PathBuf,
}

impl Server {
    fn start(dir: &Path) -> Result<Self> {
        let base = tempfile::Builder::new().prefix("wardian-bench-").tempdir_in(dir)?;
        let run = tempfile::Builder::new().prefix("wardian-bench-").tempdir_in("/dev/shm")?;
        let image = base.path().join("image.tar");
        wardian_lab::image::build(&image)?;
        let mut command = Self::command(base.path(), run.path());
        command.args(["serve", "--network", "none"]).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Self { child: command.spawn()?, base, run, image };
        let begin = Instant::now();
        while !server.run.path().join("garden.sock").exists() {
            if begin.elapsed() > Duration::from_secs(20) {
                return Err("the server does not answer".into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    fn command(base: &Path, run: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wardian"));
        command.env("WARDIAN_ROOT", base.join("root")).env("WARDIAN_RUN", run).env_remove("WARDIAN_SOCKET");
        command.stdin(Stdio::null());
        command
    }

    fn wardian(&self, args: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Self::command(self.base.path(), self.run.path());
        command.args(args);
        command
    }

    fn say(&self, args: &[&str]) -> Result<String> {
        let output = self.wardian(args).output()?;
        if !output.status.success() {
            return Err(format!("{args:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    fn times(&self, args: &[&str], rounds: usize) -> Result<Vec<Duration>> {
        let once = |_| {
            let begin = Instant::now();
            self.say(args)?;
            Ok(begin.elapsed())
        };
        (0..rounds).map(once).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The containers and what the host has of the server go with it.
        drop(self.child.kill());
        drop(self.child.wait());
        let mut reset = self.wardian(&["reset", "--yes", "--images"]);
        if !reset.stdout(Stdio::null()).status().is_ok_and(|status| status.success()) {
            println!("containers are left: `wardian doctor --clean` removes them");
        }
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Prints the figures, and the goal for the median. Returns the median.
fn told(what: &str, mut times: Vec<Duration>, goal: Option<f64>) -> f64 {
    times.sort_unstable();
    let at = |part: usize| ms(times[(times.len() - 1) * part / 100]);
    let goal =
        goal.map(|goal| format!("   goal {goal} ms: {}", if at(50) <= goal { "held" } else { "MISSED" }));
    println!(
        "{what:46} p50 {:6.2}   p95 {:6.2}   most {:6.2} ms{}",
        at(50),
        at(95),
        at(100),
        goal.unwrap_or_default()
    );
    at(50)
}

/// What a run is made of, by itself.
fn runs(server: &Server) -> Result<()> {
    server.say(&["image", "import", server.image.to_str().ok_or("a path")?, "-t", "busybox"])?;
    let run = ["run", "--rm", "busybox", "true"];
    server.times(&run, 20)?;
    told("`wardian --version`", server.times(&["--version"], ROUNDS)?, None);
    let client = Client::new(&format!("unix:{}", server.run.path().join("garden.sock").display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let spec = || {
        let mut spec = ContainerSpec::default();
        spec.image.uri = "busybox".to_owned();
        spec
    };
    let (mut creates, mut destroys) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        runtime.block_on(async {
            let begin = Instant::now();
            let handle = client.create(&spec()).await?;
            let made = begin.elapsed();
            client.destroy(&handle).await?;
            creates.push(made);
            destroys.push(begin.elapsed() - made);
            Ok::<_, Refusal>(())
        })?;
    }
    told("  create by the API", creates, None);
    told("  destroy by the API", destroys, None);
    told("`wardian run --rm busybox true`", server.times(&run, ROUNDS)?, Some(8.0));
    Ok(())
}

fn lists(server: &Server, containers: usize) -> Result<()> {
    let client = Client::new(&format!("unix:{}", server.run.path().join("garden.sock").display()))?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::<std::result::Result<(), Refusal>>::new();
        for at in 0..AT_ONCE {
            let client = client.clone();
            tasks.spawn(async move {
                for n in (at..containers).step_by(AT_ONCE) {
                    let mut spec = ContainerSpec { handle: format!("c{n}"), ..ContainerSpec::default() };
                    spec.image.uri = "busybox".to_owned();
                    client.create(&spec).await?;
                }
                Ok(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        Ok::<_, Box<dyn Error>>(())
    })?;
    server.times(&["ps"], 5)?;
    told(&format!("`wardian ps` with {containers} containers"), server.times(&["ps"], ROUNDS)?, Some(15.0));
    told("  `wardian ps -q`", server.times(&["ps", "-q"], ROUNDS)?, None);
    told("  `wardian ps --json`", server.times(&["ps", "--json"], ROUNDS)?, None);
    Ok(())
}

/// By turns, how long a process takes to print if its output is kept and if it is not.
fn keeping(server: &Server) -> Result<()> {
    let count = format!("dd if=/dev/zero bs=128k count={}", PRINTED / (128 << 10));
    let mut took = [Vec::new(), Vec::new()];
    for round in 0..2 * PRINTS {
        let kept = round % 2 == 1;
        let keep = if kept { "1M" } else { "0" };
        server.say(&[
            "run",
            "-d",
            "--name",
            "prints",
            "--keep-output",
            keep,
            "busybox",
            "sh",
            "-c",
            &count,
        ])?;
        server.say(&["wait", "prints"])?;
        let times = server.say(&["inspect", "-f", "{{.main.started_ms}} {{.main.exited_ms}}", "prints"])?;
        server.say(&["rm", "prints"])?;
        let (begin, end) = times.trim().split_once(' ').ok_or("two times")?;
        took[usize::from(kept)].push(Duration::from_millis(end.parse::<u64>()? - begin.parse::<u64>()?));
    }
    let mut median = [0.0; 2];
    for (median, times) in median.iter_mut().zip(&mut took) {
        times.sort_unstable();
        *median = times[times.len() / 2].as_secs_f64();
    }
    #[allow(clippy::cast_precision_loss, reason = "a figure")]
    let rate = |seconds: f64| PRINTED as f64 / seconds / 1e6;
    let cost = (median[1] / median[0] - 1.0) * 100.0;
    println!(
        "{:46} {:.0} MB/s not kept, {:.0} MB/s kept: {cost:+.1} %   goal 10 %: {}",
        "a process that prints 4 GiB",
        rate(median[0]),
        rate(median[1]),
        if cost <= 10.0 { "held" } else { "MISSED" }
    );
    Ok(())
}

/// How long after it was printed a line is shown.
fn following(server: &Server) -> Result<()> {
    server.say(&["run", "-di", "--name", "echoes", "busybox", "cat"])?;
    let mut typing =
        server.wardian(&["attach", "-i", "echoes"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let mut shown = server.wardian(&["logs", "-f", "echoes"]).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(shown.stdout.take().ok_or("a pipe")?).lines();
    let mut typed = typing.stdin.take().ok_or("a pipe")?;
    let mut times = Vec::new();
    for n in 0..=ROUNDS {
        let begin = Instant::now();
        writeln!(typed, "{n}")?;
        lines.next().ok_or("a line")??;
        // The first waits for both programs to start.
        if n > 0 {
            times.push(begin.elapsed());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    for child in [&mut typing, &mut shown] {
        child.kill()?;
        child.wait()?;
    }
    server.say(&["rm", "echoes"])?;
    told("`logs -f`: from typing in `attach` to the line", times, Some(20.0));
    Ok(())
}

fn bench() -> Result<()> {
    let (mut containers, mut dir) = (1000, PathBuf::from("/var/tmp"));
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    while let Some(flag) = args.next() {
        let value = args.next().ok_or_else(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--containers" => containers = value.parse()?,
            "--dir" => dir = value.into(),
            _ => return Err(format!("there is no {flag}, but --containers and --dir").into()),
        }
    }
    let server = Server::start(&dir)?;
    runs(&server)?;
    keeping(&server)?;
    following(&server)?;
    lists(&server, containers)
}

fn main() -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: commands: needs root");
        return ExitCode::SUCCESS;
    }
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

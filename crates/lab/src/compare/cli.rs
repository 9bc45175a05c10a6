//! podman and docker, whose commands are alike.

use super::goods::{BASE, FULL, Goods};
use super::place::Place;
use super::run::{Said, command};
use crate::code::{APP, Sample};
use crate::drive::{check_health, check_reading, health_check, reading_of};
use crate::image::{HOME, USER};
use anyhow::{Context as _, Result, bail};
use rustix::thread::{CapabilitySet, capabilities};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Podman { rm: bool },
    Docker,
}

/// An engine in its place.
#[derive(Debug)]
pub(super) struct Cli {
    kind: Kind,
    place: Place,
    /// Words before each command: where it has its files.
    first: Vec<String>,
    /// Words of each `run`.
    running: Vec<String>,
    /// docker's server.
    server: Option<tokio::process::Child>,
}

impl Cli {
    pub(super) async fn start(kind: Kind, place: Place) -> Result<Self> {
        let (at, live) = (|name: &str| place.path(name), |name: &str| place.live(name));
        let group = format!("/{}", place.group);
        let (mut first, mut running) = (Vec::new(), words("--network none"));
        running.extend(["--cgroup-parent".to_owned(), group]);
        let mut server = None;
        match kind {
            Kind::Podman { .. } => {
                for (flag, value) in
                    [("--root", at("root")), ("--runroot", live("run")), ("--tmpdir", live("tmp"))]
                {
                    first.extend([flag.to_owned(), value]);
                }
                // systemd, the usual manager, is not to be reached from the namespaces.
                first.extend(words(
                    "--storage-driver overlay --cgroup-manager cgroupfs --events-backend file",
                ));
                running.extend(words("--pull never"));
                if !may_raise_limits() {
                    running.extend(words("--ulimit host"));
                }
            }
            Kind::Docker => {
                let socket = format!("unix://{}", live("docker.sock"));
                let mut serve = words(
                    "--bridge none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false",
                );
                serve.extend(words("--storage-driver overlay2 --exec-opt native.cgroupdriver=cgroupfs"));
                for (flag, value) in [
                    ("--host", socket.clone()),
                    ("--data-root", at("root")),
                    ("--exec-root", live("exec")),
                    ("--pidfile", at("pid")),
                    ("--config-file", at("none.json")),
                ] {
                    serve.extend([flag.to_owned(), value]);
                }
                std::fs::write(at("none.json"), "{}").context("write docker's settings")?;
                let log = std::fs::File::create(at("log")).context("make docker's log")?;
                let mut command = command("dockerd", serve);
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).current_dir(place.dir());
                server = Some(place.hold().spawn(command).await?);
                first.extend(["--host".to_owned(), socket]);
            }
        }
        Ok(Self { kind, place, first, running, server })
    }

    /// Waits until its server answers, if it has one.
    pub(super) async fn ready(&mut self) -> Result<()> {
        let Some(server) = &mut self.server else { return Ok(()) };
        loop {
            if let Some(status) = server.try_wait()? {
                let log = std::fs::read_to_string(self.place.path("log")).unwrap_or_default();
                let last = log.lines().last().unwrap_or_default();
                bail!("dockerd ended ({status}): {}", wardian_sys::text::tame(last));
            }
            if self.place.seen(&self.place.live("docker.sock")).exists() {
                let mut ping = self.first.clone();
                ping.extend(words("version --format x"));
                if self.place.run("docker", &ping, Stdio::null(), &[]).await.is_ok() {
                    return Ok(());
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn program(&self) -> &'static str {
        if self.kind == Kind::Docker { "docker" } else { "podman" }
    }

    async fn say(&self, line: &str, more: &[&str], input: Stdio) -> Result<Vec<u8>> {
        Ok(self.hear(line, more, input).await?.out)
    }

    async fn hear(&self, line: &str, more: &[&str], input: Stdio) -> Result<Said> {
        let mut all = self.first.clone();
        all.extend(words(line));
        all.extend(more.iter().map(|word| (*word).to_owned()));
        self.place.run(self.program(), &all, input, &[]).await
    }

    pub(super) async fn load(&self, archive: &Path) -> Result<()> {
        let archive = archive.to_str().context("the archive's path is not text")?;
        self.say("load --input", &[archive], Stdio::null()).await.map(drop)
    }

    pub(super) async fn create(&self, name: &str, full: bool) -> Result<()> {
        let mut more: Vec<&str> = self.running.iter().map(String::as_str).collect();
        if self.kind == (Kind::Podman { rm: true }) {
            more.push("--rm");
        }
        more.extend(["--name", name, if full { FULL } else { BASE }, "/bin/sleep", "1000000"]);
        self.say("run --detach", &more, Stdio::null()).await.map(drop)
    }

    pub(super) async fn stream_in(&self, name: &str, goods: &Goods) -> Result<()> {
        // With the owners that the tar has; docker's does that anyway.
        let how = if self.kind == Kind::Docker { "cp -" } else { "cp --archive=false -" };
        self.say(how, &[&format!("{name}:{HOME}")], goods.input()?).await.map(drop)
    }

    pub(super) async fn start_app(&self, name: &str) -> Result<()> {
        let more = ["--user", USER, "--workdir", APP, name, "/bin/sh", "start.sh"];
        self.say("exec --detach", &more, Stdio::null()).await.map(drop)
    }

    pub(super) async fn pea(&self, name: &str) -> Result<()> {
        let ask = health_check("127.0.0.1", None);
        let (network, pids) = (format!("container:{name}"), format!("container:{name}"));
        let mut more = vec!["--pid", &pids, "--network", &network];
        // All but the network that a container has of its own.
        more.extend(self.running.iter().skip(2).map(String::as_str));
        more.extend([BASE, "/bin/sh", "-c", &ask]);
        check_health(name, &self.say("run --rm", &more, Stdio::null()).await?)
    }

    pub(super) async fn verify(&self, name: &str, sample: &Sample) -> Result<()> {
        let more = ["--user", USER, name, "/bin/sh", "-c", &reading_of(sample)];
        let read = self.hear("exec", &more, Stdio::null()).await?;
        check_reading(sample, name, &read.out).with_context(|| read.complaint())
    }

    pub(super) async fn inside(&self, name: &str, words: &[&str]) -> Result<()> {
        self.say("exec", &[&[name], words].concat(), Stdio::null()).await.map(drop)
    }

    pub(super) async fn destroy(&self, name: &str) -> Result<()> {
        let line = if self.kind == Kind::Docker { "rm --force" } else { "rm --force --time 0" };
        self.say(line, &[name], Stdio::null()).await.map(drop)
    }

    pub(super) async fn clear(self) -> Result<()> {
        if let Some(mut server) = self.server {
            // A pid namespace does not end before each of its processes is reaped, and this one is a child of the lab.
            let _ = server.kill().await;
        }
        self.place.clear().await
    }
}

/// The words of a line.
pub(super) fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// Whether resource limits can be raised, as podman does without being asked.
fn may_raise_limits() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE))
}

//! containerd, driven by ctr.

use super::cli::words;
use super::goods::{BASE, FULL, Goods};
use super::place::Place;
use super::run::{Said, command};
use crate::code::{APP, Sample};
use crate::drive::{check_health, check_reading, health_check, reading_of};
use crate::image::{HOME, USER_ID};
use anyhow::{Context as _, Result, bail};
use serde_json::json;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// The code that `ctr task rm --force` ends with after it has killed the task.
const KILLED: i32 = 137;
/// How often a file is read back while nothing at all is heard of it: on a busy machine ctr was seen to end successfully
/// without the output of the process.
const READINGS: usize = 3;
/// Plugins that are not used, some of which would make something outside of the experiment's directory.
const UNUSED: [&str; 5] = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
];

/// A server of containerd in its place.
#[derive(Debug)]
pub(super) struct Containerd {
    place: Place,
    server: tokio::process::Child,
}

impl Containerd {
    pub(super) async fn start(place: Place) -> Result<Self> {
        let at = |name: &str| place.path(name);
        // A JSON string or array is one of TOML as well.
        let settings = format!(
            "version = 2\nroot = {}\nstate = {}\ndisabled_plugins = {}\n[grpc]\naddress = {}\n",
            json!(at("root")),
            json!(place.live("state")),
            json!(UNUSED),
            json!(place.live("sock"))
        );
        std::fs::write(at("config.toml"), settings).context("write containerd's settings")?;
        std::fs::create_dir(at("pids")).context("make a directory")?;
        let log = std::fs::File::create(at("log")).context("make containerd's log")?;
        let mut serve = command("containerd", ["--config".to_owned(), at("config.toml")]);
        serve.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).current_dir(place.dir());
        let server = place.hold().spawn(serve).await?;
        Ok(Self { place, server })
    }

    /// Waits until its server answers, if it has one.
    pub(super) async fn ready(&mut self) -> Result<()> {
        loop {
            if let Some(status) = self.server.try_wait()? {
                let log = std::fs::read_to_string(self.place.path("log")).unwrap_or_default();
                let last = log.lines().last().unwrap_or_default();
                bail!("containerd ended ({status}): {}", wardian_sys::text::tame(last));
            }
            if self.place.seen(&self.place.live("sock")).exists()
                && self.say("version", &[], Stdio::null()).await.is_ok()
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn say(&self, line: &str, more: &[&str], input: Stdio) -> Result<Vec<u8>> {
        Ok(self.hear(line, more, input, &[]).await?.out)
    }

    async fn hear(&self, line: &str, more: &[&str], input: Stdio, also: &[i32]) -> Result<Said> {
        let mut all = vec!["--address".to_owned(), self.place.live("sock")];
        all.extend(words(line));
        all.extend(more.iter().map(|word| (*word).to_owned()));
        self.place.run("ctr", &all, input, also).await
    }

    pub(super) async fn load(&self, archive: &Path) -> Result<()> {
        let archive = archive.to_str().context("the archive's path is not text")?;
        self.say("image import", &[archive], Stdio::null()).await.map(drop)
    }

    fn group(&self, name: &str) -> String {
        format!("/{}/{name}", self.place.group)
    }

    fn pid_file(&self, name: &str) -> String {
        self.place.path(&format!("pids/{name}"))
    }

    pub(super) async fn create(&self, name: &str, full: bool) -> Result<()> {
        let image = if full { FULL } else { BASE };
        let (group, pid) = (self.group(name), self.pid_file(name));
        let more = ["--cgroup", &group, "--pid-file", &pid, image, name, "/bin/sleep", "1000000"];
        self.say("run --detach", &more, Stdio::null()).await.map(drop)
    }

    pub(super) async fn stream_in(&self, name: &str, goods: &Goods) -> Result<()> {
        let user = format!("{USER_ID}:{USER_ID}");
        let more = ["--user", &user, name, "/bin/tar", "-xf", "-", "-C", HOME];
        self.say("task exec --exec-id stream", &more, goods.input()?).await.map(drop)
    }

    pub(super) async fn start_app(&self, name: &str) -> Result<()> {
        let user = format!("{USER_ID}:{USER_ID}");
        let more = ["--user", &user, "--cwd", APP, name, "/bin/sh", "start.sh"];
        self.say("task exec --detach --exec-id app", &more, Stdio::null()).await.map(drop)
    }

    pub(super) async fn pea(&self, name: &str) -> Result<()> {
        let pid =
            std::fs::read_to_string(self.pid_file(name)).context("read the process id of a container")?;
        let [network, pids] = ["net", "pid"].map(|kind| {
            let long = if kind == "net" { "network" } else { kind };
            format!("{long}:/proc/{}/ns/{kind}", pid.trim())
        });
        let (pea, ask) = (format!("{name}-pea"), health_check("127.0.0.1", None));
        let group = self.group(&pea);
        let more = [
            "--cgroup",
            &group,
            "--with-ns",
            &network,
            "--with-ns",
            &pids,
            BASE,
            &pea,
            "/bin/sh",
            "-c",
            &ask,
        ];
        check_health(name, &self.say("run --rm", &more, Stdio::null()).await?)
    }

    pub(super) async fn verify(&self, name: &str, sample: &Sample) -> Result<()> {
        let look = reading_of(sample);
        let more = [name, "/bin/sh", "-c", &look];
        let mut read = Said::default();
        for _ in 0..READINGS {
            read = self.hear("task exec --exec-id look", &more, Stdio::null(), &[]).await?;
            // The reading says something in any case.
            if !read.out.is_empty() || !read.err.is_empty() {
                break;
            }
        }
        check_reading(sample, name, &read.out).with_context(|| read.complaint())
    }

    pub(super) async fn inside(&self, name: &str, words: &[&str]) -> Result<()> {
        let more = [&[name], words].concat();
        self.say("task exec --exec-id inside", &more, Stdio::null()).await.map(drop)
    }

    pub(super) async fn destroy(&self, name: &str) -> Result<()> {
        self.hear("task rm --force", &[name], Stdio::null(), &[KILLED]).await?;
        self.say("container rm", &[name], Stdio::null()).await.map(drop)
    }

    pub(super) async fn clear(mut self) -> Result<()> {
        // A pid namespace does not end before each of its processes is reaped, and this one is a child of the lab.
        let _ = self.server.kill().await;
        self.place.clear().await
    }
}

//! Where an engine that is no Garden server has its turn: a directory and a cgroup of its own, and the
//! namespaces of [`Hold`]. All of it is removed after the turn.

use super::hold::Hold;
use super::run::{Said, command, run};
use crate::cgroups::{groups, remove_group};
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long an emptied cgroup may still be busy.
const BUSY: Duration = Duration::from_secs(5);

/// The place of one turn.
#[derive(Debug)]
pub(super) struct Place {
    hold: Hold,
    dir: TempDir,
    /// Name of the cgroup, below the root of each hierarchy.
    pub(super) group: String,
}

impl Place {
    /// Makes it below the experiment's directory.
    pub(super) async fn make(program: &Path, above: &Path, group: &str) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("turn-")
            .tempdir_in(above)
            .context("make a directory for an engine")?;
        Ok(Self { hold: Hold::start(program).await?, dir, group: group.to_owned() })
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Path of a socket or of live state inside: in the covered /run, a tmpfs, where engines have theirs without being
    /// told. Paths below the experiment's directory can be too long for sockets, and podman refuses more than 50 bytes.
    pub(super) fn live(&self, name: &str) -> String {
        format!("/run/wardian-lab/{name}")
    }

    /// The same, as the lab sees it from outside.
    pub(super) fn seen(&self, live: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{live}", self.hold.init()))
    }

    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn hold(&self) -> &Hold {
        &self.hold
    }

    /// Runs a command inside, with these words.
    pub(super) async fn run(
        &self,
        program: &str,
        words: &[String],
        input: Stdio,
        also: &[i32],
    ) -> Result<Said> {
        let mut command = command(program, words);
        // What is unpacked on the way is on the file system under test too.
        command.env("TMPDIR", self.dir.path()).current_dir(self.dir.path());
        run(Some(&self.hold), command, input, also).await
    }

    /// Removes it with everything that runs there.
    pub(super) async fn clear(self) -> Result<()> {
        let Self { hold, dir, group } = self;
        let ended = hold.end().await;
        let removed = remove_groups(&group).await;
        let path = dir.path().to_owned();
        let closed = tokio::task::spawn_blocking(|| dir.close()).await?;
        ended.and(removed).and(closed.with_context(|| format!("remove {}", path.display())))
    }
}

/// Removes a cgroup with those below it, all of them without processes.
pub(super) async fn remove_groups(name: &str) -> Result<()> {
    let until = Instant::now() + BUSY;
    loop {
        let left = groups(name);
        left.iter().for_each(|dir| remove_group(dir));
        let left = groups(name);
        let Some(first) = left.first() else { return Ok(()) };
        if Instant::now() > until {
            bail!("the cgroup {} cannot be removed: it is still busy", first.display());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

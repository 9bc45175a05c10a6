//! Network namespaces of an experiment's own: the host's network is not touched, and everything in a namespace goes with
//! its last descriptor.

use anyhow::{Context, Result, ensure};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use wardian_sys::namespace;

/// A network namespace.
#[derive(Debug)]
pub struct Namespace(OwnedFd);

impl Namespace {
    /// Makes one in which the loopback interface is up and nothing else is.
    pub fn new() -> Result<Self> {
        Ok(Self(namespace::pair(&[], &[], 0).context("make a network namespace")?.network))
    }

    /// Opens that of a process.
    pub fn of(pid: u32) -> Result<Self> {
        let file = File::open(format!("/proc/{pid}/ns/net"));
        Ok(Self(file.with_context(|| format!("open the network namespace of process {pid}"))?.into()))
    }

    /// A path to it for other programs, valid while this value lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// A command that runs a program in it. `ip netns exec` would hide the cgroups from the program.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg("--").arg(program);
        command
    }

    /// Runs a command, its words separated by spaces, and returns its output.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().unwrap_or_default());
        let ended = command.args(words).stdin(Stdio::null()).output();
        let ended = ended.with_context(|| format!("run {line:?}"))?;
        let said = String::from_utf8_lossy(&ended.stderr);
        ensure!(ended.status.success(), "{line:?} failed ({}): {}", ended.status, said.trim());
        String::from_utf8(ended.stdout).with_context(|| format!("understand what {line:?} says"))
    }

    /// Calls a function on a thread in the namespace. Sockets that it opens stay in the namespace.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        namespace::in_network(self.0.as_fd(), act)
    }
}

//! Runs a program of the host to its end (a network plugin, nft, a credential helper). What it is given and what it
//! says are bounded, and so is its time.

use crate::children::Own;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The most bytes that a program may write to its standard output.
pub const MOST: usize = 1 << 20;
/// The most bytes of its standard error that are kept; what comes after them is read, and dropped.
const MOST_SAID: usize = 16 << 10;
/// Where a program finds others: a service's own PATH may lack the directories of the super-user.
const SEARCHED: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a program has no result. Its exit status is a result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be started.
    #[error("start {program}: {source}")]
    Start {
        /// Its path.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its pipes do not work.
    #[error("{program}: pipes: {source}")]
    Pipes {
        /// Its path.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It was killed because it took too long.
    #[error("{program} has not ended within {seconds} s and was killed")]
    Slow {
        /// Its path.
        program: PathBuf,
        /// The time that it was given.
        seconds: u64,
    },
    /// It was killed because it wrote too much.
    #[error("{program} has written more than {MOST} bytes and was killed")]
    Much {
        /// Its path.
        program: PathBuf,
    },
}

/// What a program has left.
#[derive(Debug)]
pub struct Output {
    /// How it has ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub out: Vec<u8>,
    /// The beginning of its standard error.
    pub said: String,
}

/// A program to run.
#[derive(Debug)]
pub struct Program<'a> {
    /// Its path, or its name.
    pub path: &'a Path,
    /// Its arguments.
    pub args: &'a [&'a str],
    /// Its environment besides `PATH`.
    pub env: &'a [(&'a str, &'a str)],
    /// What it reads from its standard input.
    pub input: &'a [u8],
    /// After this time it is killed with its process group.
    pub patience: Duration,
}

impl Program<'_> {
    /// Runs it in a process group of its own, with no descriptor but its standard ones, in `/`.
    ///
    /// # Errors
    /// It cannot be started, takes too long, or writes too much.
    pub fn run(&self) -> Result<Output, Error> {
        let program = || self.path.to_owned();
        let mut command = Command::new(self.path);
        command.args(self.args).env_clear().env("PATH", SEARCHED).envs(self.env.iter().copied());
        command.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Own::start(&mut command);
        let mut own = started.map_err(|source| Error::Start { program: program(), source })?;
        let deadline = Instant::now() + self.patience;
        let pipes = |source: io::Error| Error::Pipes { program: program(), source };
        let slow = || Error::Slow { program: program(), seconds: self.patience.as_secs() };
        let child = own.child();
        let (mut stdin, mut stdout, mut stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        for pipe in [
            stdin.as_ref().map(AsFd::as_fd),
            stdout.as_ref().map(AsFd::as_fd),
            stderr.as_ref().map(AsFd::as_fd),
        ] {
            pipe.map_or(Ok(()), unblock).map_err(pipes)?;
        }
        let (mut input, mut out, mut said) = (self.input, Vec::new(), Vec::new());
        loop {
            if stdin.as_mut().is_some_and(|pipe| !give(pipe, &mut input)) {
                stdin = None;
            }
            // The end first: what was written before it is in the pipes then. A process that the program has left
            // behind may keep them open.
            let now = Instant::now();
            let status = own.wait_until(now).map_err(pipes)?;
            if stdout.as_mut().is_some_and(|pipe| !take(pipe, &mut out, usize::MAX)) {
                stdout = None;
            }
            if stderr.as_mut().is_some_and(|pipe| !take(pipe, &mut said, MOST_SAID)) {
                stderr = None;
            }
            if out.len() > MOST {
                return Err(Error::Much { program: program() });
            }
            if let Some(status) = status {
                return Ok(Output { status, out, said: String::from_utf8_lossy(&said).into_owned() });
            }
            if now >= deadline {
                return Err(slow());
            }
            let mut all = vec![PollFd::from_borrowed_fd(own.ended(), PollFlags::IN)];
            all.extend(stdin.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::OUT)));
            all.extend(stdout.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
            all.extend(stderr.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
            let left = deadline - now;
            let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            // Whatever it returns, the loop looks at everything.
            let _ = poll(&mut all, Some(&left));
        }
    }
}

fn unblock(pipe: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::fcntl_setfl(pipe, rustix::fs::fcntl_getfl(pipe)? | OFlags::NONBLOCK)?)
}

/// Writes what the pipe takes. Returns false when there is nothing left to write, or nobody reads.
fn give(pipe: &mut impl Write, input: &mut &[u8]) -> bool {
    while !input.is_empty() {
        match pipe.write(input) {
            Ok(count) => *input = &input[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
    false
}

/// Reads what is in the pipe, of which `most` bytes are kept. Returns false at its end.
fn take(pipe: &mut impl Read, to: &mut Vec<u8>, most: usize) -> bool {
    let mut chunk = [0; 16 << 10];
    // An endless writer must not keep this from looking at the time.
    for _ in 0..16 {
        match pipe.read(&mut chunk) {
            Ok(0) => return false,
            Ok(count) => to.extend_from_slice(&chunk[..count.min(most.saturating_sub(to.len()))]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, input: &[u8], patience: Duration) -> Result<Output, Error> {
        let (path, args) = (Path::new("/bin/sh"), ["-c", script]);
        Program { path, args: &args, env: &[("A", "b")], input, patience }.run()
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_program_gets_its_input_and_a_clean_environment() {
        let said =
            shell("cat; env | sort >&2; pwd >&2; ls /proc/self/fd | tr '\\n' ' ' >&2; exit 3", b"in", LONG)
                .unwrap();
        assert_eq!((said.status.code(), &*said.out), (Some(3), &b"in"[..]));
        let lines: Vec<&str> = said.said.lines().filter(|line| !line.starts_with("PWD=")).collect();
        // `ls` has one descriptor more: the directory.
        assert_eq!(lines, ["A=b", &format!("PATH={SEARCHED}"), "/", "0 1 2 3 "]);
    }

    #[test]
    fn much_goes_both_ways() {
        let input = vec![b'x'; 700_000];
        let said = shell("cat", &input, LONG).unwrap();
        assert_eq!(said.out.len(), input.len());
        // One that does not read, and one that says much to the log.
        let said = shell("head -c 100000 /dev/zero >&2", &input, LONG).unwrap();
        assert!(said.status.success() && said.said.len() == MOST_SAID);
    }

    #[test]
    fn a_program_is_bounded() {
        let begin = Instant::now();
        let slow = shell("sleep 1000 & sleep 1000", b"", Duration::from_millis(200)).unwrap_err();
        assert!(matches!(slow, Error::Slow { .. }), "{slow}");
        let much = shell("yes", b"", LONG).unwrap_err();
        assert!(matches!(much, Error::Much { .. }), "{much}");
        // A process that is left behind keeps the pipes open.
        let left = shell("sleep 20 & echo out", b"", LONG).unwrap();
        assert_eq!(left.out, b"out\n");
        let missing =
            Program { path: Path::new("/nonexistent"), args: &[], env: &[], input: b"", patience: LONG };
        assert!(matches!(missing.run().unwrap_err(), Error::Start { .. }));
        assert!(begin.elapsed() < Duration::from_secs(15));
    }
}

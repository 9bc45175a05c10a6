//! Guests: virtual machines that boot a chosen kernel and run scripts.
//!
//! A guest has no network and nothing of the host's mounted. Its root is an initramfs with busybox, this program and the
//! modules that the kernel needs; its disk is a sparse file, whose speed can be held down. It ends with the value that
//! stands for it, with the thread that has started it, and at the latest with this process.

pub mod apt;
mod cache;
mod children;
mod deb;
pub mod disk;
mod image;
mod initramfs;
pub mod kernel;
pub mod machine;
mod modules;

pub use cache::USUAL as USUAL_CACHE;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use disk::Filesystem;
use initramfs::Copied;
use kernel::Kernel;
use machine::Machine;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout};
use wardian_sys::text::{clip, tame};

/// Limit of the output of a script in bytes.
const MOST_OUTPUT: u64 = 64 << 20;
/// Limit of a script's length in bytes; one line in the guest's shell.
const MOST_SCRIPT: usize = 64 << 10;
/// Limit of a line that announces output.
const MOST_HEAD: u64 = 64;
/// Limit of the kernel's log in bytes: a kernel that repeats a message for ever would fill the disk.
const MOST_LOG: u64 = 64 << 20;
/// How often the size of the log is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// The lines of the end of the log, and the length of each, that are kept.
const LOG_LINES: usize = 25;
const LOG_COLUMNS: usize = 160;
/// How much of the log's end is read for them.
const LOG_END: u64 = 16 << 10;
/// Time that QEMU gets to end after the guest has closed its port.
const ENDS: Duration = Duration::from_secs(5);

/// Why a guest has no result.
#[derive(Debug)]
pub enum Failure {
    /// The guest failed: its kernel does not boot, has panicked, or hangs.
    Guest(Broken),
    /// This host failed: no QEMU, a full disk. Another kernel would not help.
    Host(anyhow::Error),
}

/// What was seen of a guest that failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Broken {
    /// What failed, in a sentence.
    pub reason: String,
    /// The last lines of the kernel's log.
    pub log: Vec<String>,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Host(error)
    }
}

/// What a guest is made of.
#[derive(Debug)]
pub struct Settings<'a> {
    /// Its kernel.
    pub kernel: &'a Kernel,
    /// Its machine.
    pub machine: &'a Machine,
    /// The file system on its disk, which is mounted on /mnt.
    pub fs: Filesystem,
    /// Modules to be loaded besides those that every guest needs, by name.
    pub modules: &'a [String],
    /// This program, which becomes /bin/wardian.
    pub program: &'a Path,
    /// Files of the host that are copied into /files, which is in `PATH`.
    pub files: &'a [PathBuf],
    /// Where its own files are made, in a directory that is removed.
    pub dir: &'a Path,
    /// Time for the boot.
    pub patience: Duration,
}

/// A guest that has booted.
#[derive(Debug)]
pub struct Guest {
    // Killed before its files are removed.
    qemu: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    dir: TempDir,
    /// Time from the start of QEMU until the guest was ready for scripts.
    pub boot: Duration,
}

/// What a script has ended with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit status.
    pub status: u8,
    /// What it wrote to both streams.
    pub bytes: Vec<u8>,
}

/// Checks that this host can have guests: QEMU, busybox, mkfs, and a program that runs in a guest.
///
/// # Errors
/// Something is missing; the error names the Debian package that has it.
pub fn check(program: &Path, fs: Filesystem) -> Result<()> {
    machine::qemu()?;
    initramfs::check_static(&busybox()?)?;
    fs.check()?;
    initramfs::check_static(program)
}

fn busybox() -> Result<PathBuf> {
    children::find("busybox", "busybox-static")
}

impl Guest {
    /// Boots a kernel, and mounts the disk.
    ///
    /// # Errors
    /// [`Failure::Guest`] if the kernel does not boot in time, or cannot mount its disk.
    pub async fn boot(settings: Settings<'_>) -> Result<Self, Failure> {
        let dir = tempfile::Builder::new().prefix("guest-").tempdir_in(settings.dir);
        let dir = dir.with_context(|| format!("make a directory in {}", settings.dir.display()))?;
        let initrd = File::create_new(dir.path().join("initrd")).context("make the initramfs")?;
        let of_kernel = settings.kernel.modules.clone();
        let wanted: Vec<String> =
            settings.modules.iter().cloned().chain([settings.fs.name().to_owned()]).collect();
        let mut files = vec![
            (busybox()?, "bin/busybox".to_owned()),
            (settings.program.to_owned(), "bin/wardian".to_owned()),
        ];
        for file in settings.files {
            let name =
                file.file_name().and_then(|name| name.to_str()).context("a file's name must be text")?;
            files.push((file.clone(), format!("files/{name}")));
        }
        // Compressed modules take a while. If this is dropped, the thread writes to a file without a name.
        let written = tokio::task::spawn_blocking(move || {
            let modules = of_kernel.map(|dir| modules::closure(&dir, &wanted)).transpose();
            let modules = modules.map_err(|error| (true, error))?.unwrap_or_default();
            let copied: Vec<Copied<'_>> =
                files.iter().map(|(host, name)| Copied { host, name: name.clone() }).collect();
            initramfs::write(initrd, &copied, &modules).map_err(|error| (false, error))
        });
        match written.await.context("make the initramfs")? {
            // Damaged modules are the kernel's fault, and a full disk the host's.
            Err((true, error)) => {
                let reason = format!("its modules cannot be read: {error:#}");
                return Err(Failure::Guest(Broken { reason, log: Vec::new() }));
            }
            Err((false, error)) => return Err(Failure::Host(error)),
            Ok(()) => {}
        }
        disk::make(&dir.path().join("disk"), settings.machine.disk_bytes, settings.fs).await?;
        let mut command = machine::command(settings.machine, &settings.kernel.image, dir.path())?;
        command.stderr(File::create_new(dir.path().join("said")).context("make a file for QEMU's errors")?);
        let mut command = tokio::process::Command::from(command);
        let begin = Instant::now();
        let mut qemu = command.kill_on_drop(true).spawn().context("start QEMU")?;
        let (Some(to), Some(from)) = (qemu.stdin.take(), qemu.stdout.take()) else {
            return Err(Failure::Host(anyhow::anyhow!("QEMU has no pipes")));
        };
        let mut guest = Self { qemu, to, from: BufReader::new(from), dir, boot: Duration::ZERO };
        guest
            .within("the kernel has not booted", settings.patience, async |guest| {
                let line = guest.line().await?;
                anyhow::ensure!(line == "ready", "the guest said {line:?}");
                Ok(())
            })
            .await?;
        guest.boot = begin.elapsed();
        let fs = settings.fs.name();
        let mount = format!(
            "n=0; while [ ! -e /dev/vda ]; do n=$((n + 1)); [ $n -lt 100 ] || {{ echo 'there is no disk: this kernel lacks virtio_blk'; exit 1; }}; usleep 100000; done
            mount -t {fs} /dev/vda /mnt"
        );
        let mounted = guest.sh(&mount, settings.patience).await?;
        if mounted.status != 0 {
            let said = said(&mounted.bytes);
            return Err(guest.broken(format!("it cannot mount its disk with {fs}: {said}")));
        }
        Ok(guest)
    }

    /// Runs a script by the guest's shell. A script that fails is no error.
    ///
    /// # Errors
    /// [`Failure::Guest`] if the guest has ended, or the script has not ended in time.
    pub async fn sh(&mut self, script: &str, patience: Duration) -> Result<Output, Failure> {
        if script.len() > MOST_SCRIPT {
            return Err(Failure::Host(anyhow::anyhow!("a script is longer than {MOST_SCRIPT} bytes")));
        }
        let line = format!("{}\n", STANDARD.encode(script));
        self.within("the command has not ended", patience, async |guest| {
            guest.to.write_all(line.as_bytes()).await.context("send a script")?;
            let head = guest.line().await?;
            let (status, size) = announced(&head).with_context(|| format!("the guest said {head:?}"))?;
            anyhow::ensure!(size <= MOST_OUTPUT, "its output has {size} bytes, more than {MOST_OUTPUT}");
            let mut bytes = Vec::new();
            (&mut guest.from).take(size).read_to_end(&mut bytes).await.context("read the output")?;
            anyhow::ensure!(bytes.len() as u64 == size, "the guest has ended");
            Ok(Output { status, bytes })
        })
        .await
    }

    /// Ends the guest, and removes its files.
    ///
    /// # Errors
    /// The files cannot be removed.
    pub async fn end(mut self) -> Result<()> {
        let _ = self.qemu.kill().await;
        let path = self.dir.path().to_owned();
        self.dir.close().with_context(|| format!("remove {}", path.display()))
    }

    /// A line of the guest, without its end.
    async fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        (&mut self.from).take(MOST_HEAD).read_until(b'\n', &mut line).await.context("read from the guest")?;
        if line.pop() != Some(b'\n') {
            bail!("the guest has ended");
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    async fn within<T>(
        &mut self,
        late: &str,
        patience: Duration,
        work: impl AsyncFnOnce(&mut Self) -> Result<T>,
    ) -> Result<T, Failure> {
        let log = self.dir.path().join("log");
        let flooded = async {
            while log.metadata().map_or(0, |meta| meta.len()) <= MOST_LOG {
                tokio::time::sleep(LOOK).await;
            }
        };
        let reason = tokio::select! {
            done = work(self) => match done {
                Ok(done) => return Ok(done),
                Err(error) => format!("{error:#}"),
            },
            () = tokio::time::sleep(patience) => format!("{late} after {} s", patience.as_secs()),
            () = flooded => format!("the kernel's log has grown to more than {MOST_LOG} bytes"),
        };
        // A guest that panics closes its port a moment before QEMU has ended.
        let _ = tokio::time::timeout(ENDS, self.qemu.wait()).await;
        let panic = self.lines().into_iter().find(|line| line.contains("Kernel panic"));
        let said = std::fs::read(self.dir.path().join("said")).unwrap_or_default();
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        Err(match (self.qemu.try_wait(), panic) {
            // What QEMU refuses is no fault of the kernel: it has not run.
            (Ok(Some(status)), None) if !status.success() => {
                Failure::Host(anyhow::anyhow!("QEMU has ended ({status}): {}", clip(&said, 1000)))
            }
            (_, Some(panic)) => self.broken(panic),
            _ => self.broken(reason),
        })
    }

    fn broken(&self, reason: String) -> Failure {
        Failure::Guest(Broken { reason, log: self.log() })
    }

    /// The last lines of the kernel's log.
    pub fn log(&self) -> Vec<String> {
        let lines = self.lines();
        lines[lines.len().saturating_sub(LOG_LINES)..].to_vec()
    }

    fn lines(&self) -> Vec<String> {
        end_of_log(&self.dir.path().join("log")).unwrap_or_default()
    }
}

/// Output as a part of a sentence.
pub fn said(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.trim().lines().collect();
    let end = &lines[lines.len().saturating_sub(5)..];
    clip(&tame(&end.join("; ")), 1000).into_owned()
}

fn announced(head: &str) -> Option<(u8, u64)> {
    let (status, size) = head.split_once(' ')?;
    Some((status.parse().ok()?, size.parse().ok()?))
}

fn end_of_log(path: &Path) -> std::io::Result<Vec<String>> {
    let file = File::open(path)?;
    let from = file.metadata()?.len().saturating_sub(LOG_END);
    let mut end = vec![0; LOG_END as usize];
    let read = file.read_at(&mut end, from)?;
    let text = String::from_utf8_lossy(&end[..read]);
    let lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty());
    Ok(lines.map(|line| clip(&tame(line), LOG_COLUMNS).into_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_parsed() {
        assert_eq!(announced("0 12"), Some((0, 12)));
        for bad in ["", "0", "256 1", "0 -1", "0 1 2", "x 1", "0 99999999999999999999"] {
            assert_eq!(announced(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_end_of_a_log_is_harmless() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut text = "x\r\n".repeat(20_000);
        text += &format!("\x1b[2Jclear\r\n\r\n{}\n\u{fffd}last", "y".repeat(1000));
        std::fs::write(&path, text).unwrap();
        let lines = end_of_log(&path).unwrap();
        assert!(lines.len() < 10_000);
        assert!(
            lines.iter().all(|line| !line.contains('\x1b') && line.len() <= LOG_COLUMNS + 24),
            "{lines:?}"
        );
        assert!(lines.last().unwrap().ends_with("last"));
        assert!(end_of_log(&dir.path().join("none")).is_err());
    }

    #[test]
    fn output_becomes_a_part_of_a_sentence() {
        assert_eq!(said(b"1\n2\n3\n4\n5\n6\n7\n"), "3; 4; 5; 6; 7");
        assert!(!said(b"\x1b[2J").contains('\x1b'));
    }
}

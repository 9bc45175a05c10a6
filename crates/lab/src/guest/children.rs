//! Programs of the host that a guest needs: apt, dpkg-deb, mkfs.

use anyhow::{Context, Result, bail, ensure};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use wardian_sys::text::clip;

/// Limit of a program's output in bytes.
const MOST: u64 = 4 << 20;
/// Limit of the part of its errors that is shown.
const MOST_SAID: u64 = 16 << 10;
/// Where programs of the super-user are; a user's `PATH` may lack these.
const MORE: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// The `PATH` that programs are looked for in.
pub(super) fn search_path() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
        path.push(MORE);
    }
    path
}

/// Finds a program in `PATH`, and with a `PATH` also in the super-user's directories.
///
/// # Errors
/// There is none; the error names the Debian package that has it.
pub(super) fn find(program: &str, package: &str) -> Result<PathBuf> {
    let found = std::env::split_paths(&search_path())
        .map(|dir| dir.join(program))
        .find(|path| rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file());
    found.with_context(|| {
        format!("{program} is not installed here: install it first (Debian: apt-get install {package})")
    })
}

/// Runs a program to its end and returns its standard output. It is killed after `patience` and when this is dropped.
///
/// # Errors
/// It is missing (`package` is the Debian package that has it), fails, takes too long, or writes too much.
pub(super) async fn output(mut command: Command, package: &str, patience: Duration) -> Result<Vec<u8>> {
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    let program = find(&name, package)?;
    let mut std = std::process::Command::new(program);
    std.args(command.as_std().get_args()).env("PATH", search_path()).env("LC_ALL", "C");
    if let Some(dir) = command.as_std().get_current_dir() {
        std.current_dir(dir);
    }
    wardian_sys::tether::tie(&mut std);
    command = std.into();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("start {name}"))?;
    let (out, said) = (child.stdout.take(), child.stderr.take());
    let work = async { tokio::join!(bounded(out, MOST), bounded(said, MOST_SAID), child.wait()) };
    let Ok((out, said, status)) = tokio::time::timeout(patience, work).await else {
        bail!("{name} has not ended within {} s and was killed", patience.as_secs());
    };
    let status = status.with_context(|| format!("wait for {name}"))?;
    let (out, said) = (out?, said?);
    ensure!(status.success(), "{name}: {status}: {}", clip(String::from_utf8_lossy(&said).trim(), 2000));
    ensure!(out.len() as u64 <= MOST, "{name} has written more than {MOST} bytes");
    Ok(out)
}

/// Reads to the end, and keeps `most` bytes and one more, so that the caller sees that there were more.
async fn bounded(from: Option<impl AsyncRead + Unpin>, most: u64) -> Result<Vec<u8>> {
    let mut kept = Vec::new();
    let Some(mut from) = from else { return Ok(kept) };
    (&mut from).take(most + 1).read_to_end(&mut kept).await?;
    tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run(script: &str, patience: u64) -> Result<Vec<u8>> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        output(command, "dash", Duration::from_secs(patience)).await
    }

    #[tokio::test]
    async fn a_program_is_bounded() {
        assert_eq!(run("echo a; echo b >&2", 60).await.unwrap(), b"a\n");
        let failed = run("echo why >&2; exit 3", 60).await.unwrap_err().to_string();
        assert!(failed.contains("why") && failed.contains('3'), "{failed}");
        let slow = run("exec sleep 600", 1).await.unwrap_err().to_string();
        assert!(slow.contains("within 1 s"), "{slow}");
        let much = run("head -c 5000000 /dev/zero", 60).await.unwrap_err().to_string();
        assert!(much.contains("more than"), "{much}");
    }

    #[test]
    fn a_missing_program_is_told_with_its_package() {
        let error = find("no-such-program", "no-such-package").unwrap_err().to_string();
        assert!(error.contains("apt-get install no-such-package"), "{error}");
    }
}

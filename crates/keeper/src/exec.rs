//! The last steps before a program runs, all inside the container: user, directory, environment, rights, exec.

use crate::child::{self, Outcome, Stop, failed};
use crate::dirs;
use crate::process::TheirIo;
use crate::report::{Report, Tag};
use crate::rights;
use crate::users::{self, User};
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use wardian_runtime::rights::{Limit, Rights};
use wardian_runtime::seccomp::Program;
use wardian_runtime::wire::Exec;

/// Larger passwd or group files are refused.
const MAX_DATABASE: u64 = 1 << 20;

/// Reads a file of the container; empty if there is no such file. A file that cannot be read is an error and does not
/// count as empty: users would get other ids, groups and rights than it says.
fn database(path: &str) -> Outcome<String> {
    // NONBLOCK: a FIFO that the image has put there must not block the open.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        other => other.map_err(failed(path))?,
    };
    let stat = rustix::fs::fstat(&fd).map_err(failed(path))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Stop::from(format!("{path}: not a regular file")));
    }
    let mut bytes = Vec::new();
    std::fs::File::from(fd).take(MAX_DATABASE + 1).read_to_end(&mut bytes).map_err(failed(path))?;
    if bytes.len() as u64 > MAX_DATABASE {
        return Err(Stop::from(format!("{path}: larger than {MAX_DATABASE} bytes")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Looks a user up in the container's passwd and group.
pub fn user(wanted: &str) -> Outcome<User> {
    users::resolve(wanted, &database("/etc/passwd")?, &database("/etc/group")?).map_err(Stop::from)
}

/// The rights of a program before its user is known.
pub fn rights(exec: &Exec, seccomp: Option<Arc<Program>>) -> Rights {
    Rights {
        capabilities: exec.capabilities,
        no_new_privileges: exec.no_new_privileges,
        limits: exec
            .rlimits
            .iter()
            .map(|(resource, value)| Limit { resource: *resource, value: *value })
            .collect(),
        seccomp,
        ..Rights::default()
    }
}

/// Executes the program with these [`rights`], as the user whom `exec` names. Returns only on failure.
///
/// The user's look-up is the first step that opens paths of the container. From there on no descriptor is open by
/// which a path could lead out of it: only standard input, output and error, which are pipes or a terminal, and the
/// report pipe.
pub fn run(
    exec: &Exec,
    io: &TheirIo,
    report: &Report,
    mut rights: Rights,
) -> Outcome<std::convert::Infallible> {
    rustix::process::setsid().map_err(failed("setsid"))?;
    take(io)?;
    child::close_all_but(&[report.number()])?;
    let mut user = user(&exec.user)?;
    let mut name = exec.user.clone();
    if exec.pea {
        user.groups.clear();
    }
    if exec.pea && !name.is_empty() {
        name = format!("{}:{}", user.uid, user.gid);
    }
    let env = users::environment(&exec.env, &user, &name)?;
    let mut dir = if exec.dir.is_empty() { user.home.as_str() } else { exec.dir.as_str() };
    if !dir.starts_with('/') {
        return Err(Stop::from("Cwd must be an absolute path".to_owned()));
    }
    if exec.make_dir {
        dirs::make(Path::new(dir), &user)?;
    } else if rustix::fs::stat(dir).is_err_and(|e| e == rustix::io::Errno::NOENT) {
        dir = "/";
    }
    own(io, &user)?;
    // Garden's rule depends on the gid, not on the uid.
    if user.gid != 0 {
        rights.capabilities &= exec.capabilities_non_root;
    }
    rights::take(&user.with(rights))?;
    rustix::process::chdir(dir).map_err(|error| {
        let text = std::io::Error::from(error).to_string();
        let text = text.split(" (os error").next().unwrap_or_default().to_lowercase();
        Stop::from(format!("chdir to cwd ({dir:?}) set in config.json failed: {text}"))
    })?;
    child::stay_inside()?;
    child::clean_slate()?;
    report.send(Tag::Ready, "");
    Err(search(exec, &env))
}

/// Makes these pipes or this terminal standard input, output and error.
fn take(io: &TheirIo) -> Outcome<()> {
    match io {
        TheirIo::Pipes(pipes) => {
            for (fd, target) in pipes.iter().zip(0..) {
                child::stdio(fd.as_fd(), target)?;
            }
        }
        TheirIo::Terminal(slave) => {
            for target in 0..3 {
                child::stdio(slave.as_fd(), target)?;
            }
        }
    }
    Ok(())
}

/// Makes the user own standard input, output and error, and the terminal the controlling one.
fn own(io: &TheirIo, user: &User) -> Outcome<()> {
    let (uid, gid) = (Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)));
    let (stdin, stdout, stderr) = (rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr());
    match io {
        TheirIo::Pipes(_) => {
            for fd in [stdin, stdout, stderr] {
                rustix::fs::fchown(fd, uid, gid).map_err(failed("own the pipes"))?;
            }
        }
        TheirIo::Terminal(_) => {
            rustix::fs::fchown(stdin, uid, None).map_err(failed("own the terminal"))?;
            rustix::process::ioctl_tiocsctty(stdin).map_err(failed("take the terminal"))?;
        }
    }
    Ok(())
}

/// Looks the program up in PATH as a shell would, and executes it.
fn search(exec: &Exec, env: &[String]) -> Stop {
    let program = exec.args.first().map_or("", String::as_str);
    let stop = |not_found, text: String| Stop {
        not_found,
        text: format!("unable to start container process: exec: {program:?}: {text}"),
    };
    let describe = |error: std::io::Error| match error.kind() {
        ErrorKind::PermissionDenied => stop(false, "permission denied".to_owned()),
        _ => stop(false, error.to_string()),
    };
    if program.contains('/') {
        return match child::exec_path(program, &exec.args, env) {
            e if e.kind() == ErrorKind::NotFound && rustix::fs::stat(program).is_err() => {
                stop(true, format!("stat {program}: no such file or directory"))
            }
            e => describe(e),
        };
    }
    let path = env.iter().find_map(|e| e.strip_prefix("PATH=")).unwrap_or_default();
    let mut denied = None;
    for dir in path.split(':').filter(|_| !program.is_empty()) {
        let dir = if dir.is_empty() { "." } else { dir };
        match child::exec_path(&format!("{dir}/{program}"), &exec.args, env) {
            e if e.kind() == ErrorKind::PermissionDenied => denied = Some(e),
            e if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            e => return describe(e),
        }
    }
    denied.map_or_else(|| stop(true, "executable file not found in $PATH".to_owned()), describe)
}

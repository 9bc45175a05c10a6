//! The last steps before a program runs: user, directory, environment, rights, exec. All inside.

use crate::child::{self, Outcome, Stop, failed};
use crate::process::TheirIo;
use crate::users::{self, User};
use rustix::fs::{FileType, Mode, OFlags};
use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::path::Path;
use wardian_runtime::seccomp::Program;
use wardian_runtime::wire::Exec;

/// More than this of passwd or group is not read.
const MAX_DATABASE: u64 = 1 << 20;

/// A file of the container, if it is a plain one.
fn database(path: &str) -> String {
    // NONBLOCK: a fifo put there by the image must not hold us up.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let Ok(fd) = rustix::fs::open(path, flags, Mode::empty()) else { return String::new() };
    if rustix::fs::fstat(&fd).map(|s| FileType::from_raw_mode(s.st_mode)) != Ok(FileType::RegularFile) {
        return String::new();
    }
    let mut bytes = Vec::new();
    if std::fs::File::from(fd).take(MAX_DATABASE).read_to_end(&mut bytes).is_err() {
        return String::new();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Look a user up inside.
pub fn user(wanted: &str) -> Outcome<User> {
    users::resolve(wanted, &database("/etc/passwd"), &database("/etc/group")).map_err(Stop::from)
}

/// Make a directory and its missing parents, the new ones owned by the user. Symlinks are the container's.
pub fn make_dir(path: &Path, owner: &User) -> Outcome<()> {
    let mut missing = Vec::new();
    let mut at = path;
    while let Err(error) = rustix::fs::stat(at) {
        if error != rustix::io::Errno::NOENT {
            return Err(failed(path.display())(error));
        }
        missing.push(at);
        at = at.parent().ok_or_else(|| Stop::from(format!("{}: no such directory", path.display())))?;
    }
    for dir in missing.into_iter().rev() {
        match rustix::fs::mkdir(dir, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                let owner = (rustix::fs::Uid::from_raw(owner.uid), rustix::fs::Gid::from_raw(owner.gid));
                rustix::fs::chown(dir, Some(owner.0), Some(owner.1)).map_err(failed(dir.display()))?;
            }
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(failed(format!("mkdir {}", dir.display()))(error)),
        }
    }
    Ok(())
}

/// Become the program. Returns only when that fails.
pub fn run(exec: &Exec, io: &TheirIo, filter: Option<&Program>) -> Outcome<std::convert::Infallible> {
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
        make_dir(Path::new(dir), &user)?;
    } else if rustix::fs::stat(dir).is_err_and(|e| e == rustix::io::Errno::NOENT) {
        dir = "/";
    }
    rustix::process::setsid().map_err(failed("setsid"))?;
    let owner = (Some(rustix::fs::Uid::from_raw(user.uid)), Some(rustix::fs::Gid::from_raw(user.gid)));
    match io {
        TheirIo::Pipes(pipes) => {
            for (fd, target) in pipes.iter().zip(0..) {
                rustix::fs::fchown(fd, owner.0, owner.1).map_err(failed("own the pipes"))?;
                child::stdio(fd.as_fd(), target)?;
            }
        }
        TheirIo::Terminal(slave) => {
            rustix::fs::fchown(slave, owner.0, None).map_err(failed("own the terminal"))?;
            rustix::process::ioctl_tiocsctty(slave).map_err(failed("take the terminal"))?;
            for target in 0..3 {
                child::stdio(slave.as_fd(), target)?;
            }
        }
    }
    let rights =
        if user.gid == 0 { exec.capabilities } else { exec.capabilities & exec.capabilities_non_root };
    child::drop_to(user.uid, user.gid, &user.groups, rights, exec.no_new_privileges, filter)?;
    rustix::process::chdir(dir).map_err(|error| {
        let text = std::io::Error::from(error).to_string();
        let text = text.split(" (os error").next().unwrap_or_default().to_lowercase();
        Stop::from(format!("chdir to cwd ({dir:?}) set in config.json failed: {text}"))
    })?;
    child::clean_slate()?;
    Err(search(exec, &env))
}

/// Find the program as a shell would, and execute it.
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

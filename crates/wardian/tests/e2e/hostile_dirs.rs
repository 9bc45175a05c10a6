//! Root's own commands in directories that other users own or may write to, or once did.

use crate::support::{NETWORK, Server, WARDIAN, cgroups, ended_within, members, names, say};
use rustix::fs::{CWD, FlockOperation, Mode, flock, mkfifoat};
use std::collections::HashMap;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const NOBODY: u32 = 65534;
/// What waits for a FIFO waits for ever.
const FOR_EVER: Duration = Duration::from_secs(30);

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// Runs the program to its end: its exit code and all that it said.
fn wardian(args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(WARDIAN);
    command
        .env(NETWORK, "none")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let status = ended_within(&mut child, FOR_EVER).unwrap_or_else(|| panic!("{args:?} does not end"));
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (status.code(), said)
}

/// A file of root's that nobody may touch.
fn secret(base: &Path) -> PathBuf {
    let secret = base.join("secret");
    std::fs::write(&secret, "root's").unwrap();
    set_mode(&secret, 0o600);
    secret
}

fn is_untouched(secret: &Path) {
    assert_eq!(std::fs::read_to_string(secret).unwrap(), "root's");
    assert_eq!(std::fs::metadata(secret).unwrap().mode() & 0o777, 0o600);
}

/// Directories in `base` with links to `secret`: one that another user owns, one that everybody may write to.
fn theirs(base: &Path, secret: &Path) -> Vec<(PathBuf, &'static str)> {
    let found = [("nobodys", "belongs to user 65534"), ("open", "may be written to by other users")];
    let made = found.map(|(name, says)| {
        let dir = base.join(name);
        std::fs::create_dir(&dir).unwrap();
        for name in ["lock", "instance.json", "s.new", "format.json", "out.json"] {
            symlink(secret, dir.join(name)).unwrap();
        }
        if name == "open" {
            set_mode(&dir, 0o777);
        } else {
            chown(&dir, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        (dir, says)
    });
    made.into()
}

#[test]
fn directories_of_others_are_refused() {
    let base = crate::support::base();
    set_mode(base.path(), 0o755);
    let secret = secret(base.path());
    let own = base.path().join("own").to_str().unwrap().to_owned();
    for (dir, says) in theirs(base.path(), &secret) {
        let before = names(&dir);
        let text = dir.to_str().unwrap();
        let (below, socket, out) =
            (format!("{text}/below"), format!("unix:{text}/s"), format!("{text}/out.json"));
        let run = format!("{own}-run");
        let commands: [&[&str]; 9] = [
            &["serve", "--root", &own, "--run", text],
            &["serve", "--root", &own, "--run", &below],
            &["serve", "--root", text, "--run", &run],
            &["serve", "--root", &own, "--run", &run, "--listen", &socket],
            &["reset", "--yes", "--root", &own, "--run", text],
            &["reset", "--yes", "--root", text, "--run", &run],
            &["lab", "teardown", "--fs", text, "--mounts", "1", "--mb", "1"],
            &["doctor", "--leaks", "--run", text],
            &["rootfs", "create", "x", "id", "--root", &own, "--run", text],
        ];
        for args in commands {
            let (code, said) = wardian(args);
            assert!(code != Some(0), "{args:?}: {said}");
            // That a root file system has no image may come first.
            assert!(said.contains(says) || args[0] == "rootfs", "{args:?}: {said}");
            is_untouched(&secret);
        }
        let (code, said) = wardian(&["lab", "record", "--json", &out, "--", "true"]);
        assert!(code != Some(0) && said.contains("a link in a directory of other users"), "{said}");
        is_untouched(&secret);
        assert_eq!(names(&dir), before);
    }
}

#[test]
fn settings_of_others_are_refused() {
    let base = crate::support::base();
    let config = base.path().join("wardian.toml");
    std::fs::write(&config, "keeper = \"/tmp/evil\"\n").unwrap();
    chown(&config, Some(NOBODY), None).unwrap();
    let text = config.to_str().unwrap();
    let (code, said) = wardian(&["serve", "--config", text]);
    assert!(code == Some(1) && said.contains("belongs to user 65534"), "{said}");
    std::fs::remove_file(&config).unwrap();
    mkfifoat(CWD, &config, Mode::RWXU).unwrap();
    let (code, said) = wardian(&["serve", "--config", text]);
    assert!(code == Some(1) && said.contains("no regular file"), "{said}");
}

/// They were another user's once: what she has left there leads nowhere and holds nothing up.
#[tokio::test]
async fn what_was_planted_before_is_not_followed() {
    let mut server = Server::start().await;
    server.create("c").await;
    let secret = secret(server.base());
    let run = server.run();
    let planted = [
        run.join("lock"),
        run.join("instance.json"),
        run.join("instance.json.new"),
        run.join("containers/planted"),
        // The name of the cgroup of all keepers.
        run.join("containers/keepers"),
    ];
    for fifo in [false, true] {
        server.kill9();
        for path in &planted {
            let _ = std::fs::remove_file(path);
            if fifo { mkfifoat(CWD, path, Mode::RWXU).unwrap() } else { symlink(&secret, path).unwrap() }
        }
        // A record that another user has written.
        let forged = run.join("containers/forged");
        std::fs::create_dir(&forged).unwrap();
        std::fs::write(forged.join("state.json"), "{}").unwrap();
        chown(&forged, Some(NOBODY), None).unwrap();
        // Doctor reads the same files, and what is there besides.
        mkfifoat(CWD, run.join("rootfs/fifo.json"), Mode::RWXU).unwrap();
        let (code, said) = wardian(&["doctor", "--leaks", "--run", run.to_str().unwrap()]);
        assert!(code.is_some_and(|code| code == 0 || code == 3), "{said}");
        std::fs::remove_file(run.join("rootfs/fifo.json")).unwrap();
        server.restart().await;
        is_untouched(&secret);
        assert_eq!(say(&server.client(), "c", "echo lives").await.trim(), "lives");
        let lock = std::fs::symlink_metadata(run.join("lock")).unwrap();
        assert!(lock.is_file() && lock.mode() & 0o777 == 0o600);
        server
            .until_empty("planted", || {
                names(&run.join("containers")).into_iter().filter(|name| name.len() < 20).collect()
            })
            .await;
    }
    server.finish().await;
}

/// Somebody who had the lock file open before it was closed to her; ended when dropped.
struct Stranger(Child);

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn stranger(lock: &Path) -> Stranger {
    let file = std::fs::File::open(lock).unwrap();
    flock(&file, FlockOperation::LockShared).unwrap();
    let mut sleep = Command::new("setpriv");
    sleep.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "sleep", "1000"]);
    let child = Stranger(sleep.stdin(Stdio::from(file)).stdout(Stdio::null()).spawn().unwrap());
    let comm = format!("/proc/{}/comm", child.0.id());
    while std::fs::read_to_string(&comm).unwrap().trim() != "sleep" {
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

#[tokio::test]
async fn a_stranger_who_holds_the_lock_keeps_nobody_out() {
    let mut server = Server::start().await;
    server.create("c").await;
    let lock = server.run().join("lock");
    for mode in [0o644, 0o600] {
        server.kill9();
        set_mode(&lock, mode);
        let sleep = stranger(&lock);
        server.restart().await;
        let log = server.log();
        assert!(log.contains(&format!("held by process {} (sleep, user 65534)", sleep.0.id())), "{log}");
        // A live server's is not taken away, and whose it is is said.
        let (root, run) = (server.root(), server.run());
        let reset = ["reset", "--yes", "--root", root.to_str().unwrap(), "--run", run.to_str().unwrap()];
        let (code, said) = wardian(&reset);
        let holder = format!("process {} (wardian, user 0)", server.pid());
        assert!(code == Some(1) && said.contains("stop the server first"), "{said}");
        // A child that the server has just cloned may have it as well.
        assert!(
            said.contains(&format!("is held by {holder}")) && said.contains(": waiting for it"),
            "{said}"
        );
        assert!(said.contains(&format!("its lock is held by {holder}")), "{said}");
        drop(sleep);
    }
    server.kill9();
    let sleep = stranger(&lock);
    let (root, run) = (server.root(), server.run());
    let (code, said) =
        wardian(&["reset", "--yes", "--root", root.to_str().unwrap(), "--run", run.to_str().unwrap()]);
    assert!(code == Some(0) && said.contains("containers: c"), "{said}");
    drop(sleep);
    std::fs::create_dir_all(server.run()).unwrap();
    server.restart().await;
    server.finish().await;
}

const FNV_PRIME: u32 = 0x0100_0193;

/// The 32 bits of a path by which earlier versions named cgroups.
fn fnv(bytes: &[u8], start: u32) -> u32 {
    bytes.iter().fold(start, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(FNV_PRIME))
}

/// Another path that begins with `prefix` and has the same 32 bits: half of its end is found forwards, half backwards.
fn collision(path: &Path, prefix: &str) -> PathBuf {
    let words = || (0..1_u32 << 18).map(|n| format!("{n:05x}"));
    let begin = fnv(prefix.as_bytes(), 0x811c_9dc5);
    let forwards: HashMap<u32, String> = words().map(|word| (fnv(word.as_bytes(), begin), word)).collect();
    let end = fnv(path.to_str().unwrap().as_bytes(), 0x811c_9dc5);
    // The inverse of an odd number modulo 2^32, by Newton's iteration.
    let inverse =
        (0..5).fold(FNV_PRIME, |x, _| x.wrapping_mul(2_u32.wrapping_sub(FNV_PRIME.wrapping_mul(x))));
    let back = |word: &str| word.bytes().rev().fold(end, |hash, b| hash.wrapping_mul(inverse) ^ u32::from(b));
    let found = words().find_map(|word| Some(format!("{prefix}{}{word}", forwards.get(&back(&word))?)));
    let found = PathBuf::from(found.expect("a collision"));
    assert_eq!(fnv(found.to_str().unwrap().as_bytes(), 0x811c_9dc5), end);
    found
}

#[tokio::test]
async fn a_reset_spares_an_instance_whose_tag_was_the_same() {
    let server = Server::start().await;
    server.create("c").await;
    let run = server.run();
    let other = collision(&run, &format!("{}-", run.display()));
    std::fs::create_dir(&other).unwrap();
    let root = server.base().join("other");
    let args = ["reset", "--yes", "--root", root.to_str().unwrap(), "--run", other.to_str().unwrap()];
    let (code, said) = wardian(&args);
    assert!(code == Some(0) && said.contains("there was nothing to remove"), "{said}");
    assert_eq!(say(&server.client(), "c", "echo lives").await.trim(), "lives");
    assert!(!other.exists());
    server.finish().await;
}

/// An instance of an earlier version, whose containers stand in cgroups with the short name.
#[tokio::test]
async fn containers_in_cgroups_of_an_earlier_version_are_found() {
    let mut server = Server::start().await;
    let long = server.group();
    server.terminate().await;
    let run = server.run();
    let short = format!("{:08x}", fnv(run.to_str().unwrap().as_bytes(), 0x811c_9dc5));
    let instance = serde_json::json!({"tag": short, "root": server.root(), "pid": 1});
    let record = || {
        std::fs::create_dir_all(run.join("containers/0")).unwrap();
        std::fs::write(run.join("instance.json"), instance.to_string()).unwrap();
    };
    record();
    server.restart().await;
    assert_eq!(server.group(), format!("wardian-{short}"));
    server.create("c").await;
    assert_eq!(cgroups(&long), Vec::<String>::new());
    server.kill9();
    server.restart().await;
    assert_eq!(server.group(), format!("wardian-{short}"));
    assert_eq!(say(&server.client(), "c", "echo lives").await.trim(), "lives");
    let id = server.id("c").await;
    assert!(cgroups(&server.group()).iter().any(|group| group.ends_with(&id)), "{id}");
    // Reset finds them too.
    server.kill9();
    let root = server.root();
    let (code, said) =
        wardian(&["reset", "--yes", "--root", root.to_str().unwrap(), "--run", run.to_str().unwrap()]);
    assert!(code == Some(0) && said.contains("containers: c"), "{said}");
    server.until_empty("processes", || members(&server.group()).iter().map(u32::to_string).collect()).await;
    assert_eq!(cgroups(&server.group()), Vec::<String>::new());
    // Without containers it gets the long name, and nothing is left of the short one.
    std::fs::create_dir_all(&run).unwrap();
    record();
    server.restart().await;
    server.create("c").await;
    server.client().destroy("c").await.unwrap();
    server.until_empty("containers", || names(&run.join("containers"))).await;
    server.kill9();
    server.restart().await;
    assert_eq!(server.group(), long);
    server.until_empty("cgroups", || cgroups(&format!("wardian-{short}"))).await;
    server.finish().await;
}

use super::*;
use rustix::mount::{MountFlags, mount, mount_bind};
use std::time::Duration;
use wardian_needs::needs;

/// Searches one directory.
fn walk(dir: &Path, entries: usize) -> (Found, Seen<bool>) {
    let mut found = Found::default();
    let mut search = Search { found: &mut found, left: entries, whole: BTreeSet::new() };
    let fd = rustix::fs::open(dir, LIST, Mode::empty()).unwrap();
    let seen = search.walk(&fd, dir, true, DEPTH);
    (found, seen)
}

/// Runs a function in a mount namespace of its own, which ends with the thread.
fn alone<T: Send>(what: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            namespace::own_mounts().unwrap();
            what()
        });
        inside.join().unwrap()
    })
}

fn tmpfs(at: &Path) {
    std::fs::create_dir_all(at).unwrap();
    mount("none", at, "tmpfs", MountFlags::empty(), None::<&std::ffi::CStr>).unwrap();
}

/// The mounts of this thread, as if they were another process's.
fn view_of_thread() -> View {
    View {
        root: rustix::fs::open("/", LOOK, Mode::empty()).unwrap(),
        above: None,
        mountinfo: std::fs::read("/proc/thread-self/mountinfo").unwrap(),
    }
}

/// The mounts of this thread in one directory: elsewhere other tests create and remove files.
fn view_below(dir: &Path) -> View {
    let mut view = view_of_thread();
    let dir = dir.to_str().unwrap();
    let mountinfo = String::from_utf8(view.mountinfo).unwrap();
    let below = mountinfo.lines().filter(|line| line.contains(dir));
    view.mountinfo = below.flat_map(|line| [line, "\n"]).collect::<String>().into();
    view
}

fn look(view: &View, entries: usize) -> (Found, Seen<()>, usize) {
    let mut found = Found::default();
    let mut search = Search { found: &mut found, left: entries, whole: BTreeSet::new() };
    let seen = search.view(view);
    let left = search.left;
    (found, seen, left)
}

#[test]
fn records_are_found_without_being_named() {
    needs!(Root);
    let base = tempfile::tempdir_in("/dev/shm").unwrap();
    let run = base.path().join("some/where");
    std::fs::create_dir_all(&run).unwrap();
    std::fs::write(run.join("instance.json"), "{\"tag\": \"x\"}").unwrap();
    let (found, seen) = walk(base.path(), 10);
    assert!(seen == Ok(true) && found.runs.contains(&run) && found.tags.contains("x"));
    assert!(walk(base.path(), 1).1.is_err());
    // A record of root's that cannot be parsed may belong to an instance.
    std::fs::write(run.join("instance.json"), "{\"tag\": ").unwrap();
    assert!(walk(base.path(), 10).1.unwrap_err().contains("not understood"));
}

/// Another user's files, links and FIFOs are ignored, and opening them does not block.
#[test]
fn what_is_planted_under_the_name_of_a_record_is_not_opened() {
    needs!(Root);
    let base = tempfile::tempdir_in("/dev/shm").unwrap();
    let record = base.path().join("instance.json");
    let secret = base.path().join("secret");
    std::fs::write(&secret, "{\"tag\": \"secret\"}").unwrap();
    let plants: [&dyn Fn(); 4] = [
        &|| rustix::fs::mkfifoat(rustix::fs::CWD, &record, Mode::RWXU).unwrap(),
        &|| std::os::unix::fs::symlink(&secret, &record).unwrap(),
        &|| {
            std::fs::write(&record, "{\"tag\": \"hers\"}").unwrap();
            std::os::unix::fs::chown(&record, Some(65534), None).unwrap();
        },
        &|| drop(std::os::unix::net::UnixListener::bind(&record).unwrap()),
    ];
    for plant in plants {
        plant();
        let (found, seen) = walk(base.path(), 10);
        assert!(seen == Ok(true) && found.tags.is_empty() && found.runs.is_empty(), "{found:?} {seen:?}");
        std::fs::remove_file(&record).unwrap();
    }
}

#[test]
fn a_record_that_turns_into_a_fifo_holds_nobody_up() {
    needs!(Root);
    let base = tempfile::tempdir_in("/dev/shm").unwrap();
    for n in 0..50 {
        let dir = base.path().join(format!("{n}"));
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("instance.json"), "{}").unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, dir.join("other"), Mode::RWXU).unwrap();
    }
    let (base, done) =
        (base.path().to_owned(), std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let (sender, receiver) = std::sync::mpsc::channel();
    let swapper = std::thread::spawn({
        let (base, done) = (base.clone(), done.clone());
        move || {
            let exchange = rustix::fs::RenameFlags::EXCHANGE;
            let cwd = rustix::fs::CWD;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                for n in 0..50 {
                    let dir = base.join(format!("{n}"));
                    let (a, b) = (dir.join("instance.json"), dir.join("other"));
                    let _ = rustix::fs::renameat_with(cwd, a, cwd, b, exchange);
                }
            }
        }
    });
    // No process opens the FIFO's other end.
    std::thread::spawn(move || {
        let seen: Vec<_> = (0..200).map(|_| walk(&base, 1000).1).collect();
        sender.send(seen).unwrap();
    });
    let seen = receiver.recv_timeout(Duration::from_secs(60));
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    swapper.join().unwrap();
    assert!(seen.expect("it waits for a FIFO").iter().all(|seen| *seen == Ok(true)));
}

#[test]
fn mounts_are_counted_and_none_is_seen_twice() {
    needs!(Root);
    let base = tempfile::tempdir().unwrap();
    alone(|| {
        let first = base.path().join("first");
        tmpfs(&first);
        std::fs::create_dir_all(first.join("run/below")).unwrap();
        std::fs::write(first.join("run/instance.json"), "{}").unwrap();
        let (_, seen, left) = look(&view_below(base.path()), ENTRIES);
        assert_eq!(seen, Ok(()));
        for n in 0..20 {
            let to = base.path().join(n.to_string());
            std::fs::create_dir(&to).unwrap();
            mount_bind(&first, &to).unwrap();
        }
        let (found, seen, after) = look(&view_below(base.path()), ENTRIES);
        assert!(seen == Ok(()) && found.runs.contains(&first.join("run")));
        assert_eq!(left - after, 20, "a mount costs itself, not again what is in it");
        // Where another mount covers a part, further mounts of the same file system show that part.
        tmpfs(&first.join("run"));
        let (found, seen, _) = look(&view_below(base.path()), ENTRIES);
        assert_eq!(seen, Ok(()));
        assert!(!found.runs.contains(&first.join("run")));
        assert!(
            found.runs.iter().any(|run| run.starts_with(base.path()) && run.ends_with("run")),
            "{found:?}"
        );
        // The limit of entries is exceeded.
        assert!(look(&view_below(base.path()), 10).1.unwrap_err().contains("too much"));
    });
}

#[test]
fn names_that_are_no_text_hide_nothing_and_what_is_not_read_is_a_doubt() {
    use std::os::unix::ffi::OsStringExt as _;
    needs!(Root);
    let base = tempfile::tempdir().unwrap();
    alone(|| {
        let odd = base.path().join(std::ffi::OsString::from_vec(b"bad\xff".to_vec()));
        tmpfs(&odd);
        std::fs::write(odd.join("instance.json"), "{\"tag\": \"odd\"}").unwrap();
        let mut view = view_of_thread();
        let (found, seen, _) = look(&view, ENTRIES);
        assert_eq!(seen, Ok(()));
        assert!(found.tags.contains("odd") && found.runs.contains(&odd));
        view.mountinfo.extend(b"no mount\n");
        assert!(look(&view, ENTRIES).1.unwrap_err().contains("not understood"));
    });
}

/// Namespaces that any user can create.
#[test]
fn namespaces_of_other_user_namespaces_are_left_out() {
    use std::io::Read as _;
    needs!(Root);
    for (arguments, wanted) in [(&["-m"][..], true), (&["-Urm"][..], false)] {
        let mut command = std::process::Command::new("unshare");
        command.args(arguments).args(["sh", "-c", "echo; read x"]);
        let stdio = std::process::Stdio::piped;
        let mut inside = command.stdin(stdio()).stdout(stdio()).spawn().unwrap();
        inside.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let dir = PathBuf::from(format!("/proc/{}", inside.id()));
        let user = id(&rustix::fs::stat("/proc/self/ns/user").unwrap());
        let mut known = BTreeSet::new();
        let view = of_process(&dir, user, b"", &mut known).unwrap();
        assert_eq!(view.is_some(), wanted, "{arguments:?}");
        // A namespace is searched once.
        assert!(of_process(&dir, user, b"", &mut known).unwrap().is_none());
        drop(inside.stdin.take());
        inside.wait().unwrap();
    }
}

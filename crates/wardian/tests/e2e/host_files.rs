//! Root's commands among the host's other users: what they name may lie in a directory of somebody who renames and plants
//! links while they work, and what they make is not for others to run.

use crate::cli::{Alone, Place, Said};
use crate::commands::command;
use crate::support::{Server, header, say};
use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt, chown, lchown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A user of the host who is nobody in particular.
const USER: u32 = 65534;

/// A directory that everybody may go through, for the test alone. Nobody else can rename what is above it.
pub fn place() -> tempfile::TempDir {
    let open = std::fs::Permissions::from_mode(0o755);
    tempfile::Builder::new().prefix("wardian-e2e-").permissions(open).tempdir_in("/tmp").unwrap()
}

/// Gives a tree to the user.
pub fn give(path: &Path) {
    lchown(path, Some(USER), Some(USER)).unwrap();
    if path.symlink_metadata().unwrap().is_dir() {
        fs::read_dir(path).unwrap().flatten().for_each(|entry| give(&entry.path()));
    }
}

/// A directory that is to be the user's, and one of root's with a secret in it.
pub fn hers_and_roots(base: &Path) -> (PathBuf, PathBuf) {
    let (hers, roots) = (base.join("hers"), base.join("roots"));
    fs::create_dir(&hers).unwrap();
    fs::create_dir(&roots).unwrap();
    fs::write(roots.join("key"), "secret").unwrap();
    (hers, roots)
}

fn as_user(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.uid(USER).gid(USER).stdin(Stdio::null());
    command
}

fn compile(code: &str, to: &Path) {
    let source = to.with_extension("c");
    fs::write(&source, code).unwrap();
    assert!(Command::new("cc").args(["-static", "-o"]).args([to, &source]).status().unwrap().success());
}

/// The user's process that swaps directories for links, until it is dropped.
struct Attacker(Child);

impl Attacker {
    fn start(dir: &Path, script: &str) -> Self {
        let text = format!("while :; do {script}; done");
        let mut command = as_user("/bin/sh");
        Self(command.args(["-c", &text]).current_dir(dir).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn cp(server: &Server, from: &Path, to: &str) -> Said {
    command(server, &["cp", from.to_str().unwrap(), to]).output().unwrap().into()
}

pub fn cp_out(server: &Server, from: &str, to: &Path) -> Said {
    command(server, &["cp", from, to.to_str().unwrap()]).output().unwrap().into()
}

#[tokio::test]
async fn a_user_who_swaps_directories_gets_no_file_of_roots_into_a_container() {
    let server = Server::start().await;
    let client = server.create("h").await;
    let base = place();
    let (hers, roots) = (base.path().join("hers"), base.path().join("roots"));
    for (dir, text) in [(hers.join("app"), "harmless"), (roots.clone(), "for root alone")] {
        fs::create_dir_all(&dir).unwrap();
        (0..300).for_each(|n| fs::write(dir.join(format!("f{n}")), text).unwrap());
    }
    fs::set_permissions(&roots, PermissionsExt::from_mode(0o700)).unwrap();
    symlink(&roots, hers.join("link")).unwrap();
    give(&hers);
    // Without a moment in which there is neither: a copy would end there.
    let code = "#define _GNU_SOURCE\n#include <fcntl.h>\n#include <stdio.h>\n#include <unistd.h>\n\
        int main(void) { for (;;) { renameat2(AT_FDCWD, \"app\", AT_FDCWD, \"link\", RENAME_EXCHANGE); usleep(50); } }\n";
    compile(code, &base.path().join("swap"));
    let attacker = Attacker::start(&hers, "exec ../swap");
    let mut copied = 0;
    for n in 0..40 {
        copied += usize::from(cp(&server, &hers, &format!("h:/to{n}")).code == Some(0));
    }
    drop(attacker);
    let found = say(&client, "h", "cat /to*/*/f* | grep -c 'root alone'; true").await;
    assert_eq!(found, "0", "{copied} were copied");
    // Nor is she in the way of a copy when she has stopped.
    assert_eq!(cp(&server, &hers, "h:/after").code, Some(0));
    assert_eq!(say(&client, "h", "cat /after/app/f0 /after/link/f0 2>/dev/null; true").await, "harmless");
    server.finish().await;
}

#[tokio::test]
async fn a_user_who_swaps_directories_does_not_lead_a_copy_elsewhere() {
    let server = Server::start().await;
    let client = server.create("h").await;
    say(&client, "h", "mkdir -p /d/sub/inner; for n in $(seq 300); do echo x >/d/sub/inner/f$n; done").await;
    let base = place();
    let (hers, roots) = (base.path().join("hers"), base.path().join("roots"));
    fs::create_dir(&hers).unwrap();
    fs::create_dir_all(roots.join("inner")).unwrap();
    give(&hers);
    let to = roots.display();
    let links =
        format!("ln -s {to} d; rm d; mkdir d; ln -s {to} d/sub; rm d/sub; ln -s {to}/inner d/sub; rm -r d");
    let attacker = Attacker::start(&hers, &format!("i=$((i+1)); mv d old$i; {links}"));
    for _ in 0..40 {
        cp_out(&server, "h:/d", &hers);
        cp_out(&server, "h:/d/.", &hers.join("d"));
        let _ = fs::remove_dir_all(hers.join("d"));
    }
    drop(attacker);
    assert_eq!(fs::read_dir(&roots).unwrap().count(), 1);
    assert_eq!(fs::read_dir(roots.join("inner")).unwrap().count(), 0);
    server.finish().await;
}

#[tokio::test]
async fn a_users_link_is_not_followed_on_the_way() {
    let server = Server::start().await;
    let client = server.create("h").await;
    say(&client, "h", "mkdir /d; echo x >/d/f").await;
    let base = place();
    let (hers, roots) = hers_and_roots(base.path());
    symlink(&roots, hers.join("link")).unwrap();
    give(&hers);
    let refused = |said: Said| {
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.err.contains("symlink of another user"), "{said:?}");
    };
    refused(cp_out(&server, "h:/d", &hers.join("link")));
    refused(cp_out(&server, "h:/d/.", &hers.join("link/new")));
    refused(cp(&server, &hers.join("link/key"), "h:/tmp"));
    refused(cp(&server, &hers.join("link/."), "h:/tmp"));
    assert_eq!(fs::read_dir(&roots).unwrap().count(), 1);
    // As a link it may be copied, and one of root's leads on.
    assert_eq!(cp(&server, &hers.join("link"), "h:/tmp").code, Some(0));
    symlink(&roots, base.path().join("mine")).unwrap();
    assert_eq!(cp(&server, &base.path().join("mine/key"), "h:/tmp/mine").code, Some(0));
    assert_eq!(cp_out(&server, "h:/d", &base.path().join("mine")).code, Some(0));
    assert_eq!(
        say(&client, "h", "readlink /tmp/link; cat /tmp/mine").await,
        format!("{}\nsecret", roots.display())
    );
    assert!(roots.join("d/f").exists());
    // What is there is replaced: neither written to through another name nor waited for.
    let other = base.path().join("other");
    fs::write(&other, "other").unwrap();
    fs::hard_link(&other, hers.join("f")).unwrap();
    assert_eq!(cp_out(&server, "h:/d/f", &hers).code, Some(0));
    assert_eq!(fs::read_to_string(&other).unwrap(), "other");
    fs::remove_file(hers.join("f")).unwrap();
    assert!(Command::new("mkfifo").arg(hers.join("f")).status().unwrap().success());
    assert_eq!(cp(&server, &hers.join("f"), "h:/tmp/fifo").code, Some(0));
    assert_eq!(cp_out(&server, "h:/d/f", &hers).code, Some(1));
    assert_eq!(say(&client, "h", "test -p /tmp/fifo && echo fifo").await, "fifo");
    server.finish().await;
}

#[tokio::test]
async fn holes_stay_holes_both_ways() {
    let server = Server::start().await;
    let client = server.create("h").await;
    let base = place();
    let size = 2_u64 << 30;
    let file = fs::File::create(base.path().join("f")).unwrap();
    file.set_len(size).unwrap();
    file.write_all_at(b"middle", 1 << 30).unwrap();
    assert_eq!(cp(&server, &base.path().join("f"), "h:/f").code, Some(0));
    let inside: Vec<u64> =
        say(&client, "h", "stat -c '%s %b' /f").await.split(' ').map(|n| n.parse().unwrap()).collect();
    assert!(inside[0] == size && inside[1] * 512 < 1 << 20, "{inside:?}");
    let script = "dd if=/f bs=1M skip=1024 count=1 2>/dev/null | head -c 6; echo end >>/f";
    assert_eq!(say(&client, "h", script).await, "middle");
    let out = base.path().join("out");
    assert_eq!(cp_out(&server, "h:/f", &out).code, Some(0));
    let meta = out.metadata().unwrap();
    assert!(meta.len() == size + 4 && meta.blocks() * 512 < 1 << 20, "{} {}", meta.len(), meta.blocks());
    let out = fs::File::open(out).unwrap();
    let mut read = [0; 6];
    out.read_exact_at(&mut read, 1 << 30).unwrap();
    assert_eq!(&read, b"middle");
    out.read_exact_at(&mut read[..4], size).unwrap();
    assert_eq!(&read[..4], b"end\n");
    server.finish().await;
}

/// What is left out is told, without what a terminal would obey.
#[tokio::test]
async fn what_is_left_out_is_told() {
    let server = Server::start().await;
    server.create("h").await;
    let base = place();
    let dir = base.path().join("d");
    fs::create_dir_all(dir.join("mount")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("so\x1b[31mcket")).unwrap();
    rustix::mount::mount("none", dir.join("mount"), "tmpfs", rustix::mount::MountFlags::empty(), c"size=64k")
        .unwrap();
    let said = cp(&server, &dir, "h:/tmp");
    rustix::mount::unmount(dir.join("mount"), rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.err.contains("something is mounted there: ") && said.err.contains("d/mount\n"), "{said:?}");
    assert!(said.err.contains("so\\u{1b}[31mcket") && !said.err.contains('\x1b'), "{said:?}");
    server.finish().await;
}

/// An image with a program that says who runs it, set-uid root, and more that gives rights on a host.
fn privileged_image(alone: &Alone) -> String {
    let code = "#include <stdio.h>\n#include <unistd.h>\nint main(void) { printf(\"%d\\n\", geteuid()); return 0; }\n";
    let program = PathBuf::from(alone.path("probe"));
    compile(code, &program);
    let program = fs::read(program).unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    let mut head = header(0);
    head.set_entry_type(tar::EntryType::Directory);
    head.set_mode(0o755);
    tar.append_data(&mut head, "./", &b""[..]).unwrap();
    let mut head = header(program.len());
    head.set_mode(0o4755);
    tar.append_data(&mut head, "suid", &*program).unwrap();
    let caps = [&0x0200_0001_u32.to_le_bytes()[..], &[0xff, 0xff, 0, 0], &[0; 12]].concat();
    tar.append_pax_extensions([("SCHILY.xattr.security.capability", &*caps)]).unwrap();
    let mut head = header(program.len());
    head.set_mode(0o755);
    tar.append_data(&mut head, "capable", &*program).unwrap();
    let mut head = header(0);
    head.set_entry_type(tar::EntryType::Char);
    head.set_device_major(1).unwrap();
    head.set_device_minor(1).unwrap();
    head.set_mode(0o666);
    tar.append_data(&mut head, "mem", &b""[..]).unwrap();
    alone.write("privileged.tar", &tar.into_inner().unwrap())
}

/// The program run by the user: none if it cannot even be reached.
fn euid_of(program: &Path) -> Option<String> {
    let output = as_user(program).output().ok()?;
    Some(String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

#[test]
fn the_programs_of_an_exported_image_are_not_for_the_hosts_users() {
    let alone = Alone::new();
    let (image, base) = (privileged_image(&alone), place());
    // A user who can come as far as the export.
    assert_eq!(as_user("/bin/ls").arg(base.path()).output().unwrap().status.code(), Some(0));
    alone.place.say(&["image", "import", &image, "-t", "p"]);
    let dest = base.path().join("dir");
    let args = ["image", "export", "p", dest.to_str().unwrap(), "--format", "dir"];
    let said = alone.place.wardian(&[&args[..], &["--json"]].concat());
    assert_eq!(said.code, Some(0), "{said:?}");
    let text =
        "1 set-uid or set-gid bit, 1 capability attribute, 1 device node (--keep-privileges makes them)";
    assert!(said.err.contains(text), "{said:?}");
    let json: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    let root = PathBuf::from(json["path"].as_str().unwrap());
    assert_eq!(root, dest.join("rootfs"));
    let left_out = &json["left_out"];
    assert!(["set_id", "capabilities", "devices"].iter().all(|what| left_out[what] == 1), "{left_out}");
    let mode = |path: &Path| path.metadata().unwrap().mode() & 0o7777;
    assert_eq!((mode(&dest), mode(&root), mode(&root.join("suid"))), (0o700, 0o755, 0o755));
    assert!(!root.join("mem").exists());
    assert_eq!(euid_of(&root.join("suid")), None);
    // Somebody opens the way: there is nothing to gain.
    fs::set_permissions(&dest, PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(euid_of(&root.join("suid")), Some(USER.to_string()));
    let capable = fs::File::open(root.join("capable")).unwrap();
    assert!(rustix::fs::fgetxattr(&capable, "security.capability", &mut [0; 64][..]).is_err());

    let kept = base.path().join("kept");
    alone.place.say(&[
        "image",
        "export",
        "p",
        kept.to_str().unwrap(),
        "--format",
        "dir",
        "--keep-privileges",
    ]);
    assert_eq!((mode(&kept), mode(&kept.join("rootfs/suid"))), (0o700, 0o4755));
    assert!(kept.join("rootfs/mem").exists());
    assert_eq!(euid_of(&kept.join("rootfs/suid")), None);
    // Archives hold everything, and are for who made them.
    for (name, format) in
        [("a.tar", "docker-archive"), ("b.tar", "tar"), ("c.tar", "oci-archive"), ("d", "oci")]
    {
        let to = base.path().join(name);
        let to = to.to_str().unwrap();
        alone.place.say(&["image", "export", "p", to, "--format", format]);
        assert_eq!(mode(Path::new(to)) & 0o077, 0, "{name}");
        assert!(
            alone
                .place
                .refuse(&["image", "export", "p", "x", "--format", format, "--keep-privileges"])
                .contains("dir")
        );
    }
    alone.place.say(&["image", "rm", "p"]);
    alone.finish();
}

/// The options of the mount at a path.
fn options(path: &Path) -> String {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.split(' ').nth(4) == path.to_str()).unwrap();
    line.split(' ').nth(5).unwrap().to_owned()
}

/// Runs the program below the root file system as the user who has got there somehow: by root's own descriptor.
fn euid_inside(root: &Path) -> String {
    let output = Command::new("chroot")
        .args(["--userspec", &format!("{USER}:{USER}")])
        .arg(root)
        .arg("/suid")
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn attached(place: &Place, image: &str) {
    place.say(&["image", "import", image, "-t", "p"]);
    for (flags, nosuid, euid) in [(&[][..], true, USER), (&["--suid"], false, 0)] {
        let path = place.say(&[&["rootfs", "create", "p", "r"], flags].concat());
        let path = Path::new(path.trim_end());
        let (own, above) =
            (path.metadata().unwrap().mode(), path.parent().unwrap().metadata().unwrap().mode());
        assert_eq!((own & 0o7777, above & 0o7777), (0o755, 0o700));
        let options = options(path);
        let options: Vec<&str> = options.split(',').collect();
        assert!(options.contains(&"nodev") && options.contains(&"nosuid") == nosuid, "{options:?}");
        assert!(!options.contains(&"noexec"));
        assert_eq!(euid_of(&path.join("suid")), None);
        assert_eq!(euid_inside(path), euid.to_string());
        place.say(&["rootfs", "delete", "r"]);
    }
    place.say(&["image", "rm", "p"]);
}

#[tokio::test]
async fn an_attached_root_file_system_is_not_for_the_hosts_users() {
    let alone = Alone::new();
    // The user can come as far as the run directory.
    let image = privileged_image(&alone);
    attached(&alone.place, &image);
    // And beside a server.
    let server = Server::start().await;
    let place = Place::of(&server);
    tokio::task::spawn_blocking(move || attached(&place, &image)).await.unwrap();
    alone.finish();
    server.finish().await;
}

/// What was half made when an export ended is removed where it is, not where its path leads then.
#[test]
fn an_export_that_ends_early_removes_what_is_its_own() {
    let alone = Alone::new();
    let base = place();
    let (hers, roots) = (base.path().join("hers"), base.path().join("roots"));
    fs::create_dir(&hers).unwrap();
    fs::create_dir(&roots).unwrap();
    chown(&hers, Some(USER), Some(USER)).unwrap();
    let big = alone.path("big.tar");
    crate::cli::many_files(Path::new(&big), 6_000);
    alone.place.say(&["image", "import", &big, "-t", "big"]);
    let dest = hers.join("x");
    let export = alone.place.spawn(&["image", "export", "big", dest.to_str().unwrap(), "--format", "dir"]);
    let half = || fs::read_dir(&hers).unwrap().flatten().next().map(|entry| entry.file_name());
    let started = std::time::Instant::now();
    let name = loop {
        assert!(started.elapsed() < crate::support::STUCK);
        if let Some(name) = half() {
            break name;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    // The same name where the path leads from now on.
    fs::rename(&hers, base.path().join("away")).unwrap();
    symlink(&roots, &hers).unwrap();
    fs::create_dir(roots.join(&name)).unwrap();
    fs::write(roots.join(&name).join("precious"), "").unwrap();
    crate::support::signal(export.id(), rustix::process::Signal::INT);
    let said = Said::from(export.wait_with_output().unwrap());
    assert_eq!(said.code, Some(130), "{said:?}");
    assert!(roots.join(&name).join("precious").exists());
    assert_eq!(fs::read_dir(base.path().join("away")).unwrap().count(), 0);
    alone.place.say(&["image", "rm", "big"]);
    alone.finish();
}

//! A client in another language, on Go's own HTTP stack: `tests/garden-client`.

use crate::support::{Server, WARDIAN, base};
use crate::world::World;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use wardian_needs::{Need, lacks, needs};

/// The size of the file system that a test makes for a store, in bytes. The file under it is sparse.
const DISK: u64 = 2 << 30;

/// The client, built in `dir`.
fn client(dir: &Path) -> PathBuf {
    let client = dir.join("garden-client");
    let build = Command::new("go")
        .args(["build", "-o"])
        .arg(&client)
        .arg(".")
        .current_dir(project().join("tests/garden-client"))
        .env("GOFLAGS", "-mod=mod")
        .status()
        .expect("go is needed for this test: ./dev test installs it");
    assert!(build.success());
    client
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All checks have passed, and the documentation counts them by area: none is lost unseen.
fn assert_told(output: &Output) {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let failed: Vec<&str> = stdout.lines().filter(|line| !line.starts_with("ok ")).collect();
    assert!(output.status.success(), "{failed:#?}\n{}", String::from_utf8_lossy(&output.stderr));
    let mut areas: BTreeMap<&str, usize> = BTreeMap::new();
    for area in stdout.lines().filter_map(|line| line.strip_prefix("ok ")?.split_once(':')) {
        *areas.entry(area.0).or_default() += 1;
    }
    let docs = std::fs::read_to_string(project().join("docs/garden.md")).unwrap();
    for (area, count) in &areas {
        let row = format!("| {area} | {count} |");
        assert!(docs.contains(&row), "docs/garden.md lacks {row}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_checks_pass_and_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let client = client(dir.path());
    let mut server = Server::start().await;
    let debug = server.run().join("debug.sock");
    server.args = vec!["--debug-listen".into(), format!("unix:{}", debug.display())];
    assert!(server.terminate().await.success());
    server.restart().await;
    let (socket, image) = (server.socket(), server.image());
    let run = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(client);
        command.arg("-debug").arg(debug);
        // Without quota on its file system a store needs loop devices to limit anything.
        if !lacks(&[Need::Loop], Some("disk limits")) {
            command.arg("-disk-limits");
        }
        command.arg("unix").arg(socket).arg(image).output().unwrap()
    });
    assert_told(&run.await.unwrap());
    server.finish().await;
}

/// The checks of disk limits once more, with a store on a btrfs with quota. It is mounted in a namespace of the server's,
/// and so goes with the server.
#[tokio::test(flavor = "multi_thread")]
async fn disk_limits_pass_on_btrfs() {
    needs!(Loop);
    let dir = tempfile::tempdir().unwrap();
    let client = client(dir.path());
    let mut server = Server::start().await;
    assert!(server.terminate().await.success());
    let disk = server.base().join("disk");
    File::create(&disk).unwrap().set_len(DISK).unwrap();
    let made = Command::new("mkfs.btrfs").arg("-q").arg(&disk).output();
    let made = made.expect("mkfs.btrfs is needed for this test: ./dev test installs it");
    assert!(made.status.success(), "{made:?}");
    let script = r#"mount -o loop "$1" "$2"; btrfs quota enable "$2"; shift 2; exec "$@""#;
    let serve = server.command();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", script, "sh"]).arg(&disk).arg(server.root());
    command.arg(serve.get_program()).args(serve.get_args()).stdin(Stdio::null());
    command.stderr(File::options().append(true).open(server.base().join("log")).unwrap());
    server.restart_as(command).await;
    let log = server.log();
    let driver = log.lines().rfind(|line| line.contains("store.disk-driver")).unwrap_or_default();
    assert!(driver.contains(r#""driver":"btrfs""#), "{log}");

    let (socket, image) = (server.socket(), server.image());
    let run = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(client);
        command.args(["-disk-limits", "-only", "disk limits", "unix"]).arg(socket).arg(image);
        command.output().unwrap()
    });
    assert_told(&run.await.unwrap());
    assert!(server.terminate().await.success());
    server
        .until_empty("loop devices", || {
            let devices = Command::new("losetup").arg("--associated").arg(&disk).output().unwrap();
            String::from_utf8_lossy(&devices.stdout).lines().map(str::to_owned).collect()
        })
        .await;
    server.restart().await;
    server.finish().await;
}

/// The checks of networks start servers of their own, on a host of their own.
#[test]
fn networks_pass_all_checks() {
    needs!(Nftables);
    let base = base();
    let client = client(base.path());
    let image = base.path().join("image.tar");
    wardian_lab::image::build(&image).unwrap();
    let world = World::new(base.path());
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", world.path())).arg(client).args(["-only", "network"]);
    command.arg("-serve").arg(WARDIAN).arg("-outside").arg(world.internet_path());
    command.arg("-probe").arg(world.probe()).args(["unix", "/nonexistent"]).arg(image);
    command.env("TMPDIR", base.path());
    assert_told(&command.output().unwrap());
    assert_eq!(world.left(), Vec::<String>::new());
}

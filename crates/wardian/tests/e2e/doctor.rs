//! What `wardian doctor` finds, and what a server leaves.

use crate::support::{Server, WARDIAN, base, cgroups, names, signal};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use wardian_needs::needs;

fn leaks(server: &Server) -> (Option<i32>, String) {
    let output = Command::new(WARDIAN)
        .args(["doctor", "--leaks", "--verbose", "--run"])
        .arg(server.run())
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Other servers come and go beside this test: only what is said of this one counts.
fn mine(server: &Server, text: &str) -> Vec<String> {
    let names = [server.group(), server.run().display().to_string(), server.base().display().to_string()];
    text.lines().filter(|line| names.iter().any(|name| line.contains(name))).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_planted_leak_is_found() {
    let _alone = crate::cleaned::CLEANING.lock().await;
    let server = Server::start().await;
    server.create("l").await;
    let top = cgroups(&server.group()).into_iter().find(|dir| dir.ends_with(&server.group())).unwrap();
    let planted = format!("{top}/0123456789abcdef0123456789abcdef");
    std::fs::create_dir(&planted).unwrap();
    let (code, text) = leaks(&server);
    std::fs::remove_dir(&planted).unwrap();
    assert_eq!(code, Some(3), "{text}");
    assert!(mine(&server, &text).iter().any(|line| line.contains(&planted)), "{text}");

    let planted = server.run().join("containers/0123456789abcdef0123456789abcdef");
    std::fs::create_dir(&planted).unwrap();
    let (code, text) = leaks(&server);
    std::fs::remove_dir(&planted).unwrap();
    assert_eq!(code, Some(3), "{text}");
    assert!(mine(&server, &text).iter().any(|line| line.contains(planted.to_str().unwrap())), "{text}");
    server.finish().await;
}

#[tokio::test]
async fn a_run_directory_that_nobody_uses_is_found() {
    let _alone = crate::cleaned::CLEANING.lock().await;
    let server = Server::start().await;
    let planted = server.base().join("planted");
    std::fs::create_dir(&planted).unwrap();
    let mount = |program: &str, args: &[&str]| {
        assert!(Command::new(program).args(args).arg(&planted).status().unwrap().success());
    };
    mount("mount", &["-t", "tmpfs", "wardian"]);
    let (code, text) = leaks(&server);
    mount("umount", &[]);
    assert_eq!(code, Some(3), "{text}");
    let line = format!("tmpfs on {}", planted.display());
    assert!(text.lines().any(|l| l.contains(&line)), "{text}");
    server.finish().await;
}

#[tokio::test]
async fn a_stopped_server_leaves_no_cgroup() {
    let mut server = Server::start().await;
    let group = server.group();
    assert!(server.terminate().await.success());
    let started = std::time::Instant::now();
    while !cgroups(&group).is_empty() {
        assert!(started.elapsed().as_secs() < 5, "{:?}", cgroups(&group));
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_healthy_server_has_no_leaks() {
    let server = Server::start().await;
    server.create("l").await;
    let (_, text) = leaks(&server);
    assert_eq!(mine(&server, &text), Vec::<String>::new());
    server.finish().await;
}

/// What `wardian doctor` said: exit code, JSON (null if there is none), standard error.
fn doctor(args: &[&str], root: &Path) -> (Option<i32>, Value, String) {
    let output = Command::new(WARDIAN).args(["doctor", "--json", "--root"]).arg(root).args(args).output();
    let output = output.unwrap();
    let json = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code(), json, String::from_utf8_lossy(&output.stderr).into_owned())
}

fn hazards(report: &Value) -> Vec<&str> {
    report["hazards"].as_array().unwrap().iter().map(|hazard| hazard["id"].as_str().unwrap()).collect()
}

/// A file system in a file, mounted; unmounted when dropped.
struct Mounted {
    dir: tempfile::TempDir,
}

impl Mounted {
    fn new(mkfs: &[&str], megabytes: u64, options: &str) -> Self {
        let dir = base();
        let image = dir.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
        sh(Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image));
        std::fs::create_dir(dir.path().join("mnt")).unwrap();
        sh(Command::new("mount").args(["-o", options]).arg(image).arg(dir.path().join("mnt")));
        Self { dir }
    }

    fn tmpfs(options: &str) -> Self {
        let dir = base();
        std::fs::create_dir(dir.path().join("mnt")).unwrap();
        let mount = ["-t", "tmpfs", "-o", options, "doctor"];
        sh(Command::new("mount").args(mount).arg(dir.path().join("mnt")));
        Self { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

fn sh(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn this_host() {
    let dir = base();
    let (code, report, error) = doctor(&[], &dir.path().join("not/there"));
    assert_eq!((code, error.as_str()), (Some(0), ""), "{report:#}");
    for name in ["overlay", "overlay_volatile", "mount_api", "pidfd", "openat2"] {
        assert_eq!(report["features"][name]["state"], "yes", "{report:#}");
    }
    assert_eq!(report["filesystem"]["looked_at"], dir.path().to_str().unwrap());
    assert_eq!(report["root"], true);
    assert!(report["filesystem"]["type"].is_string());
    assert!(report["dirty"]["disk"]["bytes_per_s"].as_u64() > Some(0), "{}", report["dirty"]);
    let worst = report["dirty"]["sync_worst_s"].as_f64().unwrap();
    let speed = report["dirty"]["disk"]["bytes_per_s"].as_f64().unwrap();
    let threshold = report["dirty"]["threshold_bytes"].as_f64().unwrap();
    let total = report["filesystem"]["total_bytes"].as_f64().unwrap();
    assert!((worst - threshold.min(total) / speed).abs() <= 0.1, "{}", report["dirty"]);
    // The first driver that works, of which there is always one.
    let mut drivers = report["limit_drivers"].as_array().unwrap().iter();
    assert_eq!(report["limit_driver"], drivers.find(|driver| driver["state"] == "yes").unwrap()["name"]);
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

#[test]
fn the_text_is_for_people_and_has_no_colours_in_a_pipe() {
    let dir = base();
    let output = Command::new(WARDIAN)
        .args(["doctor", "--no-measure", "--verbose", "--root"])
        .arg(dir.path())
        .output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    assert!(text.contains("✓ overlay ") && text.contains("not measured: not asked for"), "{text}");
    assert!(
        text.contains("the first that works, or serve --disk-driver") && text.contains("this one: "),
        "{text}"
    );
    assert!(text.starts_with("Containers run here.") && !text.contains('\x1b'), "{text}");
    // Shortly: the verdict, then each problem with its remedy, and nothing of what is fine.
    let output = Command::new(WARDIAN).args(["doctor", "--no-measure", "--root"]).arg(dir.path()).output();
    let short = String::from_utf8(output.unwrap().stdout).unwrap();
    assert!(short.starts_with("Containers run here.") && short.contains(" checks: --verbose)\n"), "{short}");
    assert!(!short.contains("✓") && !short.contains("Features, each tried"), "{short}");
    let lines: Vec<&str> = short.lines().collect();
    for (n, line) in lines.iter().enumerate().filter(|(_, line)| line.starts_with("! ")) {
        assert!(lines[n + 1].starts_with("  → "), "{line}: {short}");
    }
}

#[test]
fn without_root_it_says_what_it_could_not_find_out() {
    use std::os::unix::{fs::PermissionsExt as _, process::CommandExt as _};
    let dir = base();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    // The program may lie where only root can go.
    let program = dir.path().join("wardian");
    crate::support::copy_program(WARDIAN, &program);
    let mut command = Command::new(program);
    command.args(["doctor", "--json", "--root"]).arg(dir.path()).uid(65534).gid(65534);
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*error), (Some(0), ""));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&report["root"], &report["features"]["overlay"]["state"]),
        (&false.into(), &"unknown".into())
    );
    assert!(report["dirty"]["not_measured"].as_str().unwrap().contains("may not be written"));
    assert_eq!(report["features"]["overlay_volatile"]["state"], "unknown");
    assert!(hazards(&report).contains(&"not-probed"), "{report:#}");
    assert_eq!(command.arg("--strict").output().unwrap().status.code(), Some(5));
}

#[test]
fn a_file_system_that_discards() {
    needs!(Loop);
    let fs = Mounted::new(&["mkfs.ext4", "-q"], 64, "loop,discard");
    let (code, report, _) = doctor(&[], &fs.path());
    assert_eq!(code, Some(0), "{report:#}");
    assert!(hazards(&report).contains(&"discard"), "{report:#}");
    assert!(!hazards(&report).contains(&"no-journal"), "{report:#}");
    let image = fs.dir.path().join("image");
    assert_eq!(report["filesystem"]["loop_file"]["path"], image.to_str().unwrap());
    assert_eq!(report["filesystem"]["journal"], true);
    assert_eq!(doctor(&["--strict", "--no-measure"], &fs.path()).0, Some(5));
    assert_eq!(names(&fs.path()), [fs.path().join("lost+found").display().to_string()]);
}

#[test]
fn a_file_system_without_quota() {
    needs!(Loop);
    let fs = Mounted::new(&["mkfs.xfs", "-q"], 320, "loop");
    let (_, report, _) = doctor(&["--no-measure"], &fs.path());
    let quota = &report["limit_drivers"][0];
    assert_eq!((&quota["name"], &quota["state"]), (&"project-quota".into(), &"no".into()), "{quota}");
    assert_eq!(report["limit_driver"], "image", "{}", report["limit_drivers"]);
    assert_eq!(report["features"]["reflink"]["state"], "yes", "{}", report["features"]);
    assert_eq!(report["filesystem"]["journal"], true);
    assert!(!hazards(&report).contains(&"discard"), "{report:#}");
}

#[test]
fn a_left_over_of_an_earlier_life() {
    let root = base();
    std::fs::create_dir_all(root.path().join("rootfs/old/work/work/incompat/volatile")).unwrap();
    let (code, report, _) = doctor(&["--no-measure"], root.path());
    assert_eq!(code, Some(0), "{report:#}");
    let hazard =
        report["hazards"].as_array().unwrap().iter().find(|h| h["id"] == "volatile-markers").unwrap();
    assert!(hazard["evidence"].as_str().unwrap().contains("rootfs/old"), "{hazard}");
    assert_eq!(doctor(&["--no-measure", "--strict"], root.path()).0, Some(5));
}

#[test]
fn overlays_of_others_that_sync_are_counted() {
    needs!(Loop);
    let mounted = |fs: &Mounted| {
        let (_, report, _) = doctor(&["--no-measure"], &fs.path());
        report["overlays"]["syncing"]["others"].as_u64().unwrap_or(0)
    };
    let fs = Mounted::new(&["mkfs.ext4", "-q"], 64, "loop");
    assert_eq!(mounted(&fs), 0);
    for part in ["lower", "upper", "work", "merged"] {
        std::fs::create_dir(fs.path().join(part)).unwrap();
    }
    let at = |part: &str| fs.path().join(part).display().to_string();
    let options = format!("lowerdir={},upperdir={},workdir={}", at("lower"), at("upper"), at("work"));
    sh(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options, &at("merged")]));
    let found = mounted(&fs);
    sh(Command::new("umount").arg(at("merged")));
    assert_eq!(found, 1);
}

#[test]
fn a_read_only_or_full_file_system_takes_no_containers() {
    let fs = Mounted::tmpfs("ro,size=1m");
    let (code, report, _) = doctor(&[], &fs.path());
    assert_eq!(code, Some(4), "{report:#}");
    assert!(hazards(&report).contains(&"read-only"), "{report:#}");

    let fs = Mounted::tmpfs("size=64k");
    let _ = std::fs::write(fs.path().join("full"), vec![1; 1 << 20]);
    let (code, report, _) = doctor(&[], &fs.path());
    assert_eq!(code, Some(4), "{report:#}");
    assert!(hazards(&report).contains(&"low-space"), "{report:#}");
    assert_eq!(report["dirty"]["not_measured"], "too little space is free");
    assert_eq!(names(&fs.path()), [fs.path().join("full").display().to_string()]);
}

#[test]
fn no_store_can_be_there() {
    let dir = base();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for (root, says) in [(file.clone(), "is not a directory"), (file.join("below"), "cannot be made")] {
        let (code, report, error) = doctor(&[], &root);
        assert_eq!((code, report), (Some(1), Value::Null), "{error}");
        assert!(error.contains(says) && error.contains(file.to_str().unwrap()), "{error}");
    }
    assert_eq!(doctor(&["--leaks"], dir.path()).0, Some(2));
}

#[test]
fn an_interrupted_doctor_leaves_nothing() {
    let dir = base();
    for delay in [1, 5, 20, 100, 300] {
        let mut child = Command::new(WARDIAN)
            .args(["doctor", "--root"])
            .arg(dir.path())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay));
        signal(child.id(), rustix::process::Signal::INT);
        let status = child.wait().unwrap();
        // Too early for its handler, in time, or too late.
        let killed = std::os::unix::process::ExitStatusExt::signal(&status) == Some(2);
        assert!(killed || matches!(status.code(), Some(130 | 0)), "{status} after {delay} ms");
        assert_eq!(names(dir.path()), Vec::<String>::new(), "after {delay} ms");
    }
}

//! What dead servers have left: whose it is, and its removal where it belongs to nobody.

use crate::support::{NETWORK, Server, WARDIAN, cgroups, init, members, say, script};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use wardian_garden::Io;

/// Held while things are removed for the whole host, and by tests that look for such things.
pub static CLEANING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn doctor(args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(WARDIAN).arg("doctor").args(args).stdin(Stdio::null()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// The lines about one instance: other servers come and go beside this test.
fn lines<'a>(text: &'a str, tag: &str) -> Vec<&'a str> {
    text.lines().filter(|line| line.contains(tag)).collect()
}

fn tag(server: &Server) -> String {
    server.group().trim_start_matches("wardian-").to_owned()
}

#[tokio::test]
async fn an_instance_is_one_line_and_goes_if_it_is_nobodys() {
    let _alone = CLEANING.lock().await;
    let mut dead = Server::start().await;
    let mut alive = Server::start().await;
    let (lost, kept) = (tag(&dead), tag(&alive));
    for (server, handle) in [(&dead, "lost"), (&alive, "kept")] {
        let client = server.create(handle).await;
        client.run(handle, &script("exec sleep 1000"), Io::default()).await.unwrap();
    }
    let inits = [init(&dead, "lost").await, init(&alive, "kept").await];
    let lives = |pid: u32| members(&pid_group(pid)).contains(&pid);
    // A server that is dead, and its records: its next one takes everything up.
    dead.kill9();
    let (_, said) = doctor(&["--clean", "--yes"]);
    assert!(lives(inits[0]) && lives(inits[1]), "{said}");
    // Without records there is no next one.
    let run = dead.run();
    let away = dead.base().join("away");
    for name in ["containers", "instance.json", "lock", "rootfs"] {
        let _ = std::fs::create_dir(&away);
        let (from, to) = (run.join(name), away.join(name));
        assert!(Command::new("mv").arg(from).arg(to).status().unwrap().success(), "{name}");
    }
    let (code, said) = doctor(&["--leaks"]);
    assert_eq!(code, Some(3), "{said}");
    let about = lines(&said, &lost);
    assert!(about.len() == 1 && about[0].contains("`wardian doctor --clean` removes it"), "{said}");
    assert_eq!(lines(&said, &kept), Vec::<&str>::new(), "{said}");
    let (_, all) = doctor(&["--leaks", "--verbose"]);
    assert!(
        all.contains(&format!("{lost} of nobody")) && all.contains("its container has no record"),
        "{all}"
    );
    // Nobody was asked.
    let (code, said) = doctor(&["--clean"]);
    assert!(code == Some(1) && said.contains("--yes"), "{code:?} {said}");
    assert!(lives(inits[0]));
    let (_, said) = doctor(&["--clean", "--yes"]);
    assert!(said.contains(&format!("removed: instance {lost}")) && !said.contains(&kept), "{said}");
    let begun = Instant::now();
    while !members(&dead.group()).is_empty() || !cgroups(&dead.group()).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", cgroups(&dead.group()));
        std::thread::sleep(Duration::from_millis(20));
    }
    let (_, said) = doctor(&["--leaks"]);
    assert_eq!(lines(&said, &lost), Vec::<&str>::new(), "{said}");
    assert!(lives(inits[1]));
    assert_eq!(say(&alive.client(), "kept", "echo here").await, "here");

    // Also beside a server that nothing but its environment has told where it lives.
    alive.terminate().await;
    let mut command = Command::new(WARDIAN);
    command.env(NETWORK, "none").args(["serve", "--default-rootfs"]).arg(alive.image());
    command.env("WARDIAN_ROOT", alive.root()).env("WARDIAN_RUN", alive.run());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    alive.restart_as(command).await;
    let client = alive.client();
    let spec = wardian_garden::wire::ContainerSpec { handle: "more".into(), ..Default::default() };
    client.create(&spec).await.unwrap();
    let (_, said) = doctor(&["--leaks"]);
    assert_eq!(lines(&said, &kept), Vec::<&str>::new(), "{said}");
    let (_, said) = doctor(&["--clean", "--yes"]);
    assert!(!said.contains(&kept), "{said}");
    assert_eq!(say(&alive.client(), "more", "echo here").await, "here");
    // The same names for every command.
    let environment = |args: &[&str]| {
        let mut command = Command::new(WARDIAN);
        command.args(args).env("WARDIAN_ROOT", alive.root()).env("WARDIAN_RUN", alive.run());
        let output = command.env_remove("WARDIAN_SOCKET").stdin(Stdio::null()).output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    assert!(environment(&["ps"]).contains("more"));
    assert!(environment(&["exec", "more", "echo", "by environment"]).contains("by environment"));
    let report: serde_json::Value =
        serde_json::from_str(&environment(&["doctor", "--json", "--no-measure"])).unwrap();
    let looked_at = report["filesystem"]["looked_at"].as_str().map(str::to_owned);
    assert_eq!(looked_at.as_deref(), alive.root().to_str(), "{:#}", report["filesystem"]);
    let leaks = environment(&["doctor", "--leaks"]);
    assert_eq!(lines(&leaks, &kept), Vec::<&str>::new(), "{leaks}");
    alive.finish().await;
}

/// The cgroups of a process, as one of them is called.
fn pid_group(pid: u32) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let group = text.lines().find_map(|line| line.split("/wardian-").nth(1)).unwrap_or("gone");
    format!("wardian-{group}")
}

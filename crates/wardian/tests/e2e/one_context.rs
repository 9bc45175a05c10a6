//! Socket, store and run directory from a flag, the environment and the settings file, for every command alike; `info`
//! and `version`, which tell them.

use crate::cli::Said;
use crate::support::{NETWORK, REGISTRIES, Server, WARDIAN, base};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// A command that knows nothing but what the file says.
fn command(config: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(WARDIAN);
    for name in ["WARDIAN_SOCKET", "WARDIAN_ROOT", "WARDIAN_RUN", "WARDIAN_LOG"] {
        command.env_remove(name);
    }
    command
        .args(args)
        .envs(REGISTRIES)
        .env(NETWORK, "none")
        .env("WARDIAN_CONFIG", config)
        .stdin(Stdio::null());
    command
}

fn said(config: &Path, args: &[&str]) -> Said {
    command(config, args).output().unwrap().into()
}

fn ok(config: &Path, args: &[&str]) -> String {
    let said = said(config, args);
    assert!(said.code == Some(0) && said.err.is_empty(), "{args:?}: {said:?}");
    said.out
}

fn json(config: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&ok(config, args)).unwrap()
}

#[tokio::test]
async fn one_file_is_enough_for_every_command() {
    let server = Server::start().await;
    let dir = base();
    let config = dir.path().join("wardian.toml");
    let (root, run) = (server.root(), server.run());
    let text = format!(
        "# The server of this test\nroot = \"{}\"\nrun = \"{}\"\nlisten = [\"unix:{}\"]\n",
        root.display(),
        run.display(),
        server.socket().display()
    );
    fs::write(&config, text).unwrap();

    let handle = ok(&config, &["create", "--name", "one"]);
    assert_eq!(handle, "one\n");
    assert!(ok(&config, &["ps"]).contains("one"));
    // These read the store themselves.
    let usage = json(&config, &["store", "usage", "--json"]);
    assert_eq!(usage["rootfs"].as_array().map(Vec::len), Some(1), "{usage}");
    assert!(ok(&config, &["rootfs", "list"]).contains("a container's"));
    let doctor = json(&config, &["doctor", "--no-measure", "--json"]);
    assert_eq!(doctor["filesystem"]["root"].as_str().map(Path::new), Some(root.as_path()), "{doctor}");
    // It is the run directory of a server that runs: no other directory's.
    let reset = said(&config, &["reset", "--yes"]);
    assert!(reset.code == Some(1) && reset.err.contains(&*run.to_string_lossy()), "{reset:?}");

    let info = json(&config, &["info", "--json"]);
    let (client, told) = (&info["client"], &info["server"]);
    assert_eq!(client["config"]["status"], "read");
    let source = |name: &str| client["settings"][name]["source"].as_str().unwrap().to_owned();
    let line = |line: u32| format!("{}:{line}", config.display());
    assert_eq!([source("root"), source("run"), source("socket")], [line(2), line(3), line(4)]);
    assert_eq!(told["root"].as_str().map(Path::new), Some(root.as_path()));
    assert_eq!((&told["network"], &told["version"]), (&"none".into(), &client["version"]));
    assert_eq!((&told["containers"]["stopped"], &told["containers"]["running"]), (&1.into(), &0.into()));
    assert!(told["store"]["layers_bytes"].as_u64().unwrap() > 0, "{told}");
    let text = ok(&config, &["system", "info"]);
    for part in ["Client:", &line(4), "Server:", "0 running, 1 stopped", "cgroups"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let versions = json(&config, &["version", "--json"]);
    assert_eq!(versions["client"], versions["server"]);

    // A flag beats the environment, which beats the file.
    let elsewhere = dir.path().join("nobody");
    let mut command = command(&config, &["info", "--json", "--socket"]);
    let both = command.arg(server.socket()).env("WARDIAN_SOCKET", &elsewhere).output().unwrap();
    let both: Value = serde_json::from_slice(&both.stdout).unwrap();
    assert_eq!(both["client"]["settings"]["socket"]["source"], "--socket");
    assert!(both["server"].is_object(), "{both}");
    let mut command = self::command(&config, &["info", "--json"]);
    let other: Said = command.env("WARDIAN_SOCKET", &elsewhere).output().unwrap().into();
    assert_eq!(other.code, Some(1), "{other:?}");
    let half: Value = serde_json::from_str(&other.out).unwrap();
    assert_eq!(half["client"]["settings"]["socket"]["source"], "WARDIAN_SOCKET");
    assert!(half["server"].is_null() && other.err.contains("no server answers"), "{other:?}");
    // The flag also tells which file, and how a server that reads it is started.
    fs::write(&config, format!("socket = \"{}\"\n", elsewhere.display())).unwrap();
    let mut command = self::command(Path::new(""), &["version", "--config"]);
    let none: Said = command.arg(&config).output().unwrap().into();
    let advice = format!("`sudo wardian serve --config {}", config.display());
    assert!(none.out.starts_with("client  ") && !none.out.contains("server"), "{none:?}");
    assert!(none.code == Some(1) && none.err.contains(&advice), "{none:?}");
    server.finish().await;
}

/// A damaged file is told with its line; one that a user may not read or that others could write is not taken.
#[test]
fn damaged_and_closed_files() {
    let dir = base();
    let config = dir.path().join("wardian.toml");
    for (text, place) in [
        ("a = 1\nroot = \n", ":2: this is not TOML"),
        ("\n\nrot = 1\n", ":3: unknown key rot"),
        ("\nsocket = \"x\"\n", ":2: socket: "),
    ] {
        fs::write(&config, text).unwrap();
        let ps = said(&config, &["ps"]);
        assert!(ps.code == Some(1) && ps.err.contains(&format!("{}{place}", config.display())), "{ps:?}");
        let help = said(&config, &["ps", "--help"]);
        assert!(help.code == Some(0) && help.err.is_empty(), "{help:?}");
    }
    fs::write(&config, "max-containers = \"many\"\n").unwrap();
    let serve = said(&config, &["serve"]);
    assert!(serve.code == Some(1) && serve.err.contains(":1: max-containers: invalid value"), "{serve:?}");
    let missing = said(&dir.path().join("none"), &["ps"]);
    assert!(missing.code == Some(1) && missing.err.contains("none"), "{missing:?}");
    chown(&config, Some(1), None).unwrap();
    let planted = said(&config, &["ps"]);
    assert!(planted.code == Some(1) && planted.err.contains("belongs to user 1"), "{planted:?}");

    // As another user, for whom it is closed.
    chown(&config, Some(0), None).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
    let program = dir.path().join("wardian");
    crate::support::copy_program(&*WARDIAN, &program);
    let mut command = Command::new(&program);
    command.args(["ps", "--config"]).arg(&config).uid(65534).gid(65534).stdin(Stdio::null());
    let named: Said = command.output().unwrap().into();
    assert!(named.code == Some(1) && named.err.contains("Permission denied"), "{named:?}");
}

/// The file at the usual place may be closed to a user, whose commands then have the defaults.
#[test]
fn the_usual_file_may_be_closed() {
    let dir = base();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("wardian");
    crate::support::copy_program(&*WARDIAN, &program);
    let etc = dir.path().join("etc");
    fs::create_dir_all(etc.join("wardian")).unwrap();
    let file = etc.join("wardian/wardian.toml");
    fs::write(&file, "socket = \"/nowhere\"\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    // A mount namespace of its own, where /etc is this one.
    let script = "mount --bind \"$ETC\" /etc && exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$PROGRAM\" info --json";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).env("ETC", &etc).env("PROGRAM", &program);
    let said: Said = command.env_remove("WARDIAN_CONFIG").stdin(Stdio::null()).output().unwrap().into();
    let info: Value = serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    assert_eq!(info["client"]["config"]["status"], "unreadable", "{said:?}");
    assert_eq!(info["client"]["settings"]["socket"]["source"], "default");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let open: Said = command.output().unwrap().into();
    let info: Value = serde_json::from_str(&open.out).unwrap();
    assert_eq!(info["client"]["settings"]["socket"]["source"], "/etc/wardian/wardian.toml:1", "{open:?}");
}

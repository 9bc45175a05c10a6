//! Programs and directories that root is to use, and that others could change.

use crate::support::{NETWORK, Server, WARDIAN};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;

const NOBODY: u32 = 65534;

fn tempdir() -> tempfile::TempDir {
    let dir = crate::support::base();
    set_mode(dir.path(), 0o755);
    dir
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// The program that root runs as keeper is root's alone, and nobody else can put another one in its place.
#[test]
fn a_keeper_that_others_could_change_is_refused() {
    let base = tempdir();
    let ran = base.path().join("ran");
    let (root, run) = (base.path().join("root"), base.path().join("run"));
    let serve = |keeper: &Path| {
        let mut command = Command::new("timeout");
        command.args(["20", &WARDIAN, "serve", "--root"]).arg(&root).arg("--run").arg(&run);
        let output = command.arg("--keeper").arg(keeper).env(NETWORK, "none").output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(!ran.exists() && !run.exists());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let dir = base.path().join("dir");
    std::fs::create_dir(&dir).unwrap();
    let keeper = dir.join("keeper");
    std::fs::write(&keeper, format!("#!/bin/sh\ntouch {}\n", ran.display())).unwrap();
    for mode in [0o777, 0o775, 0o757] {
        set_mode(&keeper, mode);
        let said = serve(&keeper);
        assert!(said.contains("--keeper") && said.contains("may be written to by other users"), "{said}");
    }
    set_mode(&keeper, 0o755);
    chown(&keeper, Some(NOBODY), None).unwrap();
    assert!(serve(&keeper).contains("belongs to user 65534"));
    chown(&keeper, Some(0), None).unwrap();
    // On its way: whoever may write to the directory can put another program there.
    set_mode(&dir, 0o777);
    assert!(serve(&keeper).contains("may be written to by other users"));
    set_mode(&dir, 0o755);
    chown(&dir, Some(NOBODY), None).unwrap();
    assert!(serve(&keeper).contains("belongs to user 65534"));
    chown(&dir, Some(0), None).unwrap();
    let link = base.path().join("link");
    std::os::unix::fs::symlink(&keeper, &link).unwrap();
    std::os::unix::fs::lchown(&link, Some(NOBODY), None).unwrap();
    assert!(serve(&link).contains("belongs to user 65534"));
}

/// The doctor says what a server would say.
#[test]
fn the_doctor_sees_a_store_that_others_could_change() {
    let base = tempdir();
    let root = base.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let hazard = |root: &Path| {
        let mut command = Command::new(WARDIAN);
        let output = command.args(["doctor", "--json", "--no-measure", "--root"]).arg(root).output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let hazards = report["hazards"].as_array().unwrap().clone();
        let found = hazards.into_iter().find(|hazard| hazard["id"] == "open-store");
        assert!(found.is_none() || output.status.code() == Some(4), "{output:?}");
        found.map(|hazard| hazard.to_string()).unwrap_or_default()
    };
    assert_eq!(hazard(&root), "");
    set_mode(&root, 0o775);
    let said = hazard(&root);
    assert!(said.contains("mode 0775") && said.contains("chmod go-w"), "{said}");
    // One that is to be made there.
    assert!(hazard(&root.join("below/store")).contains("mode 0775"));
    set_mode(&root, 0o755);
    chown(&root, Some(NOBODY), None).unwrap();
    let said = hazard(&root);
    assert!(said.contains("belongs to user 65534") && said.contains("chown root"), "{said}");
    // The server closes such a one itself.
    chown(&root, Some(0), None).unwrap();
    set_mode(&root, 0o1777);
    assert_eq!(hazard(&root), "");
}

/// A server shows what it is given; that its clients will refuse it is told before one of them asks.
#[tokio::test]
async fn a_certificate_that_clients_refuse_is_told_in_the_log_and_by_the_doctor() {
    let mut server = Server::start().await;
    let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    let write = |name: &str, text: &str| {
        let path = server.base().join(name);
        std::fs::write(&path, text).unwrap();
        set_mode(&path, 0o600);
        path.to_str().unwrap().to_owned()
    };
    let (certificate, key) = (write("old.pem", &certificate), write("old.key", &key.serialize_pem()));
    server.terminate().await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let listen = format!("tcp:127.0.0.1:{port}");
    let args =
        ["--listen", &listen, "--tls-cert", &certificate, "--tls-key", &key, "--tls-client-ca", &certificate];
    server.args = args.map(str::to_owned).to_vec();
    server.restart().await;
    let log = server.log();
    for text in ["expired on 2020-01-01", "no subjectAltName"] {
        assert!(log.lines().any(|line| line.contains("serve.certificate") && line.contains(text)), "{log}");
    }
    let output = Command::new(WARDIAN).args(["doctor", "--json", "--no-measure"]).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let said = report["hazards"].as_array().unwrap().iter().filter(|hazard| hazard["id"] == "certificate");
    let said: Vec<String> = said.map(ToString::to_string).collect();
    for text in ["expired on 2020-01-01", "no subjectAltName"] {
        assert!(said.iter().any(|line| line.contains(&certificate) && line.contains(text)), "{said:?}");
    }
    server.finish().await;
}

/// A client that fails on and on fills no disk with what the server says of it.
#[tokio::test]
async fn requests_that_fail_have_little_room_in_the_log() {
    let server = Server::start().await;
    let before = server.log().len();
    let body = format!("{{\"rootfs\":\"/{}\"}}", "x".repeat(4000));
    let begun = std::time::Instant::now();
    for _ in 0..600 {
        let reply = server.http("POST /containers", "", &body);
        assert!(reply.starts_with("HTTP/1.1 500 "), "{reply:.200}");
    }
    // It is told that something was left out, by whatever comes next in a later second.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    server.http("GET /containers/nope/info", "", "");
    let log = server.log()[before..].to_owned();
    // 256 KiB at once and 16 KiB each second, for each message of a failing create.
    let seconds = usize::try_from(begun.elapsed().as_secs()).unwrap() + 2;
    let messages: std::collections::BTreeSet<&str> =
        log.lines().filter_map(|line| line.split("\"message\":\"").nth(1)?.split('"').next()).collect();
    let most = messages.len() * ((300 << 10) + seconds * (20 << 10));
    assert!(log.len() < most, "{} bytes in {seconds} s of {messages:?}", log.len());
    assert!(messages.contains("wardian.server.request-failed.suppressed"), "{messages:?}");
    server.finish().await;
}

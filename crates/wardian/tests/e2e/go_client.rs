//! A client in another language, on Go's own HTTP stack: `tests/garden-client`.

use crate::support::Server;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

#[tokio::test(flavor = "multi_thread")]
async fn all_checks_pass_and_are_told() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let dir = tempfile::tempdir().unwrap();
    let client = dir.path().join("garden-client");
    let build = Command::new("go")
        .args(["build", "-o"])
        .arg(&client)
        .arg(".")
        .current_dir(project.join("tests/garden-client"))
        .env("GOFLAGS", "-mod=mod")
        .status()
        .expect("go is needed for this test: ./dev test installs it");
    assert!(build.success());

    let mut server = Server::start().await;
    let debug = server.run().join("debug.sock");
    server.args = vec!["--debug-listen".into(), format!("unix:{}", debug.display())];
    assert!(server.terminate().await.success());
    server.restart().await;
    let (socket, image) = (server.socket(), server.image());
    let run = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(client);
        command.arg("-debug").arg(debug).arg("unix").arg(socket).arg(image);
        command.output().unwrap()
    });
    let output = run.await.unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let failed: Vec<&str> = stdout.lines().filter(|line| !line.starts_with("ok ")).collect();
    assert!(output.status.success(), "{failed:#?}");

    // The documentation counts them by area: none is lost unseen.
    let mut areas: BTreeMap<&str, usize> = BTreeMap::new();
    for area in stdout.lines().filter_map(|line| line.strip_prefix("ok ")?.split_once(':')) {
        *areas.entry(area.0).or_default() += 1;
    }
    let docs = std::fs::read_to_string(project.join("docs/garden.md")).unwrap();
    for (area, count) in &areas {
        let row = format!("| {area} | {count} |");
        assert!(docs.contains(&row), "docs/garden.md lacks {row}");
    }
    server.finish().await;
}

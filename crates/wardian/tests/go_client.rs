//! A client in another language, on Go's own HTTP stack, against a real server: `tests/garden-client`.

use std::path::Path;
use std::process::Command;
use wardian_lab::local::LocalServer;

/// Fewer checks than this and some were lost.
const CHECKS: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn the_go_client_is_content() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/garden-client");
    let dir = tempfile::tempdir().unwrap();
    let client = dir.path().join("garden-client");
    let build = Command::new("go")
        .args(["build", "-o"])
        .arg(&client)
        .arg(".")
        .current_dir(&source)
        .env("GOFLAGS", "-mod=mod")
        .status()
        .expect("go is needed for this test: ./dev test installs it");
    assert!(build.success());

    let server = LocalServer::start(Path::new(env!("CARGO_BIN_EXE_wardian")), None).await.unwrap();
    let image = server.dir().join("image.tar");
    wardian_lab::image::build(&image).unwrap();
    let address = server.address();
    let address = address.strip_prefix("unix:").unwrap().to_owned();
    let run = tokio::task::spawn_blocking(move || {
        Command::new(client).args(["unix", &address]).arg(image).output().unwrap()
    });
    let output = run.await.unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    server.stop().await.unwrap();
    let failed: Vec<&str> = stdout.lines().filter(|line| !line.starts_with("ok ")).collect();
    assert!(output.status.success(), "{failed:#?}");
    assert!(stdout.lines().filter(|line| line.starts_with("ok ")).count() >= CHECKS, "{failed:#?}");
}

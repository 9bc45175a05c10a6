//! What an image says of its processes: the command, the user, the working directory.

use crate::commands::{fails, ok};
use crate::docker_registry::{Image, OCI};
use crate::grootfs_images::gzip;
use crate::support::{Server, digest, message, tar_of};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use wardian_garden::Io;
use wardian_garden::wire::ProcessSpec;

/// Writes an OCI layout of busybox with this config.
pub fn layout(server: &Server, name: &str, config: &Value) -> PathBuf {
    layout_with(server, name, config, None)
}

/// The same, with this history.
pub fn layout_with(server: &Server, name: &str, config: &Value, history: Option<&Value>) -> PathBuf {
    let dir = server.base().join(name);
    let tars = [fs::read(server.image()).unwrap(), tar_of(&[("of", name.as_bytes())])];
    let ids: Vec<_> = tars.iter().map(|tar| format!("sha256:{}", digest(tar))).collect();
    let image = Image::made_by(OCI, tars.iter().map(|tar| gzip(tar)).collect(), &ids, config, history);
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    for blob in image.layers.iter().chain([&image.config, &image.manifest]) {
        fs::write(blobs.join(digest(blob)), blob).unwrap();
    }
    let manifest = json!({"mediaType": OCI, "digest": image.digest(), "size": image.manifest.len()});
    fs::write(dir.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string())
        .unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    dir
}

pub fn uri(dir: &Path) -> String {
    format!("oci://{}", dir.display())
}

#[tokio::test]
async fn an_image_runs_by_its_own_command() {
    let server = Server::start().await;
    let whole = uri(&layout(
        &server,
        "whole",
        &json!({
            "Entrypoint": ["/bin/sh", "-c", "echo $0 $1 $(id -u) $(pwd)"], "Cmd": ["a", "b"], "User": "1000:1000",
            "WorkingDir": "/made/for/it",
        }),
    ));
    assert_eq!(ok(&server, &["run", "--rm", &whole]), "a b 1000 /made/for/it\n");
    assert_eq!(ok(&server, &["run", "--rm", &whole, "c"]), "c 1000 /made/for/it\n");
    assert_eq!(
        ok(&server, &["run", "--rm", "-u", "0", "-w", "/tmp", &whole, "--", "-c", "d"]),
        "-c d 0 /tmp\n"
    );
    assert_eq!(ok(&server, &["run", "--rm", "--entrypoint", "echo", &whole, "x", "y"]), "x y\n");
    assert_eq!(ok(&server, &["run", "--rm", "--entrypoint", "pwd", &whole]), "/made/for/it\n");
    assert_eq!(ok(&server, &["run", "--rm", "--entrypoint", "", &whole, "id", "-u"]), "1000\n");
    // A process beside it has the user and the directory.
    ok(&server, &["create", "--name", "c", &whole]);
    assert_eq!(ok(&server, &["exec", "c", "sh", "-c", "id -u; pwd"]), "1000\n/made/for/it\n");
    assert_eq!(ok(&server, &["exec", "-u", "root", "c", "id", "-u"]), "0\n");
    let args = uri(&layout(&server, "args", &json!({"Cmd": ["echo", "own"]})));
    assert_eq!(ok(&server, &["run", "--rm", &args]), "own\n");
    assert_eq!(ok(&server, &["run", "--rm", &args, "pwd"]), "/\n");
    // Without a command nothing is left behind.
    let none = uri(&layout(&server, "none", &json!({})));
    let text = fails(&server, 125, &["run", &none]);
    assert!(text.contains("no command of its own") && text.contains("say what to run"), "{text}");
    assert_eq!(ok(&server, &["ps", "-q"]), "c\n");
    server.finish().await;
}

/// What an image says and nobody heeds is shown, as long as the store has the image.
#[tokio::test]
async fn what_an_image_says_is_shown() {
    let server = Server::start().await;
    let said = json!({
        "Cmd": ["true"], "ExposedPorts": {"8080/tcp": {}}, "Labels": {"tier": "web"}, "Volumes": {"/data": {}},
        "StopSignal": "SIGQUIT", "Healthcheck": {"Test": ["CMD", "true"]}, "Other": 1, "User": "",
    });
    let image = uri(&layout(&server, "said", &said));
    let (root, run) = (server.root(), server.run());
    let place = ["--root", root.to_str().unwrap(), "--run", run.to_str().unwrap()];
    ok(&server, &[&["image", "import", &image, "-t", "said:1"][..], &place].concat());
    ok(&server, &["create", "--name", "c", "said:1"]);
    let one: Value = serde_json::from_str(&ok(&server, &["inspect", "c"])).unwrap();
    let mut shown = said.clone();
    ["Cmd", "Other", "User"].iter().for_each(|key| drop(shown.as_object_mut().unwrap().remove(*key)));
    assert_eq!(one["image_says"], shown);
    assert_eq!((&one["image"], &one["command"]), (&"said:1".into(), &json!(["true"])));
    assert_eq!(ok(&server, &["inspect", "-f", "{{json .Config.ExposedPorts}}", "c"]), "{\"8080/tcp\":{}}\n");
    server.finish().await;
}

/// Garden's processes have nothing of it.
#[tokio::test]
async fn garden_knows_no_command_of_images() {
    let mut server = Server::start().await;
    let dir =
        layout(&server, "image", &json!({"Entrypoint": ["/bin/false"], "User": "1000", "WorkingDir": "/x"}));
    ok(&server, &["create", "--name", "c", &uri(&dir)]);
    let run = |server: &Server, of_image: &str, path: &str| {
        let (client, path, of_image) = (server.client(), path.to_owned(), of_image.to_owned());
        async move {
            let spec = ProcessSpec { path, of_image, args: vec!["-u".into()], ..ProcessSpec::default() };
            client.run("c", &spec, Io::default()).await
        }
    };
    let code = |started: wardian_garden::Result<wardian_garden::Process>| async {
        started.unwrap().wait().await.unwrap()
    };
    assert_eq!(code(run(&server, "", "id").await).await, 0);
    assert_eq!(code(run(&server, "command", "id").await).await, 1);
    assert!(message(run(&server, "all", "id").await.map(drop)).contains("neither place nor command"));
    // It is known after a restart, too.
    assert!(server.terminate().await.success());
    server.restart().await;
    assert_eq!(ok(&server, &["exec", "c", "id", "-u"]), "1000\n");
    server.finish().await;
}

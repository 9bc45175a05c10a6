//! What is told of that which cannot be what somebody wanted: images that are none, or for another machine, a default image that
//! is not there, a directory that is a file, a handle that nobody has, too little memory; and a half-made container that does
//! not end.

use crate::cli::{Alone, Said, saved};
use crate::commands::command;
use crate::equipped::all;
use crate::support::{STUCK, Server, digest, tar_of};
use serde_json::json;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use wardian_garden::wire::ContainerSpec;
use wardian_sys::failpoint;

fn wardian(server: &Server, args: &[&str]) -> Said {
    command(server, args).output().unwrap().into()
}

/// It comes within the time after which a test is stuck.
async fn logged(server: &Server, text: &str) {
    let started = Instant::now();
    while !server.log().contains(text) {
        assert!(started.elapsed() < STUCK, "{text} is not in the log\n{}", server.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn spec(handle: &str) -> ContainerSpec {
    ContainerSpec { handle: handle.into(), ..Default::default() }
}

#[test]
fn an_image_that_is_no_tar_is_told_by_its_file() {
    let alone = Alone::new();
    let text = b"hello\n".repeat(200);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&text).unwrap();
    let gzip = gzip.finish().unwrap();
    let plain = alone.write("notes.txt", &text);
    let packed = alone.write("notes.gz", &gzip);
    let short = alone.write("short", b"hi\n");
    let archive = alone.write("saved.tar", &saved(Some("a"), &[&text]));
    for (source, named) in [
        (plain.clone(), plain.clone()),
        (format!("tar://{plain}"), plain.clone()),
        (format!("docker-archive://{plain}"), plain.clone()),
        (format!("oci-archive://{short}"), short.clone()),
        (packed.clone(), packed),
        (short.clone(), short),
        (archive.clone(), format!("layer \"0.tar\" of {archive}")),
    ] {
        let said = alone.place.wardian(&["image", "import", &source]);
        assert_eq!(said.code, Some(1), "{source}: {said:?}");
        assert!(said.err.contains(&named), "{source}: {said:?}");
        // A layer of an archive can be nothing but a tar.
        let what = if source == archive {
            "is no tar archive"
        } else {
            "is no image: neither a tar (plain, gzip or zstd) nor what `docker save` wrote nor an OCI layout"
        };
        assert!(said.err.contains(what), "{source}: {said:?}");
    }
    alone.finish();
}

/// An archive of busybox that says it is for another machine, whose programs run here all the same.
fn for_another_machine(server: &Server) -> String {
    let layer = fs::read(server.image()).unwrap();
    let config = json!({
        "os": "linux", "architecture": "s390x",
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": ["other:1"], "Layers": ["l.tar"]}]);
    let (config, manifest) = (config.to_string(), manifest.to_string());
    let files: [(&str, &[u8]); 3] =
        [("manifest.json", manifest.as_bytes()), ("config.json", config.as_bytes()), ("l.tar", &layer)];
    let path = server.base().join("other.tar");
    fs::write(&path, tar_of(&files)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_image_for_another_machine_is_told_of_and_not_refused() {
    let mut server = Server::start().await;
    server.terminate().await;
    server.env = vec![("WARDIAN_LOG".into(), "info,wardian_engine=debug".into())];
    server.restart().await;
    let image = for_another_machine(&server);
    let told = "the image is for linux/s390x and this host is linux/";
    let (root, run) = (server.root(), server.run());
    let import = ["--root", root.to_str().unwrap(), "--run", run.to_str().unwrap(), "import"];
    let said = wardian(&server, &[&["image"], &import[..], &[&image]].concat());
    assert_eq!((said.code, said.err.matches(told).count()), (Some(0), 1), "{said:?}");
    for image in [&*image, "other:1"] {
        let said = wardian(&server, &["run", "--rm", image, "--", "echo", "up"]);
        assert_eq!((said.code, said.out.as_str()), (Some(0), "up\n"), "{said:?}");
        assert_eq!(said.err.matches(told).count(), 1, "{said:?}");
        assert!(said.err.contains("binfmt_misc"), "{said:?}");
    }
    let said = wardian(&server, &["create", "--name", "c", "other:1"]);
    assert_eq!(
        (said.code, said.out.as_str(), said.err.matches(told).count()),
        (Some(0), "c\n", 1),
        "{said:?}"
    );
    logged(&server, "image.foreign-platform").await;
    // Of an image that is for this host the reply has nothing but what Garden's has.
    let reply = server.http("POST /containers", "", r#"{"handle":"d"}"#);
    assert!(reply.ends_with("{\"Handle\":\"d\"}\n"), "{reply}");
    server.finish().await;
}

#[tokio::test]
async fn a_default_image_that_is_not_there_is_told_at_the_start() {
    let mut server = Server::start().await;
    assert!(!server.log().contains("start.default-rootfs"));
    server.terminate().await;
    let (image, elsewhere) = (server.image(), server.base().join("elsewhere.tar"));
    fs::rename(&image, &elsewhere).unwrap();
    server.restart().await;
    logged(&server, "start.default-rootfs").await;
    let line = server.log().lines().find(|line| line.contains("start.default-rootfs")).unwrap().to_owned();
    assert!(line.contains("image.tar") && line.contains("--default-rootfs"), "{line}");
    let client = server.client();
    client.create(&spec("c")).await.unwrap_err();
    // It may come later.
    fs::rename(&elsewhere, &image).unwrap();
    client.create(&spec("c")).await.unwrap();
    server.finish().await;
}

#[tokio::test]
async fn a_working_directory_that_is_a_file_is_named() {
    let server = Server::start().await;
    server.create("c").await;
    for dir in ["/etc/passwd", "/etc/passwd/a/b"] {
        let said = wardian(&server, &["exec", "-w", dir, "c", "true"]);
        assert_eq!(said.code, Some(125), "{said:?}");
        assert!(said.err.contains("/etc/passwd") && said.err.contains("not a directory"), "{said:?}");
    }
    let said = wardian(&server, &["exec", "-w", "/etc/passwd/a/b", "c", "true"]);
    assert!(said.err.contains("/etc/passwd/a/b: /etc/passwd is not a directory"), "{said:?}");
    server.finish().await;
}

#[tokio::test]
async fn events_of_a_container_that_does_not_exist_are_waited_for_with_a_word() {
    let server = Server::start().await;
    let listen = |handle: &str| {
        let mut command = command(&server, &["events", "--handle", handle]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut child = listen("typo");
    let mut told = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut told).unwrap();
    assert_eq!(told, "wardian: there is no container \"typo\" now: waiting until one is made\n");
    server.create("typo").await;
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("create") && line.contains("typo"), "{line}");
    child.kill().unwrap();
    child.wait().unwrap();
    // Of one that is there nothing is said.
    let mut child = listen("typo");
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    let started = Instant::now();
    let events = std::thread::spawn(move || out.read_line(&mut line).map(|_| line));
    while !events.is_finished() {
        assert!(started.elapsed() < STUCK, "no event");
        crate::support::sh(&server.client(), "typo", "true").await;
    }
    assert!(events.join().unwrap().unwrap().contains("process-"));
    child.kill().unwrap();
    let said: Said = child.wait_with_output().unwrap().into();
    assert_eq!(said.err, "");
    server.finish().await;
}

#[tokio::test]
async fn too_little_memory_is_told_with_how_much_is_enough() {
    let server = Server::start().await;
    for memory in ["1k", "100k"] {
        let said = wardian(&server, &["run", "--rm", "--memory", memory, "--", "true"]);
        assert_eq!(said.code, Some(2), "{memory}: {said:?}");
        assert!(said.err.contains(&format!("{memory} is too small; try 4M")), "{memory}: {said:?}");
    }
    let said = wardian(&server, &["run", "--rm", "--memory", "4M", "--", "true"]);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{said:?}");
    // What has nothing to do with it is told alone.
    let said = wardian(&server, &["run", "--rm", "--memory", "4M", "-w", "/etc/passwd", "--", "true"]);
    assert!(!said.err.contains("MiB"), "{said:?}");
    server.finish().await;
}

/// A file that is mounted on itself.
struct Mounted(PathBuf);

impl Mounted {
    fn on(path: &Path) -> Self {
        let done = Command::new("mount").arg("--bind").arg(path).arg(path).status().unwrap();
        assert!(done.success());
        Self(path.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(&self.0).status();
        assert!(std::thread::panicking() || done.unwrap().success());
    }
}

/// Its record cannot be removed, because something is mounted on it: so neither the start of a server nor a destroy ends it.
#[tokio::test]
async fn a_half_made_container_that_does_not_end_can_be_destroyed_later() {
    let mut server = Server::start().await;
    server.terminate().await;
    server.env = vec![(failpoint::VARIABLE.to_owned(), "create.answered".to_owned())];
    server.restart().await;
    server.client().create(&spec("half")).await.unwrap_err();
    assert_eq!(server.ended().await.signal(), Some(9));
    server.env.clear();
    let containers = crate::support::names(&server.run().join("containers"));
    assert_eq!(containers.len(), 1, "{containers:?}");
    let record = Path::new(&containers[0]).join("state.json");
    let mounted = Mounted::on(&record);
    server.restart().await;
    let client = server.client();
    assert_eq!(client.list(&all()).await.unwrap(), ["half"], "{}", server.log());
    // Not for those who ask for whole ones, but its handle is not free.
    assert!(client.list(&Default::default()).await.unwrap().is_empty());
    assert!(client.create(&spec("half")).await.unwrap_err().to_string().contains("already in use"));
    client.destroy("half").await.unwrap_err();
    drop(mounted);
    client.destroy("half").await.unwrap();
    assert!(client.list(&all()).await.unwrap().is_empty());
    server.create("half").await;
    server.finish().await;
}

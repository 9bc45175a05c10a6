//! What an image is, is told in the same way wherever it is named.

use crate::cli::Place;
use crate::commands::command;
use crate::support::{Server, message, say};
use std::path::Path;
use wardian_garden::wire::{ContainerSpec, ImageRef};

/// The default image in every form.
fn forms(server: &Server, place: &Place) -> Vec<String> {
    let path = |name: &str| server.base().join(name).to_str().unwrap().to_owned();
    place.say(&["image", "import", server.image().to_str().unwrap(), "-t", "base"]);
    let mut forms = Vec::new();
    for (name, format) in [("docker", "docker-archive"), ("oci", "oci-archive"), ("plain", "tar")] {
        place.say(&["image", "export", "base", &path(name), "--format", format]);
        let data = std::fs::read(path(name)).unwrap();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &data).unwrap();
        std::fs::write(path(&format!("{name}-packed")), encoder.finish().unwrap()).unwrap();
        forms.extend([path(name), path(&format!("{name}-packed"))]);
    }
    place.say(&["image", "export", "base", &path("layout"), "--format", "oci"]);
    place.say(&["image", "export", "base", &path("dir"), "--format", "dir"]);
    forms.extend([path("layout"), path("dir/rootfs")]);
    forms
}

const READ: &str = "head -1 /etc/passwd | cut -d: -f1";

#[tokio::test]
async fn every_form_is_an_image_wherever_it_is_named() {
    let mut server = Server::start().await;
    let place = Place::of(&server);
    let client = server.client();
    for (n, path) in forms(&server, &place).into_iter().enumerate() {
        // Garden, by both fields, and with the scheme of a file.
        for (rootfs, uri) in [(path.clone(), ""), (String::new(), &*path), (format!("file://{path}"), "")] {
            let image = ImageRef { uri: uri.to_owned(), ..Default::default() };
            let spec = ContainerSpec { handle: "c".into(), rootfs, image, ..Default::default() };
            client.create(&spec).await.unwrap();
            assert_eq!(say(&client, "c", READ).await, "root", "{path}");
            client.destroy("c").await.unwrap();
        }
        let said = command(&server, &["run", "--rm", &path, "sh", "-c", READ]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&said.stdout), "root\n", "{path}: {said:?}");
        // The store's own commands.
        let tag = format!("--tag=form{n}");
        let imported = place.json(&["image", "import", &path, &tag]);
        assert_eq!(imported["layers"][0]["fetched"], false, "{path}: {imported}");
        let id = format!("form{n}");
        place.say(&["rootfs", "create", &path, &id]);
        place.say(&["rootfs", "delete", &id]);
    }
    // The server's own default.
    let saved = server.base().join("docker-packed");
    server.terminate().await;
    std::fs::copy(&saved, server.image()).unwrap();
    server.restart().await;
    let client = server.create("default").await;
    assert_eq!(say(&client, "default", READ).await, "root");
    server.finish().await;
}

/// What changes in a directory is in the next container, and in none before it.
#[tokio::test]
async fn a_directory_is_looked_at_each_time() {
    let server = Server::start().await;
    let place = Place::of(&server);
    let client = server.client();
    let dir = forms(&server, &place).pop().unwrap();
    let create = |handle: &str| {
        let image = ImageRef { uri: dir.clone(), ..Default::default() };
        ContainerSpec { handle: handle.into(), image, ..Default::default() }
    };
    client.create(&create("one")).await.unwrap();
    std::fs::write(Path::new(&dir).join("etc/new"), "new").unwrap();
    client.create(&create("two")).await.unwrap();
    assert_eq!(say(&client, "two", "cat /etc/new").await, "new");
    assert_eq!(say(&client, "one", "ls /etc | grep -c new; true").await, "0");
    // What is written inside stays inside.
    say(&client, "two", "echo changed >/etc/new").await;
    assert_eq!(std::fs::read_to_string(Path::new(&dir).join("etc/new")).unwrap(), "new");
    server.finish().await;
}

#[tokio::test]
async fn what_is_no_image_is_named() {
    let server = Server::start().await;
    let place = Place::of(&server);
    let client = server.client();
    let data = std::fs::read(server.image()).unwrap();
    let xz = server.base().join("image.tar.xz");
    std::fs::write(&xz, [&b"\xfd7zXZ\0\0\x04"[..], &data].concat()).unwrap();
    let bzip2 = server.base().join("image.tar.bz2");
    std::fs::write(&bzip2, [&b"BZh9\x31\x41\x59\x26\x53\x59"[..], &data].concat()).unwrap();
    let (xz, bzip2) = (xz.to_str().unwrap(), bzip2.to_str().unwrap());
    for (path, why) in [
        (
            xz,
            format!("compressed by xz, which is not read here: `xz -dc {xz} | gzip >NEW.tar.gz` converts it"),
        ),
        (bzip2, format!("compressed by bzip2, which is not read here: `bzip2 -dc {bzip2} | gzip")),
        ("/etc", "no root file system".to_owned()),
        ("/nowhere/at/all", "/nowhere/at/all".to_owned()),
    ] {
        let image = ImageRef { uri: path.to_owned(), ..Default::default() };
        let error = message(client.create(&ContainerSpec { image, ..Default::default() }).await);
        assert!(error.contains(&why), "{error}");
        for command in [&["image", "import", path][..], &["rootfs", "create", path, "x"]] {
            let error = place.fail(command);
            assert!(error.contains(&why), "{command:?}: {error}");
        }
    }
    server.finish().await;
}

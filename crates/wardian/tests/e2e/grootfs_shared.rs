//! One store for a server and for the program under the name `grootfs`.

use crate::cli::{Place, Said};
use crate::grootfs_images::tar;
use crate::support::{Server, WARDIAN, names};
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use wardian_garden::wire::ContainerSpec;

fn grootfs(store: &Path, args: &[&str]) -> Said {
    let mut command = Command::new(WARDIAN);
    command.arg0("grootfs").arg("--store").arg(store).args(args).env_remove("WARDIAN_LOG");
    let said = Said::from(command.output().unwrap());
    assert!(said.code == Some(0) && said.err.is_empty(), "{args:?}: {said:?}");
    said
}

#[tokio::test]
async fn layers_are_there_for_both() {
    let mut server = Server::start().await;
    let (place, root, image) = (Place::of(&server), server.root(), server.image());
    let image = image.to_str().unwrap();
    server.create("c").await;
    let layers = || names(&root.join("layers"));
    let before = layers();
    assert_eq!(before.len(), 1);
    // What the server has, grootfs has.
    grootfs(&root, &["init-store"]);
    let made = grootfs(&root, &["create", image, "one"]);
    assert!(made.out.contains(root.join("images/one/rootfs").to_str().unwrap()), "{made:?}");
    assert!(root.join("images/one/rootfs/bin/busybox").is_file());
    assert_eq!(layers(), before);
    // Records are in the server's run directory, and its commands know it.
    let ids: Vec<_> = names(&server.run().join("rootfs"));
    assert!(ids.iter().any(|id| id.ends_with("grootfs-one.json")), "{ids:?}");
    let all = place.json(&["rootfs", "list"]);
    assert!(all.as_array().unwrap().iter().any(|rootfs| rootfs["published"] == "one"), "{all}");
    // A layer that is not on the disk yet would not be trusted after a kill.
    let durable = |layer: &String| {
        let record = fs::read_to_string(Path::new(layer).join("layer.json")).unwrap_or_default();
        record.contains("\"durable\":true")
    };
    place.until("a layer is not durable", |_| layers().iter().all(durable));
    // It is not the server's, which keeps it.
    server.kill9();
    server.restart().await;
    assert!(root.join("images/one/rootfs/bin/busybox").is_file());
    assert_eq!(grootfs(&root, &["list"]).out, format!("{}\n", root.join("images/one").display()));
    // Nor is a container's root file system one of grootfs.
    let container =
        names(&server.run().join("rootfs")).into_iter().find(|id| !id.contains("grootfs-")).unwrap();
    let id = Path::new(&container).file_stem().unwrap().to_str().unwrap().to_owned();
    assert!(grootfs(&root, &["delete", &id]).out.contains("Skipping delete."));
    // What grootfs has, the server has.
    let other = server.base().join("other.tar");
    fs::write(&other, tar(&[("bin/", b""), ("etc/", b""), ("x", b"x")])).unwrap();
    let other = other.to_str().unwrap();
    grootfs(&root, &["create", "--without-mount", other, "two"]);
    let both = layers();
    assert_eq!(both.len(), 2);
    server.kill9();
    server.restart().await;
    assert_eq!(grootfs(&root, &["list"]).out.lines().count(), 2);
    let spec = ContainerSpec { handle: "d".into(), rootfs: other.into(), ..ContainerSpec::default() };
    server.client().create(&spec).await.unwrap();
    assert_eq!(layers(), both);
    for id in ["one", "two"] {
        assert_eq!(grootfs(&root, &["delete", id]).out, format!("Image {id} deleted\n"));
    }
    assert!(grootfs(&root, &["clean"]).out.contains("clean completed"));
    // The containers' layers are in use.
    assert_eq!(layers(), both);
    assert_eq!(names(&root.join("images")), Vec::<String>::new());
    server.finish().await;
}

//! Where a bind mount may be shown.

use crate::escape::image;
use crate::support::{Server, listen, message, say, script};
use wardian_garden::wire::{BindMount, ContainerSpec, ImageRef, ProcessSpec};

/// A mount over the root is not what is seen as the root afterwards, but what `..` and `/` disagree about.
#[tokio::test]
async fn a_links_way_to_the_root_is_refused() {
    let server = Server::start().await;
    let client = server.client();
    let source = server.base().join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("file"), "shown").unwrap();
    let link = |name: &str, target: &str| (name.to_owned(), target.to_owned());
    let links = [link("data", "/"), link("up", "tmp/../.."), link("ok", "/tmp")];
    let image = ImageRef { uri: image(&server, "", &links, &[]), ..Default::default() };
    let bind = |path: &str| {
        let src_path = source.to_str().unwrap().to_owned();
        vec![BindMount { src_path, dst_path: path.to_owned(), ..Default::default() }]
    };
    let spec = |path: &str, privileged| {
        let (handle, image, bind_mounts) = ("c".into(), image.clone(), bind(path));
        ContainerSpec { handle, image, bind_mounts, privileged, ..Default::default() }
    };
    for path in ["/data", "/up", "/ok/..", "/data/data"] {
        for privileged in [false, true] {
            let error = message(client.create(&spec(path, privileged)).await);
            assert!(error.contains("the root of the container"), "{path}: {error}");
        }
    }
    client.create(&spec("/ok", false)).await.unwrap();
    assert_eq!(say(&client, "c", "cat /tmp/file").await, "shown");
    let pea = ProcessSpec { image: image.clone(), bind_mounts: bind("/data"), ..script("true") };
    let error = message(client.run("c", &pea, listen()).await);
    assert!(error.contains("the root of the container"), "{error}");
    server.finish().await;
}

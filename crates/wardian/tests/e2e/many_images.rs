//! What a server takes for many images at once, and for images of many layers.

use crate::hostile_images::{Blob, create, layout};
use crate::support::{Server, message, tar_of};
use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

/// Compressed with a window as large as most image builders choose.
fn zstd(data: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(23).unwrap();
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// An address of an image of so many layers, none of which another image has.
fn image(server: &Server, name: &str, layers: usize, bytes: usize) -> String {
    let zeros = vec![0; bytes];
    let tars: Vec<_> =
        (0..layers).map(|n| tar_of(&[(&format!("{name}-{n}"), &zeros), ("who", name.as_bytes())])).collect();
    let blobs: Vec<_> = tars.iter().map(|tar| zstd(tar)).collect();
    let blobs = blobs.iter().zip(&tars);
    let layers: Vec<_> = blobs.map(|(stored, tar)| Blob { stored, tar, urls: Vec::new() }).collect();
    let dir = server.base().join(name);
    fs::create_dir(&dir).unwrap();
    layout(&dir, &layers)
}

/// Each takes a window of 8 MiB and buffers. All at once would be a gigabyte.
#[tokio::test(flavor = "multi_thread")]
async fn the_memory_for_all_unpacks_is_bounded() {
    let server = Server::start().await;
    let images: Vec<_> = (0..24).map(|n| image(&server, &format!("image-{n}"), 4, 9 << 20)).collect();
    let creates: Vec<_> = images
        .into_iter()
        .enumerate()
        .map(|(n, image)| {
            let client = server.client();
            tokio::spawn(async move { create(&client, &format!("c{n}"), &image).await })
        })
        .collect();
    for create in creates {
        create.await.unwrap().unwrap();
    }
    let peak = server.memory("VmHWM");
    assert!(peak < 400 << 10, "{peak} KiB");
    for n in 0..24 {
        server.client().destroy(&format!("c{n}")).await.unwrap();
    }
    server.finish().await;
}

/// What was opened for images that nobody uses is closed again.
#[tokio::test(flavor = "multi_thread")]
async fn the_descriptors_of_layers_are_bounded() {
    let mut server = Server::start().await;
    server.terminate().await;
    let serve = server.command();
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n 512; exec \"$0\" \"$@\""]).arg(serve.get_program()).args(serve.get_args());
    limited.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    server.restart_as(limited).await;
    for round in 0..10 {
        let image = image(&server, &format!("image-{round}"), 50, 10);
        create(&server.client(), "c", &image).await.unwrap();
        server.client().destroy("c").await.unwrap();
    }
    let descriptors = server.settled_descriptors().await;
    assert!(descriptors < 400, "{descriptors}");
    // One alone may not take them all.
    let text = message(create(&server.client(), "c", &image(&server, "many", 65, 10)).await);
    assert!(text.contains("65 layers") && text.contains("LimitNOFILE"), "{text}");
    server.finish().await;
}

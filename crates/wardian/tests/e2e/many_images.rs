//! What a server takes for many images at once, and for images of many layers.

use crate::hostile_images::{Blob, create, layout};
use crate::support::{Server, tar_of};
use std::fs;
use std::io::Write as _;

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

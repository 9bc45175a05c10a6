//! Images whose makers mean no good: names, addresses, sizes.

use crate::cli::{Alone, Place, Said, saved};
use crate::support::{Server, digest, message, names, noise, say, tar_of};
use crate::web::Web;
use serde_json::{Value, json};
use std::fs;
use std::io::Write as _;
use std::path::Path;
use wardian_garden::Client;
use wardian_garden::wire::{ContainerSpec, ImageRef};

pub async fn create(client: &Client, handle: &str, image: &str) -> wardian_garden::Result<String> {
    let image = ImageRef { uri: image.into(), ..Default::default() };
    client.create(&ContainerSpec { handle: handle.into(), image, ..Default::default() }).await
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(data).unwrap();
    gzip.finish().unwrap()
}

/// A blob that a layout describes, and the tar in it.
pub struct Blob<'a> {
    pub stored: &'a [u8],
    pub tar: &'a [u8],
    pub urls: Vec<String>,
}

/// Writes an OCI layout of such layers; those with URLs are left out of it. Gives its address.
pub fn layout(dir: &Path, layers: &[Blob<'_>]) -> String {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |data: &[u8]| {
        fs::write(blobs.join(digest(data)), data).unwrap();
        json!({"digest": format!("sha256:{}", digest(data)), "size": data.len()})
    };
    let ids: Vec<_> = layers.iter().map(|layer| format!("sha256:{}", digest(layer.tar))).collect();
    let config = put(json!({"rootfs": {"type": "layers", "diff_ids": ids}}).to_string().as_bytes());
    let described = layers.iter().map(|layer| {
        let mut described = put(layer.stored);
        if !layer.urls.is_empty() {
            described["urls"] = layer.urls.clone().into();
            fs::remove_file(blobs.join(digest(layer.stored))).unwrap();
        }
        described
    });
    let manifest = json!({"config": config, "layers": described.collect::<Vec<_>>()});
    let index = json!({"manifests": [put(manifest.to_string().as_bytes())]});
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    format!("oci://{}", dir.display())
}

fn id_of(place: &Place, name: &str) -> (Value, Value) {
    let image: Value = serde_json::from_str(&place.say(&["image", "inspect", name])).unwrap();
    (image["id"].clone(), image["pinned"].clone())
}

#[test]
fn a_source_takes_no_name_that_another_image_has() {
    let alone = Alone::new();
    let place = &alone.place;
    let trusted = alone.write("trusted.tar", &saved(Some("trusted:1"), &[&tar_of(&[("a", b"trusted")])]));
    let evil = alone.write("evil.tar", &saved(Some("trusted:1"), &[&tar_of(&[("a", b"evil")])]));
    let first = place.json(&["image", "import", &trusted]);
    assert_eq!((&first["name"], &first["replaced"]), (&"trusted:1".into(), &json!([])));
    place.say(&["image", "pin", "trusted:1"]);
    let before = id_of(place, "trusted:1");

    // Nothing of it comes in.
    let text = place.fail(&["image", "import", &evil]);
    for says in ["trusted:1", &before.0.as_str().unwrap()[..12], "-t NAME", "--force"] {
        assert!(text.contains(says), "{says}: {text}");
    }
    let apart = place.wardian(&["image", "import", "--no-wait", &evil]);
    assert!(apart.code == Some(1) && apart.err.contains("--force"), "{apart:?}");
    assert_eq!(id_of(place, "trusted:1"), before);
    assert_eq!(place.names("layers").len(), 1);
    // The same image from elsewhere is no other one, and where it came from stays as it was.
    let copy = alone.write("copy.tar", &fs::read(&trusted).unwrap());
    assert_eq!(place.json(&["image", "import", &copy])["replaced"], json!([]));
    let inspected: Value = serde_json::from_str(&place.say(&["image", "inspect", "trusted:1"])).unwrap();
    assert!(inspected["source"].as_str().unwrap().contains("/trusted.tar"), "{inspected}");

    // Its own name is free to it.
    assert_eq!(place.json(&["image", "import", &evil, "-t", "other"])["replaced"], json!([]));
    // An operator may, and hears what was replaced; the pin is the name's.
    let said = place.wardian(&["image", "import", &evil, "-t", "trusted:1"]);
    let short = &before.0.as_str().unwrap()[..12];
    assert!(said.code == Some(0) && said.err.contains(short) && said.err.contains("pinned"), "{said:?}");
    let now = id_of(place, "trusted:1");
    assert!(now.0 != before.0 && now.1 == true, "{now:?}");
    let forced = place.json(&["image", "import", &trusted, "--force"]);
    assert_eq!(forced["replaced"], json!([{"name": "trusted:1", "id": now.0, "pinned": true}]));
    assert_eq!(id_of(place, "trusted:1"), before);
    // The same again is no replacement.
    assert_eq!(place.json(&["image", "import", &trusted, "--force"])["replaced"], json!([]));
    place.say(&["image", "rm", "--force", "trusted:1", "other"]);
    alone.finish();
}

#[test]
fn of_two_imports_at_once_one_gets_the_name() {
    let alone = Alone::new();
    let files: Vec<_> = (0..6_u8)
        .map(|n| alone.write(&format!("{n}.tar"), &saved(Some("wanted"), &[&tar_of(&[("a", &[n])])])))
        .collect();
    let imports: Vec<_> = files.iter().map(|file| alone.place.spawn(&["image", "import", file])).collect();
    let said: Vec<Said> =
        imports.into_iter().map(|import| import.wait_with_output().unwrap().into()).collect();
    let got: Vec<_> = said.iter().filter(|said| said.code == Some(0)).collect();
    assert_eq!(got.len(), 1, "{said:?}");
    for lost in said.iter().filter(|said| said.code != Some(0)) {
        assert!(lost.code == Some(1) && lost.err.contains("--force"), "{lost:?}");
    }
    let (id, _) = id_of(&alone.place, "wanted");
    assert!(got[0].out.contains(&id.as_str().unwrap()[..12]), "{said:?}");
    alone.place.say(&["image", "rm", "wanted"]);
    alone.place.say(&["store", "gc"]);
    alone.finish();
}

/// When the layers of a named image are gone, they come from where it came from: unless that is another image now.
#[test]
fn a_source_that_has_become_another_image_does_not_come_under_the_name() {
    let alone = Alone::new();
    let place = &alone.place;
    let write = |text: &[u8]| alone.write("a.tar", &saved(None, &[&tar_of(&[("a", text)])]));
    let file = write(b"first");
    let chain = place.json(&["image", "import", &file, "-t", "it"])["layers"][0]["chain_id"].clone();
    let lose = || fs::remove_dir_all(place.root.join("layers").join(chain.as_str().unwrap())).unwrap();
    lose();
    place.say(&["image", "prefetch", "it"]);
    lose();
    write(b"other");
    let text = place.fail(&["image", "prefetch", "it"]);
    assert!(text.contains("-t it"), "{text}");
    write(b"first");
    place.say(&["image", "prefetch", "it"]);
    place.say(&["image", "rm", "it"]);
    place.say(&["store", "gc"]);
    alone.finish();
}

/// An image in the store is known by its layers, whatever becomes of the file it was made of.
#[test]
fn a_named_image_outlives_its_file() {
    let alone = Alone::new();
    let place = &alone.place;
    let imported = place.json(&["image", "import", &alone.image(), "-t", "it"]);
    let file = fs::File::options().append(true).open(alone.image()).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let again = place.json(&["image", "prefetch", "it"]);
    assert_eq!((&again[0]["id"], &again[0]["fetched"]), (&imported["id"], &json!([])));
    fs::remove_file(alone.image()).unwrap();
    assert_eq!(place.json(&["image", "prefetch", "it"])[0]["fetched"], json!([]));
    place.say(&["image", "rm", "it"]);
    alone.finish();
}

#[tokio::test]
async fn an_image_sends_the_server_nowhere_without_leave() {
    let mut server = Server::start().await;
    let tar = fs::read(server.image()).unwrap();
    let blob = gzip(&tar);
    let web = Web::serve(blob.clone());
    let layer = Blob { stored: &blob, tar: &tar, urls: vec![web.url("/layer?SECRET")] };
    let uri = layout(&server.base().join("layout"), &[layer]);
    let host = web.url("").strip_prefix("http://").unwrap().to_owned();
    let client = server.client();
    let text = message(create(&client, "a", &uri).await);
    assert!(text.contains(&format!("--layer-hosts {host}")) && !text.contains("SECRET"), "{text}");
    let place = Place::of(&server);
    let (address, allow) = (uri.clone(), format!("--layer-hosts={host}"));
    let by_hand = move || {
        let text = place.fail(&["image", "import", &address, "-t", "a"]);
        assert!(text.contains("--layer-hosts"), "{text}");
        let text =
            place.fail(&["image", "import", &address, "-t", "a", "--layer-hosts=127.0.0.1,localhost:1"]);
        assert!(text.contains("--layer-hosts"), "{text}");
        place
    };
    let place = tokio::task::spawn_blocking(by_hand).await.unwrap();
    assert_eq!(web.requests(), Vec::<String>::new());
    // What a client names itself needs no leave.
    let app = format!("{}?app={}&app_path=/srv", server.image().display(), web.url("/app"));
    create(&client, "app", &app).await.unwrap();
    assert_eq!(web.gets(), 1);
    server.kill9();
    server.args = vec![allow.clone()];
    server.restart().await;
    create(&server.client(), "a", &uri).await.unwrap();
    assert_eq!((web.gets(), say(&server.client(), "a", "echo there").await), (2, "there".into()));
    let by_hand = move || place.say(&["image", "import", &uri, "-t", "a", &allow]);
    tokio::task::spawn_blocking(by_hand).await.unwrap();
    server.finish().await;
}

#[tokio::test]
async fn many_layers_of_one_small_blob_are_refused() {
    let mut server = Server::start().await;
    let tar = tar_of(&[("zeros", &vec![0; 4 << 20])]);
    let blob = gzip(&tar);
    let layers: Vec<_> = (0..300).map(|_| Blob { stored: &blob, tar: &tar, urls: Vec::new() }).collect();
    let uri = layout(&server.base().join("layout"), &layers);
    let text = message(create(&server.client(), "a", &uri).await);
    assert!(text.contains("--max-image-ratio"), "{text}");
    // By the sum of their sizes too, before anything is read; and by what they are.
    let plain = tar_of(&[("noise", &noise(1 << 20))]);
    let layers: Vec<_> = (0..12).map(|_| Blob { stored: &plain, tar: &plain, urls: Vec::new() }).collect();
    let uri = layout(&server.base().join("plain"), &layers);
    for (args, says) in [
        (["--max-image-bytes=8M", "--max-image-entries=1"], "all layers"),
        (["--max-image-bytes=8M", "--max-image-entries=100"], "all layers"),
        (["--max-image-bytes=20M", "--max-image-entries=11"], "number of entries of all layers"),
    ] {
        server.kill9();
        server.args = args.map(str::to_owned).to_vec();
        server.restart().await;
        let text = message(create(&server.client(), "a", &uri).await);
        let advised =
            text.contains("`--max-image-bytes` allows more") || text.contains("`--max-image-entries` allows");
        assert!(text.contains(says) && advised, "{args:?}: {text}");
    }
    server.kill9();
    server.args.clear();
    server.restart().await;
    create(&server.client(), "a", &uri).await.unwrap();
    server.finish().await;
}

/// A long name in each of many entries of many layers: what an image says is not kept in memory.
#[tokio::test]
async fn what_an_image_says_is_not_kept_in_memory() {
    let server = Server::start().await;
    let parts: Vec<String> = (0..10).map(|n| format!("{n}").repeat(200)).collect();
    let name = parts.join("/");
    let mut tar = tar::Builder::new(Vec::new());
    for n in 0..15_000_u64 {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_mtime(n);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        tar.append_data(&mut header, &name, &b""[..]).unwrap();
    }
    let tar = tar.into_inner().unwrap();
    let blob = gzip(&tar);
    let four: Vec<_> = (0..4).map(|_| Blob { stored: &blob, tar: &tar, urls: Vec::new() }).collect();
    let uri = layout(&server.base().join("layout"), &four);
    let most = || {
        let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = most();
    // Whether it can be a container's root does not matter: it has no files.
    let _ = create(&server.client(), "a", &uri).await;
    assert_eq!(names(&server.root().join("layers")).len(), 4, "{}", server.log());
    // The names alone are 30 MB for each layer.
    let grown = most() - before;
    assert!(grown <= 40 << 10, "it has grown by {grown} KiB");
    server.finish().await;
}

//! What an image says of a layer that is in the store already: nobody reads it, so nothing of it is known to be true.

use crate::cli::Alone;
use crate::support::{digest, tar_of};
use serde_json::json;
use std::fs;
use std::io::Write as _;
use std::path::Path;

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(data).unwrap();
    gzip.finish().unwrap()
}

/// Writes an OCI layout of such tars, compressed; each with the size that the manifest says its blob has, if that is not
/// the true one. Gives its address.
fn layout(dir: &Path, layers: &[(&[u8], Option<u64>)]) -> String {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |data: &[u8]| {
        fs::write(blobs.join(digest(data)), data).unwrap();
        json!({"digest": format!("sha256:{}", digest(data)), "size": data.len()})
    };
    let ids: Vec<_> = layers.iter().map(|(tar, _)| format!("sha256:{}", digest(tar))).collect();
    let config = put(json!({"rootfs": {"type": "layers", "diff_ids": ids}}).to_string().as_bytes());
    let described = layers.iter().map(|(tar, size)| {
        let mut described = put(&gzip(tar));
        if let Some(size) = size {
            described["size"] = (*size).into();
        }
        described
    });
    let manifest = json!({"config": config, "layers": described.collect::<Vec<_>>()});
    let index = json!({"manifests": [put(manifest.to_string().as_bytes())]});
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    format!("oci://{}", dir.display())
}

/// A gigabyte of which nobody has seen a byte would allow two hundred more.
#[test]
fn a_false_size_does_not_lift_the_ratio() {
    let alone = Alone::new();
    let place = &alone.place;
    let (base, top) = (tar_of(&[("a", &vec![0; 200 << 20])]), tar_of(&[("b", &vec![0; 160 << 20])]));
    let small = layout(Path::new(&alone.path("small")), &[(&base, None)]);
    place.say(&["image", "import", &small, "-t", "small"]);
    for (name, size) in [("evil", Some(1 << 30)), ("honest", None)] {
        let uri = layout(Path::new(&alone.path(name)), &[(&base, size), (&top, None)]);
        let text = place.fail(&["image", "import", &uri, "-t", name]);
        assert!(text.contains("--max-image-ratio"), "{name}: {text}");
    }
    assert_eq!(place.names("layers").len(), 1);
    let honest = format!("oci://{}", alone.path("honest"));
    place.say(&["image", "import", &honest, "-t", "big", "--max-image-ratio=0"]);
    place.say(&["image", "rm", "small", "big"]);
    alone.finish();
}

/// A layer with holes in its files takes no more of the ratio when it is there than when it is unpacked, and none if it is
/// not known how it was packed.
#[test]
fn holes_of_a_layer_that_is_there_are_not_counted() {
    let alone = Alone::new();
    let place = &alone.place;
    let mut hole = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_path("hole").unwrap();
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(512);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(2 << 30);
    gnu.sparse[0].set_offset(0);
    gnu.sparse[0].set_length(512);
    header.set_cksum();
    hole.append(&header, &[7; 512][..]).unwrap();
    let hole = hole.into_inner().unwrap();
    let base = layout(Path::new(&alone.path("base")), &[(&hole, None)]);
    let imported = place.json(&["image", "import", &base, "-t", "base"]);
    let with_top = |name: &str| {
        let top = tar_of(&[(name, b"top")]);
        layout(Path::new(&alone.path(name)), &[(&hole, None), (&top, None)])
    };
    place.say(&["image", "import", &with_top("one"), "-t", "one"]);
    // As earlier versions have left it.
    let chain = imported["layers"][0]["chain_id"].as_str().unwrap();
    let file = place.root.join("layers").join(chain).join("layer.json");
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert!(record.as_object_mut().unwrap().remove("packed").is_some(), "{record}");
    fs::write(&file, record.to_string()).unwrap();
    place.say(&["image", "import", &with_top("two"), "-t", "two"]);
    place.say(&["image", "rm", "base", "one", "two"]);
    alone.finish();
}

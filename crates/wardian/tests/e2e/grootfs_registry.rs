//! `create` of the program under the name `grootfs` with images from registries.

use crate::docker_registry::{DOCKER, Image, PASSWORD, Registry};
use crate::fake_server::fake;
use crate::grootfs::{SOON, World, inside, root};
use crate::grootfs_images::{gzip, tar};
use crate::support::{digest, names, noise};
use serde_json::json;
use std::fs;
use std::io::Write as _;
use std::process::Stdio;
use std::time::Instant;
use wardian_needs::needs;

fn end(world: World, ids: &[&str]) {
    for id in ids {
        assert_eq!(world.say(&format!("delete {id}")), format!("Image {id} deleted\n"));
    }
    world.until_clean();
    assert_eq!(world.mounts(), Vec::<String>::new());
    world.finish();
}

fn layers(world: &World) -> usize {
    names(&world.path("st/layers")).len()
}

/// Waits until there are so many layers.
fn until_layers(world: &World, count: usize) {
    let started = Instant::now();
    while layers(world) != count {
        assert!(started.elapsed() < SOON, "{} layers, and not {count}", layers(world));
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// An image whose first layer has a file `one`, and whose second one has `two` with this content.
fn two(content: &[u8]) -> Image {
    Image::of(&[&tar(&[("one", b"1")]), &tar(&[("two", content)])])
}

#[test]
fn an_image_of_a_registry_becomes_a_root_file_system() {
    needs!(Registry);
    let world = World::new();
    let registry = Registry::start();
    world.say("init-store");
    let busybox = world.path("busybox.tar");
    wardian_lab::image::build(&busybox).unwrap();
    let image = Image::of(&[&fs::read(&busybox).unwrap(), &tar(&[("two", b"2")])]);
    registry.push("library/thing", "latest", &image);
    let uri = format!("docker://{}", registry.name("library/thing"));
    let answer = world.create(&format!("--insecure-registry {} {uri} a", registry.host));
    // The config and the layers.
    let asked = registry.asked_blobs();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert_eq!(root(&answer), world.path("st/images/a/rootfs"));
    assert_eq!(answer["process"]["env"], json!(["IN_IMAGE=yes"]));
    let path = inside(&world, &root(&answer));
    assert_eq!(fs::read(path.join("two")).unwrap(), b"2");
    let at = world.path("st/images/a/rootfs");
    let listed = world.shell(&format!("chroot --userspec=12345:54321 {} /bin/busybox ls /", at.display()));
    assert!(listed.code == Some(0) && listed.out.lines().any(|line| line == "bin"), "{listed:?}");
    // The layers are used again, by whatever name: as with GrootFS, the registry is asked what the tag stands for.
    world.docker_hub_is(&registry.host);
    for (uri, id) in [("docker:///thing", "b"), ("docker:///library/thing:latest", "c")] {
        world.create(&format!("{uri} {id}"));
        let asked = registry.asked_blobs();
        assert!(asked.len() == 1 && layers(&world) == 2, "{uri}: {asked:?}");
    }
    // It has no name that would keep it.
    end(world, &["a", "b", "c"]);
}

#[test]
fn layers_of_registries_are_cleaned_as_others() {
    needs!(Registry);
    let world = World::new();
    let registry = Registry::start();
    world.say("init-store");
    registry.push("first", "latest", &two(b"first"));
    registry.push("second", "latest", &two(b"second"));
    registry.push("third", "latest", &Image::of(&[&tar(&[("third", b"3")])]));
    let uri = |name: &str| format!("docker://{}", registry.name(name));
    world.create(&format!("{} first", uri("first")));
    world.create(&format!("--without-clean {} second", uri("second")));
    assert_eq!(layers(&world), 3);
    world.say("delete first");
    // The layer that the first one had alone goes.
    world.create(&format!("--with-clean {} third", uri("third")));
    until_layers(&world, 3);
    for id in ["second", "third"] {
        world.say(&format!("delete {id}"));
    }
    assert_eq!(world.say("clean"), "clean completed\n");
    until_layers(&world, 0);
    end(world, &[]);
}

#[test]
fn a_private_image_takes_the_login_of_the_command_line() {
    needs!(Registry);
    let world = World::new();
    let registry = Registry::with_password();
    world.say("init-store");
    registry.push("private", "latest", &two(b"2"));
    let uri = format!("docker://{}", registry.name("private"));
    let said = world.fail(&format!("create {uri} none"));
    assert!(
        said.contains("does not exist or you do not have permissions to see it.")
            && said.contains("requested access to the resource is denied"),
        "{said}"
    );
    let said = world.fail(&format!("create --username user --password geheim {uri} wrong"));
    assert!(!said.contains("geheim") && said.contains("private"), "{said}");
    let command = format!(
        "exec grootfs --store {} --log-level debug create --username user --password '{PASSWORD}' {uri} right",
        world.path("st").display()
    );
    let said = world.shell(&command);
    assert!(said.code == Some(0) && said.err.contains("groot-creating"), "{said:?}");
    assert!(!said.err.contains(PASSWORD) && !said.err.contains("dXNlcjpwYXNzIHdvcmQ"), "{said:?}");
    // Whoever has no login does not get it because others had one.
    assert!(world.fail(&format!("create {uri} none")).contains("denied"));
    end(world, &["right"]);
}

#[test]
fn what_registries_refuse_is_told_in_grootfs_words() {
    needs!(Registry);
    let world = World::new();
    let registry = Registry::start();
    world.say("init-store");
    let image = two(b"2");
    registry.push("thing", "latest", &image);
    let tls = registry.door_with_tls();
    let insecure = "This registry is insecure. To pull images from this registry, please use the --insecure-registry option.\n";
    assert_eq!(world.fail(&format!("create docker://{tls}/thing a")), insecure);
    assert_eq!(
        world.fail(&format!("create --insecure-registry other:5000 docker://{tls}/thing a")),
        insecure
    );
    world.create(&format!("--insecure-registry {tls} docker://{tls}/thing a"));
    // By the configuration; a flag takes its place.
    fs::write(world.path("c.yml"), format!("create:\n  insecure_registries: [\"{tls}\"]\n")).unwrap();
    let config = world.path("c.yml").display().to_string();
    world.say(&format!("--config {config} create docker://{tls}/thing b"));
    let said = world
        .fail(&format!("--config {config} create --insecure-registry other:5000 docker://{tls}/thing c"));
    assert_eq!(said, insecure);
    let name = registry.name("nope");
    assert_eq!(
        world.fail(&format!("create docker://{name} c")),
        format!(
            "fetching image reference: creating image: creating image source: reading manifest latest in {name}: manifest \
             unknown\n"
        )
    );
    // A registry that is none, in the configuration, is no matter of a delete.
    fs::write(world.path("c.yml"), "create:\n  insecure_registries: [\"http://x\"]\n").unwrap();
    let said = world.fail(&format!("--config {config} create docker://{tls}/thing c"));
    assert!(said.contains("invalid insecure registry") && said.contains("http://x"), "{said}");
    assert_eq!(world.say(&format!("--config {config} delete b")), "Image b deleted\n");
    // A blob that is gone.
    fs::remove_file(registry.blob(&image.layers[1])).unwrap();
    world.say("delete a");
    world.say("clean");
    until_layers(&world, 0);
    let said = world.fail(&format!("create docker://{} c", registry.name("thing")));
    assert!(said.contains("fetching blob") && said.contains("blob unknown to registry"), "{said}");
    end(world, &[]);
}

#[test]
fn a_limit_counts_the_layers_of_the_manifest() {
    needs!(Registry, Loop);
    let world = World::new();
    let registry = Registry::start();
    world.say("init-store");
    registry.push(
        "big",
        "latest",
        &Image::of(&[&tar(&[("a", &noise(4 << 20))]), &tar(&[("b", &noise(4 << 20))])]),
    );
    let uri = format!("docker://{}", registry.name("big"));
    for limit in ["10", "7340032"] {
        registry.asked();
        let said = world.fail(&format!("create --disk-limit-size-bytes {limit} {uri} a"));
        assert!(
            said.starts_with("pulling the image: layers exceed disk quota ")
                && said.contains(&format!("/{limit} bytes")),
            "{said}"
        );
        assert!(registry.asked_blobs().len() <= 1, "no layer");
    }
    world.create(&format!("--disk-limit-size-bytes 10 --exclude-image-from-quota {uri} a"));
    world.create(&format!("--disk-limit-size-bytes 7340032 --exclude-image-from-quota {uri} b"));
    // The private one's manifest is asked for with the login, too.
    end(world, &["a", "b"]);
}

#[test]
fn a_damaged_layer_of_a_registry_is_refused() {
    needs!(Registry);
    let world = World::new();
    let registry = Registry::start();
    world.say("init-store");
    let image = two(b"2");
    registry.push("thing", "latest", &image);
    let mut damaged = image.layers[1].clone();
    let last = damaged.len() - 1;
    damaged[last] ^= 0xff;
    fs::write(registry.blob(&image.layers[1]), &damaged).unwrap();
    let uri = format!("docker://{}", registry.name("thing"));
    for flags in ["", "--skip-layer-validation"] {
        let said = world.fail(&format!("create {flags} {uri} a"));
        assert!(said.starts_with("pulling the image: "), "{said}");
        assert!(layers(&world) <= 1, "the first layer may stay");
    }
    // A diff id that is another's.
    let (good, other) = (tar(&[("good", b"x")]), tar(&[("other", b"x")]));
    let bogus = format!("sha256:{}", digest(&other));
    registry.push("bogus", "latest", &Image::made(DOCKER, vec![gzip(&good)], &[bogus], &json!({})));
    world.say("clean");
    until_layers(&world, 0);
    let said = world.fail(&format!("create docker://{} a", registry.name("bogus")));
    assert!(said.contains("diffID digest mismatch"), "{said}");
    assert_eq!(layers(&world), 0);
    end(world, &[]);
}

/// No registry of today serves it, so a few lines do.
#[test]
fn schema_1_is_refused() {
    let world = World::new();
    world.say("init-store");
    let address = fake(|line, stream| {
        let manifest =
            r#"{"schemaVersion":1,"name":"old","tag":"latest","fsLayers":[],"history":[],"signatures":[]}"#;
        let body = if line.contains("/manifests/") { manifest } else { "{}" };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.distribution.manifest.v1+prettyjws\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let _ = stream.write_all((head + body).as_bytes());
    });
    let host = address.trim_start_matches("tcp:");
    // A client that speaks TLS sends no end of a head, and is not waited for.
    let said = world.fail(&format!("create docker://{host}/old a"));
    assert!(
        said.contains("fetching image reference") && said.contains("converting V1 schema failed"),
        "{said}"
    );
    assert_eq!(layers(&world), 0);
    end(world, &[]);
}

#[test]
fn a_slow_registry_holds_up_nobody_else() {
    needs!(Registry);
    let world = World::new();
    let (slow, fast) = (Registry::start(), Registry::start());
    world.say("init-store");
    slow.push("thing", "latest", &Image::of(&[&tar(&[("slow", &noise(1 << 20))])]));
    fast.push("thing", "latest", &two(b"2"));
    slow.hold(Some(64 << 10));
    let command = format!(
        "exec grootfs --store {} create docker://{} slow",
        world.path("st").display(),
        slow.name("thing")
    );
    let mut held = world.command(&command).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while slow.asked_blobs().is_empty() {
        assert!(started.elapsed() < SOON);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    world.create(&format!("docker://{} fast", fast.name("thing")));
    assert_eq!(held.try_wait().unwrap(), None);
    slow.hold(None);
    assert_eq!(held.wait().unwrap().code(), Some(0));
    end(world, &["slow", "fast"]);
}

/// A layer is unpacked while it comes: it is never whole in memory.
#[test]
fn a_big_image_of_a_registry_takes_little_memory() {
    needs!(Registry);
    let world = World::new();
    let registry = Registry::start();
    world.say("init-store");
    registry.push("big", "latest", &Image::of(&[&tar(&[("big", &noise(120 << 20))])]));
    let command = format!(
        "exec grootfs --store {} create docker://{} big",
        world.path("st").display(),
        registry.name("big")
    );
    let mut child = world.command(&command).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut peak = 0;
    let code = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak = line
            .and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or(peak)
            .max(peak);
        std::thread::sleep(std::time::Duration::from_millis(1));
    };
    assert_eq!(code, Some(0));
    assert!(peak > 0 && peak < 50 << 10, "{peak} KiB");
    end(world, &["big"]);
}

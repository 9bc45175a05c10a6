//! `wardian image`.

use crate::cli::{Alone, Place, Said, many_files, saved};
use crate::support::{Server, noise, signal, tar_of};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|value| value.as_str().unwrap()).collect()
}

/// An image comes, is seen and goes.
fn life(place: &Place, image: &str) {
    let imported = place.json(&["image", "import", image, "-t", "reg.example:5000/bb:1"]);
    assert_eq!(imported["name"], "reg.example:5000/bb:1");
    let layer = &imported["layers"][0];
    assert_eq!(
        (&layer["durable"], &layer["suspect"], &layer["fetched"]),
        (&true.into(), &false.into(), &true.into())
    );
    let again = place.json(&["image", "import", image, "--tag=two"]);
    assert_eq!(again["layers"][0]["fetched"], false);
    assert_eq!(again["id"], imported["id"]);

    let text = place.say(&["image", "ls"]);
    let id = imported["id"].as_str().unwrap();
    assert!(
        text.lines().any(|l| l.starts_with("reg.example:5000/bb:1  ") && l.contains(&id[..12])),
        "{text}"
    );
    assert_eq!(place.images(), ["reg.example:5000/bb:1", "two"]);
    let inspected: Value = serde_json::from_str(&place.say(&["image", "inspect", "two"])).unwrap();
    assert_eq!((&inspected["id"], &inspected["pinned"]), (&imported["id"], &false.into()));
    assert_eq!(inspected["layers"][0]["chain_id"], layer["chain_id"]);
    assert_eq!(inspected["source"], format!("tar://{image}"));

    // The layer has another name.
    let removed = place.json(&["image", "rm", "two"]);
    assert_eq!(strings(&removed[0]["layers"]), Vec::<&str>::new());
    assert_eq!(place.names("layers").len(), 1);
    let text = place.say(&["image", "rm", "reg.example:5000/bb:1"]);
    assert!(text.contains("in 1 layer"), "{text}");
    assert_eq!((place.names("layers"), place.images()), (vec![], vec![]));
    place.until("the layer is still in the trash", |place| place.names("trash").is_empty());
}

#[test]
fn an_image_without_a_server() {
    let alone = Alone::new();
    life(&alone.place, &alone.image());
    alone.finish();
}

#[tokio::test]
async fn an_image_beside_a_server() {
    let server = Server::start().await;
    let (place, image) = (Place::of(&server), server.image());
    tokio::task::spawn_blocking(move || life(&place, image.to_str().unwrap())).await.unwrap();
    server.finish().await;
}

#[test]
fn an_image_has_the_name_that_its_source_gives_it() {
    let alone = Alone::new();
    let layer = tar_of(&[("a", b"x")]);
    let file = alone.write("saved.tar", &saved(Some("reg.example/app:v2"), &[&layer]));
    assert_eq!(alone.place.json(&["image", "import", &file])["name"], "reg.example/app:v2");
    let inspected: Value =
        serde_json::from_str(&alone.place.say(&["image", "inspect", "reg.example/app:v2"])).unwrap();
    assert_eq!(inspected["config"]["config"]["Env"][0], "A=b");
    assert_eq!(alone.place.json(&["image", "import", &file, "-t", "mine"])["name"], "mine");
    // A name that could not be one in the store is none.
    for name in ["../evil", "a b", ""] {
        let file = alone.write("bad.tar", &saved(Some(name), &[&layer]));
        let said = alone.place.wardian(&["image", "import", &file]);
        assert!(said.code == Some(0) && said.err.contains("no name"), "{name:?}: {said:?}");
    }
    // Nor has a bare tar one; from another directory it is found by a relative path.
    let said: Said = alone
        .place
        .command(&["image", "import", "image.tar"])
        .current_dir(Path::new(&alone.image()).parent().unwrap())
        .output()
        .unwrap()
        .into();
    assert!(said.code == Some(0) && said.err.contains("no name"), "{said:?}");
    assert_eq!(alone.place.images(), ["mine", "reg.example/app:v2"]);
    alone.place.say(&["store", "gc"]);
    alone.finish();
}

#[test]
fn names_and_sources_that_are_none_are_refused() {
    let alone = Alone::new();
    for name in ["", "../a", "/a", "a b", "a\nb", "oci://x", "-x", &"a".repeat(513)] {
        let tag = format!("--tag={name}");
        let text = alone.place.fail(&["image", "import", &alone.image(), &tag]);
        assert!(text.contains("is no name for an image"), "{name:?}: {text}");
        for command in ["rm", "pin", "inspect"] {
            assert!(!alone.place.fail(&["image", command, "--", name]).is_empty());
        }
    }
    for text in ["busybox", "docker://busybox", "docker:///a/b#c"] {
        assert!(
            alone.place.fail(&["image", "import", text]).contains("`wardian image pull` fetches"),
            "{text}"
        );
    }
    assert!(alone.place.fail(&["image", "import", "docker://busybox", "-t", "mine"]).contains("blocked"));
    assert!(alone.place.fail(&["image", "import", "/dev/null/x"]).contains("/dev/null/x"));
    assert!(alone.place.fail(&["image", "import", "/etc"]).contains("no OCI layout"));
    let damaged = alone.write("damaged.tar", &noise(2000));
    assert!(!alone.place.fail(&["image", "import", &damaged]).is_empty());
    assert_eq!(alone.place.wardian(&["image", "import"]).code, Some(2));
    assert_eq!(alone.place.wardian(&["image", "ls", "--bad"]).code, Some(2));
    assert_eq!((alone.place.images(), alone.place.names("layers")), (vec![], vec![]));
    alone.finish();
}

#[test]
fn one_of_many_processes_unpacks() {
    let alone = Alone::new();
    let big = alone.path("big.tar");
    many_files(Path::new(&big), 3000);
    let imports: Vec<_> = (0..4)
        .map(|n| alone.place.spawn(&["image", "import", &big, "--json", "-t", &format!("n{n}")]))
        .collect();
    let mut fetched = 0;
    for import in imports {
        let said = Said::from(import.wait_with_output().unwrap());
        assert_eq!(said.code, Some(0), "{said:?}");
        let said: Value = serde_json::from_str(&said.out).unwrap();
        assert_eq!(said["layers"][0]["durable"], true);
        fetched += usize::from(said["layers"][0]["fetched"] == true);
    }
    assert_eq!(fetched, 1);
    assert_eq!(alone.place.images(), ["n0", "n1", "n2", "n3"]);
    alone.place.say(&["image", "rm", "n0", "n1", "n2", "n3"]);
    alone.finish();
}

#[test]
fn who_does_not_wait_is_not_kept() {
    let alone = Alone::new();
    let big = alone.path("big.tar");
    many_files(Path::new(&big), 3000);
    let said = alone.place.json(&["image", "import", &big, "--no-wait", "-t", "big"]);
    let chain = said["layers"][0]["chain_id"].as_str().unwrap().to_owned();
    // Usable at once, by other processes too.
    let path = alone.place.say(&["rootfs", "create", "big", "r"]);
    assert!(Path::new(path.trim_end()).join("5").exists());
    let record = alone.place.root.join("layers").join(chain).join("layer.json");
    let is_durable = || std::fs::read_to_string(&record).unwrap().contains("\"durable\":true");
    alone.place.until("it is not written to the disk", |_| is_durable());
    alone.place.say(&["rootfs", "delete", "r"]);
    let wrong = alone.place.wardian(&["image", "import", "/nonexistent.tar", "--no-wait"]);
    assert!(wrong.code == Some(1) && wrong.err.contains("/nonexistent.tar"), "{wrong:?}");
    alone.place.say(&["image", "rm", "big"]);
    alone.finish();
}

/// Starts an import and sends it a signal while it unpacks.
fn interrupted(place: &Place, image: &str, with: Signal) -> Said {
    let import = place.spawn(&["image", "import", image, "-t", "half"]);
    place.until("nothing is unpacked", |place| {
        place.names("staging").iter().any(|dir| Path::new(dir).join("fs/5").exists())
    });
    signal(import.id(), with);
    import.wait_with_output().unwrap().into()
}

#[test]
fn an_import_that_is_cancelled_leaves_nothing() {
    let alone = Alone::new();
    let big = alone.path("big.tar");
    many_files(Path::new(&big), 60_000);
    for (with, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let said = interrupted(&alone.place, &big, with);
        assert!(said.code == Some(code) && said.out.is_empty(), "{said:?}");
        assert!(said.err.contains("interrupted"), "{said:?}");
        // Nobody has to ask for the deletion.
        alone.place.until_clean();
        assert_eq!((alone.place.images(), alone.place.names("layers")), (vec![], vec![]));
    }
    alone.finish();
}

#[test]
fn what_a_killed_import_leaves_the_next_one_clears() {
    let alone = Alone::new();
    let big = alone.path("big.tar");
    many_files(Path::new(&big), 20_000);
    let said = interrupted(&alone.place, &big, Signal::KILL);
    assert_eq!(said.code, None);
    assert!(!alone.place.names("staging").is_empty());
    assert_eq!(alone.place.json(&["image", "import", &big, "-t", "whole"])["layers"][0]["entries"], 20_000);
    assert_eq!(alone.place.images(), ["whole"]);
    alone.finish();
}

#[tokio::test]
async fn what_a_killed_import_leaves_the_server_clears() {
    let server = Server::start().await;
    let big = server.base().join("big.tar");
    many_files(&big, 20_000);
    let place = Place::of(&server);
    let clears = move || {
        interrupted(&place, big.to_str().unwrap(), Signal::KILL);
        place.until("the half-made layer is still there", |place| place.names("staging").is_empty());
    };
    tokio::task::spawn_blocking(clears).await.unwrap();
    server.finish().await;
}

#[test]
fn an_image_that_is_exported_can_be_imported() {
    let alone = Alone::new();
    let (lower, upper) =
        (tar_of(&[("a", b"below"), ("b", b"gone")]), tar_of(&[("a", b"above"), (".wh.b", b"")]));
    let file = alone.write("saved.tar", &saved(Some("app"), &[&lower, &upper]));
    let place = &alone.place;
    let imported = place.json(&["image", "import", &file]);
    for (dest, format) in
        [("x.tar", ""), ("layout", ""), ("y", "--format=oci-archive"), ("z", "--format=docker-archive")]
    {
        let to = alone.path(dest);
        let args = ["image", "export", "app", &to, format];
        let args: Vec<&str> = args.into_iter().filter(|arg| !arg.is_empty()).collect();
        assert!(place.json(&args[..4])["id"].is_string());
        fs::rename(&to, alone.path("moved")).unwrap();
        place.json(&args);
        assert!(place.fail(&args).contains("exists"), "{dest}");
        let again = place.json(&["image", "import", &to, "--force"]);
        assert_eq!(again["name"], "app", "{dest}");
        let ids = |value: &Value| {
            value["layers"].as_array().unwrap().iter().map(|l| l["bytes"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(ids(&again), ids(&imported), "{dest}");
        let _ = fs::remove_dir_all(alone.path("moved")).or_else(|_| fs::remove_file(alone.path("moved")));
    }
    place.say(&["image", "export", "app", &alone.path("x.tar"), "--force"]);
    assert!(place.fail(&["image", "export", "app", &alone.path("layout"), "--force"]).contains("exists"));
    place.say(&["image", "export", "app", &alone.path("tree"), "--format", "dir"]);
    let again = place.fail(&["image", "export", "app", &alone.path("tree"), "--format", "dir", "--force"]);
    assert!(again.contains("does not exist or is empty; --force replaces files only"), "{again}");
    assert_eq!(fs::read(alone.path("tree/rootfs/a")).unwrap(), b"above");
    assert!(!Path::new(&alone.path("tree/rootfs/b")).exists());
    assert!(place.refuse(&["image", "export", "app", &alone.path("x.tar.gz")]).contains("not compressed"));
    assert!(place.fail(&["image", "export", "nope", &alone.path("n.tar")]).contains("image ls"));
    assert_eq!(place.wardian(&["image", "export", "app", "x", "--format", "zip"]).code, Some(2));
    place.say(&["store", "gc"]);
    alone.finish();
}

#[test]
fn standard_output_is_for_the_answer_alone() {
    let alone = Alone::new();
    let mut command = alone.place.command(&["image", "import", &alone.image(), "-t", "bb", "--json"]);
    let said = Said::from(command.env("WARDIAN_LOG", "trace").output().unwrap());
    serde_json::from_str::<Value>(&said.out).unwrap();
    let said =
        Said::from(alone.place.command(&["image", "rm", "bb"]).env("WARDIAN_LOG", "info").output().unwrap());
    assert!(said.err.contains("collected") && !said.out.contains("INFO"), "{said:?}");
    alone.finish();
}

#[test]
fn only_root_may() {
    let dir = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir()
        .unwrap();
    let program = dir.path().join("wardian");
    crate::support::copy_program(crate::support::WARDIAN, &program);
    let said: Said = Command::new(&program).args(["image", "ls"]).uid(65534).output().unwrap().into();
    assert!(said.code == Some(1) && said.err.contains("sudo"), "{said:?}");
}

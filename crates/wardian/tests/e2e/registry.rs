//! Images from a registry: by the server, and by `wardian image`.

use crate::cli::{Alone, Place, Said};
use crate::commands::{command, fails, ok};
use crate::docker_registry::{Image, PASSWORD, Registry};
use crate::support::{STUCK, Server, message, noise, pea, run, say, signal, tar_of};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use wardian_garden::wire::{ContainerSpec, ImageRef};
use wardian_needs::needs;

/// The image of busybox, with a file that tells it from others.
fn busybox(server: &Server, version: &str) -> Image {
    let base = fs::read(server.image()).unwrap();
    Image::of(&[&base, &tar_of(&[("version", version.as_bytes())])])
}

/// What a command in a new container of the image says.
fn version(server: &Server, pull: &str, image: &str) -> String {
    ok(server, &["run", "--rm", "--pull", pull, image, "cat", "/version"])
}

fn requests(expected: &[&str]) -> Vec<String> {
    expected.iter().map(|line| (*line).to_owned()).collect()
}

/// Names of the store's images.
fn images(server: &Server) -> Vec<String> {
    Place::of(server).images()
}

/// An image as a client names it.
fn image(uri: &str) -> ContainerSpec {
    ContainerSpec { image: ImageRef { uri: uri.into(), ..ImageRef::default() }, ..ContainerSpec::default() }
}

/// The same, with a login.
fn private(uri: &str, password: &str) -> ContainerSpec {
    let (username, password) = ("user".into(), password.into());
    ContainerSpec {
        image: ImageRef { uri: uri.into(), username, password, ..ImageRef::default() },
        ..image(uri)
    }
}

#[tokio::test]
async fn a_registry_is_asked_when_the_policy_says_so() {
    needs!(Registry);
    let server = Server::start().await;
    let registry = Registry::start();
    registry.push("a/busybox", "latest", &busybox(&server, "1"));
    let name = registry.name("a/busybox");
    assert_eq!(ok(&server, &["run", "--rm", &name, "cat", "/version"]), "1");
    let asked = registry.asked();
    assert_eq!(asked.len(), 4, "{asked:?}");
    assert_eq!(asked.iter().filter(|line| line.contains("/blobs/")).count(), 3, "{asked:?}");
    let full = format!("{name}:latest");
    assert_eq!(images(&server), [name.as_str()]);
    // It is there, and nobody is asked.
    assert_eq!(ok(&server, &["run", "--rm", &name, "sh", "-c", "echo $IN_IMAGE"]), "yes\n");
    for pull in ["missing", "never"] {
        assert_eq!(version(&server, pull, &full), "1");
    }
    assert_eq!(registry.asked(), requests(&[]));
    // One request tells that it is still the same.
    for pull in ["always", "newer"] {
        assert_eq!(version(&server, pull, &name), "1");
        assert_eq!(registry.asked(), requests(&["HEAD /v2/a/busybox/manifests/latest"]), "{pull}");
    }
    // The tag moves: only the layer that is another one is fetched, and the name is the new image's.
    registry.push("a/busybox", "latest", &busybox(&server, "2"));
    assert_eq!(version(&server, "missing", &name), "1");
    assert_eq!(registry.asked(), requests(&[]));
    assert_eq!(version(&server, "always", &name), "2");
    let asked = registry.asked_blobs();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert_eq!(version(&server, "never", &name), "2");
    assert_eq!(images(&server), [name.as_str()]);
    registry.push("a/busybox", "latest", &busybox(&server, "3"));
    assert_eq!(version(&server, "newer", &name), "3");
    // Nobody answers.
    registry.stop();
    for pull in ["missing", "never"] {
        assert_eq!(version(&server, pull, &name), "3", "{pull}");
    }
    let newer = ["run", "--rm", "--pull", "newer", &name, "cat", "/version"];
    let said = Said::from(command(&server, &newer).output().unwrap());
    assert_eq!((said.code, said.out.as_str()), (Some(0), "3"), "{said:?}");
    assert!(said.err.contains("no registry has told whether there is a newer image"), "{said:?}");
    let text = fails(&server, 125, &["run", "--rm", "--pull", "always", &name, "true"]);
    assert!(text.contains(&full), "{text}");
    let text = fails(&server, 125, &["run", "--rm", "--pull", "never", &registry.name("other"), "true"]);
    assert!(text.contains("not in the store") && text.contains("never"), "{text}");
    for pull in ["newer", "missing"] {
        let text = fails(&server, 125, &["run", "--rm", "--pull", pull, &registry.name("other"), "true"]);
        assert!(text.contains("/other"), "{text}");
    }
    for bad in [server.image().to_str().unwrap(), "./x.tar"] {
        let text = fails(&server, 2, &["run", "--rm", "--pull", "always", bad, "true"]);
        assert!(text.contains("not an image at a registry"), "{text}");
    }
    server.finish().await;
}

#[tokio::test]
async fn an_image_with_a_digest_is_asked_for_once() {
    needs!(Registry);
    let server = Server::start().await;
    let registry = Registry::start();
    let first = busybox(&server, "1");
    registry.push("b", "t", &first);
    let name = registry.name(&format!("b@{}", first.digest()));
    assert_eq!(version(&server, "missing", &name), "1");
    assert!(!registry.asked().is_empty());
    registry.push("b", "t", &busybox(&server, "2"));
    for pull in ["always", "newer", "missing", "never"] {
        assert_eq!(version(&server, pull, &name), "1", "{pull}");
    }
    assert_eq!(registry.asked(), requests(&[]));
    server.finish().await;
}

#[tokio::test]
async fn names_and_layers_outlive_the_server() {
    needs!(Registry);
    let mut server = Server::start().await;
    let registry = Registry::start();
    registry.push("b", "latest", &busybox(&server, "1"));
    let name = registry.name("b");
    assert_eq!(version(&server, "missing", &name), "1");
    // What was unpacked counts once it is on the disk.
    assert!(server.terminate().await.success());
    server.restart().await;
    registry.asked();
    assert_eq!(images(&server), [name.as_str()]);
    assert_eq!(version(&server, "missing", &name), "1");
    let asked = registry.asked();
    assert!(asked.is_empty(), "{asked:?}");
    assert_eq!(version(&server, "always", &name), "1");
    assert_eq!(registry.asked(), requests(&["HEAD /v2/b/manifests/latest"]));
    server.finish().await;
}

#[tokio::test]
async fn clients_name_images_by_address() {
    needs!(Registry);
    let mut server = Server::start().await;
    let registry = Registry::start();
    registry.push("some/repo", "v1", &busybox(&server, "1"));
    let client = server.client();
    let uri = format!("docker://{}#v1", registry.name("some/repo"));
    let handle = client.create(&image(&uri)).await.unwrap();
    assert_eq!(say(&client, &handle, "cat /version; echo $IN_IMAGE").await, "1yes");
    registry.asked();
    // As GrootFS: an address is asked for each time.
    client.create(&image(&uri)).await.unwrap();
    assert_eq!(registry.asked(), requests(&["HEAD /v2/some/repo/manifests/v1"]));
    assert_eq!(images(&server), [format!("{}:v1", registry.name("some/repo"))]);
    // A pea, too.
    registry.push("some/repo", "v1", &busybox(&server, "2"));
    let out = run(&client, &handle, &pea(&uri, "cat /version")).await;
    assert_eq!((out.code, out.out.as_str()), (0, "2"), "{out:?}");
    registry.asked();
    // The server may be told to be content with what is there.
    server.terminate().await;
    server.args = ["--pull", "missing"].map(str::to_owned).to_vec();
    server.restart().await;
    let client = server.client();
    client.create(&image(&uri)).await.unwrap();
    assert_eq!(registry.asked(), requests(&[]));
    for (uri, parts) in [
        (format!("docker://{}#none", registry.name("some/repo")), ["some/repo:none", "manifest unknown"]),
        (format!("docker://{}", registry.name("none")), ["none:latest", "manifest unknown"]),
        ("docker:///busybox".to_owned(), ["docker.io/library/busybox", "blocked"]),
        (format!("docker://{}/UPPER", registry.host), ["UPPER", "docker://"]),
        ("docker://user:secret@host/x".to_owned(), ["account", "docker://"]),
    ] {
        let text = message(client.create(&image(&uri)).await);
        assert!(parts.iter().all(|part| text.contains(part)) && !text.contains("secret"), "{uri}: {text}");
    }
    server.finish().await;
}

/// Who brings a login has what it opens, and nobody else has it by its name.
#[tokio::test]
async fn a_login_of_a_request_is_for_that_request_alone() {
    needs!(Registry);
    let server = Server::start().await;
    let registry = Registry::with_password();
    registry.push("private", "latest", &busybox(&server, "1"));
    let client = server.client();
    let uri = format!("docker://{}", registry.name("private"));
    let text = message(client.create(&image(&uri)).await);
    assert!(text.contains("requested access to the resource is denied"), "{text}");
    let text = message(client.create(&private(&uri, "secret")).await);
    assert!(text.contains("private") && !text.contains("secret"), "{text}");
    let handle = client.create(&private(&uri, PASSWORD)).await.unwrap();
    assert_eq!(say(&client, &handle, "cat /version").await, "1");
    assert_eq!(images(&server), Vec::<String>::new());
    // The layers are there, and still nobody gets them without a login, or with a wrong one.
    for refused in [image(&uri), private(&uri, "secret")] {
        let text = message(client.create(&refused).await);
        assert!(text.contains("denied") || text.contains("invalid username/password"), "{text}");
    }
    registry.asked();
    client.create(&private(&uri, PASSWORD)).await.unwrap();
    let asked = registry.asked_blobs();
    assert!(asked.len() <= 1, "the config at most: {asked:?}");
    let mut spec = pea(&uri, "cat /version");
    spec.image = private(&uri, PASSWORD).image;
    assert_eq!(run(&client, &handle, &spec).await.out, "1");
    let text = message(client.create(&private(server.image().to_str().unwrap(), PASSWORD)).await);
    assert!(text.contains("no meaning"), "{text}");
    assert!(!server.log().contains(PASSWORD), "{}", server.log());
    server.finish().await;
}

/// The variables that name the settings and logins of a test.
fn known(alone: &Alone, conf: &str) -> [(&'static str, String); 2] {
    let conf = alone.write("registries.conf", conf.as_bytes());
    [("CONTAINERS_REGISTRIES_CONF", conf), ("REGISTRY_AUTH_FILE", alone.path("auth.json"))]
}

fn with(alone: &Alone, known: &[(&str, String)], args: &[&str], input: &str) -> Said {
    let mut child = alone
        .place
        .command(args)
        .envs(known.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
    child.wait_with_output().unwrap().into()
}

#[test]
fn logins_are_tried_kept_and_forgotten() {
    needs!(Registry);
    let alone = Alone::new();
    let registry = Registry::with_password();
    let host = registry.host.as_str();
    registry.push("private", "v1", &Image::of(&[&tar_of(&[("a", b"x")])]));
    registry.push("private", "v2", &Image::of(&[&tar_of(&[("a", b"y")])]));
    let known = known(&alone, "");
    let wardian = |args: &[&str], input: &str| with(&alone, &known, args, input);
    let name = registry.name("private:v1");
    let said = wardian(&["image", "pull", &name], "");
    assert!(said.code == Some(1) && said.err.contains(&format!("wardian image login {host}")), "{said:?}");
    let login = ["image", "login", host, "--username", "user", "--password-stdin"];
    let said = wardian(&login, "wrong\n");
    assert!(said.code == Some(1) && !said.err.contains("wrong"), "{said:?}");
    assert!(!fs::exists(alone.path("auth.json")).unwrap());
    let said = wardian(&login, "pass word\n");
    assert!(said.code == Some(0) && said.out.contains("auth.json"), "{said:?}");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs::metadata(alone.path("auth.json")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    let said = wardian(&["image", "tags", &registry.name("private")], "");
    assert_eq!((said.code, said.out.as_str()), (Some(0), "v1\nv2\n"), "{said:?}");
    let said = wardian(&["image", "tags", &registry.name("private"), "--json"], "");
    let tags: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(tags["tags"], serde_json::json!(["v1", "v2"]));
    let said = wardian(&["image", "pull", "--json", &name, &registry.name("private:v2")], "");
    let pulled: Value = serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("{said:?}"));
    assert_eq!(
        (&pulled[0]["name"], &pulled[1]["name"]),
        (&name.as_str().into(), &registry.name("private:v2").into())
    );
    assert_eq!(pulled[0]["fetched"].as_array().unwrap().len(), 1);
    assert_eq!(alone.place.images(), [name.clone(), registry.name("private:v2")]);
    // What is there costs one request; one that fails does not keep the others.
    registry.asked();
    let said = wardian(&["image", "pull", &registry.name("private:none"), &name], "");
    assert!(
        said.code == Some(1) && said.out.contains("was there") && said.err.contains("manifest unknown"),
        "{said:?}"
    );
    let asked: Vec<_> = registry.asked().into_iter().filter(|line| line.ends_with("/v1")).collect();
    assert!(asked.iter().all(|line| line.starts_with("HEAD ")), "{asked:?}");
    let said = wardian(&["image", "logout", host], "");
    assert_eq!(said.code, Some(0), "{said:?}");
    let said = wardian(&["image", "logout", host], "");
    assert!(said.code == Some(1) && said.err.contains("no login"), "{said:?}");
    let said = wardian(&["image", "pull", &name], "");
    assert!(said.code == Some(1) && said.err.contains("denied"), "{said:?}");
    alone.place.say(&["image", "rm", &name, &registry.name("private:v2")]);
    alone.finish();
}

#[test]
fn an_image_of_a_registry_may_have_another_name_too() {
    needs!(Registry);
    let alone = Alone::new();
    let registry = Registry::start();
    registry.push("b", "v1", &Image::of(&[&tar_of(&[("a", b"x")])]));
    let uri = format!("docker://{}", registry.name("b:v1"));
    alone.place.say(&["image", "import", &uri, "-t", "mine"]);
    assert_eq!(alone.place.images(), [registry.name("b:v1"), "mine".to_owned()]);
    registry.asked();
    let text = alone.place.say(&["image", "prefetch", &uri]);
    assert!(text.contains("was there"), "{text}");
    assert_eq!(registry.asked(), requests(&["HEAD /v2/b/manifests/v1"]));
    alone.place.say(&["image", "rm", "mine", &registry.name("b:v1")]);
    alone.finish();
}

#[test]
fn an_image_is_pushed_and_pulled_again() {
    needs!(Registry);
    let alone = Alone::new();
    let registry = Registry::start();
    let tar = alone.write("root.tar", &tar_of(&[("a", b"pushed")]));
    alone.place.say(&["image", "import", &tar, "-t", "mine"]);
    let dest = format!("{}/team/mine:v1", registry.inner);
    let text = alone.place.say(&["image", "push", "mine", &dest]);
    assert!(text.starts_with("sha256:") && text.contains("1 layer sent"), "{text}");
    assert!(text.contains("; 1 layer re-created)"), "a tar has no blob that could be sent: {text}");
    let digest = text.split(' ').next().unwrap().to_owned();
    // What is there is not sent again, and another repository of the registry lends its layers.
    let text = alone.place.say(&["image", "push", "--json", "mine", &dest]);
    let again: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(again["digest"], digest.as_str(), "{again}");
    alone.place.say(&["image", "pull", "--quiet", &dest]);
    let copy = format!("{}/other/mine", registry.inner);
    assert_eq!(alone.place.say(&["image", "push", "-q", &dest, &copy]), format!("{digest}\n"));
    let by_digest = format!("{copy}@{digest}");
    alone.place.say(&["image", "pull", "--quiet", &by_digest]);
    alone.place.say(&["image", "export", &by_digest, &alone.path("out"), "--format", "dir"]);
    assert_eq!(fs::read(alone.path("out/rootfs/a")).unwrap(), b"pushed");
    // What is no name of an image there, and a registry that is not there.
    for (args, code) in [
        (&["image", "push", "nobody", &dest][..], 1),
        (&["image", "push", "mine", &by_digest], 1),
        (&["image", "push", "mine", "127.0.0.1:1/x"], 1),
    ] {
        let said = alone.place.wardian(args);
        assert!(said.code == Some(code) && !said.err.is_empty() && said.out.is_empty(), "{args:?}: {said:?}");
    }
    alone.place.say(&["image", "rm", "mine", &dest, &by_digest]);
    alone.finish();
}

#[test]
fn short_names_are_what_the_settings_make_of_them() {
    needs!(Registry);
    let alone = Alone::new();
    let registry = Registry::start();
    registry.push("library/thing", "latest", &Image::of(&[&tar_of(&[("a", b"x")])]));
    let host = registry.host.as_str();
    // None is searched.
    let said = alone.place.wardian(&["image", "pull", "thing"]);
    assert!(said.code == Some(1) && said.err.contains("unqualified-search-registries"), "{said:?}");
    // Docker Hub is somewhere else.
    let moved = known(&alone, &format!("[[registry]]\nprefix = \"docker.io\"\nlocation = \"{host}\"\n"));
    let said = with(&alone, &moved, &["image", "pull", "docker.io/thing"], "");
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(alone.place.images(), ["thing"]);
    alone.place.say(&["image", "rm", "docker.io/library/thing:latest"]);
    // An alias, and a registry that is searched after one that does not answer.
    registry.push("thing", "latest", &Image::of(&[&tar_of(&[("a", b"y")])]));
    for (conf, name) in [
        (format!("[aliases]\nthing = \"{host}/library/thing\"\n"), "library/thing"),
        (format!("unqualified-search-registries = [\"127.0.0.1:1\", \"{host}\"]\n"), "thing"),
    ] {
        let said = with(&alone, &known(&alone, &conf), &["image", "pull", "thing", "--quiet"], "");
        assert_eq!(said.code, Some(0), "{conf}: {said:?}");
        let name = registry.name(name);
        assert_eq!(alone.place.images(), [name.as_str()]);
        alone.place.say(&["image", "rm", &name]);
    }
    alone.finish();
}

#[test]
fn certificates_are_verified_unless_the_registry_is_named_insecure() {
    needs!(Registry);
    let alone = Alone::new();
    let registry = Registry::start();
    registry.push("b", "latest", &Image::of(&[&tar_of(&[("a", b"x")])]));
    let host = registry.door_with_tls();
    let name = format!("{host}/b");
    let text = alone.place.fail(&["image", "pull", &name]);
    assert!(text.contains("is not trusted") && text.contains("certs.d"), "{text}");
    let other = alone.place.fail(&["image", "pull", &name, "--insecure-registry", "127.0.0.1"]);
    assert!(other.contains("is not trusted"), "{other}");
    let said = alone.place.wardian(&["image", "pull", &name, "--insecure-registry", &host]);
    assert_eq!(said.code, Some(0), "{said:?}");
    alone.place.say(&["image", "rm", &format!("{name}:latest")]);
    let conf = format!("[[registry]]\nlocation = \"{host}\"\ninsecure = true\n");
    let said = with(&alone, &known(&alone, &conf), &["image", "pull", &name], "");
    assert_eq!(said.code, Some(0), "{said:?}");
    let conf = format!("[[registry]]\nlocation = \"{host}\"\nblocked = true\n");
    let said = with(&alone, &known(&alone, &conf), &["image", "pull", &name], "");
    assert!(said.code == Some(1) && said.err.contains("blocked"), "{said:?}");
    alone.place.say(&["image", "rm", &format!("{name}:latest")]);
    alone.finish();
}

/// Ends a pull in the middle of its only layer.
fn interrupted(alone: &Alone, registry: &Registry, name: &str) {
    const MIDDLE: u64 = 12 << 20;
    registry.hold(Some(MIDDLE));
    let mut child = alone.place.spawn(&["image", "pull", name]);
    let started = Instant::now();
    let received = || {
        alone
            .place
            .names("partial")
            .iter()
            .map(|part| fs::metadata(part).map_or(0, |meta| meta.len()))
            .sum::<u64>()
    };
    while received() < MIDDLE / 2 {
        assert!(started.elapsed() < STUCK, "nothing is received");
        assert_eq!(child.try_wait().unwrap(), None);
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(child.id(), Signal::INT);
    let said = Said::from(child.wait_with_output().unwrap());
    assert!(said.code.is_none_or(|code| code != 0) && said.err.contains("interrupted"), "{said:?}");
    registry.hold(None);
}

#[test]
fn a_pull_that_was_interrupted_is_continued_or_its_part_given_back() {
    needs!(Registry);
    let alone = Alone::new();
    let registry = Registry::start();
    let data = noise(30 << 20);
    registry.push("big", "latest", &Image::of(&[&tar_of(&[("data", &data)])]));
    let name = registry.name("big");
    interrupted(&alone, &registry, &name);
    assert_eq!(alone.place.names("partial").len(), 1);
    alone.place.until_clean();
    let usage = alone.place.usage();
    assert!(usage["partial_bytes"].as_u64().unwrap() > 4 << 20, "{usage}");
    let text = alone.place.say(&["store", "usage"]);
    assert!(text.lines().any(|line| line.starts_with("partial downloads") && line.contains("MB")), "{text}");
    registry.asked();
    let said = alone.place.wardian(&["image", "pull", &name]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let asked = registry.asked_blobs();
    let from =
        asked.iter().find_map(|line| line.split_once("bytes=")?.1.split('-').next()?.parse::<u64>().ok());
    assert!(from.is_some_and(|from| from > 4 << 20), "{asked:?}");
    assert_eq!(alone.place.names("partial"), Vec::<String>::new());
    let layers = alone.place.names("layers");
    let [layer] = layers.as_slice() else { panic!("{layers:?}") };
    assert!(fs::read(std::path::Path::new(layer).join("fs/data")).unwrap() == data);
    alone.place.say(&["image", "rm", &format!("{name}:latest")]);
    // What nobody continues is given back.
    interrupted(&alone, &registry, &name);
    let dry = alone.place.say(&["store", "gc", "--dry-run"]);
    assert!(dry.contains("partial downloads") && alone.place.names("partial").len() == 1, "{dry}");
    let text = alone.place.say(&["store", "gc"]);
    assert!(text.contains("freed") && text.contains("partial downloads"), "{text}");
    assert_eq!(alone.place.names("partial"), Vec::<String>::new());
    assert!(!alone.place.say(&["store", "gc"]).contains("partial downloads"));
    alone.finish();
}

/// A part that is not what the registry has is thrown away, and the layer fetched whole.
#[test]
fn a_part_with_other_bytes_does_no_harm() {
    needs!(Registry);
    let alone = Alone::new();
    let registry = Registry::start();
    registry.push("big", "latest", &Image::of(&[&tar_of(&[("data", &noise(30 << 20))])]));
    let name = registry.name("big");
    interrupted(&alone, &registry, &name);
    let parts = alone.place.names("partial");
    let length = fs::metadata(&parts[0]).unwrap().len();
    fs::write(&parts[0], noise(usize::try_from(length).unwrap())).unwrap();
    let said = alone.place.wardian(&["image", "pull", &name]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(alone.place.names("partial"), Vec::<String>::new());
    alone.place.say(&["image", "rm", &format!("{name}:latest")]);
    alone.finish();
}

#[test]
fn pulls_at_once_fetch_each_blob_once() {
    needs!(Registry);
    let alone = Alone::new();
    let registry = Registry::start();
    let shared = tar_of(&[("shared", &noise(3 << 20))]);
    let own = |name: &str| tar_of(&[(name, name.as_bytes())]);
    registry.push("one", "latest", &Image::of(&[&shared, &own("one")]));
    registry.push("two", "latest", &Image::of(&[&shared, &own("two")]));
    registry.delay(Duration::from_millis(500));
    let names = [registry.name("one"), registry.name("one"), registry.name("two")];
    let pulls: Vec<_> = names.iter().map(|name| alone.place.spawn(&["image", "pull", name])).collect();
    for pull in pulls {
        let said = Said::from(pull.wait_with_output().unwrap());
        assert_eq!(said.code, Some(0), "{said:?}");
    }
    let layers = ["shared", "one", "two"];
    let blobs = [Image::of(&[&shared]), Image::of(&[&own("one")]), Image::of(&[&own("two")])];
    let asked = registry.asked_blobs();
    for (name, image) in layers.iter().zip(&blobs) {
        let digest = crate::support::digest(&image.layers[0]);
        let count = asked.iter().filter(|line| line.contains(&digest)).count();
        assert_eq!(count, 1, "{name}: {asked:#?}");
    }
    assert_eq!(alone.place.names("layers").len(), 3);
    alone.place.say(&["image", "rm", &registry.name("one:latest"), &registry.name("two:latest")]);
    alone.finish();
}

#[tokio::test]
async fn creates_at_once_fetch_each_blob_once() {
    needs!(Registry);
    let server = Server::start().await;
    let registry = Registry::start();
    registry.push("b", "latest", &busybox(&server, "1"));
    registry.delay(Duration::from_millis(300));
    let name = registry.name("b");
    let runs: Vec<_> = (0..4)
        .map(|_| {
            let mut command: Command = command(&server, &["run", "--rm", &name, "cat", "/version"]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for run in runs {
        let said = Said::from(run.wait_with_output().unwrap());
        assert_eq!((said.code, said.out.as_str()), (Some(0), "1"), "{said:?}");
    }
    let asked = registry.asked_blobs();
    let image = busybox(&server, "1");
    for layer in &image.layers {
        let digest = crate::support::digest(layer);
        assert_eq!(asked.iter().filter(|line| line.contains(&digest)).count(), 1, "{asked:#?}");
    }
    server.finish().await;
}

/// A create that fetches its image shows how far it is, and is given up when the server ends; what has come is kept.
#[tokio::test]
async fn a_fetch_is_shown_and_given_up_when_the_server_ends() {
    needs!(Registry);
    const MIDDLE: u64 = 12 << 20;
    let mut server = Server::start().await;
    let registry = Registry::start();
    let base = fs::read(server.image()).unwrap();
    registry.push("big", "latest", &Image::of(&[&tar_of(&[("data", &noise(30 << 20))]), &base]));
    registry.hold(Some(MIDDLE));
    let uri = format!("docker://{}", registry.name("big"));
    let create = tokio::spawn({
        let (client, spec) = (server.client(), image(&uri));
        async move { message(client.create(&spec).await) }
    });
    let client = server.client();
    let started = Instant::now();
    loop {
        assert!(started.elapsed() < STUCK && !create.is_finished(), "{}", server.log());
        let images = client.images_under_way().await.unwrap();
        if let [image] = images.as_slice()
            && let [large, _] = image.layers.as_slice()
            && large.read > MIDDLE / 2
        {
            assert_eq!(image.image, uri);
            assert!(large.size > 30 << 20 && large.state == "unpacking", "{large:?}");
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(server.terminate().await.success());
    let text = create.await.unwrap();
    assert!(text.contains("the server ends") && text.contains("is kept"), "{text}");
    registry.hold(None);
    registry.asked();
    server.restart().await;
    let client = server.client();
    assert_eq!(client.images_under_way().await.unwrap(), []);
    client.create(&image(&uri)).await.unwrap();
    let asked = registry.asked_blobs();
    assert!(asked.iter().any(|line| line.contains("bytes=")), "{asked:?}");
    server.finish().await;
}

#[test]
fn names_of_images_are_found_by_every_spelling() {
    needs!(Registry);
    let alone = Alone::new();
    let registry = Registry::start();
    let name = registry.name("app");
    let first = Image::of(&[&tar_of(&[("one", b"1")])]);
    registry.push("app", "latest", &first);
    let conf =
        format!("unqualified-search-registries = [\"{}\"]\n[aliases]\nshort = \"{name}\"\n", registry.host);
    let known = known(&alone, &conf);
    let say = |args: &[&str]| with(&alone, &known, args, "");
    let said = say(&["image", "pull", "app"]);
    // Without a terminal each layer has a line.
    assert!(said.code == Some(0) && said.err.contains("layer ") && said.err.contains("(1 of 1)"), "{said:?}");
    let said = say(&["image", "pull", "--quiet", "app"]);
    assert!(said.code == Some(0) && said.err.is_empty(), "{said:?}");
    let uri = format!("docker://{name}");
    for spelling in ["app", "app:latest", "short", &name, &uri] {
        let said = say(&["image", "inspect", spelling]);
        assert!(
            said.code == Some(0) && said.out.contains(&format!("\"name\": \"{name}\"")),
            "{spelling}: {said:?}"
        );
    }
    // Its id, as it is printed.
    let id = say(&["image", "ls", "-q"]).out;
    assert_eq!(id.trim().len(), 12, "{id}");
    assert!(say(&["image", "inspect", id.trim()]).out.contains(&format!("\"name\": \"{name}\"")));
    // Another name for it, which an image may have had.
    let said = say(&["image", "tag", "short", "other"]);
    assert!(said.code == Some(0) && said.out.ends_with("  other\n") && said.err.is_empty(), "{said:?}");
    let own = alone.place.json(&["image", "tag", &name, "other:latest"]);
    assert!(own["name"] == "other" && own["replaced"].is_null(), "{own}");
    assert_eq!(say(&["image", "tag", "nothing", "x"]).code, Some(1));
    assert_eq!(say(&["image", "tag", "other", "a b"]).code, Some(1));
    // A name that another image had is told.
    registry.push("app", "latest", &Image::of(&[&tar_of(&[("two", b"2")])]));
    let said = say(&["image", "pull", "app"]);
    assert!(said.code == Some(0) && said.err.contains("was the image"), "{said:?}");
    // Each failure has its causes once.
    let said = say(&["image", "pull", &registry.name("none"), &registry.name("nothing")]);
    assert_eq!(said.code, Some(1), "{said:?}");
    for repository in ["none:latest: manifest unknown", "nothing:latest: manifest unknown"] {
        assert_eq!(said.err.matches(repository).count(), 1, "{said:?}");
    }
    let said = say(&["image", "tags", &registry.name("none")]);
    assert!(said.code == Some(1) && said.err.contains("has no repository none"), "{said:?}");
    let said = say(&["image", "pull", "oci:///nowhere"]);
    assert!(said.code == Some(1) && said.err.contains("image import"), "{said:?}");
    // A root file system needs no pull before it.
    let said = say(&["image", "rm", "short"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let said = say(&["rootfs", "create", &name, "r"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let said = say(&["rootfs", "delete", "r"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(say(&["image", "rm", "app", "other"]).code, Some(0));
    alone.finish();
}

/// A registry that claims a layer of another one and sends it slowly holds up nobody but those who pull from it, and those
/// who wait for a registry leave places for others.
#[tokio::test]
async fn a_slow_registry_holds_up_no_other() {
    needs!(Registry);
    const SHARE: usize = 16;
    let server = Server::start().await;
    let (slow, good) = (Registry::start(), Registry::start());
    let base = fs::read(server.image()).unwrap();
    let shared = tar_of(&[("shared", &noise(4 << 20))]);
    let image_of = |n: usize| Image::of(&[&base, &shared, &tar_of(&[("n", n.to_string().as_bytes())])]);
    for n in 0..=SHARE {
        slow.push("app", &format!("v{n}"), &image_of(n));
    }
    good.push("app", "latest", &image_of(0));
    slow.hold(Some(1 << 20));
    let creates: Vec<_> = (0..=SHARE)
        .map(|n| {
            let (client, uri) = (server.client(), format!("docker://{}:v{n}", slow.name("app")));
            tokio::spawn(async move { client.create(&image(&uri)).await })
        })
        .collect();
    let started = Instant::now();
    let client = server.client();
    while client.images_under_way().await.unwrap().iter().filter(|image| !image.layers.is_empty()).count()
        < SHARE
    {
        assert!(started.elapsed() < STUCK, "{}", server.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The same layers from another registry, by the server and by another process, and a file of this host.
    let handle = client.create(&image(&format!("docker://{}", good.name("app")))).await.unwrap();
    assert_eq!(say(&client, &handle, "cat /n").await, "0");
    client.create(&image(server.image().to_str().unwrap())).await.unwrap();
    assert!(creates.iter().all(|create| !create.is_finished()), "{}", server.log());
    slow.hold(None);
    for create in creates {
        create.await.unwrap().unwrap();
    }
    server.finish().await;
}

/// A blob of half the disk fits, although a copy of it for the next try would not.
#[test]
fn where_there_is_little_room_no_parts_are_kept() {
    needs!(Registry);
    let alone = Alone::new();
    let registry = Registry::start();
    registry.push("big", "latest", &Image::of(&[&tar_of(&[("data", &noise(30 << 20))])]));
    let disk = alone.path("disk");
    fs::create_dir(&disk).unwrap();
    let mount = |program: &str, args: &[&str]| {
        assert!(Command::new(program).args(args).arg(&disk).status().unwrap().success());
    };
    mount("mount", &["-t", "tmpfs", "-o", "size=45m", "small"]);
    let root = format!("{disk}/store");
    let said =
        with(&alone, &[("WARDIAN_ROOT", root)], &["image", "pull", "--quiet", &registry.name("big")], "");
    mount("umount", &[]);
    assert_eq!(said.code, Some(0), "{said:?}");
    alone.finish();
}

#[tokio::test]
async fn a_signal_gives_up_a_fetch_at_once() {
    needs!(Registry);
    let server = Server::start().await;
    let registry = Registry::start();
    let base = fs::read(server.image()).unwrap();
    registry.push("big", "latest", &Image::of(&[&tar_of(&[("data", &noise(30 << 20))]), &base]));
    registry.hold(Some(12 << 20));
    let name = registry.name("big");
    let mut run = command(&server, &["run", "--rm", &name, "true"]);
    let mut child = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (client, started) = (server.client(), Instant::now());
    let is_read =
        |layers: &[wardian_garden::wire::LayerUnderWay]| layers.iter().any(|layer| layer.read > 4 << 20);
    while !client.images_under_way().await.unwrap().iter().any(|image| is_read(&image.layers)) {
        assert!(started.elapsed() < STUCK && child.try_wait().unwrap().is_none(), "{}", server.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    signal(child.id(), Signal::INT);
    let said = tokio::task::spawn_blocking(|| Said::from(child.wait_with_output().unwrap())).await.unwrap();
    assert!(said.code == Some(130) && said.err.contains("no container was made"), "{said:?}");
    assert_eq!(client.images_under_way().await.unwrap(), []);
    assert!(client.list(&Default::default()).await.unwrap().is_empty());
    registry.hold(None);
    registry.asked();
    ok(&server, &["run", "--rm", &name, "true"]);
    assert!(registry.asked_blobs().iter().any(|line| line.contains("bytes=")));
    server.finish().await;
}

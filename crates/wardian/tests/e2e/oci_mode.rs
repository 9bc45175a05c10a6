//! An app as a layer of its containers' images.

use crate::cli::{Alone, Place};
use crate::support::{Out, Server, digest, message, names, noise, pea, run, say, tar_of};
use crate::web::{Answer, Web};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use wardian_garden::Client;
use wardian_garden::wire::{ContainerSpec, ImageRef, Limits, MemoryLimits};

/// A droplet as Cloud Foundry makes it: gzip, with names relative to the user's home.
fn droplet(marker: &str, size: usize) -> Vec<u8> {
    let tar = tar_of(&[("app/marker", marker.as_bytes()), ("app/code", &noise(size))]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    gzip.finish().unwrap()
}

fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        let _ = match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => write!(out, "{}", char::from(byte)),
            other => write!(out, "%{other:02X}"),
        };
        out
    })
}

fn preloaded(image: &Path, url: &str, digest: &str) -> String {
    let url = encoded(url);
    format!(
        "preloaded+layer://{}?layer={url}&layer_path=%2Fhome%2Fvcap&layer_digest={digest}",
        image.display()
    )
}

async fn create(client: &Client, handle: &str, image: &str) -> wardian_garden::Result<String> {
    let image = ImageRef { uri: image.into(), ..Default::default() };
    client.create(&ContainerSpec { handle: handle.into(), image, ..Default::default() }).await
}

/// Layers that are not the base's.
fn layers(server: &Server) -> usize {
    names(&server.root().join("layers")).len().saturating_sub(1)
}

const MARKER: &str = "cat /home/vcap/app/marker";

#[tokio::test]
async fn a_hundred_first_creates_are_one_fetch() {
    let server = Server::start().await;
    let body = droplet("all the same", 300_000);
    let (digest, web) = (digest(&body), Web::serve(body));
    // None of them is done before all of them wait.
    web.answer(Answer::Half);
    let mut creates = tokio::task::JoinSet::new();
    for n in 0..100 {
        let (client, image) = (server.client(), server.image());
        let uri = preloaded(&image, &web.url(&format!("/droplet.tgz?signature={n}")), &digest);
        creates.spawn(async move { create(&client, &format!("c{n}"), &uri).await });
    }
    web.until_gets(1).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    web.answer(Answer::Whole);
    while let Some(created) = creates.join_next().await {
        created.unwrap().unwrap_or_else(|error| panic!("{error}\n{}", server.log()));
    }
    assert_eq!((web.gets(), web.requests().len(), layers(&server)), (1, 1, 1), "{:?}", web.requests());
    let client = server.client();
    for n in [0, 50, 99] {
        assert_eq!(say(&client, &format!("c{n}"), MARKER).await, "all the same");
    }
    // What one writes none of the others sees.
    say(&client, "c0", "echo other >/home/vcap/app/marker; echo new >/home/vcap/app/new").await;
    let there = say(&client, "c1", &format!("{MARKER}; ls /home/vcap/app")).await;
    assert_eq!(there, "all the samecode\nmarker");
    assert!(!server.log().contains("signature"), "a secret in the log");
    server.finish().await;
}

#[tokio::test]
async fn an_app_shares_its_base_with_containers_that_have_none_and_with_peas() {
    let mut server = Server::start().await;
    server.terminate().await;
    server.env = vec![("WARDIAN_LOG".into(), "info,wardian_store=debug".into())];
    server.restart().await;
    let body = droplet("of the app", 1000);
    let (digest, web) = (digest(&body), Web::serve(body));
    let client = server.create("plain").await;
    let uri = preloaded(&server.image(), &web.url("/d"), &digest);
    create(&client, "app", &uri).await.unwrap();
    assert_eq!(names(&server.root().join("layers")).len(), 2);
    assert_eq!(say(&client, "app", MARKER).await, "of the app");
    assert_eq!(say(&client, "app", "ls /home/vcap").await, "app");
    assert_eq!(say(&client, "plain", "ls /home/vcap").await, "");
    // The directory is as the base has it, and what is in it is the app's.
    assert_eq!(say(&client, "app", "stat -c %U:%a /home/vcap").await, "vcap:755");

    // A sidecar of another image costs one unpack, however many containers have it.
    let checks = server.image_with("check", "healthy");
    for handle in ["app", "plain", "app", "plain"] {
        let checked = run(&client, handle, &pea(&checks, "cat /check")).await;
        assert_eq!(checked, Out { code: 0, out: "healthy".into(), err: String::new() });
    }
    assert_eq!(server.log().matches("layer.unpacked").count(), 3);
    // One may have the app's image as well.
    assert_eq!(run(&client, "plain", &pea(&uri, MARKER)).await.out, "of the app");
    assert_eq!((server.log().matches("layer.unpacked").count(), web.gets()), (3, 1));
    server.finish().await;
}

#[tokio::test]
async fn every_spelling_of_an_address_gives_the_app() {
    let server = Server::start().await;
    let body = droplet("hello", 1000);
    let (sum, web) = (digest(&body), Web::serve(body.clone()));
    let file = server.base().join("droplet.tgz");
    std::fs::write(&file, &body).unwrap();
    let client = server.client();
    let (image, path) = (server.image().display().to_string(), file.display().to_string());
    let query = format!("app={}&app_path=/home/vcap", encoded(&web.url("/d?secret=1")));
    let addresses = [
        preloaded(&server.image(), &web.url("/d"), &sum),
        preloaded(&server.image(), &format!("file://{path}"), &sum),
        preloaded(&server.image(), &web.url("/d"), &sum).replacen(":///", ":/", 1),
        format!("{image}?{query}&app_digest={sum}"),
        format!("tar://{image}?app={path}&app_path=/home/vcap"),
        format!("?app={path}&app_path=/home/vcap"),
        format!("{image}?{query}"),
        format!("{image}?{query}"),
    ];
    for (n, address) in addresses.iter().enumerate() {
        let handle = format!("c{n}");
        create(&client, &handle, address).await.unwrap_or_else(|error| panic!("{address}: {error}"));
        assert_eq!(say(&client, &handle, MARKER).await, "hello");
    }
    // One that has a digest, or a file, is not asked for; the others share what has not changed.
    assert_eq!((web.gets(), layers(&server)), (2, 3), "{:?}", web.requests());
    // What the image lacks of the directory is made, if it is ours to say.
    create(&client, "deep", &format!("{image}?app={path}&app_path=/srv/deep/er")).await.unwrap();
    assert_eq!(
        say(&client, "deep", "cat /srv/deep/er/app/marker; stat -c %u:%a /srv/deep").await,
        "hello0:755"
    );
    // A file that has changed is another app.
    std::fs::write(&file, droplet("changed", 10)).unwrap();
    create(&client, "changed", &addresses[4]).await.unwrap();
    assert_eq!(say(&client, "changed", MARKER).await, "changed");
    assert!(!server.log().contains("secret"));
    server.finish().await;
}

/// Nothing is cached, nothing is left, and the right address works at once.
async fn refused(server: &Server, good: &str, bad: &[(&str, String)]) {
    let client = server.client();
    for (why, address) in bad {
        let text = message(create(&client, "bad", address).await);
        assert!(text.contains(why), "{address}: {why:?} is not in {text:?}");
        assert!(!text.contains("hidden"), "{text}");
        assert_eq!(layers(server), 0, "{address}");
    }
    server.until_empty("staging", || names(&server.root().join("staging")).into_iter().collect()).await;
    assert_eq!(client.list(&std::collections::BTreeMap::new()).await.unwrap(), ["base"]);
    create(&client, "good", good).await.unwrap();
    assert_eq!(say(&client, "good", MARKER).await, "right");
}

#[tokio::test]
async fn bad_addresses_are_refused_by_the_name_of_the_key() {
    let server = Server::start().await;
    server.create("base").await;
    let body = droplet("right", 1000);
    let (sum, web) = (digest(&body), Web::serve(body));
    let image = server.image().display().to_string();
    let good = preloaded(&server.image(), &web.url("/d?key=hidden"), &sum);
    let swap = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replacen(from, to, 1)
    };
    let path = "layer_path=%2Fhome%2Fvcap";
    let url = format!("layer={}", encoded(&web.url("/d?key=hidden")));
    let bad = [
        ("no query parameter 'layer' found in URL", swap(&format!("{url}&"), "")),
        ("no query parameter 'layer_path' found in URL", swap(&format!("&{path}"), "")),
        ("no query parameter 'layer_digest' found in URL", swap(&format!("&layer_digest={sum}"), "")),
        ("layer: it is there twice", format!("{good}&{url}")),
        ("layer_path: it is there twice", format!("{good}&{path}")),
        ("layer_digest: it is there twice", format!("{good}&layer_digest={sum}")),
        ("layer_size", format!("{good}&layer_size=5")),
        ("layer: it is empty", swap(&url, "layer=")),
        ("layer: invalid URL: unknown scheme", swap("layer=http", "layer=ftp")),
        ("layer: invalid URL", swap(&url, "layer=droplet.tgz")),
        ("layer_digest: expected 64 lower-case hex digits", format!("{good}0")),
        ("layer_digest: expected 64 lower-case hex digits", swap(&sum, &sum[1..])),
        ("layer_digest: expected 64 lower-case hex digits", swap(&sum, &sum.to_uppercase())),
        ("layer_path: unsafe path", swap(path, "layer_path=/home/../../etc")),
        ("layer_path: the base directory", swap(path, "layer_path=/home/nobody")),
        ("app_path", format!("{image}?app=/d.tgz")),
        ("app_path: it must be absolute", format!("{image}?app=/d.tgz&app_path=home")),
        ("app_file", format!("{image}?app_file=/d.tgz&app=/d.tgz&app_path=/home")),
        ("no-such-file", swap(&image, "/no-such-file")),
        ("layer", format!("{image}?layer=https://h/d%3Fhidden&layer_path=/x")),
        ("scheme", "https://user:hidden@h/x.tar?hidden".into()),
        ("there is no image", "nothing?app=/d.tgz&app_path=/home".into()),
    ];
    refused(&server, &good, &bad).await;
    server.finish().await;
}

#[tokio::test]
async fn bad_apps_are_refused_by_the_name_of_the_key() {
    let mut server = Server::start().await;
    server.terminate().await;
    server.args = ["--layer-patience", "300ms", "--max-layer-bytes", "4M"].map(str::to_owned).to_vec();
    server.restart().await;
    server.create("base").await;
    let body = droplet("right", 1000);
    let (sum, web) = (digest(&body), Web::serve(body.clone()));
    let good = preloaded(&server.image(), &web.url("/d?key=hidden"), &sum);
    let at = |name: &str, bytes: &[u8]| {
        let file = server.base().join(name);
        std::fs::write(&file, bytes).unwrap();
        preloaded(&server.image(), &format!("file://{}", file.display()), &digest(bytes))
    };
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    bomb.write_all(&tar_of(&[("a", &vec![0; 5 << 20])])).unwrap();
    let linked = server.image_with("here", "x");
    let bad = [
        ("layer_digest: ", good.replace(&sum, &digest(b"other"))),
        ("layer: ", at("plain.tar", &tar_of(&[("a", b"x")]))),
        ("layer: ", at("noise", &noise(1000))),
        ("layer: ", at("empty", b"")),
        ("layer: ", at("cut.tgz", &body[..body.len() / 2])),
        ("layer: ", at("bomb.tgz", &bomb.finish().unwrap())),
        ("layer: ", at("large.tgz", &droplet("large", 5 << 20))),
        ("no-such", preloaded(&server.image(), "file:///no-such", &sum)),
        ("layer: /dev/zero", preloaded(&server.image(), "file:///dev/zero", &sum)),
        // A symlink and a file in the way.
        ("layer_path: ", good.replace("%2Fhome%2Fvcap", "%2Fbin%2Fsh")),
        ("layer_path: ", good.replace("%2Fhome%2Fvcap", "%2Fetc%2Fpasswd")),
        ("app_path: ", format!("{linked}?app=/etc/hostname&app_path=/bin/sh/x")),
    ];
    let answers = [
        ("layer: ", Answer::Status(404), "the server answered 404"),
        ("layer: ", Answer::Status(403), "the server answered 403"),
        ("layer: ", Answer::Half, ""),
        ("layer: ", Answer::Longer, ""),
    ];
    // Two base layers: one is that of the image with one file more.
    let client = server.client();
    for (key, answer, what) in answers {
        web.answer(answer);
        let text = message(create(&client, "bad", &good).await);
        assert!(text.contains(key) && text.contains(what), "{answer:?}: {text}");
        assert!(text.contains(&web.url("/d")) && !text.contains("hidden"), "{text}");
        assert_eq!(layers(&server), 0, "{answer:?}");
    }
    web.answer(Answer::Whole);
    let (with_other_base, bad) = bad.split_last().unwrap();
    refused(&server, &good, bad).await;
    let text = message(create(&client, "bad", &with_other_base.1).await);
    assert!(text.contains(with_other_base.0), "{text}");
    server.finish().await;
}

#[tokio::test]
async fn a_fetch_that_breaks_off_goes_on_where_it_was() {
    let server = Server::start().await;
    let body = droplet("whole", 2 << 20);
    let (sum, web) = (digest(&body), Web::serve(body));
    web.answer(Answer::Cut);
    let client = server.client();
    let uri = preloaded(&server.image(), &web.url("/d"), &sum);
    let creating = tokio::spawn(async move { create(&client, "a", &uri).await });
    web.until_gets(2).await;
    web.answer(Answer::Whole);
    creating.await.unwrap().unwrap_or_else(|error| panic!("{error}\n{}", server.log()));
    let client = server.client();
    assert_eq!(
        say(&client, "a", "sha256sum /home/vcap/app/code | cut -c1-64").await,
        digest(&noise(2 << 20))
    );
    server.finish().await;
}

#[tokio::test]
async fn an_address_that_has_expired_does_not_fail_those_that_have_not() {
    let server = Server::start().await;
    let body = droplet("fresh", 1000);
    let (sum, web) = (digest(&body), Web::serve(body));
    web.answer(Answer::Status(403));
    let client = server.client();
    let uri = |n: &str| preloaded(&server.image(), &web.url(&format!("/d?{n}")), &sum);
    assert!(message(create(&client, "old", &uri("old")).await).contains("403"));
    web.answer(Answer::Whole);
    create(&client, "new", &uri("new")).await.unwrap();
    assert_eq!(say(&client, "new", MARKER).await, "fresh");
    server.finish().await;
}

#[tokio::test]
async fn an_address_that_is_dead_fails_nobody_else_who_waits() {
    let server = Server::start().await;
    let body = droplet("alive", 1000);
    let (sum, web) = (digest(&body), Web::serve(body));
    server.create("base").await;
    let (client, dead) = (server.client(), preloaded(&server.image(), "http://127.0.0.1:1/d?hidden", &sum));
    let failing = tokio::spawn(async move { create(&client, "dead", &dead).await });
    let staging = server.root().join("staging");
    let started = std::time::Instant::now();
    while names(&staging).is_empty() {
        assert!(started.elapsed() < crate::support::STUCK);
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    let client = server.client();
    create(&client, "good", &preloaded(&server.image(), &web.url("/d"), &sum)).await.unwrap();
    assert_eq!(say(&client, "good", MARKER).await, "alive");
    let text = message(failing.await.unwrap());
    assert!(text.contains("layer: cannot fetch http://127.0.0.1:1/d") && !text.contains("hidden"), "{text}");
    server.finish().await;
}

#[tokio::test]
async fn a_server_that_says_nothing_holds_up_nobody_else() {
    let server = Server::start().await;
    let body = droplet("late", 1000);
    let (sum, web) = (digest(&body), Web::serve(body));
    web.answer(Answer::Half);
    let uri = preloaded(&server.image(), &web.url("/d"), &sum);
    // More than there are turns of creates.
    let mut waiting = tokio::task::JoinSet::new();
    for n in 0..40 {
        let (client, uri) = (server.client(), uri.clone());
        waiting.spawn(async move { create(&client, &format!("w{n}"), &uri).await });
    }
    web.until_gets(1).await;
    let client = server.create("c").await;
    assert_eq!(say(&client, "c", "echo here").await, "here");
    let beside = run(&client, "c", &pea(server.image().to_str().unwrap(), "echo beside")).await;
    assert_eq!(beside.out, "beside\n");
    assert_eq!(
        (server.client().list(&std::collections::BTreeMap::new()).await.unwrap().len(), web.gets()),
        (1, 1)
    );
    web.answer(Answer::Whole);
    while let Some(created) = waiting.join_next().await {
        created.unwrap().unwrap();
    }
    assert_eq!(say(&client, "w39", MARKER).await, "late");
    server.finish().await;
}

#[tokio::test]
async fn a_server_that_is_killed_in_the_middle_of_a_fetch_leaves_nothing() {
    let mut server = Server::start().await;
    let body = droplet("again", 2 << 20);
    let (sum, web) = (digest(&body), Web::serve(body));
    let uri = preloaded(&server.image(), &web.url("/d"), &sum);
    for round in 0..3 {
        web.answer(Answer::Half);
        let (client, theirs) = (server.client(), uri.clone());
        let creating = tokio::spawn(async move { create(&client, "a", &theirs).await });
        web.until_gets(round + 1).await;
        server.kill9();
        assert!(creating.await.unwrap().is_err());
        server.restart().await;
        assert_eq!(layers(&server), 0);
        server.until_empty("staging", || names(&server.root().join("staging"))).await;
    }
    web.answer(Answer::Whole);
    let client = server.client();
    create(&client, "a", &uri).await.unwrap();
    assert_eq!(say(&client, "a", MARKER).await, "again");
    // What was fetched outlives its server, and its containers.
    let gets = web.gets();
    client.destroy("a").await.unwrap();
    tokio::task::spawn_blocking({
        let place = Place::of(&server);
        let uri = uri.clone();
        move || place.say(&["image", "prefetch", &uri])
    })
    .await
    .unwrap();
    server.kill9();
    server.restart().await;
    create(&server.client(), "b", &uri).await.unwrap();
    assert_eq!(web.gets(), gets);
    server.finish().await;
}

#[tokio::test]
async fn garbage_collection_spares_what_instances_run_on() {
    let server = Server::start().await;
    let body = droplet("kept", 1000);
    let (sum, web) = (digest(&body), Web::serve(body));
    let uri = preloaded(&server.image(), &web.url("/d"), &sum);
    let client = server.client();
    create(&client, "a", &uri).await.unwrap();
    create(&client, "b", &uri).await.unwrap();
    let gc = || {
        let place = Place::of(&server);
        async move { tokio::task::spawn_blocking(move || place.json(&["store", "gc"])).await.unwrap() }
    };
    assert_eq!(gc().await["layers"].as_array().unwrap().len(), 0);
    client.destroy("a").await.unwrap();
    assert_eq!(gc().await["layers"].as_array().unwrap().len(), 0);
    assert_eq!(say(&client, "b", MARKER).await, "kept");
    client.destroy("b").await.unwrap();
    assert_eq!(gc().await["layers"].as_array().unwrap().len(), 2);
    create(&client, "c", &uri).await.unwrap();
    assert_eq!((say(&client, "c", MARKER).await.as_str(), web.gets()), ("kept", 2));
    server.finish().await;
}

#[tokio::test]
async fn limits_and_users_are_those_of_any_container() {
    let server = Server::start().await;
    let body = droplet("x", 10);
    let (sum, web) = (digest(&body), Web::serve(body));
    let client = server.client();
    let image = ImageRef { uri: preloaded(&server.image(), &web.url("/d"), &sum), ..Default::default() };
    let limits = Limits { memory_limits: MemoryLimits { limit_in_bytes: 64 << 20 }, ..Default::default() };
    let spec = ContainerSpec { handle: "p".into(), image, limits, privileged: true, ..Default::default() };
    client.create(&spec).await.unwrap();
    assert_eq!(say(&client, "p", MARKER).await, "x");
    assert_eq!(client.memory_limits("p").await.unwrap().limit_in_bytes, 64 << 20);
    server.finish().await;
}

#[test]
fn an_app_makes_an_ordinary_image() {
    let alone = Alone::new();
    let place = &alone.place;
    let app = alone.write("app.tgz", &droplet("mine", 1000));
    place.say(&["image", "import", &alone.image(), "-t", "bb"]);
    let added = place.json(&["image", "add-layer", "bb", &app, "--path", "/srv/app", "-t", "myapp:1"]);
    assert_eq!(added["layers"].as_array().unwrap().len(), 2);
    let inspected: serde_json::Value =
        serde_json::from_str(&place.say(&["image", "inspect", "myapp:1"])).unwrap();
    assert_eq!(inspected["id"], added["id"]);
    assert_eq!(inspected["config"]["rootfs"]["diff_ids"].as_array().unwrap().len(), 2);
    // Whoever reads it finds an image without anything of ours.
    let archive = Path::new(&app).with_file_name("myapp.tar").display().to_string();
    place.say(&["image", "export", "myapp:1", &archive]);
    place.say(&["image", "import", &archive, "-t", "back"]);
    for name in ["myapp:1", "back"] {
        let path = place.say(&["rootfs", "create", name, "r"]);
        let there = std::fs::read_to_string(Path::new(path.trim_end()).join("srv/app/app/marker")).unwrap();
        assert_eq!(there, "mine");
        place.say(&["rootfs", "delete", "r"]);
    }
    let back: serde_json::Value = serde_json::from_str(&place.say(&["image", "inspect", "back"])).unwrap();
    assert!(!back.to_string().contains("base-directory"), "{back}");
    // What cannot be is refused, and changes nothing.
    let add = |args: &[&str]| place.fail(&[&["image", "add-layer"], args].concat());
    let wrong = "0".repeat(64);
    for (args, why) in [
        (vec!["nothing", &app, "--path", "/a", "-t", "x"], "there is no image"),
        (vec!["bb", "/no-such", "--path", "/a", "-t", "x"], "/no-such"),
        (vec!["bb", &app, "--path", "a", "-t", "x"], "app_path: it must be absolute"),
        (vec!["bb", &app, "--path", "/a", "-t", "../x"], "is no name for an image"),
        (vec!["bb", &app, "--path", "/a", "-t", "x", "--digest", &wrong], "app_digest: "),
        (vec!["bb?app=/x&app_path=/x", &app, "--path", "/a", "-t", "x"], "an app on this image already"),
    ] {
        let text = add(&args);
        assert!(text.contains(why), "{args:?}: {text}");
    }
    let short =
        place.refuse(&["image", "add-layer", "bb", &app, "--path", "/a", "-t", "x", "--digest", "00"]);
    assert!(short.contains("'--digest <HEX>': expected 64 hex digits, got 2"), "{short}");
    assert_eq!(place.images(), ["back", "bb", "myapp:1"]);
    alone.finish();
}

#[test]
fn prefetch_brings_in_what_is_missing() {
    let alone = Alone::new();
    let place = &alone.place;
    let body = droplet("ahead", 1000);
    let (sum, web) = (digest(&body), Web::serve(body));
    let uri = preloaded(Path::new(&alone.image()), &web.url("/d?key=hidden"), &sum);
    let done = place.json(&["image", "prefetch", &uri, &alone.image()]);
    assert_eq!(done[0]["fetched"].as_array().unwrap().len(), 2);
    assert_eq!(done[1]["fetched"].as_array().unwrap().len(), 0);
    assert!(!done.to_string().contains("hidden"));
    let text = place.say(&["image", "prefetch", &uri]);
    assert!(text.contains("was there") && !text.contains("hidden"), "{text}");
    assert_eq!(web.gets(), 1);
    // The rest is done although one of them fails.
    let said = place.wardian(&["image", "prefetch", "nothing", &uri]);
    assert!(said.code == Some(1) && said.out.contains("was there"), "{said:?}");
    let layers = place.usage();
    assert_eq!(layers["layers"], 2);
    place.say(&["store", "gc"]);
    alone.finish();
}

#[tokio::test]
async fn run_puts_an_app_on_an_image() {
    let server = Server::start().await;
    let body = droplet("said", 1000);
    let (sum, web) = (digest(&body), Web::serve(body.clone()));
    std::fs::write(server.base().join("app.tgz"), body).unwrap();
    let (socket, base) = (server.socket(), server.base().to_owned());
    let image = server.image().display().to_string();
    let url = format!("{}:/srv", web.url("/d?key=hidden"));
    let run = move |args: &[&str]| {
        let mut command = std::process::Command::new(crate::support::WARDIAN);
        command.arg("run").arg("--rm").args(args).args(["--", "cat", "/srv/app/marker"]);
        command.env("WARDIAN_SOCKET", &socket).current_dir(&base);
        crate::cli::Said::from(command.output().unwrap())
    };
    tokio::task::spawn_blocking(move || {
        for args in [
            vec!["--app", "app.tgz:/srv", &image],
            vec!["--app", "app.tgz:/srv"],
            vec!["--app", &url, "--app-digest", &sum, &image],
            vec!["--app", &url],
        ] {
            let said = run(&args);
            assert_eq!((said.code, said.out.as_str()), (Some(0), "said"), "{args:?}: {said:?}");
        }
        for (args, why) in [
            (vec!["--app", "none.tgz:/srv"], "none.tgz"),
            (vec!["--app", &url, "--app-digest", "0"], "expected 64 hex digits, got 1"),
        ] {
            let said = run(&args);
            assert!(said.code != Some(0) && said.err.contains(why), "{args:?}: {said:?}");
            assert!(!said.err.contains("hidden"), "{said:?}");
        }
        assert_eq!(run(&["--app", "app.tgz"]).code, Some(2));
    })
    .await
    .unwrap();
    server.finish().await;
}

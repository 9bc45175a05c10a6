//! Names of images, and who may give them.

use super::*;

fn named(id: &str, layers: &[&str]) -> Named {
    Named {
        name: "it".to_owned(),
        source: format!("tar:///{id}"),
        id: id.to_owned(),
        layers: layers.iter().map(|chain| (*chain).to_owned()).collect(),
        pinned: false,
        imported_ms: 1,
    }
}

fn documents(text: &str) -> Documents {
    Documents { manifest: Some(text.to_owned()), config: Some("{}".to_owned()) }
}

/// Returns the number of files in `images/` with this suffix, and their bytes.
fn files(dir: &Path, end: &str) -> (usize, u64) {
    let all = fs::read_dir(dir.join("store/images")).unwrap().map(|file| file.unwrap());
    let sizes: Vec<_> = all
        .filter(|file| file.file_name().to_str().unwrap().ends_with(end))
        .map(|file| file.metadata().unwrap().len())
        .collect();
    (sizes.len(), sizes.iter().sum())
}

/// The size of a manifest and the number of names are up to the image's author.
#[test]
fn documents_are_kept_once_and_as_long_as_a_name_has_them() {
    needs!(Root);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&config(dir.path())).unwrap();
    let layout = &store.0.layout;
    let big = documents(&"m".repeat(1 << 20));
    for n in 0..20 {
        let image = Named { name: format!("n{n}"), ..named("a", &["1"]) };
        image::save(layout, image, &big, Wish::Source).unwrap();
    }
    let (records, documents_of_all) = (files(dir.path(), ".json"), files(dir.path(), ".documents"));
    assert!(records.0 == 20 && records.1 < 20 << 10, "{records:?}");
    assert!(documents_of_all.0 == 1 && documents_of_all.1 < 2 << 20, "{documents_of_all:?}");
    let usage = store.usage().unwrap();
    assert!((1 << 20..3 << 20).contains(&usage.records_bytes), "{usage:?}");
    assert_eq!(store.read_image("n7").unwrap().1, big);
    // The documents stay on a pin, and on the removal of a name while another one has them.
    store.pin("n7", true).unwrap();
    store.remove_image("n3", false).unwrap();
    assert_eq!(
        store.read_image("n7").unwrap(),
        (Named { pinned: true, name: "n7".into(), ..named("a", &["1"]) }, big)
    );
    // The last name gets another image, or is removed; files left by a killed process are removed as well.
    fs::write(dir.path().join("store/images/.n1.json.half"), "{").unwrap();
    for n in (0..20).filter(|n| *n != 3 && *n != 7) {
        store.remove_image(&format!("n{n}"), false).unwrap();
    }
    assert_eq!(files(dir.path(), ".half").0, 0);
    let other = Named { name: "n7".into(), ..named("b", &["2"]) };
    image::save(layout, other, &documents("small"), Wish::Operator).unwrap();
    assert_eq!(files(dir.path(), ".documents").0, 1);
    assert_eq!(store.read_image("n7").unwrap().1, documents("small"));
    // A bare tar has no documents.
    let tar = Named { name: "n7".into(), ..named("c", &["3"]) };
    image::save(layout, tar, &Documents::default(), Wish::Operator).unwrap();
    assert_eq!(store.read_image("n7").unwrap().1, Documents::default());
    assert_eq!(files(dir.path(), ""), files(dir.path(), ".json"));
    store.remove_image("n7", true).unwrap();
    assert_eq!(files(dir.path(), "").0, 0);
}

/// Earlier versions have written the documents into each record.
#[test]
fn records_of_earlier_versions_are_read() {
    needs!(Root);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&config(dir.path())).unwrap();
    let old = r#"{"name":"it","source":"tar:///a","id":"a","layers":["1"],"imported_ms":1,"manifest":"m","config":"{}"}"#;
    fs::write(dir.path().join("store/images/it.json"), old).unwrap();
    let whole = (named("a", &["1"]), documents("m"));
    assert_eq!(store.images().unwrap(), std::slice::from_ref(&whole.0));
    assert_eq!(store.read_image("it").unwrap(), whole);
    // A changed record moves its documents to a separate file.
    store.pin("it", true).unwrap();
    assert_eq!(store.read_image("it").unwrap(), (Named { pinned: true, ..whole.0 }, whole.1));
    assert_eq!(files(dir.path(), ".documents").0, 1);
    let record = fs::read_to_string(dir.path().join("store/images/it.json")).unwrap();
    assert!(!record.contains("manifest"), "{record}");
    // A record emptied by a power cut counts as missing, and keeps no documents.
    fs::write(dir.path().join("store/images/it.json"), "").unwrap();
    assert!(store.images().unwrap().is_empty());
    image::sweep(&store.0.layout);
    assert_eq!(files(dir.path(), ".documents").0, 0);
}

#[test]
fn a_source_gets_only_a_name_that_is_free() {
    needs!(Root);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&config(dir.path())).unwrap();
    let layout = &store.0.layout;
    let save = |image: &Named, wish| image::save(layout, image.clone(), &documents("m"), wish);
    let (first, other) = (named("a", &["1", "2"]), named("b", &["3"]));
    assert_eq!(save(&first, Wish::Source).unwrap(), None);
    store.pin("it", true).unwrap();
    let pinned = Named { pinned: true, ..first.clone() };
    // The same config with layers in another base directory is another image.
    let moved = named("a", &["1", "2 base-directory:etc"]);
    for taker in [&other, &moved] {
        assert!(matches!(save(taker, Wish::Source), Err(image::Error::Taken { .. })));
        assert!(image::check_free(layout, "it", &taker.id, &taker.layers).is_err());
        assert_eq!(store.find_image("it").unwrap(), pinned);
    }
    // The same image from another source does not change the recorded source, whose file may be under another user's
    // control.
    let again = Named { source: "tar:///elsewhere".to_owned(), ..first.clone() };
    image::check_free(layout, "it", &again.id, &again.layers).unwrap();
    assert_eq!(save(&again, Wish::Source).unwrap(), None);
    assert_eq!(store.find_image("it").unwrap(), pinned);
    // An operator may reassign the name; the pin belongs to the name.
    assert_eq!(save(&again, Wish::Operator).unwrap(), None);
    assert_eq!(save(&other, Wish::Operator).unwrap().map(|old| old.id), Some("a".to_owned()));
    assert_eq!(store.find_image("it").unwrap(), Named { pinned: true, ..other });
}

#[test]
fn one_of_many_sources_at_once_gets_the_name() {
    needs!(Root);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&config(dir.path())).unwrap();
    let got = std::thread::scope(|scope| {
        let saves: Vec<_> = (0..8)
            .map(|n| {
                let layout = &store.0.layout;
                scope.spawn(move || {
                    image::save(layout, named(&n.to_string(), &["1"]), &documents("m"), Wish::Source).is_ok()
                })
            })
            .collect();
        saves.into_iter().map(|save| usize::from(save.join().unwrap())).sum::<usize>()
    });
    assert_eq!(got, 1);
}

#[test]
fn names_that_mean_the_same_are_one() {
    needs!(Root);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&config(dir.path())).unwrap();
    let layout = &store.0.layout;
    let called = |name: &str, id| Named { name: name.to_owned(), ..named(id, &["1"]) };
    let save = |image: Named, wish| image::save(layout, image, &documents("m"), wish);
    let forms = ["box", "box:latest", "library/box", "docker.io/box", "docker.io/library/box:latest"];
    for form in forms {
        save(called(form, "a"), Wish::Source).unwrap();
        assert!(matches!(save(called(form, "b"), Wish::Source), Err(image::Error::Taken { .. })), "{form}");
        assert!(image::check_free(layout, form, "b", &[]).is_err(), "{form}");
        assert_eq!(store.find_image(form).unwrap(), called("box", "a"));
    }
    assert_eq!(save(called("library/box", "b"), Wish::Operator).unwrap(), Some(called("box", "a")));
    store.pin("docker.io/box", true).unwrap();
    assert_eq!(store.images().unwrap(), [Named { pinned: true, ..called("box", "b") }]);
    for other in
        ["box:1", "localhost/box", "reg.example/library/box", "user/box", "docker.io/reg.example/box"]
    {
        assert!(store.find_image(other).is_err(), "{other}");
        save(called(other, other), Wish::Source).unwrap();
    }
    store.remove_image("box:latest", true).unwrap();
    assert!(store.find_image("box").is_err());
    // Earlier versions stored names as they were given; an exact match comes first.
    let earlier = |name: &str, id| {
        let text = serde_json::to_string(&called(name, id)).unwrap();
        fs::write(dir.path().join("store/images").join(image::file_name(name)), text).unwrap();
    };
    earlier("docker.io/library/box:latest", "c");
    for form in forms {
        assert_eq!(store.find_image(form).unwrap().id, "c", "{form}");
        assert!(matches!(save(called(form, "d"), Wish::Source), Err(image::Error::Taken { .. })), "{form}");
    }
    earlier("box:latest", "e");
    assert_eq!(store.find_image("docker.io/library/box:latest").unwrap().id, "c");
    assert_eq!(store.find_image("box:latest").unwrap().id, "e");
}

/// Names of images that clients have pulled must not fill the disk, however small their layers are.
#[test]
fn documents_count_where_there_is_a_limit() {
    needs!(Root);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&config(dir.path())).unwrap();
    let layout = &store.0.layout;
    for n in 0..6_u8 {
        let image = Named { name: format!("n{n}"), imported_ms: u64::from(n), ..named("a", &["1"]) };
        // n0 and n1 have theirs together.
        let text = char::from(b'a' + n.max(1)).to_string().repeat(1 << 20);
        image::save(layout, image, &documents(&text), Wish::Pulled).unwrap();
    }
    store.pin("n2", true).unwrap();
    assert_eq!(files(dir.path(), ".documents").0, 5);
    // Without a limit all names stay.
    assert!(store.collect_garbage(Garbage::Unnamed, None).unwrap().images.is_empty());
    let done = store.collect_garbage(Garbage::Until(3 << 20 | 1 << 19), None).unwrap();
    assert_eq!(done.images, ["n0", "n1", "n3"]);
    assert!(done.documents_bytes > 2 << 20 && done.freed_bytes == 0, "{done:?}");
    assert_eq!(files(dir.path(), ".documents").0, 3);
    let left: Vec<_> = store.images().unwrap().into_iter().map(|image| image.name).collect();
    assert_eq!(left, ["n2", "n4", "n5"]);
}

#[test]
fn names_too_long_for_a_file() {
    needs!(Root);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&config(dir.path())).unwrap();
    let long = format!("registry.example/{}:{}", "group/".repeat(30) + "app", "t".repeat(100));
    let address = "[::1]:5000/app";
    for name in [long.as_str(), address] {
        let image = Named { name: name.to_owned(), ..named("a", &["1"]) };
        image::save(&store.0.layout, image, &documents("m"), Wish::Pulled).unwrap();
        assert_eq!(store.find_image(name).unwrap().name, name);
        assert_eq!(store.read_image(name).unwrap().1, documents("m"));
    }
    let names: Vec<_> = store.images().unwrap().into_iter().map(|image| image.name).collect();
    assert_eq!(names, [address, &long]);
    store.pin(&long, true).unwrap();
    store.remove_image(&long, true).unwrap();
    store.remove_image(address, false).unwrap();
    assert_eq!(files(dir.path(), "").0, 0);
}

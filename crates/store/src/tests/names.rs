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
        manifest: None,
        config: Some("{}".to_owned()),
    }
}

#[test]
fn a_source_gets_only_a_name_that_is_free() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&config(dir.path())).unwrap();
    let layout = &store.0.layout;
    let save = |image: &Named, wish| image::save(layout, image.clone(), wish);
    let (first, other) = (named("a", &["1", "2"]), named("b", &["3"]));
    assert_eq!(save(&first, Wish::Source).unwrap(), None);
    store.pin("it", true).unwrap();
    let pinned = Named { pinned: true, ..first.clone() };
    // The same config with layers in another place is another image: the manifest says where they go.
    let moved = named("a", &["1", "2 base-directory:etc"]);
    for taker in [&other, &moved] {
        assert!(matches!(save(taker, Wish::Source), Err(image::Error::Taken { .. })));
        assert!(image::check_free(layout, "it", &taker.id, &taker.layers).is_err());
        assert_eq!(store.find_image("it").unwrap(), pinned);
    }
    // The same image from elsewhere: whoever has that file could change it.
    let again = Named { source: "tar:///elsewhere".to_owned(), ..first.clone() };
    image::check_free(layout, "it", &again.id, &again.layers).unwrap();
    assert_eq!(save(&again, Wish::Source).unwrap(), None);
    assert_eq!(store.find_image("it").unwrap(), pinned);
    // An operator may say so, and the pin is the name's.
    assert_eq!(save(&again, Wish::Operator).unwrap(), None);
    assert_eq!(save(&other, Wish::Operator).unwrap().map(|old| old.id), Some("a".to_owned()));
    assert_eq!(store.find_image("it").unwrap(), Named { pinned: true, ..other });
}

#[test]
fn one_of_many_sources_at_once_gets_the_name() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&config(dir.path())).unwrap();
    let got = std::thread::scope(|scope| {
        let saves: Vec<_> = (0..8)
            .map(|n| {
                let layout = &store.0.layout;
                scope.spawn(move || image::save(layout, named(&n.to_string(), &["1"]), Wish::Source).is_ok())
            })
            .collect();
        saves.into_iter().map(|save| usize::from(save.join().unwrap())).sum::<usize>()
    });
    assert_eq!(got, 1);
}

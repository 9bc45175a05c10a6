//! Concurrent requests of threads and processes, and cancellations.

use super::*;

/// Makes a tar that takes a while to unpack.
fn large(dir: &Path) -> String {
    let path = dir.join("large.tar");
    let mut tar = tar::Builder::new(fs::File::create(&path).unwrap());
    let data = vec![3; 64 << 10];
    for number in 0..2000 {
        add(&mut tar, &format!("d{}/{number}", number % 50), &data);
    }
    tar.finish().unwrap();
    path.to_str().unwrap().to_owned()
}

fn unpacking(progress: &Progress) -> bool {
    progress.layers().iter().any(|layer| layer.phase() == Phase::Unpacking && layer.bytes_read() > 0)
}

pub(super) fn wait_for(what: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !what() {
        assert!(start.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn who_waits_can_be_cancelled_and_takes_over_from_who_was() {
    needs!(Root);
    let dir = tempfile::tempdir().unwrap();
    let uri = large(dir.path());
    let store = open(dir.path()).unwrap();
    let (first, second, third) = (Progress::default(), Progress::default(), Progress::default());
    std::thread::scope(|scope| {
        let a = scope.spawn(|| store.import(&refer(&uri), None, &first));
        wait_for(|| unpacking(&first));
        let b = scope.spawn(|| store.import(&refer(&uri), None, &second));
        let c = scope.spawn(|| store.import(&refer(&uri), None, &third));
        second.cancel();
        // Both are cancelled at once: the first may be done before the second has ended.
        first.cancel();
        assert!(matches!(b.join().unwrap(), Err(Error::Cancelled)));
        assert!(a.join().unwrap().unwrap_err().is_cancelled());
        // The third request takes over.
        c.join().unwrap().unwrap();
    });
    assert!(store.drain(SOON));
    assert_eq!((entries(dir.path(), "layers"), entries(dir.path(), "staging")), (1, 0));
    let cancelled = Progress::default();
    cancelled.cancel();
    fs::write(&uri, fs::read(&uri).unwrap()).unwrap();
    assert!(store.import(&refer(&uri), None, &cancelled).unwrap_err().is_cancelled());
}

/// Not a test of its own: what [`processes_take_turns`] starts.
#[test]
#[ignore = "another test starts it"]
fn child_that_imports() {
    let (dir, uri) = given();
    let progress = Progress::default();
    let store = Store::open(&config(Path::new(&dir))).unwrap();
    store.import(&refer(&uri), Some("it"), &progress).unwrap();
    store.wait_durable(&progress);
    let phases: Vec<_> = progress.layers().iter().map(|layer| layer.phase()).collect();
    println!("phases {phases:?}");
}

/// Returns the directory and the address given by [`child`].
pub(super) fn given() -> (String, String) {
    (std::env::var("WARDIAN_STORE_DIR").unwrap(), std::env::var("WARDIAN_STORE_URI").unwrap())
}

pub(super) fn child(test: &str, dir: &Path, uri: &str) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"]);
    command.env("WARDIAN_STORE_DIR", dir).env("WARDIAN_STORE_URI", uri);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    command
}

#[test]
fn processes_take_turns() {
    needs!(Root);
    let dir = tempfile::tempdir().unwrap();
    let uri = large(dir.path());
    let children: Vec<_> = (0..3)
        .map(|_| child("tests::together::child_that_imports", dir.path(), &uri).spawn().unwrap())
        .collect();
    let mut unpacked = 0;
    for child in children {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
        unpacked += usize::from(text.contains("phases [Done]"));
    }
    assert_eq!(unpacked, 1);
    let store = open(dir.path()).unwrap();
    assert_eq!(store.images().unwrap().len(), 1);
    assert_eq!((entries(dir.path(), "layers"), entries(dir.path(), "staging")), (1, 0));
    assert!(store.layer(&store.image("it").unwrap().layers[0].chain).unwrap().durable);
}

#[test]
fn root_file_systems_by_eight_threads() {
    needs!(Root);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let image = store.image(&tar(dir.path())).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (store, image) = (&store, &image);
            scope.spawn(move || {
                for round in 0..25 {
                    let id = format!("{thread}-{round}");
                    let rootfs = store.create_rootfs(&id, &privileged(image)).unwrap();
                    fs::write(below(&rootfs.mount, "file"), "x").unwrap();
                    drop(rootfs);
                    store.release_rootfs(&id, None);
                }
            });
        }
    });
    assert!(store.drain(SOON));
    assert!(store.rootfs().unwrap().is_empty());
    store.close();
    assert_eq!(entries(dir.path(), "rootfs"), 0);
}

#[test]
fn nothing_is_made_ahead_once_the_store_is_closed() {
    needs!(Root);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    drop(store.0.pool.take((0, 0), true));
    store.close();
    store.0.pool.fill().unwrap();
    assert_eq!(entries(dir.path(), "rootfs"), 0);
}

/// Makes an archive as by `docker save` with one layer, whose diff id is that of `claimed`.
fn saved(dir: &Path, name: &str, claimed: &[u8], layer: &[u8]) -> String {
    let diff_id = wardian_image::Digest::of(claimed);
    let config = format!(r#"{{"rootfs":{{"diff_ids":["{diff_id}"]}}}}"#);
    let manifest = r#"[{"Config":"config.json","Layers":["0.tar"]}]"#;
    let path = dir.join(name);
    let mut tar = tar::Builder::new(fs::File::create(&path).unwrap());
    for (name, data) in
        [("manifest.json", manifest.as_bytes()), ("config.json", config.as_bytes()), ("0.tar", layer)]
    {
        add(&mut tar, name, data);
    }
    tar.finish().unwrap();
    format!("docker-archive://{}", path.display())
}

/// An image may claim another image's layer. The false claim is detected when the layer has been read, and fails only
/// that image.
#[test]
fn a_false_claim_of_a_layer_fails_alone() {
    needs!(Root);
    let dir = tempfile::tempdir().unwrap();
    let (good, slow) = (fs::read(tar(dir.path())).unwrap(), fs::read(large(dir.path())).unwrap());
    let evil = saved(dir.path(), "evil.tar", &good, &slow);
    let honest = saved(dir.path(), "honest.tar", &good, &good);
    let store = open(dir.path()).unwrap();
    let (first, second) = (Progress::default(), Progress::default());
    std::thread::scope(|scope| {
        let evil = scope.spawn(|| store.import(&refer(&evil), None, &first));
        wait_for(|| unpacking(&first) || evil.is_finished());
        assert!(!evil.is_finished(), "{:?}", evil.join());
        let honest = scope.spawn(|| store.import(&refer(&honest), None, &second));
        wait_for(|| !second.layers().is_empty() || honest.is_finished());
        assert!(!evil.is_finished());
        assert!(evil.join().unwrap().is_err());
        honest.join().unwrap().unwrap();
    });
    assert_eq!(entries(dir.path(), "layers"), 1);
}

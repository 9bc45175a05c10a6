use super::*;
use crate::namespace::{self, IdMap};
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use wardian_needs::needs;

/// A store in the temporary directory, which must be on a file system that an overlay can write to.
struct Store(tempfile::TempDir);

impl Store {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A layer with a file of the layer's name, and `top`, which every layer has.
    fn layer(&self, name: &str) -> OwnedFd {
        let dir = self.path(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join(name), name).unwrap();
        fs::write(dir.join("top"), name).unwrap();
        mount::open_tree_clone(CWD, dir.to_str().unwrap(), false).unwrap()
    }

    fn pair(&self, name: &str) -> UpperPair {
        let dir = self.path(name);
        for part in ["upper", "work"] {
            fs::create_dir_all(dir.join(part)).unwrap();
        }
        UpperPair::open(open_dir(dir.to_str().unwrap()).unwrap()).unwrap()
    }
}

fn read(root: &OwnedFd, name: &str) -> String {
    let file = rustix::fs::openat(root, name, OFlags::RDONLY, Mode::empty()).unwrap();
    std::io::read_to_string(fs::File::from(file)).unwrap()
}

fn create(root: &OwnedFd, name: &str) -> fs::File {
    let flags = OFlags::CREATE | OFlags::WRONLY;
    rustix::fs::openat(root, name, flags, Mode::from_raw_mode(0o644)).unwrap().into()
}

/// The overlay's line in mountinfo, read by a thread that attaches it in a mount namespace of its own.
fn mountinfo(overlay: &OwnedFd) -> String {
    std::thread::scope(|scope| {
        let look = scope.spawn(|| {
            let _server = Server::enter().unwrap();
            make_dir("proc").unwrap();
            let proc = mount::fs_mount("proc", &[], &[], MountAttrFlags::empty()).unwrap();
            mount::attach(proc, open_dir("proc").unwrap()).unwrap();
            mount::attach(overlay, open_dir(SCRATCH).unwrap()).unwrap();
            let text = fs::read_to_string("proc/thread-self/mountinfo").unwrap();
            text.lines().find(|line| line.contains(" - overlay ")).unwrap().to_owned()
        });
        look.join().unwrap()
    })
}

#[test]
fn names_are_short_and_read_back() {
    let names: Vec<String> = (0..5000).map(name).collect();
    assert_eq!((names[0].as_str(), names[61].as_str(), names[62].as_str()), ("0", "Z", "00"));
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    assert_eq!((names[62 + 3843].len(), names[62 + 3844].len()), (2, 3));
    assert!(names.iter().zip(0..).all(|(name, number)| index(name) == number));
}

#[test]
fn an_overlay_outlives_its_namespace_and_shows_no_path() {
    needs!(Root);
    let store = Store::new();
    let layers = LayerNamespace::start().unwrap();
    let below = layers.attach(store.layer("below").as_fd()).unwrap();
    let above = layers.attach(store.layer("above").as_fd()).unwrap();
    let pair = store.pair("pair");
    let overlay = layers.overlay(&[&above, &below], &pair, true).unwrap();
    drop((below, above, layers, pair));
    assert_eq!((read(&overlay, "top"), read(&overlay, "below")), ("above".into(), "below".into()));
    create(&overlay, "below").write_all(b"BELOW").unwrap();
    assert_eq!(fs::read_to_string(store.path("pair/upper/below")).unwrap(), "BELOW");
    assert_eq!(fs::read_to_string(store.path("below/below")).unwrap(), "below");
    let device = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(&overlay, "null", rustix::fs::FileType::CharacterDevice, Mode::RWXU, device).unwrap();
    assert_eq!(
        rustix::fs::openat(&overlay, "null", OFlags::RDONLY, Mode::empty()).unwrap_err(),
        Errno::ACCESS
    );
    let line = mountinfo(&overlay);
    assert!(line.contains("upperdir=/upper,workdir=/work") && line.contains("volatile"), "{line}");
    let path = store.0.path().to_str().unwrap();
    assert!(!line.contains(path) && !line.contains("below"), "{line}");
}

#[test]
fn layers_are_seen_through_their_id_mapping() {
    needs!(Root);
    let store = Store::new();
    let map = [IdMap { inside: 0, outside: 70_000, size: 1000 }];
    let user = namespace::user(&map, &map).unwrap();
    let layers = LayerNamespace::start().unwrap();
    let layer = store.layer("layer");
    mount::set_idmap_readonly(&layer, &user).unwrap();
    let layer = layers.attach(layer.as_fd()).unwrap();
    let overlay = layers.overlay(&[&layer], &store.pair("pair"), true).unwrap();
    let stat = rustix::fs::statat(&overlay, "layer", rustix::fs::AtFlags::empty()).unwrap();
    assert_eq!((stat.st_uid, stat.st_gid), (70_000, 70_000));
    assert_eq!(fs::metadata(store.path("layer/layer")).unwrap().uid(), 0);
}

#[test]
fn a_refused_overlay_can_be_tried_again_with_the_same_pair() {
    needs!(Root);
    let store = Store::new();
    let (layers, strangers) = (LayerNamespace::start().unwrap(), LayerNamespace::start().unwrap());
    let layer = layers.attach(store.layer("layer").as_fd()).unwrap();
    let pair = store.pair("pair");
    let error = strangers.overlay(&[&layer], &pair, true).unwrap_err();
    assert_eq!(error.errno(), Errno::XDEV);
    fs::remove_dir(store.path("pair/work")).unwrap();
    let error = layers.overlay(&[&layer], &pair, true).unwrap_err();
    assert_eq!(error.errno(), Errno::NOENT, "{error}");
    fs::create_dir(store.path("pair/work")).unwrap();
    let overlay = layers.overlay(&[&layer], &pair, false).unwrap();
    assert_eq!(read(&overlay, "top"), "layer");
    assert!(!mountinfo(&overlay).contains("volatile"));
}

#[test]
fn a_mount_is_attached_once_and_names_are_used_again() {
    needs!(Root);
    let store = Store::new();
    let layers = LayerNamespace::start().unwrap();
    let mount = store.layer("a");
    let first = layers.attach(mount.as_fd()).unwrap();
    assert!(matches!(layers.attach(mount.as_fd()), Err(Error::Attach { source: Errno::INVAL })));
    let second = layers.attach(store.layer("b").as_fd()).unwrap();
    assert_eq!((first.name.as_str(), second.name.as_str()), ("0", "1"));
    drop(first);
    let third = layers.attach(store.layer("c").as_fd()).unwrap();
    assert_eq!(third.name, "0");
    let overlay = layers.overlay(&[&third, &second], &store.pair("pair"), true).unwrap();
    assert_eq!(read(&overlay, "top"), "c");
}

/// 500 names are longer than one option of the kernel's mount API may be.
#[test]
fn five_hundred_layers() {
    needs!(Root);
    let store = Store::new();
    let layers = LayerNamespace::start().unwrap();
    let attach = |number: usize| layers.attach(store.layer(&format!("layer{number}")).as_fd()).unwrap();
    let all: Vec<AttachedLayer> = (0..501).map(attach).collect();
    let lowers: Vec<&AttachedLayer> = all.iter().rev().collect();
    let overlay = layers.overlay(&lowers[1..], &store.pair("pair"), true).unwrap();
    assert_eq!((read(&overlay, "top"), read(&overlay, "layer0")), ("layer499".into(), "layer0".into()));
    assert!(!mountinfo(&overlay).contains(store.0.path().to_str().unwrap()));
    let error = layers.overlay(&lowers, &store.pair("other"), true).unwrap_err();
    assert!(error.to_string().contains("at most 500"), "{error}");
}

#[test]
fn many_threads_ask_and_none_waits_long() {
    needs!(Root);
    let store = Store::new();
    let layers = LayerNamespace::start().unwrap();
    let base = layers.attach(store.layer("base").as_fd()).unwrap();
    let tops: Vec<OwnedFd> = (0..8).map(|number| store.layer(&format!("layer{number}"))).collect();
    let pairs: Vec<Vec<UpperPair>> = (0..8)
        .map(|thread| (0..10).map(|round| store.pair(&format!("pair{thread}.{round}"))).collect())
        .collect();
    let mut times: Vec<Duration> = std::thread::scope(|scope| {
        let ask = |number: usize| {
            let (layers, base, tops, pairs) = (&layers, &base, &tops, &pairs);
            move || {
                let top = layers.attach(tops[number].as_fd()).unwrap();
                let one = |pair| {
                    let started = Instant::now();
                    let overlay = layers.overlay(&[&top, base], pair, true).unwrap();
                    let took = started.elapsed();
                    assert_eq!(read(&overlay, "top"), format!("layer{number}"));
                    took
                };
                pairs[number].iter().map(one).collect::<Vec<_>>()
            }
        };
        let threads: Vec<_> = (0..8).map(|number| scope.spawn(ask(number))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    times.sort_unstable();
    let median = times[times.len() / 2];
    println!("8 askers at once: median {median:?}, max {:?}", times[times.len() - 1]);
    // Far above the measured time, for slow machines, and far below the time of a disk sync.
    assert!(median < Duration::from_millis(500), "{median:?}");
}

/// As on kernels that cannot clone a detached mount: the upper pair is the root of one, which is attached itself.
#[test]
fn an_upper_pair_may_be_a_mount_of_its_own() {
    needs!(Root);
    let store = Store::new();
    let layers = LayerNamespace::start().unwrap();
    let layer = layers.attach(store.layer("layer").as_fd()).unwrap();
    let pair = mount::fs_mount("tmpfs", &[("size", "1m")], &[], MountAttrFlags::empty()).unwrap();
    for name in ["upper", "work"] {
        rustix::fs::mkdirat(&pair, name, Mode::RWXU).unwrap();
    }
    let upper = rustix::fs::openat(&pair, "upper", OFlags::PATH, Mode::empty()).unwrap();
    let lowers = vec![layer.name.clone()];
    let overlay = layers.ask(|answer| Request::Overlay { lowers, pair, volatile: true, answer }).unwrap();
    assert_eq!(read(&overlay, "top"), "layer");
    create(&overlay, "new").write_all(b"new").unwrap();
    assert_eq!(read(&upper, "new"), "new");
    let shown = mountinfo(&overlay);
    assert!(shown.contains("upperdir=/upper") && shown.contains("workdir=/work"), "{shown}");
}

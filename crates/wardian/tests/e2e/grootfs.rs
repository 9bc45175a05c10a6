//! The program under the name `grootfs`, as Guardian's image plugin.

use crate::cli::Said;
use crate::grootfs_images::{self, BUSYBOX, Layer, layout, tar};
use crate::support::{REGISTRIES, WARDIAN, base, copy_program, names};
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The mapping of Guardian's unprivileged containers.
const MAPPED: &str = "--uid-mapping 0:4294967294:1 --uid-mapping 1:1:4294967293 --gid-mapping 0:4294967294:1 \
                      --gid-mapping 1:1:4294967293";
const ROOT: u32 = 4_294_967_294;
pub const SOON: Duration = Duration::from_secs(60);

/// A host of a test's own: a mount namespace with an empty /run, and a directory with the program under the name
/// `grootfs` in it. Its mounts are gone with it.
pub struct World {
    base: tempfile::TempDir,
    holder: Child,
    /// The mounts that it began with: others may have stores below their own /run.
    before: HashSet<String>,
}

impl World {
    pub fn new() -> Self {
        let base = base();
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(base.path().join("bin")).unwrap();
        // A copy, which other users can execute, too.
        copy_program(WARDIAN, base.path().join("bin/grootfs"));
        let mut holder = Command::new("unshare");
        holder.args(["-m", "--propagation", "private", "sh", "-c"]);
        holder.arg("mount -t tmpfs -o mode=755 run /run && echo ready; exec cat");
        let mut holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        let before = mount_ids(holder.id()).into_keys().collect();
        Self { base, holder, before }
    }

    pub fn base(&self) -> &Path {
        self.base.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    /// The command of a shell in the directory, with `grootfs` in its path.
    pub fn command(&self, command: &str) -> Command {
        let mut shell = Command::new("nsenter");
        shell.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()));
        shell.arg(format!("--wd={}", self.base().display())).args(["sh", "-c", command]);
        let path = std::env::var("PATH").unwrap_or_default();
        shell.env("PATH", format!("{}:{path}", self.path("bin").display()));
        shell.envs(REGISTRIES).env_remove("WARDIAN_LOG").stdin(Stdio::null());
        let conf = self.path("registries.conf");
        if conf.exists() {
            shell.env("CONTAINERS_REGISTRIES_CONF", conf);
        }
        shell
    }

    /// Has `docker.io` be at this `HOST:PORT`, for the commands that follow.
    pub fn docker_hub_is(&self, host: &str) {
        // A first part in capital letters is the name of a host, which is not to be looked up.
        let conf = format!(
            "[[registry]]\nprefix = \"docker.io\"\nlocation = \"{host}\"\n[[registry]]\nlocation = \"UPPER\"\nblocked = true\n"
        );
        fs::write(self.path("registries.conf"), conf).unwrap();
    }

    pub fn shell(&self, command: &str) -> Said {
        self.command(command).output().unwrap().into()
    }

    /// Runs `grootfs` on the store `st`.
    pub fn grootfs(&self, args: &str) -> Said {
        self.shell(&format!("exec grootfs --store {} {args}", self.path("st").display()))
    }

    /// The same; it must succeed, without a word in the log. What it says.
    pub fn say(&self, args: &str) -> String {
        let said = self.grootfs(args);
        assert!(said.code == Some(0) && said.err.is_empty(), "{args}: {said:?}");
        said.out
    }

    /// The same; it must fail. What it says.
    pub fn fail(&self, args: &str) -> String {
        let said = self.grootfs(args);
        assert!(said.code == Some(1) && said.err.is_empty(), "{args}: {said:?}");
        said.out
    }

    /// Makes a root file system; returns the answer.
    pub fn create(&self, args: &str) -> Value {
        serde_json::from_str(&self.say(&format!("create {args}"))).unwrap()
    }

    /// Replaces a store by a new one.
    pub fn fresh(&self, store: &str) {
        let done = self
            .shell(&format!("grootfs --store {store} delete-store && grootfs --store {store} init-store"));
        assert_eq!((done.code, done.out.as_str()), (Some(0), ""), "{done:?}");
    }

    /// What is mounted below the directory or in the run directories.
    pub fn mounts(&self) -> Vec<String> {
        let base = self.base().to_str().unwrap();
        let new = mount_ids(self.holder.id()).into_iter().filter(|(id, _)| !self.before.contains(id));
        let points = new.map(|(_, point)| point);
        points.filter(|point| point.starts_with(base) || point.starts_with("/run/")).collect()
    }

    /// Waits until what was thrown away is deleted, and there is no root file system.
    pub fn until_clean(&self) {
        self.until_left(0);
    }

    /// Waits until what was thrown away is deleted, and there are so many root file systems.
    pub fn until_left(&self, count: usize) {
        let started = Instant::now();
        loop {
            let [rootfs, staging, trash] =
                ["rootfs", "staging", "trash"].map(|dir| names(&self.path("st").join(dir)));
            if rootfs.len() == count && staging.is_empty() && trash.is_empty() {
                return;
            }
            assert!(started.elapsed() < SOON, "{rootfs:?} {staging:?} {trash:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the host; the processes that delete in the background end by themselves.
    pub fn finish(mut self) {
        drop(self.holder.stdin.take());
        self.holder.wait().unwrap();
    }
}

/// The mounts of a process: their ids and where they are.
fn mount_ids(pid: u32) -> HashMap<String, String> {
    let all = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let fields = all.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.map(|fields| (fields[0].to_owned(), fields[4].to_owned())).collect()
}

pub fn root(answer: &Value) -> PathBuf {
    answer["root"]["path"].as_str().unwrap().into()
}

/// A directory of the world, whose mounts only its processes see.
pub fn inside(world: &World, path: &Path) -> PathBuf {
    let root = PathBuf::from(format!("/proc/{}/root", world.holder.id()));
    root.join(path.strip_prefix("/").unwrap())
}

fn image(world: &World) -> String {
    let path = world.path("image.tar");
    let files: [(&str, &[u8]); 3] = [("bin/", b""), ("bin/sh", b"x"), ("etc/", b"")];
    fs::write(&path, tar(&files)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_root_file_system_comes_and_goes() {
    let world = World::new();
    let image = image(&world);
    assert_eq!(world.say(&format!("init-store {MAPPED}")), "");
    let answer = world.create(&format!("{image} one"));
    let path = root(&answer);
    assert_eq!(path, world.path("st/images/one/rootfs"));
    assert!(answer.get("mounts").is_none() && answer["process"]["cwd"] == "");
    let seen = inside(&world, &path);
    for name in ["", "bin", "bin/sh"] {
        assert_eq!(fs::metadata(seen.join(name)).unwrap().uid(), ROOT, "{name}");
    }
    fs::write(seen.join("written"), vec![1; 1 << 20]).unwrap();
    let stats: Value = serde_json::from_str(&world.say("stats one")).unwrap();
    let usage = &stats["disk_usage"];
    let own = usage["exclusive_bytes_used"].as_u64().unwrap();
    assert!((1 << 20..2 << 20).contains(&own), "{stats}");
    assert_eq!(usage["total_bytes_used"].as_u64(), Some(own + 1));
    assert_eq!((&usage["quota_size_bytes"], &usage["committed_space_bytes"]), (&0.into(), &1.into()));
    // Others cannot come here, and the root of the containers can do no more than pass.
    for dir in ["st", "st/images", "st/images/one"] {
        let meta = fs::metadata(world.path(dir)).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (0, ROOT, 0o710), "{dir}");
    }
    let as_root = |what: &str| {
        let ids = format!("--reuid {ROOT} --regid {ROOT} --clear-groups");
        world.shell(&format!("setpriv {ids} {what}")).code
    };
    assert_eq!(as_root(&format!("cat {}/bin/sh", path.display())), Some(0));
    assert_ne!(as_root(&format!("ls {}", world.path("st/images").display())), Some(0));
    assert_ne!(as_root(&format!("ls {}", world.path("st/layers").display())), Some(0));
    assert_ne!(as_root(&format!("mkdir {}/x", world.path("st/images/one").display())), Some(0));

    assert_eq!(
        world.say(&format!("delete {}", world.path("st/images/one").display())),
        "Image one deleted\n"
    );
    assert!(!world.path("st/images/one").exists());
    assert_eq!(world.say("list"), "Store empty\n");
    assert_eq!(world.say("delete one"), "Image `one` not found. Skipping delete.\n");
    world.until_clean();
    assert_eq!(world.mounts(), Vec::<String>::new());
    assert_eq!(world.say("clean"), "clean completed\n");
    world.until_clean();
    assert_eq!(names(&world.path("st/layers")), Vec::<String>::new());
    assert_eq!(world.say("delete-store"), "");
    assert!(!world.path("st").exists());
    world.finish();
}

#[test]
fn the_caller_mounts_an_image_of_sixty_layers() {
    let world = World::new();
    let store = "a-store-with-a-name-as-long-as/var/vcap/data/grootfs/store/unprivileged";
    fs::create_dir_all(world.path(store).parent().unwrap()).unwrap();
    let layers: Vec<_> = (0..60)
        .map(|n| Layer::gzip(&tar(&[(format!("f{n}").as_str(), format!("{n}").as_bytes())])))
        .collect();
    layout(&world.path("sixty"), &layers, &[], None);
    let image = format!("oci://{}", world.path("sixty").display());
    let run = |args: &str| {
        let said = world.shell(&format!("grootfs --store {} {args}", world.path(store).display()));
        assert!(said.code == Some(0) && said.err.is_empty(), "{said:?}");
        said.out
    };
    run(&format!("init-store {MAPPED}"));
    let handle = "0f6a2a5e-93a7-4d3d-6f2c-1a2b3c4d5e6f";
    let answer: Value =
        serde_json::from_str(&run(&format!("create --without-mount {image} {handle}"))).unwrap();
    let mount = &answer["mounts"][0];
    assert_eq!(
        (&mount["destination"], &mount["type"], &mount["source"]),
        (&"/".into(), &"overlay".into(), &"overlay".into())
    );
    let options = mount["options"][0].as_str().unwrap();
    assert!(options.len() < 4096 && options.starts_with("lowerdir=/"), "{} {options}", options.len());
    assert_eq!(options.split("/l/").count(), 61, "{options}");
    let rootfs = root(&answer);
    assert!(names(&inside(&world, &rootfs)).is_empty());
    let script = format!(
        "mount -t overlay overlay -o '{options}' {0} && cat {0}/f0 {0}/f59 && touch {0}/new",
        rootfs.display()
    );
    let mounted = world.shell(&script);
    assert_eq!((mounted.code, mounted.out.as_str()), (Some(0), "059"), "{mounted:?}");
    assert_eq!(fs::metadata(inside(&world, &rootfs.join("f7"))).unwrap().uid(), ROOT);
    // A second one has the same layers attached.
    let before = world.mounts().len();
    let second: Value =
        serde_json::from_str(&run(&format!("create --without-mount {image} second"))).unwrap();
    assert_eq!(world.mounts().len(), before + 1);
    assert_ne!(second["mounts"], answer["mounts"]);
    run("delete second");
    assert_eq!(world.mounts().len(), before);
    // A layer that is in use stays.
    run("clean");
    assert_eq!(fs::read_to_string(inside(&world, &rootfs.join("f30"))).unwrap(), "30");
    run(&format!("delete {handle}"));
    assert_eq!(world.mounts(), Vec::<String>::new());
    run("delete-store");
    world.finish();
}

#[test]
fn a_store_of_grootfs_is_left_alone() {
    let world = World::new();
    let image = image(&world);
    let script = "
        cd st && mkdir -p images/c/diff volumes/abc l meta/dependencies locks projectids tmp
        echo '{\"uid-mappings\":[],\"gid-mappings\":[]}' > meta/namespace.json; echo x > volumes/abc/file; ln -s abc l/short";
    fs::create_dir(world.path("st")).unwrap();
    assert_eq!(world.shell(script).code, Some(0));
    let state = || world.shell("find st -printf '%p %y %m %U %T@\\n' | sort").out;
    let before = state();
    for args in [
        "init-store",
        "list",
        "clean",
        "delete c",
        "stats c",
        "delete-store",
        "generate-volume-size-metadata",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([format!("create {image} c")])
    {
        let said = world.fail(&args);
        assert!(said.contains("is a store of GrootFS"), "{args}: {said}");
    }
    assert_eq!(state(), before);
    assert_eq!(world.mounts(), Vec::<String>::new());
    world.finish();
}

#[test]
fn twenty_at_once_and_two_of_one_id() {
    let world = World::new();
    let image = image(&world);
    world.say("init-store");
    let create = |id: &str| {
        let command =
            format!("exec grootfs --store {} create --with-clean {image} {id}", world.path("st").display());
        world.command(&command).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let all: Vec<Child> = (0..20).map(|n| create(&format!("r{n}"))).collect();
    for child in all {
        let said = Said::from(child.wait_with_output().unwrap());
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{said:?}");
    }
    assert_eq!(world.say("list").lines().count(), 20);
    // All of the same id: one of them has it, and no other one harms it.
    for round in 0..5 {
        let all: Vec<Child> = (0..4).map(|_| create(&format!("same{round}"))).collect();
        let said: Vec<Said> = all.into_iter().map(|child| child.wait_with_output().unwrap().into()).collect();
        let (made, refused): (Vec<_>, Vec<_>) = said.iter().partition(|said| said.code == Some(0));
        assert_eq!(made.len(), 1, "{said:?}");
        let taken = format!("image for id `same{round}` already exists\n");
        assert!(refused.iter().all(|said| said.out == taken), "{said:?}");
        let sh = world.path(&format!("st/images/same{round}/rootfs/bin/sh"));
        assert_eq!(fs::read(inside(&world, &sh)).unwrap(), b"x");
    }
    // Deleted at once, each by two.
    let delete = |id: String| {
        let command = format!("exec grootfs --store {} delete {id}", world.path("st").display());
        world.command(&command).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let ids = (0..20).map(|n| format!("r{n}")).chain((0..5).map(|n| format!("same{n}")));
    let all: Vec<Child> = ids.flat_map(|id| [delete(id.clone()), delete(id)]).collect();
    for child in all {
        let said = Said::from(child.wait_with_output().unwrap());
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{said:?}");
    }
    assert_eq!(world.say("list"), "Store empty\n");
    world.until_clean();
    assert_eq!(world.mounts(), Vec::<String>::new());
    world.finish();
}

#[test]
fn killed_in_the_middle() {
    let world = World::new();
    let image = image(&world);
    world.say(&format!("init-store {MAPPED}"));
    let killed = |point: &str, args: &str| {
        let command = format!("exec grootfs --store {} {args}", world.path("st").display());
        let said = world.command(&command).env(wardian_sys::failpoint::VARIABLE, point).output().unwrap();
        assert_eq!(said.status.code(), None, "{point} was not reached: {said:?}");
    };
    for flag in ["", "--without-mount"] {
        for point in ["staged", "committed", "rootfs-recorded", "rootfs-paired", "published"] {
            world.say("clean");
            killed(point, &format!("create {flag} {image} x"));
            // The caller deletes what it does not know to exist.
            let deleted = world.say("delete x");
            assert!(deleted.contains("deleted") || deleted.contains("not found"), "{point}: {deleted}");
            world.create(&format!("{image} x"));
            assert_eq!(world.say("delete x"), "Image x deleted\n", "{point}");
            world.until_clean();
            assert_eq!(world.mounts(), Vec::<String>::new(), "{point}");
        }
        for point in ["withdrawing", "rootfs-released"] {
            world.create(&format!("{flag} {image} x"));
            killed(point, "delete x");
            world.create(&format!("{flag} {image} y"));
            world.say("delete x");
            world.say("delete y");
            assert_eq!(world.say("list"), "Store empty\n");
            world.say("clean");
            world.until_clean();
            assert_eq!(world.mounts(), Vec::<String>::new(), "{point}");
        }
    }
    assert_eq!(world.say("delete-store"), "");
    world.finish();
}

#[test]
fn a_reboot_leaves_nothing() {
    let world = World::new();
    let image = image(&world);
    world.say("init-store");
    world.create(&format!("{image} mounted"));
    world.create(&format!("--without-mount {image} parts"));
    // The mounts and the records on the tmpfs are gone.
    let script = format!(
        "for m in $(awk '{{print $5}}' /proc/self/mountinfo | grep -e ^/run/ -e ^{}); do umount -l $m; done; rm -r /run/wardian-*",
        world.base().display()
    );
    assert_eq!(world.shell(&script).code, Some(0));
    assert_eq!(world.say("list"), "Store empty\n");
    assert_eq!(world.fail("stats mounted"), "Image `mounted` not found.\n");
    assert_eq!(world.say("delete mounted"), "Image mounted deleted\n");
    world.create(&format!("{image} parts"));
    assert_eq!(world.say("delete parts"), "Image parts deleted\n");
    world.until_clean();
    world.create(&format!("{image} again"));
    assert_eq!(names(&world.path("st/images")), [world.path("st/images/again").display().to_string()]);
    world.say("delete again");
    world.finish();
}

#[test]
fn ids_and_paths_are_hostile() {
    let world = World::new();
    let image = image(&world);
    world.say("init-store");
    fs::create_dir(world.path("outside")).unwrap();
    fs::write(world.path("outside/keep"), "x").unwrap();
    for id in ["../x", "a/b", ".", "..", "''", ".hidden", "x.json", "x.documents", &"x".repeat(256)] {
        let said = world.fail(&format!("create {image} {id}"));
        assert!(
            said.contains("contains invalid characters") || said.contains("already exists"),
            "{id}: {said}"
        );
    }
    for id in ["../x", "../../outside", "a/b", ".", "..", "''", "x.json"] {
        assert!(world.say(&format!("delete {id}")).contains("Skipping delete."), "{id}");
        assert!(world.fail(&format!("stats {id}")).contains("not found"), "{id}");
    }
    let images = world.path("st/images");
    for path in [world.path("outside"), images.join("../../outside"), images.join("x/rootfs"), "/".into()] {
        assert!(world.say(&format!("delete {}", path.display())).contains("Skipping delete."), "{path:?}");
    }
    // Somebody has put a link where a root file system would be.
    std::os::unix::fs::symlink(world.path("outside"), images.join("link")).unwrap();
    assert_eq!(world.fail(&format!("create {image} link")).lines().count(), 1);
    world.shell("grootfs --store st delete link");
    assert!(world.path("outside/keep").exists());
    fs::remove_file(images.join("link")).unwrap();
    // Other odd names are names.
    for id in ["'a b'", "ü", "-x", "a:b", "'a|b'", &"y".repeat(255)] {
        world.create(&format!("-- {image} {id}"));
        assert!(world.say("list").contains("/st/images/"), "{id}");
        assert!(world.say(&format!("delete -- {id}")).contains("deleted"), "{id}");
    }
    // Something else in the directory of a root file system is not deleted.
    world.create(&format!("{image} one"));
    fs::write(images.join("one/foreign"), "x").unwrap();
    assert!(
        world
            .fail("delete one")
            .starts_with(&format!("deleting image path '{}' failed", images.join("one").display()))
    );
    assert!(images.join("one/foreign").exists());
    fs::remove_file(images.join("one/foreign")).unwrap();
    assert_eq!(world.say("delete one"), "Image one deleted\n");
    assert_eq!(names(&images), Vec::<String>::new());
    world.until_clean();
    world.finish();
}

/// Guardian's layout for an app: digests that are none, no sizes, and a link to the root file system's tar.
#[test]
fn a_layout_as_guardian_makes_it() {
    let world = World::new();
    let image = image(&world);
    let path = fs::canonicalize(&image).unwrap();
    layout(&world.path("app"), &[Layer::gzip(&tar(&[("app", b"x")]))], &["A=b"], None);
    let blobs = world.path("app/blobs/sha256");
    let index: Value = serde_json::from_slice(&fs::read(world.path("app/index.json")).unwrap()).unwrap();
    let manifest =
        index["manifests"][0]["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
    let mut document: Value = serde_json::from_slice(&fs::read(blobs.join(&manifest)).unwrap()).unwrap();
    let fake = "0".repeat(64);
    std::os::unix::fs::symlink(&path, blobs.join(&fake)).unwrap();
    let layer = document["layers"][0].as_object_mut().unwrap();
    layer.insert("digest".into(), format!("sha256:{fake}").into());
    layer.remove("size");
    fs::write(blobs.join(&manifest), document.to_string()).unwrap();
    world.say("init-store");
    let uri = format!("oci://{}", world.path("app").display());
    assert!(world.fail(&format!("create {uri} strict")).starts_with("pulling the image"));
    let answer = world.create(&format!("--skip-layer-validation {uri} app"));
    assert_eq!(answer["process"]["env"], serde_json::json!(["A=b"]));
    assert_eq!(fs::read(inside(&world, &root(&answer).join("bin/sh"))).unwrap(), b"x");
    // It is the layer of that tar file, however the file is named.
    world.create(&format!("{image} tar"));
    assert_eq!(names(&world.path("st/layers")).len(), 1);
    for id in ["app", "tar"] {
        world.say(&format!("delete {id}"));
    }
    world.until_clean();
    world.finish();
}

#[test]
fn limits_and_what_counts_for_them() {
    let world = World::new();
    grootfs_images::make(world.base());
    world.say("init-store");
    let busybox = world.path("rootfs/busybox.tar").display().to_string();
    let limited = |flags: &str, id: &str| world.grootfs(&format!("create {flags} {busybox} {id}"));
    let below = limited("--disk-limit-size-bytes 1000", "below");
    let says = "making image: creating image: applying disk limits: disk limit is smaller than volume size\n";
    assert_eq!((below.code, below.out.as_str()), (Some(1), says));
    let above = limited(&format!("--disk-limit-size-bytes {}", BUSYBOX + (10 << 20)), "above");
    if above.code == Some(0) {
        let stats: Value = serde_json::from_str(&world.say("stats above")).unwrap();
        assert_eq!(stats["disk_usage"]["quota_size_bytes"].as_u64(), Some(10 << 20));
        let path = inside(&world, &world.path("st/images/above/rootfs/big"));
        assert!(fs::write(path, vec![1; 20 << 20]).is_err());
        world.say("delete above");
    } else {
        // A limit that nothing enforces is an error, and leaves nothing.
        assert!(above.code == Some(1) && above.out.contains("applying disk limits"), "{above:?}");
    }
    assert_eq!(world.say("list"), "Store empty\n");
    assert_eq!(names(&world.path("st/images")), Vec::<String>::new());
    world.until_clean();
    world.finish();
}

#[test]
fn a_log_file_and_a_clean_later() {
    let world = World::new();
    let image = image(&world);
    world.say("init-store");
    let other = world.path("other.tar");
    fs::write(&other, tar(&[("other", b"x")])).unwrap();
    world.create(&format!("{} gone", other.display()));
    world.say("delete gone");
    assert_eq!(names(&world.path("st/layers")).len(), 1);
    let log = world.path("clean.log");
    world.create(&format!("--with-clean --clean-log-file {} {image} x", log.display()));
    let started = Instant::now();
    while names(&world.path("st/layers")).len() != 1
        || !log.exists()
        || !fs::read_to_string(&log).unwrap().contains("groot-cleaning.ending")
    {
        assert!(started.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(10));
    }
    let path = inside(&world, &world.path("st/images/x/rootfs/bin/sh"));
    assert!(path.exists());
    let text =
        world.shell(&format!("grootfs --store st --log-file {} list; cat {0}", world.path("log").display()));
    assert!(text.out.contains("grootfs.list.groot-listing.starting"), "{text:?}");
    let secret = world.shell(&format!(
        "grootfs --store st --log-level debug create --username u --password hidden {image} y"
    ));
    assert!(secret.code == Some(0) && !secret.err.contains("hidden"), "{secret:?}");
    for id in ["x", "y"] {
        world.say(&format!("delete {id}"));
    }
    world.finish();
}

//! A store of a test's own, and the commands on it.

use crate::support::{REGISTRIES, STUCK, Server, WARDIAN, base, digest, header, mounts, names, tar_of};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Where a store is.
#[derive(Debug, Clone)]
pub struct Place {
    pub root: PathBuf,
    pub run: PathBuf,
}

/// A store without a server, with an image of busybox beside it.
pub struct Alone {
    base: tempfile::TempDir,
    run: tempfile::TempDir,
    pub place: Place,
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

impl Place {
    pub fn of(server: &Server) -> Self {
        Self { root: server.root(), run: server.run() }
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(WARDIAN);
        command.args(args).env("WARDIAN_ROOT", &self.root).env("WARDIAN_RUN", &self.run);
        command.envs(REGISTRIES).env_remove("WARDIAN_LOG").stdin(Stdio::null());
        command
    }

    pub fn wardian(&self, args: &[&str]) -> Said {
        self.command(args).output().unwrap().into()
    }

    /// It must succeed, without a word on standard error. What it says.
    pub fn say(&self, args: &[&str]) -> String {
        let said = self.wardian(args);
        assert!(said.code == Some(0) && said.err.is_empty(), "{args:?}: {said:?}");
        said.out
    }

    /// The same, as JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        let args = [args, &["--json"]].concat();
        serde_json::from_str(&self.say(&args)).unwrap_or_else(|error| panic!("{args:?}: {error}"))
    }

    /// It must fail. The message.
    pub fn fail(&self, args: &[&str]) -> String {
        let said = self.wardian(args);
        assert!(said.code == Some(1) && said.out.is_empty(), "{args:?}: {said:?}");
        said.err
    }

    /// The same for what is wrong on the command line itself.
    pub fn refuse(&self, args: &[&str]) -> String {
        let said = self.wardian(args);
        assert!(said.code == Some(2) && said.out.is_empty(), "{args:?}: {said:?}");
        said.err
    }

    pub fn spawn(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    pub fn usage(&self) -> Value {
        self.json(&["store", "usage"])
    }

    /// Names of the images.
    pub fn images(&self) -> Vec<String> {
        let images = self.json(&["image", "ls"]);
        images.as_array().unwrap().iter().map(|image| image["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Names in one of the store's directories.
    pub fn names(&self, dir: &str) -> Vec<String> {
        names(&self.root.join(dir))
    }

    /// Waits until something has come about.
    pub fn until(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !is(self) {
            let all = ["layers", "rootfs", "staging", "trash"].map(|dir| self.names(dir));
            assert!(started.elapsed() < STUCK, "{what}: {all:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until nothing is left that somebody has to delete.
    pub fn until_clean(&self) {
        self.until("what was thrown away is still there", |place| {
            ["rootfs", "staging", "trash"].iter().all(|dir| place.names(dir).is_empty())
        });
    }
}

impl Alone {
    pub fn new() -> Self {
        let base = base();
        let run = tempfile::Builder::new().prefix("wardian-e2e-").tempdir_in("/dev/shm").unwrap();
        wardian_lab::image::build(&base.path().join("image.tar")).unwrap();
        let place = Place { root: base.path().join("root"), run: run.path().to_owned() };
        Self { base, run, place }
    }

    pub fn path(&self, name: &str) -> String {
        self.base.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn image(&self) -> String {
        self.path("image.tar")
    }

    /// Writes a file beside the store.
    pub fn write(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Looks whether anything is left, once everything has been deleted that was made.
    pub fn finish(self) {
        self.place.until_clean();
        assert_eq!(names(&self.place.run.join("rootfs")), Vec::<String>::new());
        // A process that deletes may be on its way out, with a mount namespace of its own.
        self.place.until("mounts are left", |_| mounts(&[self.base.path(), self.run.path()]).is_empty());
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // What a failed test has left attached.
        for point in names(&self.place.run.join("rootfs")) {
            let _ = Command::new("umount").arg("-l").arg(&point).stderr(Stdio::null()).status();
        }
        let _ = Command::new("umount").arg("-l").arg(&self.place.run).stderr(Stdio::null()).status();
    }
}

/// What `docker save` writes of an image of such layers, which are tars.
pub fn saved(name: Option<&str>, layers: &[&[u8]]) -> Vec<u8> {
    let ids: Vec<_> = layers.iter().map(|layer| format!("sha256:{}", digest(layer))).collect();
    let config = json!({
        "os": "linux", "config": {"Env": ["A=b"]},
        "rootfs": {"type": "layers", "diff_ids": ids},
    });
    let files: Vec<String> = (0..layers.len()).map(|index| format!("{index}.tar")).collect();
    let manifest = json!([{"Config": "config.json", "RepoTags": name.map(|name| [name]), "Layers": files}]);
    let (manifest, config) = (manifest.to_string(), config.to_string());
    let mut all: Vec<(&str, &[u8])> =
        vec![("manifest.json", manifest.as_bytes()), ("config.json", config.as_bytes())];
    all.extend(files.iter().map(String::as_str).zip(layers.iter().copied()));
    tar_of(&all)
}

/// A tar that takes a while to unpack: so many small files.
pub fn many_files(to: &Path, count: usize) {
    let mut tar = tar::Builder::new(std::io::BufWriter::new(fs::File::create(to).unwrap()));
    for index in 0..count {
        tar.append_data(&mut header(1), format!("{index}"), &b"x"[..]).unwrap();
    }
    tar.into_inner().unwrap();
}

/// Bytes on the disk of all that is below.
pub fn disk_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let meta = fs::symlink_metadata(path).unwrap();
    let below = if meta.is_dir() { fs::read_dir(path).unwrap().flatten().collect() } else { Vec::new() };
    let below: u64 = below.iter().map(|entry| disk_bytes(&entry.path())).sum();
    meta.blocks() * 512 / if meta.is_dir() { 1 } else { meta.nlink() } + below
}

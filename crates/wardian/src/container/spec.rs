//! Specs of containers and processes, from the command line.

use super::mounts::Mounts;
use super::network::Network;
use crate::exit::mistake;
use crate::image::{hex_digest, with_app};
use crate::store::size;
use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args as ClapArgs, ValueEnum};
use std::collections::BTreeMap;
use std::path::PathBuf;
use wardian_engine::Pull;
use wardian_garden::wire::{ContainerSpec, CpuLimits, DiskLimits, ImageRef, Limits, MemoryLimits, PidLimits};
use wardian_store::{DiskLimit, Scope};

/// Variables.
#[derive(Debug, Default, ClapArgs)]
pub struct Env {
    /// Set a variable; without a value it is taken from here
    #[arg(short = 'e', long = "env", value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// Set those in a file: a line each, `#` begins a comment
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
}

impl Env {
    /// Returns all variables as `K=V`; those given by flags come last, and so override the files.
    pub fn all(&self) -> Result<Vec<String>> {
        self.gather().map_err(mistake)
    }

    fn gather(&self) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for file in &self.env_file {
            let bytes = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
            for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
                let place = || format!("{}, line {}", file.display(), index + 1);
                let line = std::str::from_utf8(line)
                    .ok()
                    .with_context(|| format!("{}: it is not UTF-8", place()))?;
                let line = line.strip_suffix('\r').unwrap_or(line).trim_start();
                if !line.is_empty() && !line.starts_with('#') {
                    variable(line, &mut all).with_context(place)?;
                }
            }
        }
        for text in &self.env {
            variable(text, &mut all)?;
        }
        Ok(all)
    }
}

fn variable(text: &str, all: &mut Vec<String>) -> Result<()> {
    let name = text.split('=').next().unwrap_or_default();
    ensure!(!name.is_empty() && !name.contains(char::is_whitespace), "no name of a variable: {text:?}");
    if text.contains('=') {
        all.push(text.to_owned());
    } else if let Some(value) = std::env::var_os(name) {
        let value = value.into_string().ok().with_context(|| format!("the variable {name} is not UTF-8"))?;
        all.push(format!("{name}={value}"));
    }
    Ok(())
}

/// The least memory with which a container's init and a small program have been seen to run, in bytes.
const LEAST_MEMORY: u64 = 512 << 10;

fn memory(text: &str) -> Result<u64, String> {
    match size(text)? {
        bytes if bytes < LEAST_MEMORY => Err(format!("{text} is too small; try 4M")),
        bytes => Ok(bytes),
    }
}

/// A container.
#[derive(Debug, Default, ClapArgs)]
pub struct Making {
    /// What to call it [default: a handle that the server makes up]
    #[arg(long, value_name = "HANDLE")]
    pub name: Option<String>,
    #[command(flatten)]
    env: Env,
    /// Pull policy: missing (pull if not local), always (check every time), newer (check; use the local image if the registry
    /// is unreachable), never [default: missing]
    #[arg(long, value_name = "WHEN")]
    pull: Option<Pull>,
    #[command(flatten)]
    mounts: Mounts,
    /// Most memory, swap included: 500000000, 512M (2^20), 512MB (10^6)
    #[arg(short = 'm', long, value_name = "BYTES", value_parser = memory)]
    memory: Option<u64>,
    /// Share of the processors when they are busy, relative to others'; 1024 is usual
    #[arg(short = 'c', long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..=262_144))]
    cpu_shares: Option<u64>,
    #[command(flatten)]
    disk: Disk,
    /// Most processes and threads
    #[arg(long, value_name = "N", alias = "pids-limit", value_parser = clap::value_parser!(u64).range(1..))]
    pids: Option<u64>,
    /// Root inside is root on this host
    #[arg(long)]
    privileged: bool,
    /// Put an app on top of the image, a layer that is fetched once however many containers have it: a tar (plain, gzip or
    /// zstd), and the directory that its files go to
    #[arg(long, value_name = "FILE_OR_URL:DIR", value_parser = app)]
    app: Option<(String, String)>,
    /// The sha256 of that tar as it is stored; without it a URL's server is asked by each create whether it has changed
    #[arg(long, value_name = "HEX", requires = "app", value_parser = hex_digest)]
    app_digest: Option<String>,
    /// The signal that `stop` sends first, by name or number [default: the image's, or else TERM]
    #[arg(long, value_name = "SIGNAL", value_parser = super::signal::named)]
    stop_signal: Option<String>,
    /// Note something on the container; `ps --filter` finds it
    #[arg(short = 'l', long = "property", value_name = "KEY=VALUE", visible_alias = "label", value_parser = pair)]
    properties: Vec<(String, String)>,
    #[command(flatten)]
    network: Network,
}

impl Making {
    /// Returns the image's address; one that begins with the app means the server's default image.
    fn address(&self, image: Option<&str>) -> Result<String> {
        let image = image.map(uri).transpose()?.unwrap_or_default();
        match &self.app {
            None => Ok(image),
            Some((app, path)) => with_app(&image, app, path, self.app_digest.as_deref()),
        }
    }

    fn image(&self, image: Option<&str>) -> Result<ImageRef> {
        let uri = self.address(image)?;
        let may_be_pulled = image.is_some_and(|image| match image.split_once("://") {
            Some((scheme, _)) => scheme == "docker",
            None => !image.starts_with(['/', '.']),
        });
        let pull = match self.pull {
            Some(pull) if !may_be_pulled => bail!(
                "--pull {pull}: {} is not an image at a registry",
                image.map_or_else(|| "the server's default image".into(), |image| format!("{image:?}"))
            ),
            pull if may_be_pulled => pull.unwrap_or(Pull::Missing).to_string(),
            _ => String::new(),
        };
        Ok(ImageRef { uri, pull, ..ImageRef::default() })
    }

    /// Returns the container's spec; without an image the server uses its default. `local`: the server is on this host.
    pub fn spec(&self, image: Option<&str>, local: bool) -> Result<ContainerSpec> {
        let mut spec = ContainerSpec {
            handle: self.name.clone().unwrap_or_default(),
            image: self.image(image).map_err(mistake)?,
            properties: self.properties.iter().cloned().collect::<BTreeMap<_, _>>(),
            env: self.env.all()?,
            privileged: self.privileged,
            stop_signal: self.stop_signal.clone().unwrap_or_else(|| "image".to_owned()),
            limits: Limits {
                memory_limits: MemoryLimits { limit_in_bytes: self.memory.unwrap_or_default() },
                cpu_limits: CpuLimits {
                    limit_in_shares: self.cpu_shares.unwrap_or_default(),
                    ..CpuLimits::default()
                },
                disk_limits: self.disk.limits(),
                pid_limits: PidLimits { max: self.pids.unwrap_or_default() },
                ..Limits::default()
            },
            ..ContainerSpec::default()
        };
        self.mounts.enter(&mut spec, local)?;
        self.network.enter(&mut spec)?;
        Ok(spec)
    }
}

/// What counts towards a limit of bytes on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum DiskScope {
    /// The image and what is written.
    #[default]
    Total,
    /// What is written alone.
    Exclusive,
}

impl DiskScope {
    /// Returns its number in Garden's API.
    pub fn number(self) -> u8 {
        u8::from(self == Self::Exclusive)
    }
}

/// Parses a limit of bytes.
fn disk(text: &str) -> Result<u64, String> {
    match size(text)? {
        0 => Err("nothing could be written; leave --disk out for no limit".to_owned()),
        bytes => Ok(bytes),
    }
}

/// What a root file system may take.
#[derive(Debug, Default, Clone, Copy, ClapArgs)]
pub struct Disk {
    /// Most bytes of its root file system on the disk, the image included: 500M, 2G (2^30), 2GB (10^9)
    #[arg(long, value_name = "BYTES", value_parser = disk)]
    disk: Option<u64>,
    /// Most files, directories and links that it makes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    inodes: Option<u64>,
    /// What counts towards --disk: the image and what is written (total), or what is written alone (exclusive)
    #[arg(long, value_name = "SCOPE", requires = "disk", default_value = "total", hide_default_value = true)]
    disk_scope: DiskScope,
}

impl Disk {
    /// Returns the limits in Garden's API; zero is none.
    fn limits(self) -> DiskLimits {
        DiskLimits {
            byte_hard: self.disk.unwrap_or_default(),
            inode_hard: self.inodes.unwrap_or_default(),
            scope: self.disk_scope.number(),
            ..DiskLimits::default()
        }
    }

    /// Returns the limit of the store.
    pub fn limit(self) -> DiskLimit {
        let scope = match self.disk_scope {
            DiskScope::Total => Scope::Total,
            DiskScope::Exclusive => Scope::Exclusive,
        };
        DiskLimit { bytes: self.disk, inodes: self.inodes, scope }
    }
}

/// Makes a relative path absolute, because the server does not know this program's working directory. A name is left
/// alone.
fn uri(image: &str) -> Result<String> {
    ensure!(!image.is_empty(), "an empty image; leave it out for the server's default one");
    let is_relative = image.starts_with("./") || image.starts_with("../") || image == "." || image == "..";
    if !is_relative {
        return Ok(image.to_owned());
    }
    let path = std::path::absolute(image).with_context(|| format!("find {image}"))?;
    let path = path.into_os_string().into_string();
    path.ok().with_context(|| format!("the path of {image} is not UTF-8"))
}

/// Parses `FILE_OR_URL:DIR`. Both may contain colons, but the directory is absolute.
fn app(text: &str) -> Result<(String, String), String> {
    match text.rsplit_once(":/") {
        Some((app, dir)) if !matches!(app, "" | "http" | "https" | "file") => {
            Ok((app.to_owned(), format!("/{dir}")))
        }
        _ => Err("expected FILE_OR_URL:DIR with an absolute DIR".to_owned()),
    }
}

/// Parses `KEY=VALUE`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

/// Returns the command to run: the words after the image or handle, or those after a `--`.
pub fn command(words: Vec<String>, last: Vec<String>) -> Vec<String> {
    let mut all = words;
    if !all.is_empty() && !last.is_empty() {
        // A `--` after other words belongs to the command.
        all.push("--".to_owned());
    }
    all.extend(last);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        std::fs::write(&file, "# no\n\nA=1\n  B=x y\nHOME\nWARDIAN_NOT_SET\n").unwrap();
        let env = Env { env: vec!["A=2".into(), "C=".into()], env_file: vec![file.clone()] };
        let home = format!("HOME={}", std::env::var("HOME").unwrap());
        assert_eq!(env.all().unwrap(), ["A=1", "B=x y", &home, "A=2", "C="]);
        for (text, why) in [
            (&b"# no\n\nA=1\r\n\nA B=1\nC=1\n"[..], "line 5: no name of a variable: \"A B=1\""),
            (b"A=1\n=2", "line 2: no name of a variable: \"=2\""),
            (b"A=1\n\n\xff=2\n", "line 3: it is not UTF-8"),
        ] {
            std::fs::write(&file, text).unwrap();
            let told = format!("{:#}", env.all().unwrap_err());
            assert!(told.starts_with(&file.display().to_string()) && told.ends_with(why), "{told}");
        }
        for bad in ["", "=x"] {
            assert!(Env { env: vec![bad.into()], ..Env::default() }.all().is_err());
        }
    }

    #[test]
    fn images_are_names_addresses_or_paths() {
        for same in ["alpine", "oci:///x", "/abs.tar", "a/b:c"] {
            assert_eq!(uri(same).unwrap(), same);
        }
        let here = std::env::current_dir().unwrap().join("a.tar");
        assert_eq!(uri("./a.tar").unwrap(), here.to_str().unwrap());
    }

    #[test]
    fn what_would_do_is_said() {
        for text in ["0", "1", "4K", "511K"] {
            assert_eq!(memory(text), Err(format!("{text} is too small; try 4M")));
        }
        assert_eq!(memory("512K"), Ok(512 << 10));
        let digest = "0f".repeat(32);
        assert_eq!(hex_digest(&digest), Ok(digest.clone()));
        for (text, why) in [
            ("abc", "expected 64 hex digits, got 3"),
            ("", "expected 64 hex digits, got 0"),
            (&format!("sha256:{digest}"), "expected 64 hex digits, got 68 and 3 other characters"),
            (&digest.to_uppercase(), "expected lower-case hex digits"),
        ] {
            assert_eq!(hex_digest(text), Err(why.to_owned()), "{text}");
        }
    }

    #[test]
    fn apps() {
        let there = |text: &str| app(text).ok();
        let pair = |app: &str, dir: &str| Some((app.to_owned(), dir.to_owned()));
        assert_eq!(there("a.tgz:/home/vcap"), pair("a.tgz", "/home/vcap"));
        assert_eq!(there("/x:y/a.tgz:/"), pair("/x:y/a.tgz", "/"));
        assert_eq!(there("https://h:8/a?b=c:/d:/app"), pair("https://h:8/a?b=c:/d", "/app"));
        for bad in ["", "a.tgz", ":/a", "https://h/a.tgz", "a.tgz:home"] {
            assert!(there(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn an_app_on_an_image_or_on_the_default_one() {
        let making = |digest: Option<&str>| Making {
            app: Some(("https://h/a.tgz?x=1&y=2".into(), "/home/vcap".into())),
            app_digest: digest.map(str::to_owned),
            ..Making::default()
        };
        let app = "?app=https://h/a.tgz%3Fx=1%26y=2&app_path=/home/vcap";
        assert_eq!(making(None).spec(Some("alpine"), true).unwrap().image.uri, format!("alpine{app}"));
        let digest = "0f".repeat(32);
        let spec = making(Some(&digest)).spec(None, true).unwrap();
        assert_eq!(spec.image.uri, format!("{app}&app_digest={digest}"));
        assert!(making(Some("0F")).spec(None, true).is_err());
        assert!(making(None).spec(Some("alpine?app=/b.tar&app_path=/b"), true).is_err());
    }

    #[test]
    fn commands_with_and_without_a_separator() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let all = |first: &str, last: &str| command(words(first), words(last));
        assert_eq!(all("ls -l", ""), words("ls -l"));
        assert_eq!(all("", "ls -l"), words("ls -l"));
        assert_eq!(all("sh -c x", "y"), words("sh -c x -- y"));
        assert_eq!(all("", ""), words(""));
    }
}

//! What `run` and `create` mount in a container: `-v` and `--tmpfs`.

use crate::exit::mistake;
use crate::store::size;
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args as ClapArgs;
use std::path::Path;
use wardian_garden::wire::{BindMount, ContainerSpec, Tmpfs, VolumeMount};

/// The form of `-v`.
const FORM: &str = "expected HOST_PATH:CONTAINER_PATH or NAME:CONTAINER_PATH, with :ro or :idmap after it";

/// What is mounted.
#[derive(Debug, Default, ClapArgs)]
pub struct Mounts {
    /// Show a file or directory of the host inside, or a volume, which is made if there is none of this NAME; rw unless told
    /// otherwise. idmap: root of the host is root inside
    #[arg(
        short = 'v',
        long = "volume",
        value_name = "HOST_OR_NAME:CONTAINER[:ro|idmap]",
        value_parser = volume
    )]
    volumes: Vec<Volume>,
    /// Mount a file system in memory: size=64M, mode=1777, exec [default: 64M or half of -m, 1777, nosuid,nodev,noexec]
    #[arg(long, value_name = "PATH[:OPTION,...]", value_parser = tmpfs)]
    tmpfs: Vec<Tmpfs>,
}

/// A `-v`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Volume {
    source: Source,
    inside: String,
    read_only: bool,
    idmap: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    /// A path of the host.
    Path(String),
    /// The name of a volume.
    Name(String),
}

impl Volume {
    fn source(&self) -> &str {
        let (Source::Path(source) | Source::Name(source)) = &self.source;
        source
    }
}

impl Mounts {
    /// Enters the mounts into a spec; with `local`, the server is on this host, and a relative path is one of it.
    ///
    /// # Errors
    /// Mounts that exclude each other, or that mean nothing to this server.
    pub fn enter(&self, spec: &mut ContainerSpec, local: bool) -> Result<()> {
        self.entered(spec, local).map_err(mistake)
    }

    fn entered(&self, spec: &mut ContainerSpec, local: bool) -> Result<()> {
        let volumes = self.volumes.iter().map(|volume| (volume.inside.as_str(), volume.source()));
        let tmpfs = self.tmpfs.iter().map(|tmpfs| (tmpfs.dst_path.as_str(), "--tmpfs"));
        distinct(&volumes.chain(tmpfs).collect::<Vec<_>>())?;
        for volume in &self.volumes {
            ensure!(
                !(volume.idmap && spec.privileged),
                "-v {}:{}: idmap has no meaning with --privileged, where root inside is root of the host: leave it out",
                volume.source(),
                volume.inside
            );
            let dst_path = volume.inside.clone();
            match &volume.source {
                Source::Path(path) => spec.bind_mounts.push(BindMount {
                    src_path: absolute(path, local)?,
                    dst_path,
                    mode: u8::from(!volume.read_only),
                    idmap: volume.idmap,
                    ..BindMount::default()
                }),
                Source::Name(name) => {
                    let (name, read_only) = (name.clone(), volume.read_only);
                    spec.volumes.push(VolumeMount { name, dst_path, read_only });
                }
            }
        }
        spec.tmpfs.clone_from(&self.tmpfs);
        spec.by_flags = !self.volumes.is_empty() || !self.tmpfs.is_empty();
        Ok(())
    }
}

/// Makes a path of the host absolute, because the server does not know this program's working directory.
fn absolute(path: &str, local: bool) -> Result<String> {
    ensure!(
        local || Path::new(path).is_absolute(),
        "-v {path}: the server is on another host perhaps, where only an absolute path means something"
    );
    let path = std::path::absolute(path).with_context(|| format!("find {path}"))?;
    path.into_os_string().into_string().ok().context("its path is not UTF-8")
}

/// Refuses two mounts at the same path, one of which would be hidden.
fn distinct(mounts: &[(&str, &str)]) -> Result<()> {
    for (index, (inside, source)) in mounts.iter().enumerate() {
        // Compared as paths, so that repeated slashes do not matter.
        let is_same = |other: &&(&str, &str)| Path::new(other.0) == Path::new(inside);
        if let Some((_, other)) = mounts[..index].iter().find(is_same) {
            bail!(
                "two volumes are to be at {inside}: {source} would hide {other}; leave one out, or give it another place"
            );
        }
    }
    Ok(())
}

fn volume(text: &str) -> Result<Volume, String> {
    parse_volume(text).map_err(|error| error.to_string())
}

fn parse_volume(text: &str) -> Result<Volume> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, inside, options) = match parts[..] {
        [source, inside] => (source, inside, ""),
        [source, inside, options] if !options.is_empty() => (source, inside, options),
        [inside] if inside.starts_with('/') => bail!(
            "{FORM}. A volume without a name is not needed: {inside} is the container's own as long as there is nothing else"
        ),
        _ => bail!(FORM),
    };
    ensure!(!source.is_empty() && !inside.is_empty(), FORM);
    ensure!(Path::new(inside).is_absolute(), "the path in the container must be absolute, not {inside:?}");
    let source = if source.contains('/') || matches!(source, "." | "..") {
        Source::Path(source.to_owned())
    } else {
        wardian_store::volume::check(source)
            .map_err(|error| anyhow::anyhow!("{error}; a path has a slash, as in ./{source}"))?;
        Source::Name(source.to_owned())
    };
    let mut volume = Volume { source, inside: inside.to_owned(), read_only: false, idmap: false };
    let mut access = None;
    for option in options.split(',').filter(|_| !options.is_empty()) {
        match option {
            "ro" | "rw" => {
                ensure!(access.is_none_or(|given| given == option), "both ro and rw");
                access = Some(option);
                volume.read_only = option == "ro";
            }
            "idmap" => volume.idmap = true,
            "z" | "Z" => bail!("{option:?}: there are no SELinux labels here, leave it out"),
            other => bail!("{other:?} is neither ro nor rw nor idmap"),
        }
    }
    Ok(volume)
}

/// Parses `PATH[:OPTION,…]`.
fn tmpfs(text: &str) -> Result<Tmpfs, String> {
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    if !Path::new(path).is_absolute() {
        return Err(format!("the path in the container must be absolute, not {path:?}"));
    }
    let mut tmpfs = Tmpfs { dst_path: path.to_owned(), ..Tmpfs::default() };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", bytes)) => match size(bytes)? {
                0 => {
                    return Err(
                        "size=0: nothing could be written; leave it out for the usual size".to_owned()
                    );
                }
                bytes => tmpfs.size = bytes,
            },
            Some(("mode", mode)) => {
                let bits = u32::from_str_radix(mode, 8).ok().filter(|bits| *bits <= 0o7777);
                tmpfs.mode =
                    Some(bits.ok_or_else(|| format!("mode={mode}: expected octal digits, as in 1777"))?);
            }
            _ if option == "exec" => tmpfs.exec = true,
            // What is so without being said.
            _ if matches!(option, "rw" | "nosuid" | "nodev" | "noexec") => {}
            _ => {
                return Err(format!(
                    "{option:?} is none of size=BYTES, mode=OCTAL, exec, noexec, nosuid, nodev, rw"
                ));
            }
        }
    }
    Ok(tmpfs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entered(volumes: &[&str], local: bool, privileged: bool) -> Result<ContainerSpec> {
        let volumes = volumes.iter().map(|text| parse_volume(text)).collect::<Result<_>>()?;
        let mut spec = ContainerSpec { privileged, ..ContainerSpec::default() };
        Mounts { volumes, ..Mounts::default() }.entered(&mut spec, local)?;
        Ok(spec)
    }

    #[test]
    fn paths_of_the_host_and_names() {
        let bind = |text: &str| {
            let spec = entered(&[text], true, false).ok()?;
            let bind = spec.bind_mounts.first()?.clone();
            Some((bind.src_path, bind.dst_path, bind.mode, bind.idmap))
        };
        assert_eq!(bind("/a:/b"), Some(("/a".into(), "/b".into(), 1, false)));
        assert_eq!(bind("/a:/b:ro"), Some(("/a".into(), "/b".into(), 0, false)));
        assert_eq!(bind("/a:/b:idmap,ro"), Some(("/a".into(), "/b".into(), 0, true)));
        assert_eq!(bind("/a:/b:rw,idmap"), Some(("/a".into(), "/b".into(), 1, true)));
        let here = std::env::current_dir().unwrap();
        let path = |name: &str| here.join(name).to_str().unwrap().to_owned();
        assert_eq!(bind("./x:/b:rw"), Some((path("x"), "/b".into(), 1, false)));
        assert_eq!(bind("x/y:/b"), Some((path("x/y"), "/b".into(), 1, false)));
        assert!(bind(".:/b").is_some() && bind("..:/b").is_some());
        let named = entered(&["x:/b", "y.1:/c:ro,idmap"], false, false).unwrap();
        let volume = |name: &str, inside: &str, read_only| VolumeMount {
            name: name.into(),
            dst_path: inside.into(),
            read_only,
        };
        assert_eq!(named.volumes, [volume("x", "/b", false), volume("y.1", "/c", true)]);
        assert!(named.by_flags && named.bind_mounts.is_empty());
        for bad in [
            "/a",
            "a",
            "/a:b",
            "/a:/b:z",
            "/a:/b:",
            ":/b",
            "/a:",
            "/a:/b:ro:x",
            "",
            "/a:/b:ro,rw",
            "_x:/b",
            "a b:/b",
        ] {
            assert!(parse_volume(bad).is_err(), "{bad}");
        }
        assert_eq!(entered(&[], true, false).unwrap(), ContainerSpec::default());
    }

    #[test]
    fn what_excludes_each_other() {
        let refused = |volumes: &[&str], local, privileged| {
            entered(volumes, local, privileged).unwrap_err().to_string()
        };
        assert!(refused(&["./a:/b"], false, false).contains("another host"));
        assert!(refused(&["/a:/b:idmap"], true, true).contains("--privileged"));
        assert!(refused(&["v:/b:idmap"], true, true).contains("--privileged"));
        assert!(refused(&["/a:/b", "v://b/"], true, false).contains("would hide /a"));
        assert!(entered(&["/a:/b"], false, false).is_ok() && entered(&["v:/b"], true, true).is_ok());
    }

    #[test]
    fn file_systems_in_memory() {
        let of = |text: &str| tmpfs(text).map(|it| (it.dst_path, it.size, it.mode, it.exec)).ok();
        assert_eq!(of("/x"), Some(("/x".into(), 0, None, false)));
        assert_eq!(of("/x:"), Some(("/x".into(), 0, None, false)));
        assert_eq!(of("/x:rw,noexec,nosuid,size=65536k"), Some(("/x".into(), 64 << 20, None, false)));
        assert_eq!(of("/x:mode=700,exec,size=1M"), Some(("/x".into(), 1 << 20, Some(0o700), true)));
        for bad in [
            "",
            "x",
            "/x:size=0",
            "/x:size=50%",
            "/x:mode=9",
            "/x:mode=17777",
            "/x:suid",
            "/x:ro",
            "/x:uid=1",
        ] {
            assert!(of(bad).is_none(), "{bad}");
        }
    }
}

//! The engines that can be compared, and which of them are here.

use super::run::{command, run, within};
use anyhow::{Result, bail};
use serde::Serialize;
use std::process::Stdio;
use std::time::Duration;

/// How long an engine may take to tell its version.
const PROBE: Duration = Duration::from_secs(20);

/// An engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Engine {
    /// A server of this program, started for each turn.
    Wardian,
    /// A Garden server at this address, which is not ours.
    Garden(String),
    /// podman.
    Podman,
    /// podman, its containers made with `--rm`: their overlays are mounted volatile.
    PodmanRm,
    /// containerd, through ctr.
    Containerd,
    /// docker.
    Docker,
}

/// An engine as it was found.
#[derive(Debug, Clone, Serialize)]
pub struct Found {
    /// Its name in tables.
    pub name: String,
    /// What it is called by `--engines`.
    #[serde(skip)]
    pub engine: Engine,
    /// Its version.
    pub version: String,
    /// How it does what is compared.
    pub how: String,
    /// Steps that it cannot do, and why: they are in no sum that it is compared by.
    pub cannot: Vec<(&'static str, String)>,
}

impl Found {
    /// Whether `--engines` names it.
    pub(super) fn is_named(&self) -> bool {
        !matches!(self.engine, Engine::Garden(_))
    }
}

/// An engine that is not compared.
#[derive(Debug, Clone, Serialize)]
pub struct Missing {
    /// Its name.
    pub name: String,
    /// Why, and what to do.
    pub why: String,
}

impl Engine {
    /// Those that are looked for without being named.
    pub const USUAL: [Self; 4] = [Self::Wardian, Self::Podman, Self::Containerd, Self::Docker];

    /// Parses a word of `--engines`.
    ///
    /// # Errors
    /// There is no such engine.
    pub fn parse(word: &str) -> Result<Self> {
        Ok(match word {
            "wardian" => Self::Wardian,
            "podman" => Self::Podman,
            "podman-rm" => Self::PodmanRm,
            "containerd" | "ctr" => Self::Containerd,
            "docker" => Self::Docker,
            _ => bail!(
                "{word:?} is no engine: wardian, podman, podman-rm, containerd, docker; Garden servers by --garden"
            ),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Wardian => "wardian",
            Self::Garden(_) => "garden",
            Self::Podman => "podman",
            Self::PodmanRm => "podman-rm",
            Self::Containerd => "containerd",
            Self::Docker => "docker",
        }
    }

    /// Programs that it needs, the option by which each tells its version, and the Debian package.
    fn programs(&self) -> (&'static [&'static str], &'static str) {
        match self {
            Self::Wardian | Self::Garden(_) => (&[], ""),
            Self::Podman | Self::PodmanRm => (&["podman"], "podman"),
            Self::Containerd => (&["containerd", "ctr", "runc"], "containerd"),
            Self::Docker => (&["dockerd", "docker", "containerd", "runc"], "docker.io"),
        }
    }

    fn how(&self) -> &'static str {
        match self {
            Self::Wardian => {
                "`serve --network none` for each turn; a user namespace for each container; overlays are volatile; the \
                 code by stream-in; the health check is a pea"
            }
            Self::Garden(_) => {
                "a server that was there, with its own store and network; the code by stream-in; the health check is a \
                 pea"
            }
            Self::Podman => {
                "`run -d --network none`, rootful; code by `podman cp -`; app by `exec -d`; the health check: `run --rm \
                 --network container:… --pid container:…`; `rm -f -t 0`"
            }
            Self::PodmanRm => {
                "as podman, its containers run with `--rm`, which makes their overlays volatile"
            }
            Self::Containerd => {
                "through ctr, rootful, loopback alone; code by tar in `task exec`; app by `task exec -d`; the health \
                 check: `run --rm --with-ns` of the first one's; `task rm -f`, `container rm`"
            }
            Self::Docker => {
                "a dockerd for each turn, `run -d --network none`, rootful; code by `docker cp -`; app by `exec -d`; the \
                 health check: `run --rm --network container:… --pid container:…`; `rm -f`"
            }
        }
    }

    /// Looks for the engine on this host.
    ///
    /// # Errors
    /// It is not here, or does not answer.
    pub(super) async fn find(&self, name: String, timeout: Duration) -> Result<Found, Missing> {
        let missing = |why: String| Missing { name: self.name().to_owned(), why };
        let (programs, package) = self.programs();
        let (mut versions, mut absent) = (Vec::new(), Vec::new());
        for program in programs {
            if !is_on_path(program) {
                absent.push(*program);
                continue;
            }
            let tell = run(None, command(program, ["--version"]), Stdio::null(), &[]);
            let told = within(timeout.min(PROBE), &format!("`{program} --version`"), tell).await;
            let told = told.map_err(|error| missing(format!("{error:#}")))?;
            versions.push(version_in(&String::from_utf8_lossy(&told.out)));
        }
        if !absent.is_empty() {
            return Err(missing(format!(
                "{} not here; Debian's package: apt-get install {package}",
                if let [one] = absent[..] {
                    format!("{one} is")
                } else {
                    format!("{} are", absent.join(", "))
                }
            )));
        }
        let mut cannot = Vec::new();
        if *self == Self::Containerd {
            let ask = run(None, command("ctr", ["run", "--help"]), Stdio::null(), &[]);
            let help = within(timeout.min(PROBE), "`ctr run --help`", ask).await;
            let help = help.map_err(|error| missing(format!("{error:#}")))?;
            if !String::from_utf8_lossy(&help.out).contains("--with-ns") {
                cannot.push((
                    "pea",
                    "this ctr has no --with-ns, by which a container joins another's namespaces".to_owned(),
                ));
            }
        }
        let version = match self {
            Self::Wardian => env!("CARGO_PKG_VERSION").to_owned(),
            Self::Garden(address) => {
                let client = wardian_garden::Client::new(address);
                let client = client.map_err(|error| missing(format!("--garden {address}: {error}")))?;
                let ping = async { Ok(client.ping().await?) };
                let pinged = within(timeout.min(PROBE), &format!("a ping of {address}"), ping).await;
                pinged.map_err(|error| missing(format!("--garden {address}: {error:#}")))?;
                "unknown".to_owned()
            }
            _ => versions.first().cloned().unwrap_or_default(),
        };
        Ok(Found { name, engine: self.clone(), version, how: self.how().to_owned(), cannot })
    }
}

/// Whether a program of this name is in a directory of PATH.
fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| {
        rustix::fs::access(dir.join(program), rustix::fs::Access::EXEC_OK).is_ok()
            && dir.join(program).is_file()
    })
}

/// The first word that looks like a version: `podman version 4.3.1`, `containerd github.com/… 1.6.20~ds1 …`.
fn version_in(said: &str) -> String {
    let words = said.split(|c: char| c.is_whitespace() || c == ',');
    let mut numbers = words
        .map(|word| word.strip_prefix('v').unwrap_or(word))
        .filter(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'));
    let version: String = numbers.next().unwrap_or("unknown").chars().take(40).collect();
    wardian_sys::text::tame(&version).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_by_name() {
        for engine in Engine::USUAL.into_iter().chain([Engine::PodmanRm]) {
            assert_eq!(Engine::parse(engine.name()).unwrap(), engine);
        }
        assert!(Engine::parse("garden").is_err() && Engine::parse("").is_err());
        let error = Engine::parse("lxc").unwrap_err().to_string();
        assert!(error.contains("\"lxc\" is no engine") && error.contains("--garden"), "{error}");
    }

    #[test]
    fn versions() {
        for (said, version) in [
            ("podman version 4.3.1\n", "4.3.1"),
            ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3\n", "1.6.20~ds1"),
            ("Docker version 28.2.2, build e6534b4\n", "28.2.2"),
            ("ctr github.com/x v2.0.1", "2.0.1"),
            ("", "unknown"),
        ] {
            assert_eq!(version_in(said), version, "{said}");
        }
    }
}

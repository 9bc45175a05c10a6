//! The comparison with crun: `crun run` of `true` in an unprivileged container.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::Command;

/// crun refuses a host with both versions of cgroups; without the mount of v2 it sees v1 only.
const WITHOUT_V2: &str = "umount /sys/fs/cgroup/unified && exec \"$@\"";

/// A bundle, and how to call crun on this host.
#[derive(Debug)]
pub struct Crun {
    bundle: PathBuf,
    /// Whether crun is called in a mount namespace without cgroup v2.
    wrapped: bool,
}

impl Crun {
    /// Makes a bundle from an image's tar and tries it.
    pub async fn prepare(bundle: &Path, image: &Path) -> Result<Self> {
        std::fs::create_dir(bundle).context("make the bundle")?;
        let spec = Command::new("crun").arg("spec").current_dir(bundle).output().await;
        let spec = spec.context("crun is not installed")?;
        ensure!(spec.status.success(), "crun spec: {}", String::from_utf8_lossy(&spec.stderr).trim());
        let mut archive = tar::Archive::new(std::fs::File::open(image).context("open the image")?);
        // Without set-uid bits, which is the archive's default: the host's users can see the bundle.
        archive.unpack(bundle.join("rootfs")).context("unpack the image")?;
        // Root of the user namespace must be able to reach it.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(bundle.join("rootfs"), mode).context("open up the root file system")?;
        let path = bundle.join("config.json");
        let config = std::fs::read(&path).context("read crun's config")?;
        std::fs::write(&path, unprivileged(&config)?).context("write crun's config")?;

        let mut crun = Self { bundle: bundle.to_owned(), wrapped: false };
        if let Err(error) = crun.run().await {
            crun.wrapped = true;
            crun.run().await.with_context(|| format!("{error:#}; without cgroup v2"))?;
        }
        Ok(crun)
    }

    /// Runs `true`. Returns how long it took.
    pub async fn run(&self) -> Result<Duration> {
        let id = format!("wardian-bench-{}", std::process::id());
        let bundle = self.bundle.to_string_lossy();
        self.timed(&["crun", "run", "--bundle", &bundle, &id]).await
    }

    /// Measures everything around crun without crun itself.
    pub async fn nothing(&self) -> Result<Duration> {
        if self.wrapped { self.timed(&["/bin/true"]).await } else { Ok(Duration::ZERO) }
    }

    /// A remark on the figures.
    pub fn remark(&self) -> &'static str {
        if self.wrapped { " (in a mount namespace without cgroup v2, whose cost is subtracted)" } else { "" }
    }

    async fn timed(&self, arguments: &[&str]) -> Result<Duration> {
        let mut command = if self.wrapped {
            let mut command = Command::new("unshare");
            command.args(["--mount", "sh", "-c", WITHOUT_V2, "sh"]).args(arguments);
            command
        } else {
            let mut command = Command::new(arguments[0]);
            command.args(&arguments[1..]);
            command
        };
        let begin = Instant::now();
        let ran = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
        let (ran, took) = (ran.with_context(|| format!("run {}", arguments[0]))?, begin.elapsed());
        let said = String::from_utf8_lossy(&ran.stderr);
        ensure!(ran.status.success(), "{} ended with {}: {}", arguments.join(" "), ran.status, said.trim());
        Ok(took)
    }
}

/// The config that `crun spec` writes, for `true` in a user namespace of its own, as wardian's containers have one.
fn unprivileged(config: &[u8]) -> Result<Vec<u8>> {
    let mut config: serde_json::Value = serde_json::from_slice(config).context("read crun's config")?;
    config["process"]["args"] = serde_json::json!(["true"]);
    config["process"]["terminal"] = false.into();
    let mapping = serde_json::json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    config["linux"]["uidMappings"] = mapping.clone();
    config["linux"]["gidMappings"] = mapping;
    let namespaces =
        config["linux"]["namespaces"].as_array_mut().context("crun's config has no namespaces")?;
    if !namespaces.iter().any(|n| n["type"] == "user") {
        namespaces.push(serde_json::json!({"type": "user"}));
    }
    Ok(serde_json::to_vec(&config)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_container_is_unprivileged() {
        let config = unprivileged(br#"{"process":{},"linux":{"namespaces":[{"type":"pid"}]}}"#).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["linux"]["namespaces"][1]["type"], "user");
        assert_eq!(config["process"]["args"][0], "true");
        assert!(unprivileged(b"{}").is_err());
    }
}

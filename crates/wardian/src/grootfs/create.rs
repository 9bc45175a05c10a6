//! `grootfs create`.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::Serialize;
use serde_json::{Value, json};
use wardian_image::{Error as ImageError, RegistryError};
use wardian_store::rootfs::Error as RootfsError;
use wardian_store::{
    DiskLimit, Image, Login, Owner, Parts, Phase, Progress, Published, Reference, RootfsSpec, Scope,
};

use super::config::Config;
use super::error::{Error, chain, go_text};
use super::flags::Parsed;
use super::log::Log;
use super::metrics::Metrics;
use super::namespace::Mappings;
use super::place::{self, Opened};
use crate::print;

/// What the kernel takes of an overlay's options (mount(2): a page, with the NUL at its end).
const MAX_OPTIONS: usize = 4095;
/// A limit below this is raised to it, in bytes, as GrootFS does: below it the file system's own structures do not
/// fit.
const MIN_LIMIT: u64 = 256 << 10;

/// The answer: a part of the OCI runtime's configuration, with Go's rules of what is left out.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    #[serde(rename = "ociVersion")]
    version: &'a str,
    process: Process<'a>,
    root: Root<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mounts: Vec<Mount>,
}

#[derive(Debug, Serialize)]
struct Process<'a> {
    user: User,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    env: &'a [String],
    cwd: &'a str,
}

#[derive(Debug, Default, Serialize)]
struct User {
    uid: u32,
    gid: u32,
}

#[derive(Debug, Serialize)]
struct Root<'a> {
    path: &'a Path,
}

#[derive(Debug, Serialize)]
struct Mount {
    destination: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
    source: &'static str,
    options: [String; 1],
}

/// What a create is asked for.
struct Asked<'a> {
    image: &'a str,
    id: &'a str,
    /// As whom a registry is asked.
    login: Option<Login>,
}

/// Returns the login of the command line. As with GrootFS it needs both, and the log does not show it.
fn login(flags: &Parsed) -> Option<Login> {
    let given = |name| flags.text(name).filter(|text| !text.is_empty()).map(str::to_owned);
    Some(Login::Basic { user: given("username")?, password: given("password")? })
}

/// Where the image of a create comes from.
struct Source {
    /// As the log shows it.
    scheme: String,
    path: String,
    /// Its address for the store.
    address: String,
}

impl Source {
    /// Parses the image argument. Without a scheme it is a tar file; a query and a fragment of `oci://` are
    /// dropped, as GrootFS drops them. Of `docker://` they are not: its fragment is a tag, and another image would be made.
    fn parse(text: &str) -> Result<Self, Error> {
        let Some((scheme, rest)) = text.split_once("://").filter(|(scheme, _)| !scheme.contains('/')) else {
            let path = PathBuf::from(text);
            let missing = |error: &std::io::Error| Error::NoTar(format!("stat {text}: {}", go_text(error)));
            if text.is_empty() {
                return Err(missing(&std::io::Error::from_raw_os_error(
                    rustix::io::Errno::NOENT.raw_os_error(),
                )));
            }
            let absolute = std::path::absolute(&path).map_err(|error| missing(&error))?;
            let meta = absolute.metadata().map_err(|error| missing(&error))?;
            if meta.is_dir() {
                return Err(Error::Directory);
            }
            let address = format!("tar://{}", absolute.display());
            return Ok(Self { scheme: String::new(), path: text.to_owned(), address });
        };
        let plain = rest.split(['?', '#']).next().unwrap_or_default();
        let address = match scheme {
            "oci" => format!("{scheme}://{plain}"),
            _ => text.to_owned(),
        };
        Ok(Self { scheme: scheme.to_owned(), path: plain.to_owned(), address })
    }

    fn shown(&self) -> Value {
        json!({
            "Scheme": self.scheme, "Opaque": "", "User": null, "Host": "", "Path": self.path, "Fragment": "",
            "RawQuery": "", "RawPath": "", "RawFragment": "", "ForceQuery": false, "OmitHost": false,
        })
    }
}

/// Runs the command; prints the answer.
pub fn run(config: &Config, flags: &Parsed, log: &Log) -> Result<(), Error> {
    let [source, id] = flags.rest.as_slice() else {
        return Err(Error::Usage("create [options] <image> <id>"));
    };
    if flags.is_set("with-clean") && flags.is_set("without-clean") {
        return Err(Error::BothCleans);
    }
    let (opened, mappings) = place::initialized(config)?;
    let metrics = Metrics::new(config, log);
    let asked = Asked { image: source, id, login: login(flags) };
    let made = create(config, log, &metrics, &opened, &mappings, &asked);
    metrics.whole("ImageCreationTime");
    // A clean that follows sends these.
    if !config.create.with_clean {
        metrics.layers(&opened.store);
    }
    if made.is_ok() {
        metrics.store(&opened.store);
    }
    opened.leave();
    // GrootFS does not clean if it has not come so far as to pull the image.
    let pulled = !matches!(
        made,
        Err(Error::Taken(_) | Error::Slash(_) | Error::BadId(_) | Error::NoTar(_) | Error::Directory)
    );
    drop(opened);
    if config.create.with_clean && pulled {
        clean_later(config)?;
    }
    print::written(format!("{}\n", made?).as_bytes()).map_err(Error::Print)?;
    Ok(())
}

fn create(
    config: &Config,
    log: &Log,
    metrics: &Metrics<'_>,
    opened: &Opened,
    mappings: &Mappings,
    asked: &Asked<'_>,
) -> Result<String, Error> {
    let (store, id) = (&opened.store, asked.id);
    if id.contains('/') {
        return Err(Error::Slash(id.to_owned()));
    }
    match store.find_published(id) {
        Ok(None) => {}
        // These are the store's own directories of images.
        _ if id.is_empty() || id == "." || id == ".." => return Err(Error::Taken(id.to_owned())),
        Ok(Some(_)) => return Err(Error::Taken(id.to_owned())),
        Err(wardian_store::Error::Rootfs(RootfsError::Id { .. })) => return Err(Error::BadId(id.to_owned())),
        Err(error) => return Err(error.into()),
    }
    let source = Source::parse(asked.image)?;
    let [uids, gids] = mappings.shown();
    let settings = &config.create;
    let spec = json!({
        "ID": id, "BaseImageURL": source.shown(), "DiskLimit": settings.disk_limit_size_bytes,
        "Mount": !settings.without_mount, "ExcludeBaseImageFromQuota": settings.exclude_image_from_quota,
        "CleanOnCreate": settings.with_clean, "CleanOnCreateThresholdBytes": config.clean.threshold_bytes,
        "UIDMappings": uids, "GIDMappings": gids,
    });
    let log = log.session("groot-creating", &[("imageID", id.into()), ("spec", spec)]);
    log.around(|| {
        let reference =
            log.session("fetching-image-info", &[]).around(|| reference(&source, asked.login.as_ref()))?;
        let progress = Progress::default();
        let image = log
            .session("pulling-image-layers", &[])
            .around(|| pull(config, metrics, opened, &reference, source.scheme.is_empty(), &progress));
        let image = image.inspect_err(|error| log.error("pulling-image-failed", error))?;
        // The next create with this image need not unpack its layers once more.
        let keep = || _ = store.wait_durable(&progress);
        let limit = limit(config, opened, &image).inspect_err(|_| keep())?;
        let making = log.session("making-image", &[("id", id.into())]);
        let made = making.around(|| publish(config, opened, mappings, &image, id, limit));
        let made = made.inspect_err(|error| {
            keep();
            log.error("making-image-failed", error);
        })?;
        settle(opened, &image, &progress).and_then(|()| answer(&image, &made)).inspect_err(|_| {
            // Nobody would know that it exists.
            let _ = store.withdraw_rootfs(id);
        })
    })
}

/// Returns what the store is asked for. As with GrootFS, an image of a registry is asked for each time, as the user of
/// the command line or as nobody, and `clean` collects its layers once no root file system has them.
fn reference(source: &Source, login: Option<&Login>) -> Result<Reference, Error> {
    let reference = Reference::parse(&source.address).map_err(|error| match cause(&error) {
        Some(ImageError::Missing { .. }) => Error::NoSource,
        Some(ImageError::Name(error)) => Error::Url(chain(error)),
        _ => Error::Url(chain(&error)),
    })?;
    match login.filter(|_| reference.is_pulled()) {
        None => Ok(reference.unnamed()),
        Some(login) => Ok(reference.with_login(login.clone())?),
    }
}

/// The registry's error, if that is the cause; with several endpoints it is none of a single one.
fn registry_error(error: &ImageError) -> Option<&RegistryError> {
    let ImageError::Registry { source } = error else { return None };
    match &**source {
        RegistryError::Manifest { source, .. }
        | RegistryError::Config { source, .. }
        | RegistryError::Blob { source, .. } => registry_error(source),
        error => Some(error),
    }
}

/// Translates an error of a registry to what GrootFS says.
fn registry_failure(error: &RegistryError) -> Error {
    match error {
        RegistryError::Manifest { source, .. }
        | RegistryError::Config { source, .. }
        | RegistryError::Blob { source, .. } => match registry_error(source) {
            Some(RegistryError::Untrusted { .. }) => return Error::Insecure,
            Some(denied @ RegistryError::Denied { .. }) => return Error::Denied(denied.to_string()),
            Some(RegistryError::NoManifest { image, .. }) => {
                let (repository, tag) = image.rsplit_once([':', '@']).unwrap_or((image, ""));
                return Error::Reference(format!("reading manifest {tag} in {repository}: manifest unknown"));
            }
            _ => {}
        },
        _ => {}
    }
    match error {
        RegistryError::Manifest { source, .. } => Error::Reference(chain(source)),
        RegistryError::Config { source, .. } => Error::Configuration(chain(source)),
        other => Error::Pull(chain(other)),
    }
}

/// The error of the image's source or of a layer, if that is the cause.
fn cause(error: &wardian_store::Error) -> Option<&ImageError> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error.root());
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// Takes the image into the store.
///
/// A tar file has no manifest to tell its size: only its files count for the limit.
fn pull(
    config: &Config,
    metrics: &Metrics<'_>,
    opened: &Opened,
    reference: &Reference,
    tar: bool,
    progress: &Progress,
) -> Result<Image, Error> {
    let store = &opened.store;
    if let Some(limit) = config.inclusive_limit().filter(|_| !tar) {
        let bytes = store.blob_bytes(reference).map_err(|error| failure(&error, true))?;
        if bytes > limit {
            return Err(Error::Sum { bytes, limit });
        }
    }
    let limited = config.inclusive_limit().is_some();
    let image = store.import(reference, None, progress);
    for took in progress.layers().iter().filter_map(|layer| layer.unpacked_in()) {
        metrics.duration("UnpackTime", took);
    }
    image.map_err(|error| match failure(&error, limited) {
        Error::AboveLimit if tar => Error::LimitBelowImage,
        failure => failure,
    })
}

/// Waits until the layers that were unpacked are on the disk: one whose process ends before that is not trusted. The
/// root file system exists by now, so that no garbage collection takes them meanwhile.
fn settle(opened: &Opened, image: &Image, progress: &Progress) -> Result<(), Error> {
    // Some may have been fetched again when the root file system was made.
    opened.store.wait_durable(progress);
    if progress.layers().iter().any(|layer| layer.phase() == Phase::Done) {
        opened.store.wait_image_durable(image, progress)?;
    }
    Ok(())
}

/// Translates an error of the store to what GrootFS says; `limited`: the disk limit bounds the layers.
fn failure(error: &wardian_store::Error, limited: bool) -> Error {
    let hex = |digest: &str| digest.strip_prefix("sha256:").unwrap_or(digest).to_owned();
    let layer = |what: &str| {
        let digest = what.split_whitespace().find(|word| word.starts_with("sha256:"));
        digest.map_or_else(|| what.to_owned(), |digest| format!("streaming blob `{digest}`"))
    };
    match cause(error) {
        Some(ImageError::Registry { source }) => registry_failure(source),
        Some(ImageError::Registries(error)) => Error::Reference(chain(error)),
        Some(ImageError::Missing { .. }) => Error::NoSource,
        Some(ImageError::Directory { .. }) => Error::Directory,
        Some(ImageError::Select { why, .. }) => Error::Reference(why.clone()),
        Some(ImageError::DigestMismatch { what, expected, actual }) => {
            let which = if what.starts_with("content of") { "diffID" } else { "layerID" };
            let (expected, actual) = (hex(expected), hex(actual));
            let text = format!("{which} digest mismatch: expected: {expected}, actual: {actual}");
            Error::Pull(format!("{}: {text}", layer(what)))
        }
        Some(ImageError::SizeMismatch { what, expected, actual }) => Error::Pull(format!(
            "{}: validating reported blob size: layer size is different from the value in the manifest; expected: {expected}, \
             actual {actual}",
            layer(what)
        )),
        Some(ImageError::Allowance { flag: "--max-image-bytes", .. }) if limited => Error::AboveLimit,
        Some(ImageError::Truncated { what }) => {
            Error::Pull(format!("unpacking layer `{what}`: failed to unpack: unexpected EOF"))
        }
        Some(ImageError::NoTar { what }) => Error::Pull(format!(
            "unpacking layer `{what}`: failed to unpack: archive/tar: invalid tar header"
        )),
        Some(ImageError::Io { op, path, source }) if source.kind() == std::io::ErrorKind::NotFound => {
            match (error.root(), path.rsplit_once("/blobs/sha256/")) {
                // The layout, or a document in it.
                (wardian_store::Error::Image { .. }, _) => Error::NoSource,
                (_, Some((_, digest))) => {
                    Error::Pull(format!("streaming blob `sha256:{digest}`: {op} {path}: {}", go_text(source)))
                }
                _ => Error::Pull(chain(error)),
            }
        }
        _ => Error::Pull(chain(error)),
    }
}

/// Returns the limit of the writable layer in bytes; `None` without one.
fn limit(config: &Config, opened: &Opened, image: &Image) -> Result<Option<u64>, Error> {
    let limit = u64::try_from(config.create.disk_limit_size_bytes).unwrap_or(0);
    if limit == 0 {
        return Ok(None);
    }
    let left = match config.inclusive_limit() {
        None => limit,
        Some(limit) => {
            let layers = image.chain_ids();
            let bytes = layers.iter().filter_map(|chain| opened.store.layer(chain)).map(|layer| layer.bytes);
            limit.checked_sub(bytes.sum()).ok_or(Error::LimitBelowImage)?
        }
    };
    Ok(Some(left.max(MIN_LIMIT)))
}

fn publish(
    config: &Config,
    opened: &Opened,
    mappings: &Mappings,
    image: &Image,
    id: &str,
    limit: Option<u64>,
) -> Result<Published, Error> {
    let root = mappings.root()?;
    let owner = root.as_ref().map(|root| Owner {
        userns: std::os::fd::AsFd::as_fd(&root.userns),
        uid: root.uid,
        gid: root.gid,
        shared: true,
    });
    let limit = DiskLimit { bytes: limit, inodes: None, scope: Scope::Exclusive };
    let spec = RootfsSpec { image, owner, limit };
    let made = opened.store.publish_rootfs(id, &spec, config.create.without_mount);
    made.map_err(|error| match error.root() {
        wardian_store::Error::Rootfs(RootfsError::Exists { .. }) => Error::Taken(id.to_owned()),
        wardian_store::Error::Rootfs(RootfsError::Limit { .. }) => {
            Error::Make(format!("creating image: applying disk limits: {}", chain(&error)))
        }
        _ => Error::Make(format!("creating image: {}", chain(&error))),
    })
}

fn answer(image: &Image, made: &Published) -> Result<String, Error> {
    let mounts = made.parts.iter().map(mount).collect::<Result<_, _>>()?;
    let process = Process { user: User::default(), env: &image.config.env, cwd: "" };
    let answer = Answer { version: "", process, root: Root { path: &made.path }, mounts };
    serde_json::to_string(&answer).map_err(|error| Error::Make(error.to_string()))
}

/// The overlay that the caller mounts, volatile as those that wardian mounts: its last unmount does not sync.
fn mount(parts: &Parts) -> Result<Mount, Error> {
    let lowers: Vec<_> = parts.lowers.iter().map(|lower| lower.display().to_string()).collect();
    let (lower, upper, work) = (lowers.join(":"), parts.upper.display(), parts.work.display());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work},volatile");
    if options.len() > MAX_OPTIONS {
        return Err(Error::Options { layers: lowers.len(), length: options.len() });
    }
    Ok(Mount { destination: "/", kind: "overlay", source: "overlay", options: [options] })
}

/// Starts `clean` in a process that nobody waits for.
fn clean_later(config: &Config) -> Result<(), Error> {
    use std::os::unix::process::CommandExt as _;
    let path = place::path(config);
    let mut command = std::process::Command::new(std::env::current_exe().map_err(Error::Schedule)?);
    command.arg0("grootfs").arg("--store").arg(&path).args(["--log-level", &config.log_level]);
    // A caller who reads standard error to its end waits for whoever has it open.
    let quiet = config.log_level.eq_ignore_ascii_case("fatal");
    let stderr = match config.create.clean_log_file.as_str() {
        "" if quiet => Stdio::null(),
        "" => Stdio::inherit(),
        file => {
            command.args(["--log-file", file]);
            Stdio::null()
        }
    };
    if !config.metron_endpoint.is_empty() {
        command.args(["--metron-endpoint", &config.metron_endpoint]);
    }
    command.arg("clean").args(["--threshold-bytes", &config.clean.threshold_bytes.to_string()]);
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
    wardian_sys::spawn::close_on_exec().map_err(Error::Schedule)?;
    command.spawn().map(drop).map_err(Error::Schedule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources() {
        let dir = tempfile::tempdir().unwrap();
        let tar = dir.path().join("with space?.tar");
        std::fs::write(&tar, "").unwrap();
        let text = tar.to_str().unwrap();
        assert_eq!(Source::parse(text).unwrap().address, format!("tar://{text}"));
        assert_eq!(Source::parse("oci:///dir:tag?a=b#c").unwrap().address, "oci:///dir:tag");
        let app = "preloaded+layer:///r.tar?layer=http://x/y&layer_path=/a&layer_digest=00";
        assert_eq!(Source::parse(app).unwrap().address, app);
        let fails = |text: &str| Source::parse(text).err().unwrap().to_string();
        assert_eq!(
            fails("/nodir/x.tar"),
            "fetching image timestamp: stat /nodir/x.tar: no such file or directory"
        );
        assert_eq!(fails(""), "fetching image timestamp: stat : no such file or directory");
        assert_eq!(
            fails(dir.path().to_str().unwrap()),
            "invalid base image: directory provided instead of a tar file"
        );
        for (address, why) in [("docker:///a b", "names no image"), ("ftp:///x", "scheme")] {
            let error = reference(&Source::parse(address).unwrap(), None).unwrap_err().to_string();
            assert!(error.contains("parsing url failed") && error.contains(why), "{error}");
        }
        let login = Login::Basic { user: "u".into(), password: "p".into() };
        for address in ["docker:///busybox", "tar:///x.tar"] {
            // Guardian gives the login of an image to whatever image it is.
            reference(&Source::parse(address).unwrap(), Some(&login)).unwrap();
        }
    }

    #[test]
    fn the_answer_is_gos_json() {
        let answer = Answer {
            version: "",
            process: Process { user: User::default(), env: &[], cwd: "" },
            root: Root { path: Path::new("/s/images/x/rootfs") },
            mounts: vec![],
        };
        assert_eq!(
            serde_json::to_string(&answer).unwrap(),
            r#"{"ociVersion":"","process":{"user":{"uid":0,"gid":0},"cwd":""},"root":{"path":"/s/images/x/rootfs"}}"#
        );
        let parts = |layers: usize| {
            Parts {
            lowers: vec!["/run/wardian-0123456789abcdef/l/0123456789ab".into(); layers],
            upper: "/var/vcap/data/grootfs/store/unprivileged/images/01234567-0123-0123-0123-0123456789ab/parts/upper".into(),
            work: "/var/vcap/data/grootfs/store/unprivileged/images/01234567-0123-0123-0123-0123456789ab/parts/work".into(),
        }
        };
        assert!(mount(&parts(60)).unwrap().options[0].len() < 4096 - 512);
        assert!(matches!(mount(&parts(90)), Err(Error::Options { layers: 90, .. })));
    }
}

//! Bounds of requests. Every field of a request has a bound here; a larger one is refused, by the field's
//! name, before anything is made of it, or logged.
//!
//! Where the kernel has a bound, it is the same here, so that whatever the kernel accepts is accepted.

use crate::spec::{BindMount, ContainerSpec, Defaults, ProcessSpec};
use crate::{Error, Result};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use wardian_sys::memory::budget;
use wardian_sys::text::{clip, is_plain, tame};

/// The longest handle and process id, in bytes.
const NAME: usize = 255;
/// The longest environment variable or argument: `MAX_ARG_STRLEN` of execve(2), without the NUL at its end.
const STRING: usize = (128 << 10) - 1;
/// The most bytes of a container's environment, and of its properties.
const TOGETHER: usize = 1 << 20;
/// Bytes of environment and properties that every container may have; they are kept in the server's memory,
/// and in the record on a tmpfs.
const OWN: usize = 16 << 10;
/// Bytes of environment and properties beyond [`OWN`] that all containers may have together.
const BEYOND: usize = 16 << 20;
/// The most bytes of a process's environment and arguments: the quarter of the usual stack limit that
/// execve(2) grants.
const PROGRAM: usize = 2 << 20;
/// What a string costs besides its bytes, as execve(2) counts it: a NUL and a pointer.
const OVERHEAD: usize = 9;
/// The longest path: `PATH_MAX`, without the NUL at its end.
const PATH: usize = 4095;
/// The longest `name:group`, of which each part may have 255 bytes (`LOGIN_NAME_MAX`, useradd(8)).
const USER: usize = 511;
/// The longest address of an image, with an app and its signed URL.
const IMAGE: usize = 16 << 10;
/// The longest name of a property, and the most properties.
const KEY: usize = 4096;
const PROPERTIES: usize = 16_384;
/// The most bind mounts: their descriptors are sent to the keeper in one message, beside others; see
/// [`wardian_sys::packet`].
const BINDS: usize = 128;
/// The most bytes of their destinations, which are in that message as JSON strings.
const DESTINATIONS: usize = 96 << 10;
/// Everything else in that message takes less than this.
const _: () = assert!(DESTINATIONS + (16 << 10) <= wardian_sys::packet::MAX_BYTES);

/// Checks a handle or a process id.
pub fn check_handle(handle: &str) -> Result<()> {
    let problem = if handle.len() > NAME {
        "longer than 255 bytes"
    } else if handle == "." || handle == ".." {
        "not a name"
    } else if handle.chars().any(|c| c == '/' || c.is_whitespace() || !is_plain(c)) {
        "contains '/', white space, or characters that control a terminal or cannot be seen"
    } else {
        return Ok(());
    };
    Err(Error::InvalidHandle(handle.chars().take(64).collect(), problem))
}

/// Checks the name of a volume.
pub fn check_volume(name: &str) -> Result<()> {
    wardian_store::volume::check(name).map_err(|error| Error::Invalid(error.to_string()))
}

/// Returns a client's name in a form for the log: unchanged if it is a valid handle, else tamed and cut.
pub fn shown(name: &str) -> Cow<'_, str> {
    match check_handle(name) {
        Ok(()) => Cow::Borrowed(name),
        Err(_) => Cow::Owned(tame(&clip(name, 64)).into_owned()),
    }
}

fn at_most(what: &str, length: usize, most: usize) -> Result<()> {
    if length <= most {
        return Ok(());
    }
    Err(Error::Invalid(format!("{what}: {length} bytes, of which {most} are allowed")))
}

fn path(what: &str, path: &OsStr) -> Result<()> {
    at_most(what, path.len(), PATH)
}

/// Checks each of the strings for execve(2). Returns what they take together.
fn strings(what: &str, strings: &[String]) -> Result<usize> {
    for string in strings.iter().filter(|string| string.len() > STRING) {
        // Not the value: it may be a secret.
        let name = string.split_once('=').map_or("", |(name, _)| name);
        let name = shown(name);
        let what = if name.is_empty() { what.to_owned() } else { format!("{what}: {name}") };
        at_most(&what, string.len(), STRING)?;
    }
    Ok(strings.iter().map(|string| string.len() + OVERHEAD).sum())
}

fn binds(binds: &[BindMount]) -> Result<()> {
    at_most_mounts("bind_mounts", binds.len())?;
    for bind in binds {
        path("bind_mounts.src_path", bind.source.as_os_str())?;
        path("bind_mounts.dst_path", bind.destination.as_os_str())?;
    }
    let together = binds.iter().map(|bind| in_json(&bind.destination)).fold(0, usize::saturating_add);
    at_most("bind_mounts.dst_path of all together", together, DESTINATIONS)
}

fn at_most_mounts(what: &str, count: usize) -> Result<()> {
    if count <= BINDS {
        return Ok(());
    }
    Err(Error::Invalid(format!("{what}: {count} of them, of which {BINDS} are allowed")))
}

/// Checks all that is to be mounted in a container.
fn mounts(spec: &ContainerSpec) -> Result<()> {
    binds(&spec.bind_mounts)?;
    let count = spec.bind_mounts.len() + spec.volumes.len() + spec.tmpfs.len();
    at_most_mounts("bind_mounts, volumes and tmpfs", count)?;
    spec.volumes.iter().try_for_each(|volume| check_volume(&volume.name))?;
    let volumes = spec.volumes.iter().map(|volume| &volume.destination);
    let others = volumes.chain(spec.tmpfs.iter().map(|tmpfs| &tmpfs.destination));
    others.clone().try_for_each(|destination| path("dst_path", destination.as_os_str()))?;
    let of_binds = spec.bind_mounts.iter().map(|bind| &bind.destination);
    let together = of_binds.chain(others).map(|path| in_json(path)).fold(0, usize::saturating_add);
    at_most("dst_path of all mounts together", together, DESTINATIONS)?;
    match spec.tmpfs.iter().find(|tmpfs| tmpfs.mode > 0o7777) {
        Some(tmpfs) => Err(Error::Invalid(format!("tmpfs.mode: {:o} is no mode", tmpfs.mode))),
        None => Ok(()),
    }
}

/// Returns the bytes that a destination takes as a JSON string, with a comma: control characters take six
/// each.
fn in_json(destination: &Path) -> usize {
    serde_json::to_string(&destination.to_string_lossy()).map_or(usize::MAX, |json| json.len() + 1)
}

/// Checks all properties of a container.
pub fn properties(properties: &BTreeMap<String, String>) -> Result<()> {
    if properties.len() > PROPERTIES {
        let count = properties.len();
        return Err(Error::Invalid(format!(
            "properties: {count} of them, of which {PROPERTIES} are allowed"
        )));
    }
    for (key, value) in properties {
        at_most("properties: a name", key.len(), KEY)?;
        if value.len() > STRING {
            at_most(&format!("properties: {}", shown(key)), value.len(), STRING)?;
        }
    }
    at_most("properties", properties.iter().map(|(key, value)| key.len() + value.len()).sum(), TOGETHER)
}

/// Returns the bytes of a container's environment and properties, and of its image's command, that count towards the
/// bound for all containers together.
pub fn beyond(env: &[String], properties: &BTreeMap<String, String>, defaults: &Defaults) -> usize {
    let env: usize = env.iter().map(String::len).sum();
    let properties: usize = properties.iter().map(|(key, value)| key.len() + value.len()).sum();
    let command: usize =
        defaults.entrypoint.iter().chain(&defaults.command).chain(&defaults.volumes).map(String::len).sum();
    (env + properties + command).saturating_sub(OWN)
}

/// Checks that there is room for `bytes` beside those of the other containers, each as returned by
/// [`beyond`].
///
/// # Errors
/// There is no room: some containers have to be destroyed first.
pub fn beside(bytes: usize, others: impl Iterator<Item = usize>) -> Result<()> {
    let most = budget(BEYOND, 16);
    if bytes == 0 || bytes + others.sum::<usize>() <= most {
        return Ok(());
    }
    Err(Error::Busy(format!(
        "env and properties: what containers have of them beyond {OWN} bytes each would be more than the {most} bytes that \
         all containers have together: give this one less, or destroy others"
    )))
}

/// Checks the environment of a container together with that of its image.
pub fn environment(env: &[String]) -> Result<()> {
    at_most("env, with that of the image", strings("env", env)?, TOGETHER)
}

/// Checks what an image says of processes.
pub fn defaults(defaults: &Defaults) -> Result<()> {
    let args = strings("the image's entrypoint", &defaults.entrypoint)?
        + strings("the image's command", &defaults.command)?;
    at_most("the image's entrypoint and command", args, TOGETHER)?;
    at_most("the image's working directory", defaults.working_dir.len(), PATH)?;
    at_most_mounts("the image's volumes", defaults.volumes.len())?;
    for volume in &defaults.volumes {
        path("the image's volumes", OsStr::new(volume))?;
        if !volume.starts_with('/') || volume.contains('\0') {
            let shown = tame(&clip(volume, 64)).into_owned();
            return Err(Error::Invalid(format!("the image's volumes: {shown:?} is no absolute path")));
        }
    }
    at_most("the image's user", defaults.user.len(), USER)
}

/// Checks one property that is set beside the existing ones. Those of an earlier version may exceed the
/// bounds: they can be replaced by shorter ones.
pub fn property(before: &BTreeMap<String, String>, key: &str, value: &str) -> Result<()> {
    let one = BTreeMap::from([(key.to_owned(), value.to_owned())]);
    properties(&one)?;
    let total = |all: &BTreeMap<String, String>| all.iter().map(|(key, value)| key.len() + value.len()).sum();
    let (bytes, count): (usize, usize) = (total(before), before.len());
    let replaced = before.get(key).map(|value| key.len() + value.len());
    let after = bytes - replaced.unwrap_or(0) + total(&one);
    if after > bytes {
        at_most("properties", after, TOGETHER)?;
    }
    if replaced.is_none() && count >= PROPERTIES {
        return Err(Error::Invalid(format!(
            "properties: {} of them, of which {PROPERTIES} are allowed",
            count + 1
        )));
    }
    Ok(())
}

/// Checks a request for a container.
pub fn container(spec: &ContainerSpec) -> Result<()> {
    check_handle(&spec.handle)?;
    at_most("image", spec.image.len(), IMAGE)?;
    at_most("env", strings("env", &spec.env)?, TOGETHER)?;
    properties(&spec.properties)?;
    mounts(spec)
}

/// Checks a request for a process.
pub fn process(spec: &ProcessSpec) -> Result<()> {
    check_handle(&spec.id)?;
    at_most("path", spec.path.len(), PATH)?;
    at_most("dir", spec.dir.len(), PATH)?;
    at_most("user", spec.user.len(), USER)?;
    at_most("image", spec.image.as_ref().map_or(0, String::len), IMAGE)?;
    binds(&spec.bind_mounts)
}

/// Checks what a process is started with: its arguments, and its environment together with that of its
/// container or image.
pub fn program(args: &[String], env: &[String]) -> Result<()> {
    at_most("env and args", strings("args", args)? + strings("env", env)?, PROGRAM)
}

/// Checks the user and the path of a tar transfer.
pub fn transfer(user: &str, place: &str) -> Result<()> {
    at_most("user", user.len(), USER)?;
    at_most("path", place.len(), PATH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says<T>(result: Result<T>) -> String {
        result.map(drop).map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn properties_of_an_earlier_version_can_become_less() {
        let mut all = BTreeMap::from([("p".to_owned(), "v".repeat(2 << 20))]);
        assert!(says(property(&all, "x", "y")).contains("properties: 2097155 bytes"));
        property(&all, "p", "less").unwrap();
        assert!(says(property(&all, "p", &"v".repeat(STRING + 1))).contains("properties: p"));
        all.insert("p".to_owned(), "v".to_owned());
        property(&all, "x", "y").unwrap();
        let many: BTreeMap<String, String> =
            (0..PROPERTIES).map(|n| (n.to_string(), String::new())).collect();
        assert!(says(property(&many, "x", "")).contains("16385 of them"));
        property(&many, "7", "y").unwrap();
    }

    #[test]
    fn what_is_large_is_counted_together() {
        let properties = |bytes: usize| BTreeMap::from([("k".to_owned(), "v".repeat(bytes - 1))]);
        assert_eq!(beyond(&["a".repeat(100)], &properties(OWN - 100), &Defaults::default()), 0);
        assert_eq!(beyond(&["a".repeat(101)], &properties(OWN - 100), &Defaults::default()), 1);
        let full = || std::iter::repeat_n(1 << 20, 16);
        assert!(beside(0, full()).is_ok() && beside(1 << 20, full().skip(1)).is_ok());
        assert!(says(beside(1, full())).contains("destroy others"));
    }

    #[test]
    fn handles_that_could_be_paths_or_hurt_a_terminal_are_refused() {
        let longest = "x".repeat(NAME);
        for good in ["a", "5be2a88f-a549-464b-74da-a4517e49b3f3", "a.b_c", "ä", "a,b", longest.as_str()] {
            assert!(check_handle(good).is_ok(), "{good}");
            assert_eq!(shown(good), good);
        }
        let long = "x".repeat(60_000);
        for bad in
            ["..", ".", "a/b", "a\0b", "a b", "a\n", "a\u{202e}b", "a\u{200b}b", "\u{e0041}", long.as_str()]
        {
            let error = says(check_handle(bad));
            assert!(!error.is_empty() && error.len() < 400 && !error.contains('\u{202e}'), "{bad:?}");
            assert!(shown(bad).len() < 100 && shown(bad).chars().all(is_plain), "{bad:?}");
        }
    }

    #[test]
    fn every_field_of_a_container_has_a_bound() {
        let container = |change: &dyn Fn(&mut ContainerSpec)| {
            let mut spec = ContainerSpec::default();
            change(&mut spec);
            says(container(&spec))
        };
        let text = |length: usize| "x".repeat(length);
        assert_eq!(container(&|_| ()), "");
        assert_eq!(container(&|spec| spec.env = vec![format!("A={}", text(STRING - 2)); 7]), "");
        assert_eq!(
            container(&|spec| spec.env = vec![format!("A={}", text(STRING - 1))]),
            "env: A: 131072 bytes, of which 131071 are allowed"
        );
        assert!(container(&|spec| spec.env = vec![text(STRING); 9]).starts_with("env: 1179720 bytes"));
        assert!(container(&|spec| spec.env = vec![String::new(); TOGETHER]).starts_with("env: "));
        assert!(container(&|spec| spec.image = text(IMAGE + 1)).starts_with("image: "));
        let bind = |source: usize, destination: usize| BindMount {
            source: text(source).into(),
            destination: text(destination).into(),
            ..BindMount::default()
        };
        let most = DESTINATIONS / BINDS - 3;
        assert_eq!(container(&|spec| spec.bind_mounts = vec![bind(PATH, most); BINDS]), "");
        assert_eq!(
            container(&|spec| spec.bind_mounts = vec![bind(1, most + 1); BINDS]),
            "bind_mounts.dst_path of all together: 98432 bytes, of which 98304 are allowed"
        );
        let hostile = BindMount { destination: "\u{1}".repeat(PATH).into(), ..bind(1, 1) };
        assert!(container(&|spec| spec.bind_mounts = vec![hostile.clone(); 5]).contains("122865 bytes"));
        assert!(
            container(&|spec| spec.bind_mounts = vec![bind(1, 1); BINDS + 1]).starts_with("bind_mounts: 129")
        );
        assert!(container(&|spec| spec.bind_mounts = vec![bind(PATH + 1, 1)]).contains("src_path"));
        assert!(container(&|spec| spec.bind_mounts = vec![bind(1, PATH + 1)]).contains("dst_path"));
        let pairs = |count: usize, key: usize, value: usize| {
            (0..count).map(|n| (format!("{n:0>key$}"), text(value))).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(container(&|spec| spec.properties = pairs(7, 1, STRING)), "");
        assert!(
            container(&|spec| spec.properties = pairs(9, 1, STRING)).starts_with("properties: 1179648 bytes")
        );
        assert!(container(&|spec| spec.properties = pairs(1, 1, STRING + 1)).starts_with("properties: 0: "));
        assert!(container(&|spec| spec.properties = pairs(1, KEY + 1, 1)).starts_with("properties: a name"));
        assert!(
            container(&|spec| spec.properties = pairs(PROPERTIES + 1, 4, 0))
                .starts_with("properties: 16385 of")
        );
    }

    #[test]
    fn every_field_of_a_process_has_a_bound() {
        let text = |length: usize| "x".repeat(length);
        type Change = fn(&mut ProcessSpec, String);
        let fields: [(&str, usize, Change); 5] = [
            ("invalid handle", NAME, |spec, text| spec.id = text),
            ("path", PATH, |spec, text| spec.path = text),
            ("dir", PATH, |spec, text| spec.dir = text),
            ("user", USER, |spec, text| spec.user = text),
            ("image", IMAGE, |spec, text| spec.image = Some(text)),
        ];
        for (name, most, change) in fields {
            for (length, refused) in [(most, false), (most + 1, true)] {
                let mut spec = ProcessSpec::default();
                change(&mut spec, text(length));
                assert_eq!(says(process(&spec)).starts_with(name), refused, "{name} {length}");
            }
        }
        assert_eq!(says(program(&vec![text(STRING); 8], &vec![text(STRING); 7])), "");
        assert!(says(program(&vec![text(STRING); 8], &vec![text(STRING); 8])).starts_with("env and args: "));
        assert!(says(program(&[text(STRING + 1)], &[])).starts_with("args: "));
        assert_eq!(says(transfer(&text(USER), &text(PATH))), "");
        assert!(
            !says(transfer(&text(USER + 1), "")).is_empty()
                && !says(transfer("", &text(PATH + 1))).is_empty()
        );
    }
}

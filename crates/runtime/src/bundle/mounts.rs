//! `mounts`: the options that each file system supports; all others are refused.

use super::{Error, Mount, missing, none, value};
use crate::oci;

/// Options of /dev. The keeper creates it before it knows the bundle's mounts, so it has these options or is absent.
pub(super) const DEV: [&str; 3] = ["noexec", "strictatime", "mode=755"];
/// Options of /dev/pts, which the keeper also creates in advance.
pub(super) const PTS: [&str; 6] = ["nosuid", "noexec", "newinstance", "gid=5", "ptmxmode=0666", "mode=0620"];

/// The options that a file system supports.
enum Options {
    /// Exactly these options.
    Exactly(&'static [&'static str]),
    /// The flags of a mount, and these keys with any value that the kernel takes.
    Flags(&'static [&'static str]),
    /// Read-only or not: a bind mount is passed as a finished mount.
    Bind,
}

/// Translates a mount.
pub(super) fn lower(index: usize, mount: oci::Mount) -> Result<Mount, Error> {
    let oci::Mount { destination, kind, source, options, uid_mappings, gid_mappings } = mount;
    let at = |key: &str| format!("mounts[{index}].{key}");
    none(&at(""), &[("uidMappings", uid_mappings.is_some()), ("gidMappings", gid_mappings.is_some())])?;
    let kind = kind.ok_or_else(|| missing(at("type")))?;
    if !destination.starts_with('/') || destination.contains('\0') {
        return Err(value(at("destination"), format!("{destination:?}")));
    }
    let known = match (kind.as_str(), destination.as_str()) {
        ("tmpfs", "/dev") => Options::Exactly(&DEV),
        ("devpts", "/dev/pts") => Options::Exactly(&PTS),
        ("devpts", _) => return Err(value(at("destination"), format!("a devpts at {destination}"))),
        ("tmpfs", _) => Options::Flags(&["mode", "gid", "size", "nr_inodes"]),
        ("proc" | "sysfs" | "mqueue" | "cgroup", _) => Options::Flags(&[]),
        ("bind", _) => Options::Bind,
        _ => return Err(value(at("type"), format!("{kind:?}"))),
    };
    match (&source, &known) {
        // The mount itself is passed by a descriptor: the path is for human readers.
        (Some(source), Options::Bind) if source.starts_with('/') => {}
        (None, Options::Bind) => return Err(missing(at("source"))),
        (None, _) => {}
        // The source of a file system without a device must be its type.
        (Some(source), Options::Exactly(_) | Options::Flags(_)) if *source == kind => {}
        (Some(source), _) => return Err(value(at("source"), format!("{source:?}"))),
    }
    let mut lowered = Mount { destination, kind, ..Mount::default() };
    let options = options.unwrap_or_default();
    for (position, option) in options.iter().enumerate() {
        if !known.has(option) {
            return Err(value(at(&format!("options[{position}]")), format!("{option:?}")));
        }
        match option.as_str() {
            "ro" => lowered.readonly = true,
            "rw" => lowered.readonly = false,
            "noexec" => lowered.noexec = true,
            "nosuid" => lowered.nosuid = true,
            "nodev" => lowered.nodev = true,
            other => {
                lowered
                    .data
                    .extend(other.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())));
            }
        }
    }
    if let Options::Exactly(all) = known
        && let Some(lacking) = all.iter().find(|must| !options.iter().any(|option| option == *must))
    {
        let what = format!("{} without {lacking}", lowered.destination);
        return Err(value(at("options"), what));
    }
    Ok(lowered)
}

impl Options {
    fn has(&self, option: &str) -> bool {
        match self {
            Self::Exactly(all) => all.contains(&option),
            Self::Bind => matches!(option, "bind" | "ro" | "rw"),
            Self::Flags(keys) => match option.split_once('=') {
                Some((key, _)) => keys.contains(&key),
                None => matches!(option, "ro" | "rw" | "noexec" | "nosuid" | "nodev"),
            },
        }
    }
}

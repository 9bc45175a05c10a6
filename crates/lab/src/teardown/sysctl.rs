//! The kernel's settings for dirty pages (`vm.dirty_*`), changed temporarily.

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

/// Directory of the settings.
const VM: &str = "/proc/sys/vm";
/// Pairs of names for the same limit: the one written last is in force, and the other reads 0.
const PAIRS: [(&str, &str); 2] =
    [("dirty_ratio", "dirty_bytes"), ("dirty_background_ratio", "dirty_background_bytes")];

/// Values by name, without the leading `vm.`.
pub type Values = BTreeMap<String, u64>;

/// A setting and its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Its name, without the leading `vm.`.
    pub name: String,
    /// The value to be set.
    pub value: u64,
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = text.split_once('=').ok_or("it must be NAME=NUMBER")?;
        let name = name.trim().strip_prefix("vm.").filter(|name| {
            name.starts_with("dirty_") && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        });
        let name = name.ok_or("only settings whose names begin with vm.dirty_ can be changed")?;
        let value = value.trim().parse().map_err(|_| "its value must be a whole number")?;
        Ok(Self { name: name.to_owned(), value })
    }
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(VM).join(name)
}

/// Reads all `vm.dirty_*` settings that this kernel has.
pub fn read() -> Result<Values> {
    let mut values = Values::new();
    for entry in std::fs::read_dir(VM).with_context(|| format!("look into {VM}"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("dirty_") {
            let text = std::fs::read_to_string(path(&name)).with_context(|| format!("read vm.{name}"))?;
            values.insert(name, text.trim().parse()?);
        }
    }
    Ok(values)
}

/// Checks that this kernel has all these settings.
pub fn check(settings: &[Setting], known: &Values) -> Result<()> {
    for Setting { name, .. } in settings {
        if !known.contains_key(name) {
            let names: Vec<String> = known.keys().map(|name| format!("vm.{name}")).collect();
            bail!("this kernel has no vm.{name}, but {}", names.join(", "));
        }
    }
    Ok(())
}

/// Writes the settings, in this order.
pub fn write(settings: &[Setting]) -> Result<()> {
    for Setting { name, value } in settings {
        std::fs::write(path(name), value.to_string())
            .with_context(|| format!("the kernel refuses vm.{name}={value}"))?;
    }
    Ok(())
}

/// The writes that restore `before` after `changed` was written.
pub fn undo(before: &Values, changed: &[Setting]) -> Vec<Setting> {
    let mut undo: Vec<Setting> = Vec::new();
    let mut put = |name: &str, value: u64| undo.push(Setting { name: name.to_owned(), value });
    let value = |name: &str| before.get(name).copied().unwrap_or(0);
    for Setting { name, .. } in changed {
        match PAIRS.iter().find(|(ratio, bytes)| name == ratio || name == bytes) {
            Some((_, bytes)) if value(bytes) > 0 => put(bytes, value(bytes)),
            Some((ratio, _)) => {
                // The ratio reads 0 while the bytes are in force, and writing the value that it had before keeps them
                // in force.
                if value(ratio) == 0 {
                    put(ratio, 1);
                }
                put(ratio, value(ratio));
            }
            None => put(name, value(name)),
        }
    }
    undo
}

/// Restores as many of the settings as possible; fails unless the kernel has the values of `before` again.
pub fn restore(before: &Values, changed: &[Setting]) -> Result<()> {
    for setting in undo(before, changed) {
        let _ = write(&[setting]);
    }
    let now = read()?;
    for Setting { name, .. } in changed {
        let (now, was) = (now.get(name), before.get(name));
        ensure!(
            now == was,
            "vm.{name} was {} before and is {} now",
            was.copied().unwrap_or_default(),
            now.copied().unwrap_or_default()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_as_they_are_typed() {
        let good = "vm.dirty_expire_centisecs=100".parse::<Setting>().unwrap();
        assert_eq!(good, Setting { name: "dirty_expire_centisecs".into(), value: 100 });
        for bad in [
            "",
            "vm.dirty_ratio",
            "dirty_ratio=1",
            "vm.swappiness=1",
            "vm.dirty_ratio=x",
            "vm.dirty_ratio=-1",
            "vm.dirty_/../../kernel/panic=1",
            "kernel.panic=1",
        ] {
            assert!(bad.parse::<Setting>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_limit_with_two_names_is_restored_by_the_one_in_force() {
        let set = |name: &str, value| Setting { name: name.into(), value };
        let before = |bytes, ratio| {
            Values::from([
                ("dirty_bytes".into(), bytes),
                ("dirty_ratio".into(), ratio),
                ("dirty_expire_centisecs".into(), 3000),
            ])
        };
        assert_eq!(undo(&before(0, 20), &[set("dirty_bytes", 1)]), [set("dirty_ratio", 20)]);
        assert_eq!(undo(&before(4096, 0), &[set("dirty_ratio", 1)]), [set("dirty_bytes", 4096)]);
        assert_eq!(
            undo(&before(0, 0), &[set("dirty_bytes", 1)]),
            [set("dirty_ratio", 1), set("dirty_ratio", 0)]
        );
        assert_eq!(
            undo(&before(0, 20), &[set("dirty_expire_centisecs", 1)]),
            [set("dirty_expire_centisecs", 3000)]
        );
    }
}

//! The files for results.

use super::Results;
use crate::ground;
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use wardian_history::is_database;
use wardian_pictures::page;

/// The flags that name files for results.
const FLAGS: [&str; 4] = ["--json", "--csv", "--svg", "--report"];

/// Where results are to be written. None, some or all may be given.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// The results as JSON.
    pub json: Option<PathBuf>,
    /// The results as CSV.
    pub csv: Option<PathBuf>,
    /// A picture.
    pub svg: Option<PathBuf>,
    /// A report: one HTML file.
    pub report: Option<PathBuf>,
    /// The command that repeats the experiment; see [`repeats`].
    pub command: Vec<String>,
}

impl Files {
    fn all(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let paths = [&self.json, &self.csv, &self.svg, &self.report];
        FLAGS.into_iter().zip(paths).filter_map(|(flag, path)| Some((flag, path.as_deref()?)))
    }

    /// Checks before an experiment that its results can probably be written after it. Nothing is created.
    ///
    /// # Errors
    /// There is no such directory, it is read-only, or two results would have the same file.
    pub fn check(&self) -> Result<()> {
        let mut seen: Vec<(&str, PathBuf)> = Vec::new();
        for (flag, path) in self.all() {
            let what = || format!("{flag}: write {}", path.display());
            let Some(name) = path.file_name() else { bail!("{flag}: {} names no file", path.display()) };
            ensure!(!path.is_dir(), "{flag}: {} is a directory", path.display());
            ensure!(!is_database(path), "{flag}: {} is a database, such as a history", path.display());
            let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let above = above.canonicalize().with_context(what)?;
            rustix::fs::access(&above, rustix::fs::Access::WRITE_OK).with_context(what)?;
            let full = above.join(name);
            if let Some((other, _)) =
                seen.iter().find(|(_, other)| *other == full && !full.starts_with("/dev"))
            {
                bail!("{other} and {flag} name the same file, {}", path.display());
            }
            seen.push((flag, full));
        }
        Ok(())
    }

    /// Writes all files. If one cannot be written, the others are.
    ///
    /// # Errors
    /// The first that could not be written.
    pub fn write(&self, results: &impl Results) -> Result<()> {
        let mut done = Ok(());
        for (flag, path) in self.all() {
            let written = self.encode(flag, results).and_then(|text| ground::save(path, &text));
            done = done.and(written.with_context(|| flag.to_owned()));
        }
        done
    }

    fn encode(&self, flag: &str, results: &impl Results) -> Result<Vec<u8>> {
        Ok(match flag {
            "--json" => results.json()?.into_bytes(),
            "--csv" => results.csv()?,
            "--svg" => results.svg().into_bytes(),
            _ => {
                let mut of = results.page();
                of.made = super::made();
                if of.command.is_empty() {
                    of.command.clone_from(&self.command);
                }
                of.data = results.json()?;
                page(&of).into_bytes()
            }
        })
    }
}

/// The words of a command that repeat it: without the files for its results, which would be overwritten.
pub fn repeats(words: impl IntoIterator<Item = OsString>) -> Vec<String> {
    let mut repeat = Vec::new();
    let mut words = words.into_iter().map(|word| word.to_string_lossy().into_owned());
    if let Some(program) = words.next() {
        let name = Path::new(&program).file_name().map(|name| name.to_string_lossy().into_owned());
        repeat.push(name.unwrap_or(program));
    }
    while let Some(word) = words.next() {
        if word == "--" {
            repeat.push(word);
            repeat.extend(words);
            break;
        }
        let (flag, value) =
            word.split_once('=').map_or((word.as_str(), None), |(flag, value)| (flag, Some(value)));
        if !FLAGS.contains(&flag) {
            repeat.push(word);
        } else if value.is_none() {
            words.next();
        }
    }
    repeat
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_command_overwrites_nothing() {
        let words = "/usr/bin/wardian lab record --json a --fs /x --svg=b --report c --csv d -- tar --json x";
        let repeat = repeats(words.split(' ').map(OsString::from));
        assert_eq!(repeat.join(" "), "wardian lab record --fs /x -- tar --json x");
        assert!(repeats([]).is_empty());
    }

    #[test]
    fn files_that_cannot_be_written_are_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| Some(dir.path().join(name));
        let refused =
            |files: Files| files.check().err().map(|error| format!("{error:#}")).unwrap_or_default();
        assert_eq!(refused(Files::default()), "");
        assert_eq!(
            refused(Files { json: at("a"), csv: at("b"), svg: at("c"), report: at("d"), ..Files::default() }),
            ""
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let same = refused(Files { json: at("a"), report: at("./a"), ..Files::default() });
        assert!(same.starts_with("--json and --report name the same file"), "{same}");
        let null = Some("/dev/null".into());
        assert_eq!(refused(Files { json: null.clone(), csv: null, ..Files::default() }), "");
        assert!(refused(Files { svg: at("x/y"), ..Files::default() }).contains("No such file"));
        assert!(refused(Files { svg: at(""), ..Files::default() }).contains("is a directory"));
        assert!(refused(Files { svg: Some("/".into()), ..Files::default() }).contains("names no file"));
    }
}

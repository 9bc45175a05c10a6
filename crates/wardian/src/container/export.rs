//! `wardian export`.

use super::cp::{Written, pass_tree};
use super::create::UUID;
use super::session::{End, Signals};
use super::{Server, block_on};
use crate::exit::mistake;
use anyhow::{Context as _, Result, ensure};
use clap::Args as ClapArgs;
use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What to export.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "What is in /proc and /sys is left out, which the kernel makes up; volumes are in it. \
    `wardian image import FILE -t NAME` makes an image of it."
)]
pub struct Args {
    #[command(flatten)]
    server: Server,
    /// The file to make [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Its handle, or the beginning of its id
    handle: String,
}

/// Writes the root file system of a container as a tar.
pub fn run(args: Args) -> Result<ExitCode> {
    let Args { server, output, handle } = args;
    let output = output.filter(|path| path != Path::new("-"));
    if output.is_none() && std::io::stdout().is_terminal() {
        return Err(mistake(anyhow::anyhow!(
            "a tar on a terminal helps nobody: name a file with -o, or send it to a pipe"
        )));
    }
    block_on(async {
        let (client, mut signals) = (server.client()?, Signals::catch()?);
        let work = async {
            let handle = server.named(&client, &handle).await?;
            let Some(path) = output else {
                return pass_tree(&server, &client, &handle, &mut tokio::io::stdout()).await.map(drop);
            };
            let file = File::make(&path).with_context(|| format!("make {}", path.display()))?;
            let mut open = tokio::fs::File::from_std(file.open.try_clone().context("write the tar")?);
            let written = pass_tree(&server, &client, &handle, &mut open).await?;
            ensure!(written == Written::All, "{}: its reader has closed it", path.display());
            file.keep().with_context(|| format!("make {}", path.display()))
        };
        match signals.until(work).await {
            Ok(done) => done.map(|()| ExitCode::SUCCESS),
            Err(number) => Ok(End::Left(number).code()),
        }
    })
}

/// A file that takes its place once all of it is written; what was called so before stays until then.
struct File {
    open: std::fs::File,
    /// Its name until then, and then; `None`: it is a device or a FIFO, which is written to.
    names: Option<(PathBuf, PathBuf)>,
}

impl File {
    fn make(path: &Path) -> std::io::Result<Self> {
        if std::fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
            // In a directory of other users it may be theirs, or a link of theirs to a device.
            return Ok(Self { open: wardian_sys::directory::create(path)?, names: None });
        }
        let mut name = OsString::from(".");
        name.push(path.file_name().ok_or(std::io::ErrorKind::IsADirectory)?);
        // Nobody else can take a name that nobody knows.
        name.push(format!(".{}", std::fs::read_to_string(UUID)?.trim()));
        let partial = path.with_file_name(name);
        // The files of a container may be secret, whatever their modes say in the tar.
        let open = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
        Ok(Self { open, names: Some((partial, path.to_owned())) })
    }

    fn keep(mut self) -> std::io::Result<()> {
        match self.names.take() {
            Some((partial, path)) => {
                std::fs::rename(&partial, &path).inspect_err(|_| drop(std::fs::remove_file(&partial)))
            }
            None => Ok(()),
        }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if let Some((partial, _)) = &self.names {
            drop(std::fs::remove_file(partial));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_file_is_there_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        std::fs::write(&path, "before").unwrap();
        let mut file = File::make(&path).unwrap();
        file.open.write_all(b"half").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"before");
        drop(file);
        assert_eq!(
            (std::fs::read(&path).unwrap(), std::fs::read_dir(dir.path()).unwrap().count()),
            (b"before".to_vec(), 1)
        );
        let mut file = File::make(&path).unwrap();
        file.open.write_all(b"all").unwrap();
        file.keep().unwrap();
        assert_eq!(
            (std::fs::read(&path).unwrap(), std::fs::read_dir(dir.path()).unwrap().count()),
            (b"all".to_vec(), 1)
        );
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        // What another user may have put into a directory of everybody's is not written to.
        let shared = dir.path().join("shared");
        std::fs::create_dir(&shared).unwrap();
        std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o1777)).unwrap();
        std::os::unix::fs::symlink("/dev/null", shared.join("link.tar")).unwrap();
        assert!(File::make(&shared.join("link.tar")).is_err());
        std::os::unix::fs::symlink("/dev/null", dir.path().join("link.tar")).unwrap();
        assert!(File::make(&dir.path().join("link.tar")).is_ok());
        assert!(File::make(Path::new("/")).is_err() && File::make(&dir.path().join("no/a")).is_err());
    }
}

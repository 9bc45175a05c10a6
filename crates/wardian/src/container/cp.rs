//! `wardian cp`: copies files into a container, or out of one.

use super::session::Signals;
use super::{Server, block_on};
use crate::exit::{lost, mistake};
use crate::print;
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args as ClapArgs;
use rustix::fs::FileType;
use std::ffi::OsStr;
use std::io::{ErrorKind, IsTerminal as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::unix::pipe;
use wardian_garden::{Client, TarFailure, TarReader};
use wardian_image::Error;
use wardian_image::files::{self, LeftOut, Name, Source, pack, unpack};
use wardian_sys::text::tame_lines;

/// What to copy, and where.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
One of the two is in a container: HANDLE:PATH, from its root. The other one is on this host: a path (one with a colon in it \
begins with / or ./), or - for a tar on standard input or output.

If TO is a directory, what is copied goes into it; otherwise it is called TO, and takes the place of a file of that name. FROM/. \
stands for what is in the directory FROM. A device, a FIFO or a socket called TO is never replaced, nor is a link to the open files of a process copied. Files in a container belong to its root, files on this host to whoever copies, with their modes less the umask. Setuid \
bits, devices and sockets are left out, symlinks are copied as they are, holes in files stay holes.

Of this host only one file system is copied: what is mounted below FROM is left out, and said so. Of a container all is copied but what \
the kernel makes up (/proc, /sys). What cannot be read is named, the rest is copied, and the exit code is 1. A symlink on the way to FROM or TO is followed if nobody but root and the caller could have put it \
there; below them none is followed, whoever changes the directories meanwhile.")]
pub struct Args {
    #[command(flatten)]
    server: Server,
    /// Keep the owners, as docker does; not possible here
    #[arg(short, long, hide = true)]
    archive: bool,
    /// What to copy
    from: String,
    /// Where to
    to: String,
}

/// The source or the target of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    /// In a container: its handle, and an absolute path.
    Inside(String, String),
    Host(PathBuf),
    /// A tar on standard input or output.
    Tar,
}

impl End {
    fn parse(text: &str) -> Result<Self> {
        if text == "-" {
            return Ok(Self::Tar);
        }
        if text.starts_with(['/', '.']) {
            return Ok(Self::Host(text.into()));
        }
        Ok(match text.split_once(':') {
            Some((handle, path)) => {
                ensure!(!handle.is_empty(), "{text:?} has no handle before its colon");
                ensure!(!path.is_empty(), "{text:?} has no path; {handle}:/ is the container's root");
                Self::Inside(handle.to_owned(), format!("/{}", path.trim_start_matches('/')))
            }
            None if text.is_empty() => bail!("an empty path"),
            None => Self::Host(text.into()),
        })
    }
}

/// Runs the command.
pub fn run(args: Args) -> Result<ExitCode> {
    let Args { server, archive, from, to } = args;
    if archive {
        return Err(mistake(anyhow::anyhow!(
            "cp -a: owners are not kept: files in a container belong to its root, files on this host to whoever copies; leave -a \
             out, or have tar keep them: `wardian exec -i HANDLE -- tar xpC DIR <FILE.tar`"
        )));
    }
    let end = |text: &str| End::parse(text).map_err(mistake);
    let ends = (end(&from)?, end(&to)?);
    check(&ends).map_err(mistake)?;
    block_on(async {
        let (client, mut signals) = (server.client()?, Signals::catch()?);
        let named = async |end: End| match end {
            End::Inside(handle, path) => Ok(End::Inside(server.named(&client, &handle).await?, path)),
            other => anyhow::Ok(other),
        };
        let work = async {
            match (named(ends.0).await?, named(ends.1).await?) {
                (End::Inside(handle, path), End::Host(to)) => {
                    out(&server, &client, &handle, &path, &to).await
                }
                (End::Inside(handle, path), End::Tar) => out_as_tar(&server, &client, &handle, &path).await,
                (End::Host(from), End::Inside(handle, path)) => {
                    bring(&server, &client, &from, &handle, &path).await
                }
                (End::Tar, End::Inside(handle, path)) => bring_tar(&server, &client, &handle, &path).await,
                // Refused by [`check`] before.
                _ => bail!("neither is in a container"),
            }
        };
        match signals.until(work).await {
            Ok(done) => done.map(|()| ExitCode::SUCCESS),
            Err(number) => Ok(super::session::End::Left(number).code()),
        }
    })
}

/// Refuses command lines for which nothing can be copied.
fn check(ends: &(End, End)) -> Result<()> {
    match ends {
        (End::Inside(..), End::Inside(..)) => bail!(
            "both are in containers: copy to this host first, or through a pipe (`wardian cp A:PATH - | wardian cp - B:PATH`)"
        ),
        (End::Inside(..), End::Tar) => ensure!(
            !std::io::stdout().is_terminal(),
            "a tar on a terminal helps nobody: send it to a file or a pipe"
        ),
        (End::Tar, End::Inside(..)) => ensure!(
            !std::io::stdin().is_terminal(),
            "standard input is a terminal: give it a tar, as in `tar c DIR | wardian cp - …`"
        ),
        (End::Host(_), End::Inside(..)) | (End::Inside(..), End::Host(_)) => {}
        _ => bail!("neither is in a container: name one as HANDLE:PATH"),
    }
    Ok(())
}

/// Splits `/.` off a path; returns the directory, and whether its content is meant.
fn contents(path: &str) -> (&str, bool) {
    match path.strip_suffix("/.") {
        Some("") => ("/", true),
        Some(dir) => (dir, true),
        None => (path, false),
    }
}

/// Splits a path in a container into its directory and its last name.
fn split(path: &str) -> Result<(&str, &str)> {
    let path = path.trim_end_matches('/');
    let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
    ensure!(!matches!(name, "" | "." | ".."), "the path {path:?} must end with a name");
    Ok((if above.is_empty() { "/" } else { above }, name))
}

/// Whether a path in a container leads to a directory.
async fn is_directory(client: &Client, handle: &str, path: &str) -> wardian_garden::Result<bool> {
    is_there(client, handle, &format!("{}/", path.trim_end_matches('/'))).await
}

async fn is_there(client: &Client, handle: &str, path: &str) -> wardian_garden::Result<bool> {
    match client.stream_out(handle, "", path).await {
        Ok(_) => Ok(true),
        // The error has a text, but the only relevant cause is that the path cannot be read.
        Err(error) if error.kind() == Some(wardian_garden::ErrorKind::Other) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Refuses a path in a container where a file would replace a device, a FIFO or a socket.
async fn replaceable_inside(client: &Client, handle: &str, path: &str) -> Result<(), Refused> {
    let tar = match client.stream_out(handle, "", path).await {
        Ok(tar) => tar,
        Err(error) if error.kind() == Some(wardian_garden::ErrorKind::Other) => return Ok(()),
        Err(error) => return Err(Refused::By(error)),
    };
    let mut head = Vec::new();
    // A path that cannot be read counts as missing; the server reports the error when the file is copied there.
    let read = tar.take(FIRST_ENTRY).read_to_end(&mut head).await;
    match files::special_in(&head) {
        Some(what) if read.is_ok() => Err(Refused::Special(what)),
        _ => Ok(()),
    }
}

/// How many bytes of a tar are read to see the type of its first entry.
const FIRST_ENTRY: u64 = 16 << 10;

/// Why nothing is copied to a path in a container.
enum Refused {
    By(wardian_garden::Error),
    Special(&'static str),
}

// From the host.

async fn bring(server: &Server, client: &Client, from: &Path, handle: &str, to: &str) -> Result<()> {
    let text = from.as_os_str().as_bytes();
    let only_contents = text.ends_with(b"/.") || matches!(text, b"." | b"..") || text.ends_with(b"/..");
    let source = Source::open(from, only_contents)?;
    sendable(from, only_contents)?;
    let (to, _) = contents(to);
    let (dir, name) = if only_contents {
        (to, PathBuf::new())
    } else if is_directory(client, handle, to).await.map_err(|error| server.explain(error))? {
        let name = from.file_name().context("what is copied has no name")?;
        (to, PathBuf::from(name))
    } else {
        ensure!(
            !to.ends_with('/'),
            "there is no directory {to} in {handle}; without the / the copy is called so"
        );
        // The tar would replace the file.
        let replaces = source.is_directory()
            && is_there(client, handle, to).await.map_err(|error| server.explain(error))?;
        ensure!(
            !replaces,
            "{to} is there in {handle} and is no directory: a directory does not take its place"
        );
        let (above, name) = split(to)?;
        (above, PathBuf::from(name))
    };
    if !only_contents {
        let place = format!("{}/{}", dir.trim_end_matches('/'), name.display());
        match replaceable_inside(client, handle, &place).await {
            Ok(()) => {}
            Err(Refused::By(error)) => return Err(server.explain(error)),
            // A FIFO may replace another FIFO.
            Err(Refused::Special(what)) if source.special() == Some(what) => {}
            Err(Refused::Special(what)) => bail!(
                "{place} in {handle} is {what}: nothing was copied, for what is copied would have taken its place; name a file or \
                 a directory, or write to it with `wardian exec -i {handle} -- sh -c 'cat >{place}'`"
            ),
        }
    }
    let (reader, writer) = std::io::pipe().context("make a pipe")?;
    let reader = pipe::Receiver::from_owned_fd(OwnedFd::from(reader)).context("read a pipe")?;
    let end = Arc::new(OnceLock::new());
    let body = Packing { pipe: reader, end: end.clone() };
    let packing = std::thread::spawn(move || {
        // The result is set before the pipe is closed, so that it is there when the reader sees the end.
        let mut writer = std::io::BufWriter::with_capacity(256 << 10, writer);
        let packed = pack(&source, &name, &mut writer);
        let _ = end.set(packed.map_err(anyhow::Error::from).map_err(Arc::new));
        drop(writer);
    });
    let result = body.end.clone();
    let sent = client.stream_in(handle, "", dir, body, None).await;
    // The thread ends soon, because its pipe has no reader any more.
    drop(packing);
    // The server's error is reported, unless the tar was cut off on this side.
    match (result.get(), sent) {
        (Some(Err(error)), Err(_)) if !is_broken_pipe(error) => bail!("{error}"),
        (_, Err(error)) => Err(server.explain(error)),
        (Some(Ok(packed)), Ok(())) => {
            for (path, why) in &packed.left_out {
                let why = match why {
                    LeftOut::Special => "it is a device or a socket",
                    LeftOut::Mount => "something is mounted there",
                };
                print::note(&format!("left out, for {why}: {}", print::tame(&path.to_string_lossy())));
            }
            if packed.left_out_more > 0 {
                print::note(&format!("left out, too: {} more", packed.left_out_more));
            }
            for (path, why) in &packed.unread {
                print::note(&format!("not read: {}: {why}", print::tame(&path.to_string_lossy())));
            }
            match packed.unread.len() as u64 + packed.unread_more {
                0 => Ok(()),
                1 => bail!("1 entry could not be read, or not to the end; all else is there"),
                n => bail!("{n} entries could not be read, or not to the end; all else is there"),
            }
        }
        (_, Ok(())) => bail!("the server has taken the tar before it was whole"),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
    })
}

type Packed = Result<wardian_image::files::Packed, Arc<anyhow::Error>>;

/// A tar being packed. If the packing fails, the stream ends with an error, so that an incomplete tar does not look
/// complete.
struct Packing {
    pipe: pipe::Receiver,
    end: Arc<OnceLock<Packed>>,
}

impl AsyncRead for Packing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = to.filled().len();
        ready!(Pin::new(&mut self.pipe).poll_read(cx, to))?;
        let whole = to.filled().len() > before || matches!(self.end.get(), Some(Ok(_)));
        Poll::Ready(if whole { Ok(()) } else { Err(std::io::Error::other("the files cannot be read")) })
    }
}

/// Refuses a source that [`pack`] would leave out: the tar would have no entry, and the copy would silently do
/// nothing.
fn sendable(from: &Path, only_contents: bool) -> Result<()> {
    let Ok(there) = from.symlink_metadata() else { return Ok(()) };
    // Such as /dev/stdin, and a shell's <(…): in a container the link would lead nowhere, or elsewhere.
    if there.is_symlink() && !only_contents && from.read_link().is_ok_and(|to| is_of_process(from, &to)) {
        bail!(
            "{} is {}, and would be copied as such: nothing was copied; pipe a tar to `wardian cp - …`, or copy from a file",
            from.display(),
            files::PROCESS
        );
    }
    match files::special(FileType::from_raw_mode(there.mode())) {
        Some(what) if !only_contents && !there.file_type().is_fifo() => bail!(
            "{} is {what}, which no container gets: nothing was copied; name a file or a directory, or - for a tar on standard \
             input",
            from.display()
        ),
        _ => Ok(()),
    }
}

/// Whether a symlink leads to the open files of a process: by its target, or because it lies in procfs.
fn is_of_process(link: &Path, text: &Path) -> bool {
    let names: Vec<_> = text.components().map(|name| name.as_os_str().as_bytes()).collect();
    let above = link.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    matches!(names[..], [b"/", b"proc", _, b"fd", ..])
        || rustix::fs::statfs(above).is_ok_and(|there| there.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

async fn bring_tar(server: &Server, client: &Client, handle: &str, to: &str) -> Result<()> {
    let (to, _) = contents(to);
    let mut stdin = tokio::io::stdin();
    // A pipe may deliver the bytes one by one.
    let mut head = Vec::with_capacity(HEAD);
    while head.len() < HEAD
        && (&mut stdin)
            .take((HEAD - head.len()) as u64)
            .read_buf(&mut head)
            .await
            .context("read standard input")?
            > 0
    {}
    judge(&head)?;
    let sent = client.stream_in(handle, "", to, std::io::Cursor::new(head).chain(stdin), None).await;
    sent.map_err(|error| server.explain(error))
}

/// How many bytes are needed to detect a compressed tar.
const HEAD: usize = 6;

/// Refuses an empty or compressed tar by its first bytes: the server's error would call it damaged.
fn judge(head: &[u8]) -> Result<()> {
    let (by, tool) = match head {
        [] => bail!(
            "standard input is empty, and a tar is not: nothing was copied; look at what should have written it"
        ),
        [0x1f, 0x8b, ..] => ("gzip", "gzip -dc"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", "zstd -dc"),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => ("xz", "xz -dc"),
        // A tar may begin with a file name `BZh…`, but not followed by a digit and the digits of pi.
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41] => ("bzip2", "bzip2 -dc"),
        _ => return Ok(()),
    };
    bail!(
        "the tar on standard input is compressed by {by}: nothing was copied; decompress it first (`{tool} FILE | wardian cp - …`)"
    )
}

// From a container.

async fn out_as_tar(server: &Server, client: &Client, handle: &str, path: &str) -> Result<()> {
    let (path, contents) = contents(path);
    let path = if contents {
        format!("{}/", path.trim_end_matches('/'))
    } else {
        path.trim_end_matches('/').to_owned()
    };
    let path = if path.is_empty() { "/" } else { &path };
    out_into(server, client, handle, path, &mut tokio::io::stdout()).await.map(drop)
}

/// Whether all of a tar was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    All,
    /// The reader has closed the pipe.
    Unread,
}

/// Writes the root file system of a container as a tar.
pub async fn pass_tree(
    server: &Server,
    client: &Client,
    handle: &str,
    to: &mut (impl AsyncWrite + Unpin),
) -> Result<Written> {
    out_into(server, client, handle, "/", to).await
}

async fn out_into(
    server: &Server,
    client: &Client,
    handle: &str,
    path: &str,
    to: &mut (impl AsyncWrite + Unpin),
) -> Result<Written> {
    let mut tar = client.stream_out(handle, "", path).await.map_err(|error| server.explain(error))?;
    match pass(&mut tar, to).await {
        Err(Broken::Write(error)) if error.kind() == ErrorKind::BrokenPipe => return Ok(Written::Unread),
        Err(Broken::Write(error)) => return Err(lost(anyhow::Error::new(error).context("write the tar"))),
        Err(Broken::Read(error)) => return Err(not_whole(error, "something is missing in the tar")),
        Ok(()) => {}
    }
    note_of_root(path);
    Ok(Written::All)
}

/// Why a tar was not copied to its end.
enum Broken {
    /// The read failed; all data before has been written.
    Read(std::io::Error),
    Write(std::io::Error),
}

/// Copies a tar. Unlike `tokio::io::copy`, it has written all data read when it fails with an error of the reader.
async fn pass(tar: &mut TarReader, to: &mut (impl AsyncWrite + Unpin)) -> Result<(), Broken> {
    let mut piece = vec![0; 256 << 10];
    loop {
        let read = tar.read(&mut piece).await;
        let written = match read {
            Ok(read) if read > 0 => to.write_all(&piece[..read]).await,
            // The flush may report an error of an earlier write.
            _ => to.flush().await,
        };
        written.map_err(Broken::Write)?;
        if read.map_err(Broken::Read)? == 0 {
            return Ok(());
        }
    }
}

/// Prints a note on what the keeper leaves out of a container's root. Elsewhere kernel file systems are mounted only
/// on request.
fn note_of_root(path: &str) {
    if matches!(path, "" | "/") {
        print::note("left out: what is in /proc and /sys, which the kernel makes up");
    }
}

/// Returns the server's error for an incomplete tar.
fn told(error: &std::io::Error) -> Option<&TarFailure> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

const CUT_OFF: &str = "the tar was cut off, and what was copied is not whole";

/// Returns the error for an incomplete tar, prefixed by `meaning` unless that is empty.
fn not_whole(error: std::io::Error, meaning: &str) -> anyhow::Error {
    match told(&error) {
        // The container's root may have written this text, so lines after the first are indented.
        Some(TarFailure(why)) => {
            let why = tame_lines(why).replace('\n', "\n  ");
            if meaning.is_empty() { anyhow::anyhow!("{why}") } else { anyhow::anyhow!("{meaning}: {why}") }
        }
        None => anyhow::Error::new(error).context(format!("{CUT_OFF}: the server's log says why")),
    }
}

async fn out(server: &Server, client: &Client, handle: &str, path: &str, to: &Path) -> Result<()> {
    let (path, mut contents) = contents(path);
    let mut path = path.trim_end_matches('/').to_owned();
    let mut theirs = String::new();
    if path.is_empty() {
        // The root directory has no name, so its content is copied.
        contents = true;
    } else if !contents {
        theirs = split(&path)?.1.to_owned();
    }
    if contents {
        path.push('/');
    }
    replaceable(to)?;
    // Opened once, because the path may lead elsewhere the next time.
    let there = files::directory(to)?;
    let exists = there.is_some();
    ensure!(
        exists || !to.as_os_str().as_bytes().ends_with(b"/") || contents,
        "there is no directory {}; without the / the copy is called so",
        to.display()
    );
    let dir = match there {
        Some(there) => there,
        None => {
            let above = to.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let missing = || format!("there is no directory {}", above.display());
            files::directory(above)?.with_context(missing)?
        }
    };
    let name = || to.file_name().with_context(|| format!("{} has no name", to.display()));
    // The container is asked first, so that a failure leaves nothing behind.
    let mut tar = client.stream_out(handle, "", &path).await.map_err(|error| server.explain(error))?;
    let (dir, ours) = match (exists, contents) {
        (true, _) => (dir, OsStr::from_bytes(theirs.as_bytes())),
        (false, true) => (files::make(dir.as_fd(), name()?)?, OsStr::new("")),
        (false, false) => (dir, name()?),
    };
    let ours = ours.as_bytes().to_owned();
    let (reader, writer) = std::io::pipe().context("make a pipe")?;
    let mut writer = pipe::Sender::from_owned_fd(OwnedFd::from(writer)).context("write to a pipe")?;
    let unpacking = tokio::task::spawn_blocking(move || {
        let name = if contents { Name::Contents } else { Name::One(theirs.as_bytes(), &ours) };
        unpack(reader, dir.as_fd(), name)
    });
    let copied = pass(&mut tar, &mut writer).await;
    drop(writer);
    let taken = unpacking.await.context("unpack")?;
    let failure = match copied {
        Ok(()) => None,
        // The unpacker has stopped reading, and reports the cause.
        Err(Broken::Write(error)) if error.kind() == ErrorKind::BrokenPipe => None,
        Err(Broken::Read(error) | Broken::Write(error)) => Some(error),
    };
    let (taken, failure) = match (taken, failure) {
        // The tar was complete, so the error is that files could not be made.
        (Err(ours), Some(error)) if told(&error).is_some() && !matches!(ours, Error::Truncated { .. }) => {
            return Err(ours.into());
        }
        (Err(_), Some(error)) => return Err(not_whole(error, CUT_OFF)),
        (taken, failure) => (taken?, failure),
    };
    // Since a directory is an entry itself, it was FROM that was left out: a device by this side, or a socket by the
    // container's.
    ensure!(
        contents || taken.entries > 0 || failure.is_some(),
        "{handle}:{path} is a device or a socket, which is not made on this host: nothing was copied; name a file or a \
         directory, or - for a tar on standard output",
    );
    if taken.left_out > 0 {
        let what = if taken.left_out == 1 { "device or socket" } else { "devices or sockets" };
        print::note(&format!("left out: {} {what}", taken.left_out));
    }
    note_of_root(&path);
    failure.map_or(Ok(()), |error| Err(not_whole(error, "")))
}

/// Refuses a target that a file must not replace, before the container is asked; the unpacker checks again.
fn replaceable(to: &Path) -> Result<()> {
    let Ok(there) = to.symlink_metadata() else { return Ok(()) };
    let kind = FileType::from_raw_mode(there.mode());
    // Such as /dev/stdout, which leads each process to its own file.
    let process = kind == FileType::Symlink && to.read_link().is_ok_and(|to| to.starts_with("/proc"));
    let what = if process { Some(files::PROCESS) } else { files::special(kind) };
    match what {
        Some(what) => bail!(
            "{} is {what}: nothing was copied, for a file would have taken its place; name a file or a directory, or - for a tar \
             on standard output",
            to.display()
        ),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_device_is_replaced() {
        let base = tempfile::tempdir().unwrap();
        let at = |name: &str| base.path().join(name);
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        std::os::unix::fs::symlink("/proc/self/fd/1", at("stdout")).unwrap();
        for (path, what) in [
            (PathBuf::from("/dev/null"), "is a device"),
            (at("socket"), "is a socket"),
            (at("stdout"), "is a link to the files of a process"),
        ] {
            assert!(replaceable(&path).unwrap_err().to_string().contains(what), "{}", path.display());
        }
        std::fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink("/dev/null", at("link")).unwrap();
        for path in [at("file"), at("link"), at("missing"), base.path().to_owned()] {
            replaceable(&path).unwrap();
        }
    }

    #[test]
    fn what_a_container_says_does_not_pass_for_ours() {
        let said = "stream-out: a\nwardian: all is well\u{1b}[2J\nb";
        let error = || std::io::Error::other(TarFailure(said.to_owned()));
        let expected = "stream-out: a\n  wardian: all is well\\u{1b}[2J\n  b";
        assert_eq!(not_whole(error(), "").to_string(), expected);
        assert_eq!(not_whole(error(), CUT_OFF).to_string(), format!("{CUT_OFF}: {expected}"));
        let other = not_whole(std::io::Error::other("broken"), "").to_string();
        assert_eq!(other, format!("{CUT_OFF}: the server's log says why"));
    }

    #[test]
    fn a_compressed_tar_is_told_from_a_plain_one() {
        let heads: [(&[u8], &str); 5] = [
            (b"", "is empty"),
            (b"\x1f\x8b\x08\0\0\0", "by gzip"),
            (b"\x28\xb5\x2f\xfd\x04\0", "by zstd"),
            (b"\xfd7zXZ\0", "by xz"),
            (b"BZh91A", "by bzip2"),
        ];
        for (head, told) in heads {
            assert!(judge(head).unwrap_err().to_string().contains(told), "{told}");
        }
        // File names, bytes that no tar begins with (which the server refuses), and an archive without entries.
        for plain in [&b"BZh9/f"[..], b"a", b"\0\0\0\0\0\0"] {
            judge(plain).unwrap();
        }
    }

    #[test]
    fn links_to_open_files_are_not_sent() {
        let base = tempfile::tempdir().unwrap();
        let at = |name: &str| base.path().join(name);
        let file = std::fs::File::create(at("file")).unwrap();
        std::os::unix::fs::symlink("/proc/self/fd/0", at("stdin")).unwrap();
        let open = PathBuf::from(format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)));
        for path in [at("stdin"), open, "/proc/self".into()] {
            let said = sendable(&path, false).unwrap_err().to_string();
            assert!(said.contains("a link to the files of a process") && said.contains("cp - "), "{said}");
        }
        std::os::unix::fs::symlink("/proc/self/mounts", at("mtab")).unwrap();
        std::os::unix::fs::symlink("/dev/stdout", at("log")).unwrap();
        for path in [at("mtab"), at("log")] {
            sendable(&path, false).unwrap();
        }
    }

    #[test]
    fn devices_and_sockets_are_not_sent() {
        let base = tempfile::tempdir().unwrap();
        let at = |name: &str| base.path().join(name);
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for (path, what) in [(PathBuf::from("/dev/null"), "is a device"), (at("socket"), "is a socket")] {
            assert!(sendable(&path, false).unwrap_err().to_string().contains(what), "{}", path.display());
        }
        std::os::unix::fs::symlink("/dev/null", at("link")).unwrap();
        for path in [at("link"), at("missing"), base.path().to_owned()] {
            sendable(&path, false).unwrap();
        }
    }

    #[test]
    fn ends() {
        let inside = |handle: &str, path: &str| End::Inside(handle.into(), path.into());
        for (text, end) in [
            ("-", End::Tar),
            ("a", End::Host("a".into())),
            ("./a:b", End::Host("./a:b".into())),
            ("/a:b", End::Host("/a:b".into())),
            ("..", End::Host("..".into())),
            ("h:/a", inside("h", "/a")),
            ("h:a/b:c", inside("h", "/a/b:c")),
            ("h://a/", inside("h", "/a/")),
        ] {
            assert_eq!(End::parse(text).unwrap(), end, "{text}");
        }
        for bad in ["", ":", ":/a", "h:"] {
            assert!(End::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths() {
        assert_eq!(
            (contents("/a/."), contents("/."), contents("/a/")),
            (("/a", true), ("/", true), ("/a/", false))
        );
        assert_eq!(split("/a/b/").unwrap(), ("/a", "b"));
        assert_eq!(split("/a").unwrap(), ("/", "a"));
        assert!(split("/").is_err() && split("/a/..").is_err());
    }
}

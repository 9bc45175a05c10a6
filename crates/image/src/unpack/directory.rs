//! Unpacks a directory as a layer.

use std::io::{BufWriter, Read, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::thread;

use crate::bounds::watch::Watch;
use crate::disk::rootfs::Root;
use crate::error::Error;
use crate::export;

/// The write size in bytes.
const PIECE: usize = 256 << 10;

/// Passes the directory to `read` as a tar stream.
pub(crate) fn stream<T>(
    root: &Root,
    read: impl FnOnce(Box<dyn Read + Send>) -> Result<T, Error>,
) -> Result<T, Error> {
    let what = root.shown();
    let error = |source| Error::Io { op: "read", path: what.clone(), source };
    // A socket and not a pipe: writing to a pipe without a reader raises SIGPIPE, unless the whole process ignores
    // it.
    let (from, to) = UnixStream::pair().map_err(error)?;
    // The reader counts the bytes, and stops reading on a cancellation.
    let watch = &Watch::default();
    thread::scope(|scope| {
        let shown = &what;
        let pack = move || {
            let mut to = BufWriter::with_capacity(PIECE, to);
            export::tree(root.as_fd(), &mut to, shown, watch)?;
            to.flush().map_err(|source| Error::Io { op: "read", path: shown.clone(), source })
        };
        let packer = thread::Builder::new().name("layer-pack".into()).spawn_scoped(scope, pack);
        let packer = packer.map_err(error)?;
        let done = read(Box::new(from));
        let packed = packer
            .join()
            .map_err(|_| Error::Thread { what: what.clone(), why: "its reader panicked".into() })?;
        match (packed, done) {
            // The reader that stopped is the cause, and not the writer's EPIPE.
            (Err(Error::Io { source, .. }), done) if source.kind() == std::io::ErrorKind::BrokenPipe => done,
            (Err(error), _) => Err(error),
            (Ok(()), done) => done,
        }
    })
}

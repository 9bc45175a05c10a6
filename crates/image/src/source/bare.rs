//! Root file systems without a config, which are images of one layer: tar files and directories.

use std::path::Path;
use std::sync::Arc;
use std::thread;

use super::image::Image;
use super::layer::{Blob, Layer};
use crate::disk::file::{Identity, state_of};
use crate::disk::rootfs::{Root, look, room};
use crate::error::Error;
use crate::format::manifest::Config;
use crate::format::plain::Opening;

/// How often a tree that keeps changing is scanned.
const MAX_WAITS: u32 = 50;

/// Opens a tar file. Its id changes with the file's state, and needs no read of its content.
pub(crate) fn open_tar(path: &Path) -> Result<Image, Error> {
    let (path, identity) = state_of(path)?;
    let chain_id = identity.of_path(&path).as_hex().to_owned();
    Ok(Image {
        config: Config::default(),
        layers: vec![Layer::alone(chain_id.clone(), Blob::File { path, identity }, None)],
        manifest: None,
        config_json: None,
        id: chain_id,
        names: Vec::new(),
        digest: None,
    })
}

/// Opens a directory. Its id changes with the state of anything in it.
pub(crate) fn open_directory(path: &Path, opening: &Opening<'_>) -> Result<Image, Error> {
    let root = Root::open(path)?;
    let cancelled = || (opening.cancelled)();
    let _room = room(&root.shown(), &cancelled)?;
    for _ in 0..MAX_WAITS {
        let seen = look(&root, &opening.limits, None, &cancelled)?;
        // A second change within the same clock tick would not show.
        if let Some(time) = Identity::settles(seen.changed.0, seen.changed.1) {
            thread::sleep(time);
            continue;
        }
        let chain_id = seen.state.as_hex().to_owned();
        return Ok(Image {
            config: Config::default(),
            layers: vec![Layer::alone(chain_id.clone(), Blob::Tree { root: Arc::new(root), seen }, None)],
            manifest: None,
            config_json: None,
            id: chain_id,
            names: Vec::new(),
            digest: None,
        });
    }
    Err(Error::Changed { path: root.shown() })
}

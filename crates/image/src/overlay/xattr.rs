//! Extended attributes: which of them an archive may set, and in what form.

/// How an attribute is handled.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate<'a> {
    Set(&'a [u8]),
    /// The attribute is ignored: an archive may not set it.
    Skip,
    Refuse(&'static str),
}

/// `struct vfs_cap_data` and `struct vfs_ns_cap_data` (linux/capability.h): a little-endian word with revision and flags,
/// four words of capabilities, in revision 3 the root's user id.
const CAPS_2: usize = 20;
const CAPS_3: usize = 24;
const REVISION_2: u32 = 0x0200_0000;
const REVISION_3: u32 = 0x0300_0000;
const EFFECTIVE: u32 = 1;

/// A buffer for a rewritten capability.
pub(crate) type Scratch = [u8; CAPS_2];

/// Decides how one attribute of a file or, if it is not `regular`, of a directory is handled.
///
/// `user.*` is plain data, except `user.overlay.*`: that is overlayfs' own on mounts with `userxattr`. `trusted.*`,
/// `system.*` and all else in `security.*` belong to the host.
pub(crate) fn judge<'a>(name: &[u8], value: &'a [u8], regular: bool, scratch: &'a mut Scratch) -> Fate<'a> {
    if name == b"security.capability" && regular {
        return capability(value, scratch);
    }
    let user =
        name.strip_prefix(b"user.").is_some_and(|rest| !rest.is_empty() && !rest.starts_with(b"overlay."));
    if user { Fate::Set(value) } else { Fate::Skip }
}

/// File capabilities are stored in revision 2, which has no user id of its own: the kernel takes 0 as the owner on disk,
/// maps it through the mount (security/commoncap.c, `get_vfs_caps_from_disk`: `make_kuid(fs_ns, 0)`, then
/// `make_vfsuid(idmap, ..)`), and lets the file have its capabilities in the user namespace that belongs to the result.
/// Layers are stored unshifted and shown through idmapped mounts, so this is right for every container.
///
/// Revision 3 names the root of one user namespace, by its user id on the machine where the archive was made. Such an
/// id means nothing here; a number other than 0 would even give the capabilities to whatever namespace has that root.
/// What its author meant, "root of the container", is revision 2; Docker rewrites it in the same way when it makes
/// layers. No right is gained: the archive could have had revision 2 from the beginning.
///
/// Anything else would be EINVAL in `cap_convert_nscap` (`validheader`).
fn capability<'a>(value: &'a [u8], scratch: &'a mut Scratch) -> Fate<'a> {
    let Some((magic, rest)) = value.split_first_chunk() else {
        return Fate::Refuse("a file capability without a header");
    };
    let magic = u32::from_le_bytes(*magic);
    match (magic & !EFFECTIVE, value.len()) {
        (REVISION_2, CAPS_2) => Fate::Set(value),
        (REVISION_3, CAPS_3) => {
            scratch[..4].copy_from_slice(&(REVISION_2 | magic & EFFECTIVE).to_le_bytes());
            scratch[4..].copy_from_slice(&rest[..CAPS_2 - 4]);
            Fate::Set(scratch)
        }
        _ => Fate::Refuse("a file capability of unknown form"),
    }
}

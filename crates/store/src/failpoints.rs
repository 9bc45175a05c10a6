//! The failpoints of layers and root file systems.

wardian_sys::failpoints! {
    Staged "staged" "A layer's staging directory is there and locked.";
    Unpacked "unpacked" "The layer is unpacked, and has no record.";
    Recorded "recorded" "It has one, and is not in its place.";
    Committed "committed" "It is in its place.";
    Named "named" "An image has its name.";
    WrittenBack "written-back" "New layers are written back, not synced.";
    Synced "synced" "They are synced, their records do not say so.";
    Marked "marked" "The record of one of them does.";
    RootfsRecorded "rootfs-recorded" "A root file system has its record, and nothing else.";
    RootfsPaired "rootfs-paired" "It has its directories.";
    RootfsMounted "rootfs-mounted" "It is mounted.";
    RootfsReleased "rootfs-released" "Its record is gone, its directories are there.";
    Published "published" "A root file system is attached in the store's `images/`.";
    Withdrawing "withdrawing" "It is not attached there any more, and its record is there.";
    MountedAhead "mounted-ahead" "A spare is mounted, and nobody can claim it yet.";
    SpareClaimed "spare-claimed" "A spare is a root file system now.";
    SpareRefused "spare-refused" "A spare is replaced, and still there.";
    ImageAttached "image-attached" "A blank image has a loop device, and no name.";
    ImageCopied "image-copied" "It is a limited part's image, and is not mounted.";
    ImageMounted "image-mounted" "It is mounted, and nothing is written to it.";
    ImageShutDown "image-shut-down" "It is trash and shut down, its file is there.";
    Condemned "condemned" "A layer is in the trash.";
    DeletedSome "deleted-some" "A tree is being deleted.";
}

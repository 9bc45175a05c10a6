//! Two layers of structured entries. Without links, what an overlay of the two shows must be what a plain model of the
//! OCI image spec ("Applying Changesets") gives.
#![no_main]

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tar::{EntryType, Header};
use wardian_fuzz::Cage;

#[derive(Debug, Clone, Arbitrary)]
enum Op {
    File(Name, u8),
    Dir(Name),
    Whiteout(Name),
    Opaque(Name),
    Symlink(Name, Name),
    Link(Name, Name),
    Device(Name, u8, u8),
    /// Names that mean something else.
    Odd(Name, Odd, Name),
}

impl Op {
    fn is_modelled(&self) -> bool {
        matches!(self, Op::File(..) | Op::Dir(_) | Op::Whiteout(_) | Op::Opaque(_))
    }
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Odd {
    Up,
    Absolute,
    WhiteoutDir,
    Meta,
    UpTarget,
}

/// One to three components of four letters.
#[derive(Debug, Clone, Arbitrary)]
struct Name(u8);

impl Name {
    fn parts(&self) -> Vec<&'static str> {
        let letter = |shift: u8| ["a", "b", "c", "d"][usize::from(self.0 >> shift & 3)];
        match self.0 >> 6 {
            0 => vec![letter(0)],
            1 => vec![letter(0), letter(2)],
            _ => vec![letter(0), letter(2), letter(4)],
        }
    }

    fn text(&self) -> String {
        self.parts().join("/")
    }

    fn whiteout(&self) -> String {
        let mut parts: Vec<_> = self.parts().into_iter().map(str::to_owned).collect();
        if let Some(last) = parts.last_mut() {
            last.insert_str(0, ".wh.");
        }
        parts.join("/")
    }
}

fuzz_target!(|input: (bool, [Vec<Op>; 2])| {
    let (plain, mut layers) = input;
    if plain {
        layers.iter_mut().for_each(|ops| ops.retain(Op::is_modelled));
    }
    let mut shown = Tree::new();
    let mut model = Some(Tree::new());
    for (layer, ops) in layers.iter().enumerate() {
        let cage = Cage::default();
        let mut devices = HashSet::new();
        let mut tar = Vec::new();
        for op in ops {
            entry(&mut tar, op, &mut devices);
        }
        tar.resize(tar.len() + 1024, 0);
        let result = cage.unpack(&tar, &devices);
        let refused = ops.iter().try_for_each(|op| model.as_mut().map_or(Some(()), |m| apply(m, layer, op)));
        if !ops.iter().all(Op::is_modelled) {
            model = None;
        }
        if model.is_some() {
            let limits = ops.len() as u64 > wardian_fuzz::LIMITS.max_entries;
            assert!(limits || result.is_ok() == refused.is_some(), "{result:?} for {ops:?}");
        }
        if result.is_err() {
            return;
        }
        merge(&mut shown, &cage.root(), "");
        if let Some(model) = &model {
            let model: BTreeMap<_, _> = model.iter().map(|(name, (node, _))| (name, node)).collect();
            let shown: BTreeMap<_, _> = shown.iter().map(|(name, (node, _))| (name, node)).collect();
            assert_eq!(shown, model, "{layers:?}");
        }
    }
});

/// A file and its length, or a directory (and anything that is neither).
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    File(u64),
    Dir,
    Other,
}

/// What is visible, and the layer that said so.
type Tree = BTreeMap<String, (Node, usize)>;

fn remove(tree: &mut Tree, name: &str, itself: bool, which: impl Fn(usize) -> bool) {
    let below = format!("{name}/");
    tree.retain(|there, (_, layer)| {
        !((itself && there == name || there.starts_with(&below)) && which(*layer))
    });
}

/// The directory `name` and those above it, made where they are missing; none if a file of this layer is in the way.
fn ensure(tree: &mut Tree, layer: usize, name: &str) -> Option<()> {
    let ends = name.match_indices('/').map(|(at, _)| at).chain([name.len()]);
    for end in ends.filter(|end| *end > 0) {
        match tree.get_mut(&name[..end]) {
            Some((Node::Dir, whose)) => *whose = layer,
            Some((_, whose)) if *whose == layer => return None,
            _ => {
                tree.insert(name[..end].to_owned(), (Node::Dir, layer));
            }
        }
    }
    Some(())
}

fn apply(tree: &mut Tree, layer: usize, op: &Op) -> Option<()> {
    let above = |name: &Name| name.text().rsplit_once('/').map_or(String::new(), |(above, _)| above.into());
    match op {
        Op::File(name, length) => {
            ensure(tree, layer, &above(name))?;
            remove(tree, &name.text(), true, |_| true);
            tree.insert(name.text(), (Node::File(u64::from(*length)), layer));
        }
        Op::Dir(name) => {
            ensure(tree, layer, &above(name))?;
            // Whatever is no directory gives way, whose ever it is.
            tree.insert(name.text(), (Node::Dir, layer));
        }
        Op::Whiteout(name) => {
            ensure(tree, layer, &above(name))?;
            // What this layer brings stays.
            remove(tree, &name.text(), true, |whose| whose != layer);
        }
        Op::Opaque(name) => {
            ensure(tree, layer, &name.text())?;
            remove(tree, &name.text(), false, |whose| whose != layer);
        }
        _ => {}
    }
    Some(())
}

/// Lays an unpacked layer over what is there, as overlayfs does.
fn merge(tree: &mut Tree, dir: &Path, prefix: &str) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy();
        let name = if prefix.is_empty() { name.into_owned() } else { format!("{prefix}/{name}") };
        let stat = path.symlink_metadata().expect("an entry");
        if stat.is_dir() {
            let mut value = [0; 8];
            let opaque = rustix::fs::lgetxattr(&path, "trusted.overlay.opaque", &mut value).is_ok();
            if opaque || !matches!(tree.get(&name), Some((Node::Dir, _))) {
                remove(tree, &name, true, |_| true);
            }
            tree.insert(name.clone(), (Node::Dir, 0));
            merge(tree, &path, &name);
            continue;
        }
        remove(tree, &name, true, |_| true);
        if !(stat.file_type().is_char_device() && stat.rdev() == 0) {
            let node = if stat.is_file() { Node::File(stat.len()) } else { Node::Other };
            tree.insert(name, (node, 0));
        }
    }
}

fn entry(tar: &mut Vec<u8>, op: &Op, devices: &mut HashSet<u64>) {
    let file = EntryType::Regular;
    let (kind, name, link, length, device) = match op {
        Op::File(name, length) => (file, name.text(), String::new(), *length, None),
        Op::Dir(name) => (EntryType::Directory, name.text(), String::new(), 0, None),
        Op::Whiteout(name) => (file, name.whiteout(), String::new(), 0, None),
        Op::Opaque(name) => (file, format!("{}/.wh..wh..opq", name.text()), String::new(), 0, None),
        Op::Symlink(name, to) => (EntryType::Symlink, name.text(), to.text(), 0, None),
        Op::Link(name, to) => (EntryType::Link, name.text(), to.text(), 0, None),
        Op::Device(name, a, b) => (EntryType::Char, name.text(), String::new(), 0, Some((*a, *b))),
        Op::Odd(name, odd, other) => match odd {
            Odd::Up => (file, format!("{}/../../{}", name.text(), other.text()), String::new(), 1, None),
            Odd::Absolute => (EntryType::Symlink, name.text(), format!("/{}", other.text()), 0, None),
            Odd::WhiteoutDir => (EntryType::Directory, name.whiteout(), String::new(), 0, None),
            Odd::Meta => (file, format!("{}/.wh..wh.{}", name.text(), other.text()), String::new(), 0, None),
            Odd::UpTarget => (EntryType::Symlink, name.text(), format!("../../../{}", other.text()), 0, None),
        },
    };
    let mut header = Header::new_ustar();
    let bytes = header.as_mut_bytes();
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    bytes[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(u64::from(length));
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    if let Some((major, minor)) = device {
        let _ = header.set_device_major(u32::from(major));
        let _ = header.set_device_minor(u32::from(minor));
        devices.insert(rustix::fs::makedev(u32::from(major), u32::from(minor)));
    }
    header.set_cksum();
    tar.extend_from_slice(header.as_bytes());
    tar.resize((tar.len() + usize::from(length)).next_multiple_of(512), b'x');
}

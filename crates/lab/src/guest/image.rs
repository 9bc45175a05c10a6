//! The header of an x86 kernel image, as boot loaders read it (Documentation/arch/x86/boot.rst of the kernel).

use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// Size of the part of an image that has the header and the version text: the text is at most 64 KiB behind the start.
const BEGINNING: u64 = 66 << 10;
/// Limit of an image's size in bytes.
const MOST: u64 = 256 << 20;
/// Offset of the signature `HdrS`.
const SIGNATURE_AT: usize = 0x202;
const SIGNATURE: &[u8] = b"HdrS";
/// Offset of `kernel_version`, a 16-bit pointer to the version text, less 0x200.
const VERSION_AT: usize = 0x20e;
/// Longest release that uname(2) returns.
const MOST_RELEASE: usize = 64;

/// The kernel's release (`uname -r`), from the header of its image; `None` if the header has none.
///
/// # Errors
/// The file cannot be read, or is no kernel image.
pub(super) fn release(path: &Path) -> Result<Option<String>> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("open {shown}"))?;
    let meta = file.metadata().with_context(|| format!("look at {shown}"))?;
    ensure!(
        meta.is_file() && meta.len() <= MOST,
        "{shown} is no kernel image: no file, or larger than 256 MiB"
    );
    let mut head = Vec::new();
    file.take(BEGINNING).read_to_end(&mut head).with_context(|| format!("read {shown}"))?;
    let signature = head.get(SIGNATURE_AT..SIGNATURE_AT + SIGNATURE.len());
    ensure!(
        signature == Some(SIGNATURE),
        "{shown} is no kernel image for x86: the signature HdrS is missing; give vmlinuz or arch/x86/boot/bzImage, not vmlinux"
    );
    Ok(version_text(&head))
}

fn version_text(head: &[u8]) -> Option<String> {
    let pointer = head.get(VERSION_AT..VERSION_AT + 2)?;
    let at = usize::from(u16::from_le_bytes([pointer[0], pointer[1]]));
    if at == 0 {
        return None;
    }
    let text = head.get(at + 0x200..)?;
    // `6.12.1-small (user@host) #1 SMP …`
    let word = text.split(|byte| *byte == b' ' || *byte == 0).next()?;
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b".-+_~".contains(byte);
    (!word.is_empty() && word.len() <= MOST_RELEASE && word.iter().all(plain))
        .then(|| String::from_utf8_lossy(word).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The beginning of an image with this version text.
    pub(crate) fn image(text: &[u8]) -> Vec<u8> {
        let mut head = vec![0; 0x1000];
        head[SIGNATURE_AT..SIGNATURE_AT + 4].copy_from_slice(SIGNATURE);
        head[VERSION_AT..VERSION_AT + 2].copy_from_slice(&0x600_u16.to_le_bytes());
        head[0x800..0x800 + text.len()].copy_from_slice(text);
        head
    }

    #[test]
    fn the_release_is_read_from_the_header() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmlinuz");
        for (content, expected) in [
            (image(b"6.12.1+deb12-cloud-amd64 (a@b) #1 SMP\0"), Some("6.12.1+deb12-cloud-amd64")),
            (image(b"4.14.60\0"), Some("4.14.60")),
            (image(b"../../etc #1"), None),
            (image(b"\x1b[2J #1"), None),
            (image(b""), None),
        ] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(release(&path).unwrap().as_deref(), expected);
        }
        let mut cut = image(b"");
        cut[VERSION_AT..VERSION_AT + 2].copy_from_slice(&u16::MAX.to_le_bytes());
        std::fs::write(&path, cut).unwrap();
        assert_eq!(release(&path).unwrap(), None);
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmlinuz");
        for content in [&b""[..], b"\x7fELF", &[0xa5; 100_000]] {
            std::fs::write(&path, content).unwrap();
            let error = release(&path).unwrap_err().to_string();
            assert!(error.contains("no kernel image"), "{error}");
        }
        assert!(release(dir.path()).is_err());
        assert!(release(&dir.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}

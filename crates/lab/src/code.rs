//! The app: a small web server beside many megabytes of code, as one tar in memory.

use crate::image::{USER_ID, header};
use anyhow::Result;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::io::Write;

/// Directory of the app in a container.
pub const APP: &str = "/home/vcap/app";
/// Port of the app, on the container's loopback.
pub const PORT: u16 = 8080;
/// The variable with the address that it listens on [default: 127.0.0.1].
pub const ADDRESS: &str = "ADDRESS";
/// The answer to `/health`.
pub const HEALTHY: &str = "healthy\n";

/// One megabyte as `dd bs=1M` writes it.
pub const MEGABYTE: usize = 1 << 20;

/// A file of the code with its digest, by which the code is verified.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Its name, relative to [`APP`].
    pub file: String,
    /// Its SHA-256, in hex.
    pub digest: String,
}

/// The app's code, to be streamed into any number of containers.
#[derive(Debug, Clone)]
pub struct Code {
    /// A tar to be unpacked in [`APP`]. It is in memory because a file would be dirty data of its own.
    pub tar: Bytes,
    /// A file of the code.
    pub sample: Sample,
}

impl Code {
    /// The code of [`pack`] with the salt 0.
    pub fn generate(megabytes: usize) -> Result<Self> {
        Self::salted(megabytes, 0)
    }

    /// The code of [`pack`] with a salt.
    pub fn salted(megabytes: usize, salt: u64) -> Result<Self> {
        let tar = tar::Builder::new(Vec::with_capacity((megabytes + 1) * (MEGABYTE + 1024)));
        let Packed { to, sample, .. } = pack(tar, "", megabytes, salt)?;
        Ok(Self { tar: to.into(), sample })
    }
}

/// An app's code in a tar.
#[derive(Debug)]
pub(crate) struct Packed<W> {
    /// The writer that the tar went to.
    pub to: W,
    /// A file of the code.
    pub sample: Sample,
    /// Size of all its files in bytes.
    pub bytes: u64,
}

/// Packs an app with `megabytes` files of one megabyte of pseudo-random bytes, each from its own seed: nothing in it
/// is sparse, and no two files can share blocks. Another salt makes other files. `below` is prefixed to all names.
pub(crate) fn pack<W: Write>(
    mut tar: tar::Builder<W>,
    below: &str,
    megabytes: usize,
    salt: u64,
) -> Result<Packed<W>> {
    let start = format!("#!/bin/sh\nexec busybox httpd -f -p ${{{ADDRESS}:-127.0.0.1}}:{PORT} -h {APP}\n");
    let mut bytes = 0;
    let mut put = |name: &str, mode: u32, data: &[u8]| {
        bytes += data.len() as u64;
        let mut header = header(tar::EntryType::Regular, mode, USER_ID, data.len() as u64);
        tar.append_data(&mut header, format!("{below}{name}"), data)
    };
    put("start.sh", 0o755, start.as_bytes())?;
    put("health", 0o644, HEALTHY.as_bytes())?;
    let mut sample = Sample { file: "start.sh".to_owned(), digest: hex(&Sha256::digest(start.as_bytes())) };
    let mut block = vec![0u8; MEGABYTE];
    for n in 0..megabytes {
        fill(&mut block, salt.wrapping_add(n as u64 + 1));
        let name = format!("code-{n:04}.bin");
        put(&name, 0o644, &block)?;
        if n == megabytes / 2 {
            sample = Sample { digest: hex(&Sha256::digest(&block)), file: name };
        }
    }
    Ok(Packed { to: tar.into_inner()?, sample, bytes })
}

/// Fills a block with the splitmix64 sequence of a seed.
pub fn fill(block: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0xd134_2543_de82_ef95);
    for chunk in block.chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bytes = (z ^ (z >> 31)).to_le_bytes();
        chunk.copy_from_slice(&bytes[..chunk.len()]);
    }
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn files_differ_and_the_sample_has_its_digest() {
        let code = Code::generate(3).unwrap();
        let mut files = Vec::new();
        let mut found = false;
        for entry in tar::Archive::new(&code.tar[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            if name == code.sample.file {
                found = true;
                assert_eq!(hex(&Sha256::digest(&data)), code.sample.digest);
            }
            if name.ends_with(".bin") {
                assert_eq!(data.len(), MEGABYTE);
                assert!(!data.chunks(4096).any(|page| page.iter().all(|b| *b == 0)), "a sparse page");
                files.push(data);
            }
        }
        assert!(found);
        assert_eq!(files.len(), 3);
        assert!(files[0] != files[1] && files[1] != files[2] && files[0] != files[2]);
    }

    #[test]
    fn another_salt_makes_other_code() {
        let digest = |salt| Code::salted(1, salt).unwrap().sample.digest;
        assert_eq!(digest(7), digest(7));
        assert_ne!(digest(7), digest(8));
    }

    #[test]
    fn no_code_at_all_is_still_an_app() {
        assert_eq!(Code::generate(0).unwrap().sample.file, "start.sh");
    }
}

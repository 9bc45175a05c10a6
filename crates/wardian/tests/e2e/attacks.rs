//! What hostile images, clients and containers do, for the tests that do all of it at once.

use crate::support::{digest, header, tar_of};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

fn gzip(write: impl FnOnce(&mut dyn std::io::Write)) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    write(&mut gzip);
    gzip.finish().unwrap()
}

/// A header of a tar by itself.
fn block(kind: tar::EntryType, name: &str, size: u64) -> tar::Header {
    let mut header = header(0);
    header.set_entry_type(kind);
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(size);
    header.set_mode(0o755);
    header.set_cksum();
    header
}

/// An image that unpacks to a file of so many zeros.
fn zeros(size: u64) -> Vec<u8> {
    gzip(|to| {
        to.write_all(block(tar::EntryType::Regular, "zeros", size).as_bytes()).unwrap();
        std::io::copy(&mut std::io::Read::take(std::io::repeat(0), size.next_multiple_of(512) + 1024), to)
            .unwrap();
    })
}

/// A layer of nothing but directories.
fn directories(first: usize, count: usize) -> Vec<u8> {
    gzip(|to| {
        for n in first..first + count {
            let name = format!("d{:03}/{n:08}-a-name-that-has-to-be-remembered/", n % 1000);
            to.write_all(block(tar::EntryType::Directory, &name, 0).as_bytes()).unwrap();
        }
        to.write_all(&[0; 1024]).unwrap();
    })
}

/// Headers for all files of an archive, and no file.
fn global_headers(bytes: usize) -> Vec<u8> {
    const EACH: usize = 1 << 20;
    let record = format!("{EACH} comment={}\n", "x".repeat(EACH - "1048576 comment=\n".len()));
    gzip(|to| {
        for _ in 0..bytes / EACH {
            to.write_all(block(tar::EntryType::XGlobalHeader, "g", EACH as u64).as_bytes()).unwrap();
            to.write_all(record.as_bytes()).unwrap();
        }
        to.write_all(&[0; 1024]).unwrap();
    })
}

/// A name of its own for one file, as long as an archive can say that it is.
fn long_name(bytes: u64) -> Vec<u8> {
    gzip(|to| {
        to.write_all(block(tar::EntryType::GNULongName, "././@LongLink", bytes).as_bytes()).unwrap();
        std::io::copy(&mut std::io::Read::take(std::io::repeat(b'n'), bytes.next_multiple_of(512)), to)
            .unwrap();
        to.write_all(block(tar::EntryType::Regular, "n", 0).as_bytes()).unwrap();
        to.write_all(&[0; 1024]).unwrap();
    })
}

fn uncompressed(layer: &[u8]) -> String {
    struct Hash(sha2::Sha256);
    impl std::io::Write for Hash {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            sha2::Digest::update(&mut self.0, bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut hash = Hash(sha2::Digest::new());
    std::io::copy(&mut flate2::read::GzDecoder::new(layer), &mut hash).unwrap();
    sha2::Digest::finalize(hash.0).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An OCI layout with these layers, in a new directory; `repeat`: so often each.
pub fn layout(dir: &Path, layers: &[Vec<u8>], repeat: usize, change: impl FnOnce(&mut Value)) -> String {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        fs::write(blobs.join(digest(bytes)), bytes).unwrap();
        json!({"digest": format!("sha256:{}", digest(bytes)), "size": bytes.len()})
    };
    let typed = |mut descriptor: Value, kind: &str| {
        descriptor["mediaType"] = json!(format!("application/vnd.oci.image.{kind}"));
        descriptor
    };
    let all: Vec<&Vec<u8>> = layers.iter().flat_map(|layer| std::iter::repeat_n(layer, repeat)).collect();
    let named: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", uncompressed(layer))).collect();
    let ids: Vec<&String> = named.iter().flat_map(|id| std::iter::repeat_n(id, repeat)).collect();
    let config =
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids}});
    let mut manifest = json!({
        "schemaVersion": 2,
        "config": typed(put(config.to_string().as_bytes()), "config.v1+json"),
        "layers": all.iter().map(|layer| typed(put(layer), "layer.v1.tar+gzip")).collect::<Vec<_>>(),
    });
    change(&mut manifest);
    let manifest = typed(put(manifest.to_string().as_bytes()), "manifest.v1+json");
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    format!("oci://{}", dir.display())
}

/// Addresses of images that are to use up memory, disk or time, or to show what is hidden; made below `dir`.
pub fn images(dir: &Path) -> Vec<String> {
    let at = |name: &str| -> PathBuf { dir.join(name) };
    let file = |name: &str, bytes: &[u8]| {
        fs::write(at(name), bytes).unwrap();
        at(name).display().to_string()
    };
    let small = gzip(|to| to.write_all(&tar_of(&[("f", b"x")])).unwrap());
    let nested = format!("{}{}", "[".repeat(2 << 20), "]".repeat(2 << 20));
    let members: Vec<(String, Vec<u8>)> =
        (0..60_000).map(|n| (format!("{n:05}-{}", "m".repeat(90)), Vec::new())).collect();
    let members: Vec<(&str, &[u8])> =
        members.iter().map(|(name, data)| (name.as_str(), data.as_slice())).collect();
    fs::create_dir_all(at("nested")).unwrap();
    fs::write(at("nested").join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    fs::write(at("nested").join("index.json"), nested).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
        .unwrap();
    vec![
        layout(&at("repeated"), &[zeros(4 << 20)], 300, |_| ()),
        layout(&at("directories"), &[0, 1, 2, 3].map(|n| directories(n * 25_000, 25_000)), 1, |_| ()),
        layout(&at("many"), std::slice::from_ref(&small), 900, |_| ()),
        layout(&at("annotated"), std::slice::from_ref(&small), 1, |manifest| {
            manifest["annotations"] = json!({"a": "x".repeat(3 << 20)});
        }),
        layout(&at("elsewhere"), std::slice::from_ref(&small), 1, |manifest| {
            manifest["layers"][0]["urls"] = json!(["http://127.0.0.1:9/x"]);
        }),
        file("bomb.tgz", &zeros(1 << 30)),
        file("headers.tgz", &global_headers(256 << 20)),
        file("name.tgz", &long_name(256 << 20)),
        format!("docker-archive://{}", file("members.tar", &tar_of(&members))),
        format!("oci://{}", at("nested").display()),
        file("empty.tar", b""),
        at("fifo").display().to_string(),
        "/dev/zero".to_owned(),
        "/proc/self/mem".to_owned(),
        dir.display().to_string(),
        format!("/{}", "x".repeat(60_000)),
        "http://127.0.0.1:9/image".to_owned(),
    ]
}

/// A directory below `dir` that could be a root file system.
fn root(dir: &Path, name: &str) -> PathBuf {
    let root = dir.join(name);
    for name in ["bin", "etc"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    root
}

/// The address of a directory with links at long paths, each with another name outside.
pub fn linked(dir: &Path) -> String {
    use rustix::fs::{AtFlags, Mode, OFlags, linkat, mkdirat, open, openat};
    let (root, outside) = (root(dir, "linked"), dir.join("outside"));
    fs::create_dir(&outside).unwrap();
    let outside = open(&outside, OFlags::DIRECTORY, Mode::empty()).unwrap();
    let mut deep = open(&root, OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..15 {
        let name = "d".repeat(245);
        mkdirat(&deep, &name, Mode::RWXU).unwrap();
        deep = openat(&deep, &name, OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    for n in 0..60_000 {
        let name = n.to_string();
        drop(openat(&outside, &name, OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap());
        linkat(&outside, &name, &deep, &name, AtFlags::empty()).unwrap();
    }
    root.display().to_string()
}

/// The address of a directory with hundreds of thousands of long names in one directory.
pub fn names(dir: &Path) -> String {
    let root = root(dir, "names");
    fs::write(root.join("etc/f"), "").unwrap();
    for n in 0..400_000 {
        fs::hard_link(root.join("etc/f"), root.join("etc").join(format!("{n:0247}"))).unwrap();
    }
    root.display().to_string()
}

/// A file of some MB that a decoder of zstd makes so many GiB of zeros of. Where the ratio has no limit, that takes minutes.
pub fn unpacks_to(path: &Path, gib: usize) {
    // A frame with a window of 8 MiB, and a block for each 128 KiB: its kind, its length and the byte that is repeated
    // (RFC 8878, section 3.1.1). The last one ends the frame.
    let block = |last: u32| ((128_u32 << 10) << 3 | 1 << 1 | last).to_le_bytes();
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0x68];
    for n in (0..gib << 13).rev() {
        frame.extend_from_slice(&block(u32::from(n == 0))[..3]);
        frame.push(0);
    }
    fs::write(path, frame).unwrap();
}

/// A tar with two entries of one name, each of so many GiB that take next to nothing on the disk.
pub fn twice(path: &Path, gib: u64) {
    use std::os::unix::fs::FileExt as _;
    let file = fs::File::create(path).unwrap();
    let size = gib << 30;
    for at in [0, 512 + size] {
        file.write_all_at(block(tar::EntryType::Regular, "layer.tar", size).as_bytes(), at).unwrap();
    }
    file.set_len(2 * (512 + size) + 1024).unwrap();
}

/// Requests that are whole, most of them to be refused; to a container `c` with a process `p`.
pub fn requests() -> Vec<Vec<u8>> {
    let routes = [
        "GET /ping",
        "GET /capacity",
        "GET /containers",
        "POST /containers",
        "GET /containers/bulk_info",
        "GET /containers/bulk_metrics",
        "DELETE /containers/none",
        "GET /containers/c/info",
        "PUT /containers/none/stop",
        "GET /containers/c/files",
        "PUT /containers/c/files",
        "POST /containers/c/processes",
        "GET /containers/c/processes/p",
        "GET /containers/c/processes/p/attaches/1/stdout",
        "GET /containers/c/processes/p/attaches/1/stderr",
        "GET /containers/c/metrics",
        "GET /containers/c/properties",
        "GET /containers/c/properties/k",
        "PUT /containers/c/properties/k",
        "DELETE /containers/c/properties/k",
        "PUT /containers/c/grace_time",
        "GET /containers/c/limits/cpu",
        "PUT /containers/c/limits/memory",
        "POST /containers/c/net/in",
        "POST /containers/c/net/out",
        "GET /nothing",
        "BREW /containers",
    ];
    let long = "h".repeat(60_000);
    let large = "x".repeat(900_000);
    let deep = "[".repeat(500_000);
    let bodies = [
        String::new(),
        "{".to_owned(),
        deep,
        format!("{{\"value\":\"{large}\",\"handle\":\"{large}\",\"path\":\"{large}\"}}"),
        format!("{{\"env\":[{}\"A=b\"],\"path\":\"true\"}}", "\"A=b\",".repeat(150_000)),
        format!(
            "{{\"properties\":{{{}\"k\":\"\"}}}}",
            (0..40_000).map(|n| format!("\"k{n}\":\"v\",")).collect::<String>()
        ),
        format!("{{\"limits\":{{\"pid_limits\":{{\"max\":{}}}}}}}", "9".repeat(400_000)),
    ];
    let mut all = Vec::new();
    for route in routes {
        for body in &bodies {
            let head = format!(
                "{route} HTTP/1.1\r\nHost: api\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            all.push([head.as_bytes(), body.as_bytes()].concat());
        }
        let (method, path) = route.split_once(' ').unwrap();
        for query in [format!("?handles={}c", "c,".repeat(4000)), format!("?{long}"), format!("/{long}")] {
            all.push(
                format!("{method} {path}{query} HTTP/1.1\r\nHost: api\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
                    .into_bytes(),
            );
        }
    }
    let headers: String = (0..5000).map(|n| format!("X-{n}: {n}\r\n")).collect();
    all.push(format!("GET /ping HTTP/1.1\r\n{headers}\r\n").into_bytes());
    all.push(
        format!("GET /ping HTTP/1.1\r\nHost: {long}{long}{long}{long}{long}{long}{long}{long}\r\n\r\n")
            .into_bytes(),
    );
    all.push("GET /containers/bulk_info HTTP/1.1\r\nHost: api\r\n\r\n".repeat(2000).into_bytes());
    let chunked =
        "POST /containers HTTP/1.1\r\nHost: api\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    all.push(format!("{chunked}{}\r\n", "f".repeat(60_000)).into_bytes());
    all.push(format!("{chunked}1;{large}\r\nx\r\n0\r\n{}\r\n", "T: t\r\n".repeat(100_000)).into_bytes());
    all.push([chunked.as_bytes(), "1\r\n \r\n".repeat(300_000).as_bytes()].concat());
    all
}

/// What begins and does not end: a head, a body that the head promises, or a reply that nobody reads.
pub fn halves() -> Vec<Vec<u8>> {
    let large = "x".repeat(900_000);
    let body = |line: &str, sent: &str| {
        format!("{line} HTTP/1.1\r\nHost: api\r\nContent-Length: 1000000\r\n\r\n{sent}").into_bytes()
    };
    let ask = |line: &str| format!("{line} HTTP/1.1\r\nHost: api\r\n\r\n").into_bytes();
    vec![
        Vec::new(),
        b"GET /containers HTTP/1.1\r\nHost: a".to_vec(),
        format!("GET /containers HTTP/1.1\r\nX: {}", "x".repeat(200_000)).into_bytes(),
        body("POST /containers", ""),
        body("POST /containers", &format!("{{\"handle\":\"{large}")),
        body("POST /containers/c/processes", &format!("{{\"path\":\"{large}")),
        body("PUT /containers/c/properties/k", &format!("{{\"value\":\"{large}")),
        body("PUT /containers/c/files?user=&destination=%2Fin", ""),
        b"PUT /containers/c/files?user=&destination=%2Fin HTTP/1.1\r\nHost: api\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\nx"
            .to_vec(),
        ask("GET /events"),
        ask("GET /containers/c/files?user=&source=%2Fdev%2Fshm"),
        ask("GET /containers/bulk_info?handles=c"),
        ask("GET /containers/c/processes/p"),
        [ask("GET /containers/c/processes/p"), format!("{{\"source\":0,\"data\":\"{large}").into_bytes()].concat(),
    ]
}

/// What the root of a hostile container runs, each for ever.
pub const SCRIPTS: [(&str, &str); 10] = [
    ("output", "yes 0123456789012345678901234567890123456789"),
    ("lines", "while :; do echo; done"),
    ("forks", "f() { f | f & }; while :; do f; sleep 1; done 2>/dev/null"),
    ("memory", "while :; do head -c 1000000000 /dev/zero | tail >/dev/null; done 2>/dev/null"),
    (
        "files",
        "while :; do for i in 1 2 3 4 5 6 7 8 9; do dd if=/dev/zero of=/w$i bs=1M count=4; done; rm -f /w*; done 2>/dev/null",
    ),
    (
        "shm",
        "while :; do dd if=/dev/zero of=/dev/shm/f bs=1M count=99; dd if=/dev/zero of=/etc/hosts; rm /dev/shm/f; done 2>/dev/null",
    ),
    ("stops", "while :; do kill -STOP -1; kill -KILL -1; kill -CONT -1; done 2>/dev/null"),
    (
        "links",
        "mkdir -p /t; cd /t; while :; do mkdir d; mv -T d o; ln -s /etc d; mv -T d x; rm -rf o x; done 2>/dev/null",
    ),
    (
        "kernel",
        "while :; do cat /proc/keys /proc/kcore /sys/kernel/debug; mount -t tmpfs t /mnt; unshare -r true; dmesg; done >/dev/null 2>&1",
    ),
    ("pipes", "while :; do mkfifo /p$$; rm /p$$; ls -lR /proc /sys >/dev/null; done 2>/dev/null"),
];

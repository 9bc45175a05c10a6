//! What a process sees and may do, compared with what one saw and could do in containers of the original server
//! (`tests/inside`, recorded as root and as alice, in a container and in a pea). Each difference is one of the rows
//! below; [docs/garden.md](../../../../docs/garden.md) has the same rows.

use crate::player::matches;
use crate::support::{Server, run, script};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use wardian_garden::wire::{ContainerSpec, ImageRef, ProcessSpec};

/// Where (the beginning of a recording's name), the line (`-`: recorded, `+`: here; `…` is anything), why.
pub const DIFFERENCES: &[(&str, &str, &str)] = &[
    ("", "-/etc/hosts: 10.254.…", "each container has an address of its own"),
    ("", "+/etc/hosts: 10.254.…", "each container has an address of its own"),
    ("", "-/proc/self/mountinfo: /etc/… rw tmpfs tmpfs", OWN_FILES),
    ("", "+/proc/self/mountinfo: /etc/… rw,nosuid,nodev,noexec tmpfs tmpfs", OWN_FILES),
    ("privileged-alice", "-read and write attempts: /proc/keys: … | readable, empty | …", OWN_KEYRING),
    ("privileged-alice", "+read and write attempts: /proc/keys: … | readable | …", OWN_KEYRING),
    ("unprivileged", "+/proc/self/mountinfo: /proc/acpi ro tmpfs tmpfs", MASKED),
    ("unprivileged", "-read and write attempts: /proc/acpi: …", MASKED),
    ("unprivileged", "+read and write attempts: /proc/acpi: …", MASKED),
    ("unprivileged", "-read and write attempts: /proc/interrupts: …", MASKED),
    ("", "-/proc/self/mountinfo: / rw overlay overlay", "an image's device nodes are of no use"),
    ("", "+/proc/self/mountinfo: / rw,nodev overlay overlay", "an image's device nodes are of no use"),
    ("unprivileged", "-/proc/self/mountinfo: /dev/… rw devtmpfs devtmpfs", OWN_DEVICES),
    ("unprivileged", "-/proc/self/mountinfo: /proc/… rw devtmpfs devtmpfs", OWN_DEVICES),
    ("unprivileged", "+/proc/self/mountinfo: /proc/… rw,noexec tmpfs tmpfs", OWN_DEVICES),
    ("unprivileged", "-ls -la /dev…: /dev crw-rw-rw- nobody nogroup …", OWN_DEVICES),
    ("unprivileged", "+ls -la /dev…: /dev crw-rw-rw- root root …", OWN_DEVICES),
    ("unprivileged", "-ls -la /dev…: /dev drwxrwxrwt root nogroup  mqueue", OWN_DEVICES),
    ("unprivileged", "+ls -la /dev…: /dev drwxrwxrwt root root  mqueue", OWN_DEVICES),
    ("unprivileged", "-read and write attempts: /dev/…: crw-rw-rw- 65534 65534 | …", OWN_DEVICES),
    ("unprivileged", "+read and write attempts: /dev/…: crw-rw-rw- 0 0 | …", OWN_DEVICES),
    ("unprivileged", "-read and write attempts: /proc/…: crw-rw-rw- 65534 65534 | …", OWN_DEVICES),
    ("unprivileged", "+read and write attempts: /proc/…: crw-rw-rw- 0 0 | …", OWN_DEVICES),
    ("", "-/proc/self/mountinfo: /tmp/garden-init rw tmpfs tmpfs", OWN_INIT),
    ("", "-ls -la /tmp: … garden-init", OWN_INIT),
    ("unprivileged", "-read and write attempts: /proc/1/…: … 0 0 | …", HIDDEN_INIT),
    (
        "unprivileged",
        "+read and write attempts: /proc/1/…: … 65534 65534 | Permission denied | Permission denied",
        HIDDEN_INIT,
    ),
    (
        "privileged-root",
        "-read and write attempts: /proc/1/environ: … | readable | …",
        "pid 1 has no environment",
    ),
    (
        "privileged-root",
        "+read and write attempts: /proc/1/environ: … | readable, empty | …",
        "pid 1 has no environment",
    ),
    ("", "-read and write attempts: /sys/…: … | Read-only file system", READ_ONLY),
    ("", "+read and write attempts: /sys/…: … | Permission denied", READ_ONLY),
];

const OWN_FILES: &str =
    "hosts and resolv.conf are in a small file system of the container's, not in a directory of the host";
const OWN_KEYRING: &str = "processes have the container's session keyring, and see that";
const MASKED: &str = "what tells of the host and its neighbours is masked, as by later versions of runc";
const OWN_DEVICES: &str = "device nodes are made in a /dev of its own, not bound from the host's";
const OWN_INIT: &str = "pid 1 comes from a sealed memory file: there is no file to mount";
const HIDDEN_INIT: &str = "pid 1 may not be looked into";
const READ_ONLY: &str =
    "the mount is read-only, not the whole file system: who may not write is told so first";

/// The commands of each section, as they were when it was recorded; attempts and system calls are in the recording.
const SECTIONS: [(&str, &str); 11] = [
    ("id", "id"),
    ("/proc/self/status", "cat /proc/self/status"),
    ("/proc/1/status", "cat /proc/1/status"),
    ("/proc/self/mountinfo", "cat /proc/self/mountinfo"),
    ("ls -la /dev /dev/pts /dev/shm /dev/mqueue", "ls -la /dev /dev/pts /dev/shm /dev/mqueue"),
    ("env", "env"),
    (
        "/proc/self/uid_map, gid_map, setgroups",
        "cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups",
    ),
    ("hostname", "hostname"),
    ("/etc/hosts", "cat /etc/hosts; ls -lan /etc/hosts /etc/resolv.conf"),
    ("umask, pwd", "umask; pwd"),
    ("ls -la /tmp", "ls -la /tmp"),
];

fn sections(text: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut at = "";
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("### ") {
            at = name;
        } else if !line.trim().is_empty() {
            found.entry(at).or_default().push(line);
        }
    }
    found
}

/// The script that makes a recording's sections again.
fn probe(recorded: &BTreeMap<&str, Vec<&str>>) -> String {
    let mut text = String::new();
    for (name, command) in SECTIONS {
        let _ = writeln!(text, "echo '### {name}'; {command}");
    }
    let paths: Vec<&str> = recorded["read and write attempts"]
        .iter()
        .filter_map(|line| line.split_once(": ").map(|x| x.0))
        .collect();
    let _ = writeln!(text, "echo '### read and write attempts'; for p in {}; do", paths.join(" "));
    text.push_str(
        r#"
    if [ ! -e $p ]; then echo "$p: absent"; continue; fi
    if [ -d $p ]; then
        r="dir, $(ls -A $p | wc -l) entries"
        if w=$(mkdir $p/zz 2>&1); then rmdir $p/zz; w=writable; fi
    else
        if [ $p = /proc/kmsg ]; then r="not tried"
        elif r=$(dd if=$p of=/dev/null bs=64 count=1 2>&1); then
            case $r in 0+0*) r="readable, empty" ;; *) r=readable ;; esac
        else r=$(echo "$r" | grep dd:); fi
        w=$( (: >>$p) 2>&1) && w=opens-for-write
    fi
    echo "$p: $(stat -c '%A %u %g' $p) | $r | $w"
done
echo '### actual writes'
"#,
    );
    for line in &recorded["actual writes"] {
        let Some((value, path)) = line
            .strip_prefix("write ")
            .and_then(|rest| rest.split_once(" > "))
            .and_then(|(value, rest)| Some((value, rest.split_once(": ")?.0)))
        else {
            continue;
        };
        let _ = writeln!(
            text,
            "printf 'write {value} > {path}: '; if e=$( (echo '{value}' >{path}) 2>&1); then echo ok; else echo \"$e\"; fi"
        );
    }
    text.push_str("echo '### syscalls through busybox tools'\n");
    for command in
        recorded["syscalls through busybox tools"].iter().filter_map(|line| line.strip_prefix("$ "))
    {
        let _ = writeln!(text, "echo '$ {command}'; {command} 2>&1");
    }
    text
}

/// A section's lines without what depends on the kernel, the clock, the image and the file system below.
fn normal(section: &str, lines: &[&str]) -> BTreeSet<String> {
    let mut command = "";
    let mut folder = "";
    let mut found = BTreeSet::new();
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let text = match section {
            "/proc/self/status" | "/proc/1/status" => {
                let kept = [
                    "Name:",
                    "Umask:",
                    "Uid:",
                    "Gid:",
                    "Groups:",
                    "NoNewPrivs:",
                    "Seccomp:",
                    "SigBlk:",
                    "SigIgn:",
                    "SigCgt:",
                ];
                let name = words[0];
                let signals = section == "/proc/1/status" && name.starts_with("Sig");
                if (!kept.contains(&name) && !name.starts_with("Cap")) || signals {
                    continue;
                }
                words.join(" ")
            }
            "/proc/self/mountinfo" => {
                let Some((mount, system)) = line.split_once(" - ") else { continue };
                let mount: Vec<&str> = mount.split(' ').collect();
                let system: Vec<&str> = system.split(' ').collect();
                if mount[4].starts_with("/sys/fs/cgroup") {
                    continue;
                }
                let options: Vec<&str> = mount[5].split(',').filter(|option| *option != "relatime").collect();
                let own: Vec<&str> = system[2]
                    .split(',')
                    .filter(|option| system[0] == "devpts" && *option != "rw" && !option.starts_with("max="))
                    .collect();
                format!("{} {} {} {} {}", mount[4], options.join(","), system[0], system[1], own.join(","))
            }
            "ls -la /dev /dev/pts /dev/shm /dev/mqueue" | "ls -la /tmp" => {
                if let Some(name) = line.strip_suffix(':') {
                    folder = name;
                }
                if words.len() < 9 || ["total", ".", ".."].contains(words.last().unwrap()) {
                    continue;
                }
                let device = line.starts_with(['c', 'b']);
                let (number, name) = if device { (words[4..6].concat(), 9) } else { (String::new(), 8) };
                format!(
                    "{folder} {} {} {} {number} {}",
                    words[0],
                    words[2],
                    words[3],
                    words[name..].join(" ")
                )
            }
            "/etc/hosts" if line.starts_with('-') => {
                format!("{} {} {} {}", words[0], words[2], words[3], words.last().unwrap())
            }
            "read and write attempts" => {
                let (path, rest) = line.split_once(": ").unwrap();
                if path.starts_with("/sys/fs/cgroup") {
                    continue;
                }
                let parts = rest.split(" | ").map(|part| {
                    let part = if part.starts_with("dir, ") { "dir" } else { part };
                    // The host's nobody may have keys, and has the same number inside.
                    let part =
                        if path == "/proc/key-users" { part.trim_end_matches(", empty") } else { part };
                    part.rsplit(": ").next().unwrap().trim().to_owned()
                });
                format!("{path}: {}", parts.collect::<Vec<_>>().join(" | "))
            }
            "actual writes" => {
                let (what, rest) = line.split_once(": ").unwrap();
                format!("{what}: {}", rest.rsplit(": ").next().unwrap())
            }
            "syscalls through busybox tools" => {
                if let Some(next) = line.strip_prefix("$ ") {
                    command = next;
                    continue;
                }
                if command.starts_with("ping") && !line.contains("bytes from") {
                    continue;
                }
                let line = line.split(" time=").next().unwrap();
                format!("$ {command}: {}", line.rsplit(": ").next().unwrap())
            }
            _ => words.join(" "),
        };
        found.insert(text.trim().to_owned());
    }
    found
}

/// What is only in one of two sections, with its sign. A path of the kernel's that is absent on one side says nothing:
/// kernels are built differently.
fn differences(section: &str, recorded: &BTreeSet<String>, here: &BTreeSet<String>) -> Vec<String> {
    let absent = |lines: &BTreeSet<String>, line: &str| {
        section == "read and write attempts"
            && line.split_once(": ").is_some_and(|(path, _)| {
                !path.starts_with("/dev/") && lines.contains(&format!("{path}: absent"))
            })
    };
    let only = |these: &BTreeSet<String>, those: &BTreeSet<String>, sign: char| {
        let lines = these.difference(those).filter(|line| !absent(these, line) && !absent(those, line));
        lines.map(|line| format!("{sign}{section}: {line}")).collect::<Vec<_>>()
    };
    [only(recorded, here, '-'), only(here, recorded, '+')].concat()
}

async fn compare(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inside").join(format!("{name}.txt"));
    let text = std::fs::read_to_string(path).unwrap();
    let recorded = sections(&text);
    let server = Server::networked(&[]).await;
    let image = crate::wire::image(&server);
    let client = server.client();
    let privileged = !name.contains("unprivileged");
    let handle = if privileged { "fx-priv" } else { "fx-unpriv" };
    let spec = ContainerSpec {
        handle: handle.into(),
        rootfs: image.clone(),
        privileged,
        env: vec!["CENV=1".into()],
        ..Default::default()
    };
    client.create(&spec).await.unwrap();
    let pea = name.starts_with("pea");
    let user = match (name.ends_with("alice"), pea) {
        (true, true) => "1001:1010",
        (true, false) => "alice",
        (false, true) => "",
        (false, false) => "root",
    };
    let spec = ProcessSpec {
        user: user.into(),
        env: vec!["PENV=2".into()],
        image: ImageRef { uri: if pea { image } else { String::new() }, ..Default::default() },
        ..script(&probe(&recorded))
    };
    let out = run(&client, handle, &spec).await;
    let here = sections(&out.out);
    let mut unexplained = Vec::new();
    for (section, lines) in &recorded {
        // The recorder had changed it.
        if *section == "hostname" && lines == &["newname"] {
            continue;
        }
        let here = here.get(section).unwrap_or_else(|| panic!("{section}: {out:?}"));
        for line in differences(section, &normal(section, lines), &normal(section, here)) {
            let explains = |row: &&(&str, &str, &str)| name.contains(row.0) && matches(&line, row.1, true);
            if !DIFFERENCES.iter().any(|row| explains(&row)) {
                unexplained.push(line);
            }
        }
    }
    assert!(unexplained.is_empty(), "{name}:\n{}", unexplained.join("\n"));
    server.finish().await;
}

macro_rules! inside {
    ($($function:ident $name:literal;)*) => {
        $(#[tokio::test] async fn $function() { compare($name).await; })*
    };
}

inside! {
    root "unprivileged-root";
    alice "unprivileged-alice";
    privileged_root "privileged-root";
    privileged_alice "privileged-alice";
    pea_root "pea-unprivileged-root";
    pea_alice "pea-unprivileged-alice";
    pea_privileged_root "pea-privileged-root";
}

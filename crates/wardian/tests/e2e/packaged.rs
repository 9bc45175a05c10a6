//! The Debian package: what is in it. tests/vm/package.py installs it where systemd runs.

use crate::cli::Said;
use crate::support::{WARDIAN, base};
use std::path::{Path, PathBuf};
use std::process::Command;

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn run(command: &mut Command) -> String {
    let said: Said = command.output().unwrap().into();
    assert_eq!(said.code, Some(0), "{command:?}: {said:?}");
    said.out
}

#[test]
fn the_package_has_what_an_operator_needs() {
    let dir = base();
    let package = dir.path().join("wardian.deb");
    let programs = Path::new(&*WARDIAN).parent().unwrap().to_owned();
    run(Command::new(top().join("packaging/deb/build")).arg(&programs).arg(&package));
    let inside = dir.path().join("inside");
    run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&inside));
    let control = dir.path().join("control");
    run(Command::new("dpkg-deb").arg("-e").arg(&package).arg(&control));
    for path in [
        "usr/lib/wardian/wardian-keeper",
        "usr/lib/systemd/system/wardian.service",
        "usr/lib/systemd/system/wardian.socket",
        "usr/lib/systemd/system/wardian-lab.service",
        "usr/lib/systemd/system/wardian-lab.timer",
        "usr/share/man/man1/wardian.1.gz",
        "usr/share/man/man1/wardian-image-pull.1.gz",
        "usr/share/bash-completion/completions/wardian",
        "usr/share/zsh/vendor-completions/_wardian",
        "usr/share/fish/vendor_completions.d/wardian.fish",
        "usr/share/doc/wardian/operations.md",
        "usr/share/doc/wardian/copyright",
        "etc/wardian/wardian.toml",
    ] {
        assert!(inside.join(path).is_file(), "{path}");
    }
    let link = std::fs::read_link(inside.join("usr/lib/wardian/grootfs")).unwrap();
    assert_eq!(link, Path::new("../../bin/wardian"));
    let program = inside.join("usr/bin/wardian");
    let version = run(Command::new(&program).arg("--version"));
    let told = std::fs::read_to_string(control.join("control")).unwrap();
    assert!(
        told.contains(&format!("Version: {}\n", version.trim().trim_start_matches("wardian "))),
        "{told}"
    );
    assert!(!told.contains('@') || !told.contains("@VERSION@"), "{told}");
    assert_eq!(std::fs::read_to_string(control.join("conffiles")).unwrap(), "/etc/wardian/wardian.toml\n");
    for script in ["postinst", "prerm", "postrm"] {
        run(Command::new("sh").arg("-n").arg(control.join(script)));
    }
    // Every setting is commented: the file changes nothing.
    let config = inside.join("etc/wardian/wardian.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(text.lines().all(|line| line.is_empty() || line.starts_with('#')), "{text}");
    // A manual page that man(1) cannot format says so.
    let mut man = Command::new("man");
    man.args(["--warnings", "-l"])
        .arg(inside.join("usr/share/man/man1/wardian-run.1.gz"))
        .env("MANWIDTH", "80");
    if let Ok(output) = man.env("LC_ALL", "C.UTF-8").env("MANPAGER", "cat").output() {
        let said = Said::from(output);
        assert!(said.code == Some(0) && said.out.contains("--entrypoint"), "{said:?}");
    }
}

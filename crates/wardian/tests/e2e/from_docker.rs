//! The table of docs/from-docker.md: what a user of docker types, line by line.

use crate::image_command::layout;
use crate::support::{Server, WARDIAN};
use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use wardian_needs::needs;

/// The lines of the table that do not end with 0, and what they say.
const ANSWERED: [(&str, i32, &str); 19] = [
    ("run --rm -it busybox sh", 2, "-t needs a terminal"),
    ("exec -it web sh", 2, "-t needs a terminal"),
    ("start web", 2, "`wardian exec HANDLE"),
    ("restart web", 2, "`wardian exec HANDLE"),
    ("rename web www", 2, "--name"),
    ("update -m 1G web", 2, "wardian limit"),
    ("commit web mine", 2, "image import"),
    ("run --rm -P busybox true", 2, "-p HOST:CONTAINER"),
    ("run --rm --restart always busybox true", 2, "systemd"),
    ("run --rm --net host busybox true", 2, "--network"),
    ("run --rm --cap-add SYS_ADMIN busybox true", 2, "--privileged"),
    ("build .", 2, "builds no images"),
    ("compose up", 2, "script"),
    ("network ls", 2, "first container"),
    ("swarm init", 2, "one host"),
    // What the first container has ended with.
    ("run --rm busybox false", 1, ""),
    ("logs nope", 1, "unknown handle"),
    ("wait nope", 1, "unknown handle"),
    ("rm nope", 1, "unknown handle"),
];

/// What the others print.
const PRINTED: [(&str, &str); 40] = [
    ("run --rm busybox echo hello", "hello\n"),
    ("run -d --name web -p 8080:80 busybox httpd -f -v -p 80 -h /tmp", "web\n"),
    ("run -dit --name shell busybox sh", "shell\n"),
    ("run -d --rm --name brief busybox true", "brief\n"),
    ("ps", "8080->80/tcp"),
    ("ps -q", "shell\nweb\n"),
    ("ps --filter status=running --format '{{.Names}} {{.Status}}'", "web up "),
    ("ps --format 'table {{.ID}}\\t{{.Names}}\\t{{.Ports}}'", "ID            NAMES"),
    ("exec web ls /", "bin\n"),
    ("exec -u 1000 -w /tmp -e A=b web env", "A=b\n"),
    ("top web", "httpd"),
    ("stats --no-stream", "web"),
    ("inspect web", "\"handle\": \"web\""),
    ("inspect -f '{{.State.Running}} {{.State.ExitCode}}' web", "true 0\n"),
    ("port web", "80/tcp -> "),
    ("diff web", "A /tmp/index.html\n"),
    ("events --since 10m --until 0s", "create"),
    ("pause web", "web\n"),
    ("unpause web", "web\n"),
    ("stop -t 1 web", "web\n"),
    ("rm -f web", "web\n"),
    ("create --name made busybox", "made\n"),
    ("run --rm -v ./site:/site:ro busybox cat /site/index.html", "a page\n"),
    ("volume ls", "cache"),
    ("volume rm cache", "cache\n"),
    ("run --rm --entrypoint echo busybox x", "x\n"),
    ("run --rm --env-file vars -e B=c busybox env", "B=c\n"),
    ("images", "busybox"),
    ("images -q", "\n"),
    ("history busybox", ""),
    ("image inspect busybox", "\"layers\""),
    ("tag busybox mine:1", "mine:1"),
    ("rmi mine:1", "mine:1"),
    ("load -i saved.tar", "mine:1"),
    ("import root.tar mine:2", "mine:2"),
    ("system df", ""),
    ("info", ""),
    ("version", env!("CARGO_PKG_VERSION")),
    ("rm made shell", "made\nshell\n"),
    ("exec -d web sleep 100", "\n"),
];

fn table() -> Vec<String> {
    let page = include_str!("../../../../docs/from-docker.md");
    let section = page.split("## What one types").nth(1).unwrap().split("\n## ").next().unwrap();
    let typed = |line: &str| Some(line.strip_prefix("| `")?.split("` |").next()?.to_owned());
    section.lines().filter_map(typed).collect()
}

#[test]
fn the_table_has_its_lines() {
    let lines = table();
    assert!(lines.len() >= 60, "{}", lines.len());
    let once: HashSet<&String> = lines.iter().collect();
    assert_eq!(once.len(), lines.len());
    // Each expectation is of a line, except for the last four answers.
    let typed =
        ANSWERED[..15].iter().map(|(typed, ..)| *typed).chain(PRINTED.iter().map(|(typed, _)| *typed));
    for typed in typed {
        assert!(lines.iter().any(|line| line == typed), "docs/from-docker.md has no line `{typed}`");
    }
}

#[tokio::test]
async fn what_one_types_does_what_the_table_says() {
    needs!(Nftables);
    let mut server = Server::networked(&[]).await;
    let here = server.base().join("here");
    fs::create_dir_all(here.join("site")).unwrap();
    fs::write(here.join("site/index.html"), "a page\n").unwrap();
    fs::write(here.join("index.html"), "a page\n").unwrap();
    fs::write(here.join("vars"), "A=b\n").unwrap();
    fs::copy(server.image(), here.join("root.tar")).unwrap();
    let network = format!("--net={}", server.world().path());
    let programs = Path::new(&*WARDIAN).parent().unwrap().display().to_string();
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
    let run = |line: &str| {
        let mut shell = Command::new("nsenter");
        shell.args([&network, "sh", "-c", &format!("wardian {line}")]).current_dir(&here).env("PATH", &path);
        shell
            .env("WARDIAN_SOCKET", server.socket())
            .env("WARDIAN_ROOT", server.root())
            .env("WARDIAN_RUN", server.run());
        shell.stdin(Stdio::null()).output().unwrap()
    };
    layout(&server, "here/busybox.oci", &serde_json::json!({"Cmd": ["sh"]}));
    let imported = run("image import ./busybox.oci -t busybox");
    assert!(imported.status.success(), "{imported:?}");
    let extra = ANSWERED[15..].iter().map(|(typed, ..)| (*typed).to_owned());
    for line in table().into_iter().chain(extra) {
        let output = run(&line);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        let said = format!("`wardian {line}`: {:?}\n{out}{err}", output.status.code());
        match ANSWERED.iter().find(|(typed, ..)| *typed == line) {
            Some((_, code, says)) => {
                assert_eq!(output.status.code(), Some(*code), "{said}");
                assert!(err.contains(says), "{says:?}: {said}");
            }
            None => {
                assert_eq!(output.status.code(), Some(0), "{said}\n{}", server.log());
                let printed =
                    PRINTED.iter().find(|(typed, _)| *typed == line).map_or("", |(_, printed)| printed);
                assert!(out.contains(printed), "{printed:?}: {said}");
            }
        }
        if line.starts_with("run -d --rm") {
            // It goes by itself.
            while text(&run("ps -aq").stdout).contains("brief") {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    }
    server.finish().await;
}

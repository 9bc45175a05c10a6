//! The transcript of docs/walkthrough.md, line by line.

use crate::support::{Server, WARDIAN};
use std::path::Path;
use std::process::Command;
use wardian_needs::needs;

/// Returns the commands of a page's transcripts with what they print.
fn transcript(page: &str) -> Vec<(String, Vec<String>)> {
    let mut all: Vec<(String, Vec<String>)> = Vec::new();
    for block in page.split("```console\n").skip(1).filter_map(|rest| rest.split("```").next()) {
        for line in block.lines() {
            match (line.strip_prefix("# "), all.last_mut()) {
                (Some(command), _) => all.push((command.to_owned(), Vec::new())),
                (None, Some((_, printed))) => printed.push(line.to_owned()),
                (None, None) => panic!("{line}"),
            }
        }
    }
    all
}

/// Whether a line is as the page has it. The width of columns does not count.
fn fits(line: &str, page: &str) -> bool {
    let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = plain(line);
    let mut rest = line.as_str();
    let page = plain(page);
    let pieces: Vec<&str> = page.split('…').map(str::trim).collect();
    for (at, piece) in pieces.iter().enumerate() {
        let found = if at == 0 { rest.starts_with(piece).then_some(0) } else { rest.find(piece) };
        let Some(found) = found else { return false };
        rest = &rest[found + piece.len()..];
    }
    rest.is_empty() || page.ends_with('…')
}

#[test]
fn lines_fit() {
    for (line, page) in [("a  b c", "a b c"), ("a 7 c", "a … c"), ("x y", "…y"), ("x y", "x…"), ("", "")]
    {
        assert!(fits(line, page), "{line} {page}");
    }
    for (line, page) in [("a b", "a c"), ("a b c", "a b"), ("b a", "a…"), ("a 7 d", "a … c")] {
        assert!(!fits(line, page), "{line} {page}");
    }
}

#[tokio::test]
async fn the_walkthrough_is_as_it_is_written() {
    needs!(Nftables);
    let mut server = Server::networked(&[]).await;
    let here = server.base().join("here");
    std::fs::create_dir(&here).unwrap();
    std::fs::copy(server.image(), here.join("busybox.tar")).unwrap();
    let network = format!("--net={}", server.world().path());
    let programs = Path::new(&*WARDIAN).parent().unwrap().display().to_string();
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
    let commands = transcript(include_str!("../../../../docs/walkthrough.md"));
    assert!(commands.len() > 15);
    for (command, page) in commands {
        let mut shell = Command::new("nsenter");
        shell.args([&network, "sh", "-c", &command]).current_dir(&here).env("PATH", &path);
        shell
            .env("WARDIAN_SOCKET", server.socket())
            .env("WARDIAN_ROOT", server.root())
            .env("WARDIAN_RUN", server.run());
        let output = shell.output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {printed}");
        let lines: Vec<&str> = printed.lines().collect();
        let as_written =
            lines.len() == page.len() && lines.iter().zip(&page).all(|(line, page)| fits(line, page));
        assert!(as_written, "{command}\n{printed}\nand in docs/walkthrough.md\n{}", page.join("\n"));
    }
    server.finish().await;
}

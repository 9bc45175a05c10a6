//! Completion as a shell asks for it: names of containers, processes and images, and no wait and no message whatever
//! the server does.

use crate::cli::{Alone, Place, Said};
use crate::commands::ok;
use crate::support::{REGISTRIES, Server, WARDIAN, base};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What bash offers for a command line whose last word is being typed.
fn offered(line: &str, env: &[(&str, &Path)]) -> Vec<String> {
    let said = bash(line, env);
    assert!(said.code == Some(0) && said.err.is_empty(), "{line}: {said:?}");
    said.out.lines().map(str::to_owned).collect()
}

fn bash(line: &str, env: &[(&str, &Path)]) -> Said {
    let script = "source <(wardian completion bash); COMP_WORDS=($1); [ -z \"$2\" ] || COMP_WORDS+=(''); \
                  COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 )); COMP_TYPE=9; \
                  _clap_complete_wardian wardian \"${COMP_WORDS[COMP_CWORD]}\" '' && printf '%s\\n' \"${COMPREPLY[@]}\"";
    let programs = Path::new(&*WARDIAN).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let begun = if line.ends_with(' ') { "new" } else { "" };
    let mut command = Command::new("bash");
    command.args(["--norc", "-c", script, "bash", line, begun]).env("PATH", path).envs(REGISTRIES);
    for name in ["WARDIAN_SOCKET", "WARDIAN_ROOT", "WARDIAN_RUN"] {
        command.env_remove(name);
    }
    command.env("WARDIAN_CONFIG", "").envs(env.iter().copied()).stdin(Stdio::null());
    command.output().unwrap().into()
}

#[tokio::test]
async fn names_are_completed() {
    let server = Server::start().await;
    let (socket, root, run) = (server.socket(), server.root(), server.run());
    let env: &[(&str, &Path)] =
        &[("WARDIAN_SOCKET", &socket), ("WARDIAN_ROOT", &root), ("WARDIAN_RUN", &run)];
    Place::of(&server).say(&["image", "import", server.image().to_str().unwrap(), "-t", "bread"]);
    for handle in ["web", "worker", "other"] {
        ok(&server, &["create", "--name", handle]);
    }
    // A client may choose any handle; to a shell this one would be two commands.
    ok(&server, &["create", "--name", "w;reboot"]);
    let process = ok(&server, &["exec", "-d", "web", "--", "sleep", "1000"]).trim().to_owned();

    assert_eq!(offered("wardian exec w", env), ["web", "worker"]);
    assert_eq!(offered("wardian rm web o", env), ["other"]);
    assert_eq!(offered("wardian cp we", env), ["web:"]);
    assert_eq!(offered("wardian image rm br", env), ["bread"]);
    assert!(offered("wardian run br", env).contains(&"bread".to_owned()));
    assert_eq!(offered("wardian attach web ", env).iter().filter(|id| **id == process).count(), 1);
    assert!(offered("wardian attach worker ", env).iter().all(|id| *id != process));
    assert_eq!(offered("wardian inf", env), ["info"]);
    assert!(offered("wardian run --entry", env).contains(&"--entrypoint".to_owned()));
    // The flag of the line says which server.
    let line = format!("wardian exec --socket {} we", socket.display());
    assert_eq!(offered(&line, &[]), ["web"]);
    for shell in ["zsh", "fish"] {
        let said: Said = Command::new(WARDIAN).args(["completion", shell]).output().unwrap().into();
        assert!(said.code == Some(0) && said.out.contains("WARDIAN_COMPLETE"), "{said:?}");
    }
    server.finish().await;
}

#[test]
fn nobody_waits_at_a_prompt() {
    let dir = base();
    let nobody = dir.path().join("nobody");
    let silent = dir.path().join("silent");
    let listener = UnixListener::bind(&silent).unwrap();
    let alone = Alone::new();
    for socket in [&nobody, &silent] {
        let env: &[(&str, &Path)] = &[("WARDIAN_SOCKET", socket), ("WARDIAN_ROOT", &alone.place.root)];
        for line in ["wardian exec w", "wardian attach web ", "wardian cp w", "wardian image rm b"] {
            let begun = Instant::now();
            let said = bash(line, env);
            let is_flag = |word: &str| word.starts_with("--");
            assert!(said.err.is_empty() && said.out.split_whitespace().all(is_flag), "{line}: {said:?}");
            assert!(begun.elapsed() < Duration::from_secs(5), "{line}: {:?}", begun.elapsed());
        }
    }
    drop(listener);
    // A damaged file is no message at a prompt either.
    let file = dir.path().join("wardian.toml");
    std::fs::write(&file, "root = ").unwrap();
    let said = bash("wardian exec w", &[("WARDIAN_CONFIG", &file), ("WARDIAN_SOCKET", &nobody)]);
    assert!(said.err.is_empty() && said.out.trim().is_empty(), "{said:?}");
}

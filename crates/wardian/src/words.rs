//! Words that users of docker and podman type: those that mean a command of ours are that command, and the others are
//! answered with what is here instead, because the parser's nearest word would be of no help.

use std::ffi::OsString;

/// What the first words of a command line are.
#[derive(Debug, PartialEq, Eq)]
pub enum Meant {
    /// Words of our own, perhaps others than were given.
    Ours(Vec<OsString>),
    /// Something that is not here; what is instead.
    Answer(String),
}

/// Commands of docker's that are commands of ours.
const SAME: [(&str, &[&str]); 15] = [
    ("images", &["image", "ls"]),
    ("rmi", &["image", "rm"]),
    ("tag", &["image", "tag"]),
    ("pull", &["image", "pull"]),
    ("push", &["image", "push"]),
    ("login", &["image", "login"]),
    ("logout", &["image", "logout"]),
    ("system info", &["info"]),
    ("system df", &["store", "usage"]),
    ("load", &["image", "load"]),
    ("save", &["image", "save"]),
    ("import", &["image", "import"]),
    ("history", &["image", "history"]),
    ("image prune", &["store", "gc"]),
    ("container ls", &["ps"]),
];

/// Words that have no counterpart, and what is here instead.
const ANSWERS: [(&str, &str); 22] = [
    (
        "build",
        "wardian builds no images: build them with docker, podman or buildah, and bring them in by `wardian image pull NAME` or \
         `wardian image import FILE`",
    ),
    ("buildx", "wardian builds no images, see `wardian build`"),
    ("builder", "wardian builds no images, see `wardian build`"),
    (
        "commit",
        "no image is made of a container at once: `wardian export HANDLE -o FILE` writes its files, and `wardian image import \
         FILE -t NAME` makes an image of them",
    ),
    ("compose", "there are no groups of containers: `wardian run` makes one, and a script several"),
    ("config", "there is no swarm: wardian is an engine for one host"),
    ("context", "`--socket` or WARDIAN_SOCKET names another server"),
    ("manifest", "`wardian image inspect NAME` shows the manifest of an image"),
    (
        "network",
        "a network is made with its first container: `wardian run --network 10.9.0.0/24`, see `wardian run --help`",
    ),
    ("node", "there is no swarm: wardian is an engine for one host"),
    ("plugin", "network plugins are the server's: `wardian serve --network`"),
    (
        "prune",
        "`wardian rm $(wardian ps -q --filter status=exited)` removes the containers whose process has ended",
    ),
    ("rename", "a container keeps its handle: `wardian create --name NAME` chooses it"),
    (
        "restart",
        "a container is ready as long as it exists, whether or not something runs in it: `wardian stop HANDLE` ends its \
         processes, and `wardian exec HANDLE -- COMMAND` runs one",
    ),
    ("search", "no registry is searched: `wardian image tags REPOSITORY` lists the tags of a repository"),
    ("secret", "there is no swarm: wardian is an engine for one host"),
    ("service", "there is no swarm: wardian is an engine for one host"),
    ("stack", "there is no swarm: wardian is an engine for one host"),
    (
        "start",
        "a container is ready as long as it exists, whether or not something runs in it: `wardian exec HANDLE -- COMMAND` runs \
         a command",
    ),
    ("swarm", "wardian is an engine for one host"),
    ("system", "`wardian store usage` tells what takes space, and `wardian store gc` gives it back"),
    ("update", "`wardian limit HANDLE` changes the disk limit; other limits are those of the create"),
];

/// Returns what is meant by a command line, which begins with the program.
pub fn meant(args: Vec<OsString>) -> Meant {
    let word = |at: usize| args.get(at).and_then(|word| word.to_str()).unwrap_or_default();
    let two = format!("{} {}", word(1), word(2));
    for (theirs, ours) in SAME {
        let length = theirs.split(' ').count();
        if theirs == word(1) || theirs == two {
            let ours = ours.iter().map(OsString::from);
            return Meant::Ours(
                args[..1].iter().cloned().chain(ours).chain(args[1 + length..].iter().cloned()).collect(),
            );
        }
    }
    // `container run` is `run`.
    if word(1) == "container" && args.len() > 2 {
        return meant(args[..1].iter().chain(&args[2..]).cloned().collect());
    }
    match ANSWERS.iter().find(|(theirs, _)| *theirs == word(1)) {
        Some((theirs, answer)) => Meant::Answer(format!("there is no `wardian {theirs}`: {answer}")),
        None => Meant::Ours(args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn of(text: &str) -> Meant {
        meant(text.split(' ').map(OsString::from).collect())
    }

    #[test]
    fn what_is_typed() {
        let ours = |text: &str| Meant::Ours(text.split(' ').map(OsString::from).collect());
        for (typed, expected) in [
            ("wardian images -q", "wardian image ls -q"),
            ("wardian system df --json", "wardian store usage --json"),
            ("wardian container ls -a", "wardian ps -a"),
            ("wardian container run --rm x", "wardian run --rm x"),
            ("wardian container kill a", "wardian kill a"),
            ("wardian run images", "wardian run images"),
            ("wardian", "wardian"),
            ("wardian container", "wardian container"),
            ("wardian nonsense", "wardian nonsense"),
        ] {
            assert_eq!(of(typed), ours(expected), "{typed}");
        }
        assert!(matches!(of("wardian restart web"), Meant::Answer(text) if text.contains("exec HANDLE")));
        assert!(matches!(of("wardian container start web"), Meant::Answer(_)));
    }

    /// A command that exists is not hidden behind an answer, what is named in one exists, and each word is in the docs.
    #[test]
    fn words_are_not_commands() {
        let wardian = crate::Cli::command();
        let docs = include_str!("../../../docs/from-docker.md");
        for word in SAME.iter().map(|(theirs, _)| *theirs).chain(ANSWERS.iter().map(|(theirs, _)| *theirs)) {
            assert!(docs.contains(&format!("`{word}")), "docs/from-docker.md has no `{word}`");
            let mut at = Some(&wardian);
            for part in word.split(' ') {
                at = at.and_then(|command| command.find_subcommand(part));
            }
            assert!(at.is_none(), "{word}");
        }
        let named = |text: &str| {
            let mut at = &wardian;
            for part in text.split(' ') {
                match at.find_subcommand(part) {
                    Some(next) => at = next,
                    None if at.has_subcommands() => return false,
                    None => break,
                }
            }
            true
        };
        let is_answer = |text: &str| ANSWERS.iter().any(|(theirs, _)| text == *theirs);
        for (theirs, answer) in &ANSWERS {
            for text in answer.split("`wardian ").skip(1).filter_map(|rest| rest.split('`').next()) {
                assert!(named(text) || is_answer(text), "{theirs}: {text}");
            }
        }
    }
}

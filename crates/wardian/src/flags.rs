//! Flags of docker's `run` and `create` that are not here: each is answered with what is here instead, because the
//! parser's nearest word would be of no help.

use clap::error::{ContextKind, ContextValue};
use std::ffi::OsString;

/// Flags, and what is here instead.
const ANSWERS: [(&str, &str); 63] = [
    (
        "--add-host",
        "`exec` writes names into the container's own /etc/hosts: `wardian exec HANDLE -- sh -c 'echo IP NAME >>/etc/hosts'`",
    ),
    ("--annotation", "`--label KEY=VALUE` notes something on a container"),
    ("--attach", "without -d the output comes here, and with -i the input goes there"),
    ("--blkio-weight", "what containers read and write is not weighed; `--disk` limits how much they write"),
    (
        "--cap-add",
        "containers have Garden's capabilities; `--privileged` gives all of them, and makes root inside root on this host",
    ),
    (
        "--cap-drop",
        "containers have Garden's capabilities, and programs of users other than root almost none: `--user`",
    ),
    (
        "--cgroup-parent",
        "cgroups are the server's; `--memory`, `--cpu-shares` and `--pids` limit one container",
    ),
    ("--cgroupns", "each container sees its own cgroup as the root"),
    ("--cidfile", "`--name` chooses the handle, which `run -d` and `create` print as well"),
    ("--cpu-period", "processors are shared by weight: `--cpu-shares`; there is no quota"),
    ("--cpu-quota", "processors are shared by weight: `--cpu-shares`; there is no quota"),
    (
        "--cpus",
        "processors are shared by weight: `--cpu-shares 1024` is usual, 512 half of that; there is no quota",
    ),
    ("--cpuset-cpus", "processors are shared by weight: `--cpu-shares`; containers run on all of them"),
    ("--detach-keys", "Ctrl-P Ctrl-Q detaches"),
    (
        "--device",
        "containers have /dev/null, zero, full, random, urandom, tty and fuse; `--privileged` ones may make other nodes",
    ),
    ("--dns-option", "`--dns IP` names a server; there are no options of the resolver"),
    ("--dns-search", "`--dns IP` names a server; there are no search domains"),
    ("--domainname", "a container's host name is its handle: `--name`"),
    (
        "--expose",
        "nothing has to be exposed: containers of one network reach all ports of each other, and `-p` leads to one from outside",
    ),
    ("--gpus", "containers have no devices of the host"),
    (
        "--group-add",
        "groups are those of the user in the container's /etc/group; `--user NAME:GROUP` chooses the first",
    ),
    ("--health-cmd", "health is not checked: `wardian exec HANDLE -- COMMAND` tells by its exit code"),
    ("--hostname", "a container's host name is its handle: `--name`"),
    ("--init", "each container has an init that reaps, so this is always so"),
    ("--ip", "`--network 10.9.0.5/24` is an address and its subnet"),
    ("--ipc", "each container has its own"),
    ("--isolation", "there is one kind of container"),
    ("--kernel-memory", "`--memory` counts the kernel's memory too"),
    (
        "--link",
        "containers of one network reach each other by address: `--network 10.9.0.0/24`, and `wardian ps` shows the addresses",
    ),
    (
        "--log-driver",
        "`wardian logs` shows what --keep-output keeps; for more, the program writes into a file of a volume (-v)",
    ),
    ("--log-opt", "see --log-driver"),
    ("--mac-address", "the kernel chooses it"),
    ("--memory-reservation", "`--memory` is a hard limit; there is no soft one"),
    ("--memory-swap", "`--memory` counts swap too"),
    ("--memory-swappiness", "`--memory` counts swap too"),
    ("--mount", "`-v HOST:CONTAINER[:ro]` shows a file or directory of the host"),
    (
        "--net",
        "the flag is called --network: CIDR, none or ns:PATH. No container has the host's network; `-p` publishes a port",
    ),
    ("--network-alias", "there are no names in a network; `wardian ps` shows the addresses"),
    ("--no-healthcheck", "health is not checked, so this is always so"),
    (
        "--oom-kill-disable",
        "a container that needs more than its `--memory` loses a process: `wardian events -f event=oom`",
    ),
    ("--oom-score-adj", "`--memory` bounds each container by itself"),
    ("--pid", "each container has its own processes; `wardian top HANDLE` lists them from outside"),
    (
        "--platform",
        "the image of this host's platform is taken; `wardian image pull` says so where there is none",
    ),
    ("--pod", "there are no pods: containers with one `--network 10.9.0.0/24` reach each other"),
    (
        "--publish-all",
        "ports are named one by one: `-p HOST:CONTAINER`, or `-p CONTAINER` for a port of the server's pool; \
        `wardian image inspect IMAGE` shows the image's ExposedPorts",
    ),
    (
        "--read-only",
        "the root file system can always be written; a volume cannot with `-v HOST:CONTAINER:ro`",
    ),
    ("--replace", "`wardian rm -f HANDLE` before it does that"),
    (
        "--restart",
        "nothing is started again by itself: systemd runs `wardian run --rm IMAGE` with Restart=, see docs/from-docker.md",
    ),
    ("--runtime", "the server is the runtime"),
    (
        "--security-opt",
        "the seccomp filter is always on; `--privileged` is without it, and makes root inside root on this host",
    ),
    (
        "--shm-size",
        "the server's --shm-size is for all containers; with `--memory` /dev/shm counts towards that",
    ),
    ("--sig-proxy", "signals are passed on; `attach --no-signals` keeps them"),
    ("--stop-timeout", "`wardian stop -t SECONDS` says it when it matters"),
    ("--storage-opt", "`--disk BYTES` limits what the root file system takes"),
    (
        "--sysctl",
        "`wardian exec HANDLE -- sysctl -w NAME=VALUE` sets those that belong to the container, in a `--privileged` one",
    ),
    ("--systemd", "an init of its own cannot be process 1: the container has one"),
    (
        "--ulimit",
        "`wardian exec HANDLE -- sh -c 'ulimit -n 1024; exec COMMAND'` lowers limits; `--pids` bounds processes",
    ),
    (
        "--userns",
        "root inside is nobody on the host; with the server's --id-ranges each container has ids of its own",
    ),
    ("--uts", "each container has its own host name"),
    ("--volume-driver", "volumes are on this host: `-v HOST:CONTAINER`"),
    ("--volumes-from", "a volume may be given to several containers: `-v` again"),
    ("-P", "see --publish-all"),
    ("-a", "see --attach"),
];

/// Returns the answer to a command line that the parser has refused for a flag of docker's.
pub fn answer(args: &[OsString], refused: &clap::Error) -> Option<String> {
    let command = args.get(1)?.to_str()?;
    let (clap::error::ErrorKind::UnknownArgument, "run" | "create") = (refused.kind(), command) else {
        return None;
    };
    let Some(ContextValue::String(flag)) = refused.get(ContextKind::InvalidArg) else { return None };
    let flag = flag.split('=').next().unwrap_or_default();
    let (_, text) = ANSWERS.iter().find(|(known, _)| *known == flag)?;
    let text = match text.strip_prefix("see ") {
        Some(other) => ANSWERS.iter().find(|(known, _)| *known == other).map_or(*text, |(_, text)| *text),
        None => *text,
    };
    let given = || value(args, flag).and_then(|value| volume(&value));
    let text = match flag {
        "--mount" => given().map_or_else(|| text.to_owned(), |said| format!("say it as `{said}`")),
        _ => text.to_owned(),
    };
    Some(format!("{command} has no {flag}: {text}"))
}

/// Returns the value that is given to a flag.
fn value(args: &[OsString], flag: &str) -> Option<String> {
    let mut texts = args.iter().filter_map(|arg| arg.to_str());
    let joined = format!("{flag}=");
    while let Some(text) = texts.next() {
        if text == flag {
            return texts.next().map(str::to_owned);
        }
        if let Some(value) = text.strip_prefix(&joined) {
            return Some(value.to_owned());
        }
    }
    None
}

/// Returns the flag that means what is given to docker's `--mount`; `None`: there is none.
fn volume(mount: &str) -> Option<String> {
    let (mut kind, mut source, mut target, mut read_only) = ("volume", "", "", false);
    for field in mount.split(',') {
        let (key, value) = field.split_once('=').unwrap_or((field, "true"));
        match key {
            "type" => kind = value,
            "source" | "src" => source = value,
            "target" | "destination" | "dst" => target = value,
            "readonly" | "ro" => read_only = matches!(value, "true" | "1"),
            _ => {}
        }
    }
    let mode = if read_only { ":ro" } else { "" };
    match kind {
        "bind" | "volume" if !source.is_empty() && !target.is_empty() => {
            Some(format!("-v {source}:{target}{mode}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory as _, Parser as _};

    fn answered(text: &str) -> Option<String> {
        let args: Vec<OsString> = text.split(' ').map(OsString::from).collect();
        let refused = crate::Cli::try_parse_from(&args).unwrap_err();
        answer(&args, &refused)
    }

    #[test]
    fn flags_of_docker_are_answered() {
        for (typed, expected) in [
            ("wardian run -P nginx", "run has no -P: ports are named one by one"),
            ("wardian run -dP nginx", "run has no -P: ports are named one by one"),
            ("wardian create --restart=always x", "create has no --restart: nothing is started again"),
            ("wardian run --rm --net host x", "run has no --net: the flag is called --network"),
            (
                "wardian run --mount type=bind,src=/a,dst=/b,ro x",
                "run has no --mount: say it as `-v /a:/b:ro`",
            ),
            (
                "wardian run --mount=type=bind,source=/a,target=/b x",
                "run has no --mount: say it as `-v /a:/b`",
            ),
            ("wardian run --mount type=tmpfs,dst=/b x", "run has no --mount: `-v HOST:CONTAINER[:ro]`"),
        ] {
            let said = answered(typed).unwrap_or_else(|| panic!("{typed}"));
            assert!(said.starts_with(expected), "{typed}: {said}");
        }
        for other in ["wardian run --nonsense x", "wardian stop --restart x", "wardian run --memory x y"] {
            assert_eq!(answered(other), None, "{other}");
        }
    }

    /// A flag that exists is not hidden behind an answer, each is in the docs, and what is named in an answer exists.
    #[test]
    fn answers_are_about_what_is_not_here() {
        let wardian = crate::Cli::command();
        let docs = include_str!("../../../docs/from-docker.md");
        let flags = |command: &str| -> Vec<String> {
            let command = wardian.find_subcommand(command).unwrap();
            let long = command
                .get_arguments()
                .flat_map(|arg| arg.get_long_and_visible_aliases().unwrap_or_default());
            let short =
                command.get_arguments().filter_map(|arg| arg.get_short().map(|short| format!("-{short}")));
            long.map(|long| format!("--{long}")).chain(short).collect()
        };
        let (run, server) = (flags("run"), flags("serve"));
        for (flag, text) in ANSWERS {
            assert!(!run.contains(&flag.to_owned()), "{flag} exists");
            assert!(docs.contains(&format!("`{flag}`")), "docs/from-docker.md has no `{flag}`");
            if let Some(other) = text.strip_prefix("see ") {
                assert!(
                    ANSWERS.iter().any(|(known, _)| *known == other) || run.contains(&other.to_owned()),
                    "{flag}: {text}"
                );
                continue;
            }
            for (at, named) in text.split('`').enumerate().filter(|(at, _)| at % 2 == 1) {
                let flag_of = named.split([' ', '=']).next().unwrap_or_default();
                let is_known = !flag_of.starts_with('-') || run.contains(&flag_of.to_owned());
                assert!(is_known, "{flag}, part {at}: {named}");
            }
            for named in text.split("server's --").skip(1) {
                let name = named.split([' ', ',', ';', '.']).next().unwrap_or_default();
                assert!(server.contains(&format!("--{name}")), "{flag}: --{name}");
            }
        }
    }
}

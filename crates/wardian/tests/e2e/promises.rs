//! What commands promise: a failure if their output is lost, the exit code of a mistake, no store where nothing is written,
//! nothing gone that was to be kept, and no word that is not true.

use crate::cli::{Alone, Place, Said, saved};
use crate::commands::command;
use crate::support::{STUCK, Server, WARDIAN, noise, signal, tar_of};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;
use wardian_needs::{Need, lacks};

/// Everything that a command says on standard output is lost.
fn into_full(server: &Server, args: &[&str]) -> Command {
    let mut command = command(server, args);
    command.env("WARDIAN_ROOT", server.root()).env("WARDIAN_RUN", server.run());
    command.stdout(fs::File::options().write(true).open("/dev/full").unwrap()).stderr(Stdio::piped());
    command
}

#[tokio::test]
async fn output_that_cannot_be_written_is_a_failure_of_every_command() {
    let server = Server::networked(&[]).await;
    let handles = || Said::from(command(&server, &["ps", "-aq"]).output().unwrap()).out;
    let place = Place::of(&server);
    let image = server.image().to_str().unwrap().to_owned();
    let file = server.base().join("out.tar").to_str().unwrap().to_owned();
    let app = server.base().join("app.tar").to_str().unwrap().to_owned();
    fs::write(&app, tar_of(&[("app", b"x")])).unwrap();
    place.say(&["image", "import", &image, "-t", "bb"]);
    for handle in ["h", "s"] {
        assert!(command(&server, &["create", "--name", handle]).status().unwrap().success());
    }
    assert!(command(&server, &["create", "--name", "l", "--disk", "50M"]).status().unwrap().success());
    let printed = ["run", "--name", "m", "--", "sh", "-c", "echo x; echo y >/f"];
    assert!(command(&server, &printed).stdout(Stdio::null()).status().unwrap().success());
    let main =
        command(&server, &["exec", "-d", "h", "--", "sh", "-c", "while :; do echo x; sleep 0.01; done"]);
    let main = Said::from({ main }.output().unwrap()).out;
    let all: &[(i32, &[&str])] = &[
        (125, &["run", "--rm", "--", "echo", "x"]),
        (125, &["run", "-d", "--name", "d", "--", "sleep", "1000"]),
        (1, &["create", "--name", "c"]),
        (125, &["exec", "h", "--", "echo", "x"]),
        (125, &["exec", "-d", "h", "--", "true"]),
        (125, &["attach", "--no-signals", "h", main.trim()]),
        (1, &["ps"]),
        (1, &["ps", "-q"]),
        (1, &["ps", "--json"]),
        (1, &["inspect", "h"]),
        (1, &["map", "h", "8080:80"]),
        (1, &["limit", "l", "--disk", "40M"]),
        (1, &["port", "h"]),
        (1, &["stats", "--no-stream"]),
        (1, &["stats", "--json"]),
        (125, &["cp", "h:/bin", "-"]),
        (125, &["logs", "m"]),
        (1, &["wait", "m"]),
        (1, &["pause", "l"]),
        (1, &["unpause", "l"]),
        (1, &["kill", "l"]),
        (1, &["top", "h"]),
        (1, &["diff", "m"]),
        (125, &["export", "h"]),
        (1, &["volume", "create", "v"]),
        (1, &["volume", "ls"]),
        (1, &["volume", "rm", "v"]),
        (1, &["info"]),
        (1, &["version", "--json"]),
        (1, &["monitor", "--listen", "127.0.0.1:0"]),
        (1, &["why", "h"]),
        (1, &["why", "--json", "h"]),
        (1, &["stop", "--kill", "s"]),
        (1, &["rm", "s"]),
        (1, &["image", "ls"]),
        (1, &["image", "ls", "--json"]),
        (1, &["image", "inspect", "bb"]),
        (1, &["image", "import", &image, "-t", "again"]),
        (1, &["image", "import", "--no-wait", &image, "-t", "again"]),
        (1, &["image", "prefetch", &image]),
        (1, &["image", "add-layer", "bb", &app, "--path", "/app", "-t", "more"]),
        (1, &["image", "export", "bb", &file]),
        (1, &["image", "export", "bb", "-"]),
        (1, &["image", "export", "bb", "-", "--format", "tar"]),
        (1, &["image", "rm", "again", "more"]),
        (1, &["rootfs", "create", "bb", "r"]),
        (1, &["rootfs", "list"]),
        (1, &["rootfs", "stats", "r"]),
        (1, &["store", "usage"]),
        (1, &["store", "gc", "--dry-run"]),
        (1, &["store", "gc"]),
        (1, &["doctor", "--no-measure"]),
        (1, &["doctor", "--no-measure", "--json"]),
        (1, &["doctor", "--leaks"]),
        (1, &["doctor", "--leaks", "--json"]),
        (1, &["completion", "bash"]),
        (1, &["--help"]),
        (1, &["help", "run"]),
        (1, &["run", "--help"]),
        (1, &["--version"]),
    ];
    for (code, args) in all {
        let said = Said::from(into_full(&server, args).output().unwrap());
        assert_eq!(said.code, Some(*code), "{args:?}: {said:?}");
        assert!(said.err.contains("No space left on device"), "{args:?}: {said:?}");
    }
    // Those that print what happens.
    for args in [&["events"][..], &["events", "--json"]] {
        let mut events = into_full(&server, args).spawn().unwrap();
        let started = Instant::now();
        while events.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < STUCK, "{args:?}");
            assert!(command(&server, &["exec", "h", "--", "true"]).status().unwrap().success());
        }
        let said = Said::from(events.wait_with_output().unwrap());
        assert!(said.code == Some(1) && said.err.contains("No space left on device"), "{args:?}: {said:?}");
    }
    // No command is forgotten. What a server says is its log, of `lab` the commands that it runs print, `allow` says
    // nothing, and `reset` is the end of everything.
    let help = Said::from(command(&server, &["--help"]).output().unwrap()).out;
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    // A line that goes on is indented further.
    let commands = commands.take_while(|line| !line.is_empty()).filter(|line| !line.starts_with("    "));
    let commands = commands.filter_map(|line| line.split_whitespace().next());
    let forgotten: Vec<&str> = commands
        .filter(|name| !["serve", "lab", "reset", "events", "allow"].contains(name))
        .filter(|name| !all.iter().any(|(_, args)| args[0] == *name))
        .collect();
    assert_eq!(forgotten, Vec::<&str>::new());
    // What was asked for is done all the same.
    assert!(handles().lines().eq(["c", "d", "h", "l", "m"]), "{}", handles());
    place.say(&["rootfs", "delete", "r"]);
    server.finish().await;
}

#[test]
fn mistakes_on_the_command_line_end_with_2() {
    let base = tempfile::tempdir().unwrap();
    let env = base.path().join("env");
    fs::write(&env, "=1\n").unwrap();
    let (env, missing) = (env.to_str().unwrap(), base.path().join("missing").to_str().unwrap().to_owned());
    for (args, says) in [
        (&["run", "--entrypoint", "", "x"][..], "say what to run: wardian run IMAGE -- COMMAND"),
        (&["exec", "h"], "say what to run: wardian exec HANDLE -- COMMAND"),
        (&["run", "-e", "=1", "x", "true"], "no name of a variable"),
        (&["exec", "-e", "=1", "h", "true"], "no name of a variable"),
        (&["create", "-e", "", "x"], "no name of a variable"),
        (&["run", "--env-file", env, "x", "true"], "no name of a variable"),
        (&["run", "--env-file", &missing, "x", "true"], "No such file or directory"),
        (&["exec", "--env-file", &missing, "h", "true"], "No such file or directory"),
        (&["create", "--env-file", &missing, "x"], "No such file or directory"),
        (&["run", "-w", "tmp", "x", "true"], "must be absolute"),
        (&["exec", "-w", "tmp", "h", "true"], "must be absolute"),
        (&["run", "-w", "", "x", "true"], "must be absolute"),
        (&["run", "-it", "x", "true"], "-t needs a terminal"),
        (&["exec", "-it", "h", "true"], "-t needs a terminal"),
        (&["attach", "-it", "h"], "-t needs a terminal"),
        (&["run", "", "true"], "an empty image"),
        (&["create", "x", "--app", "a:/b", "--app-digest", "0F"], ""),
        (&["cp", "a", "b"], "neither is in a container"),
        (&["cp", "-", "-"], "neither is in a container"),
        (&["cp", "a:/x", "b:/y"], "both are in containers"),
        (&["cp", ":/x", "b"], "no handle"),
        (&["cp", "a:", "b"], "no path"),
        (&["cp", "", "b:/y"], "an empty path"),
        (&["image", "export", "x", "x.tar.gz"], "--format"),
        (&["image", "export", "x", "x", "--keep-privileges"], "--format dir"),
        (&["image", "export", "x", "-", "--format", "dir"], "makes a directory"),
        (&["image", "export", "x", "-", "--format", "oci"], "makes a directory"),
        (&["store", "gc", "--dry-run", "--yes"], "cannot be used with"),
        (&["restart", "web"], "wardian exec HANDLE -- COMMAND"),
        (&["container", "start", "web"], "wardian exec HANDLE -- COMMAND"),
        (&["build", "."], "wardian builds no images"),
        (&["rmi"], "<NAME>"),
        (&["rn", "web"], "unrecognized subcommand 'rn'"),
    ] {
        // Nobody is asked: there is no such server.
        let mut command = Command::new(WARDIAN);
        command
            .args(args)
            .env("WARDIAN_SOCKET", base.path().join("nobody"))
            .env("WARDIAN_ROOT", base.path().join("no"));
        let said = Said::from(command.current_dir(base.path()).stdin(Stdio::null()).output().unwrap());
        assert!(said.code == Some(2) && said.out.is_empty() && said.err.contains(says), "{args:?}: {said:?}");
        // A slip of the keyboard is answered with nothing that takes something away.
        assert!(args[0] != "rn" || !said.err.contains("'rm'"), "{said:?}");
    }
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 1);
}

#[test]
fn only_what_writes_makes_a_store() {
    let alone = Alone::new();
    let typo = Place { root: alone.path("typo").into(), run: alone.place.run.clone() };
    let empty = Place { root: alone.path("empty").into(), run: alone.place.run.clone() };
    fs::create_dir(&empty.root).unwrap();
    for place in [&typo, &empty] {
        for args in [
            &["image", "ls"][..],
            &["image", "inspect", "x"],
            &["image", "rm", "x"],
            &["image", "pin", "x"],
            &["image", "unpin", "x"],
            &["image", "export", "x", "x.tar"],
            &["image", "export", "x", "-"],
            &["rootfs", "list"],
            &["rootfs", "stats", "x"],
            &["store", "usage"],
            &["store", "gc"],
            &["store", "gc", "--dry-run"],
            &["store", "reap"],
            &["store", "reap", "--wait"],
        ] {
            let error = place.fail(args);
            assert!(
                error.contains(&format!("there is no store in {}", place.root.display())),
                "{args:?}: {error}"
            );
        }
        // As always, that it is not there is no error.
        let said = place.wardian(&["rootfs", "delete", "x"]);
        assert!(said.code == Some(0) && said.err.contains("there is no store"), "{said:?}");
    }
    assert!(!typo.root.exists());
    assert_eq!(fs::read_dir(&empty.root).unwrap().count(), 0);
    empty.say(&["image", "import", &alone.image(), "-t", "bb"]);
    assert_eq!(empty.images(), ["bb"]);
}

#[test]
fn a_pinned_image_goes_by_force_alone() {
    let alone = Alone::new();
    let place = &alone.place;
    for name in ["kept", "other"] {
        place.say(&["image", "import", &alone.image(), "-t", name]);
    }
    place.say(&["image", "pin", "kept"]);
    // Whatever it is called, and the others go.
    let said = place.wardian(&["image", "rm", "docker.io/library/kept:latest", "other"]);
    assert!(said.code == Some(1) && said.out.starts_with("other: "), "{said:?}");
    assert!(said.err.contains("wardian image unpin kept") && said.err.contains("--force"), "{said:?}");
    assert_eq!(place.json(&["image", "ls"])[0]["pinned"], true);
    place.say(&["image", "rm", "--force", "kept"]);
    assert_eq!((place.images(), place.names("layers")), (vec![], vec![]));
    place.say(&["image", "import", &alone.image(), "-t", "kept"]);
    assert_eq!(place.json(&["image", "ls"])[0]["pinned"], false);
    place.say(&["image", "rm", "kept"]);
    alone.finish();
}

/// An archive that was written to standard output, in another store.
#[test]
fn an_export_to_standard_output_is_the_archive() {
    let alone = Alone::new();
    let place = &alone.place;
    place.say(&["image", "import", &alone.image(), "-t", "bb"]);
    for (format, source) in
        [(None, "docker-archive"), (Some("oci-archive"), "oci-archive"), (Some("tar"), "tar")]
    {
        let base = tempfile::tempdir().unwrap();
        let mut args = vec!["image", "export", "bb", "-"];
        args.extend(format.iter().flat_map(|format| ["--format", format]));
        let said = place.command(&args).current_dir(base.path()).output().unwrap();
        assert!(said.status.success() && said.stderr.is_empty(), "{said:?}");
        // No directory of that name.
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
        let to_file = alone.path(&format!("{source}.file.tar"));
        place.say(&["image", "export", "bb", &to_file, "--format", source]);
        assert!(fs::read(&to_file).unwrap() == said.stdout, "{source}");
        let file = alone.write(&format!("{source}.tar"), &said.stdout);
        place.say(&["image", "import", &format!("{source}://{file}"), "-t", source]);
        // A reader that has seen enough is no failure.
        let mut command = place.command(&args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let said = Said::from(child.wait_with_output().unwrap());
        assert!(said.code == Some(0) && said.err.is_empty(), "{source}: {said:?}");
    }
    assert_eq!(place.names("staging"), Vec::<String>::new());
    place.say(&["image", "rm", "bb", "docker-archive", "oci-archive", "tar"]);
    alone.finish();
}

#[tokio::test]
async fn what_is_started_in_a_stopped_container_makes_it_active() {
    let server = Server::start().await;
    let ok = |args: &[&str]| {
        let said = Said::from(command(&server, args).output().unwrap());
        assert_eq!(said.code, Some(0), "{args:?}: {said:?}");
        said.out
    };
    let state = || serde_json::from_str::<Value>(&ok(&["ps", "--json"])).unwrap()[0]["state"].clone();
    ok(&["run", "-d", "--name", "d", "--", "sleep", "1000"]);
    for _ in 0..2 {
        assert_eq!(state(), "running");
        ok(&["stop", "--kill", "d"]);
        assert_eq!(state(), "exited");
        // What could not be started changes nothing.
        assert_eq!(
            command(&server, &["exec", "d", "nope"]).stderr(Stdio::null()).status().unwrap().code(),
            Some(127)
        );
        assert_eq!(state(), "exited");
        ok(&["exec", "-d", "d", "sleep", "1000"]);
    }
    assert_eq!(state(), "running");
    server.finish().await;
}

/// As podman names what it has built, and docker what it has pulled.
#[tokio::test]
async fn a_name_of_another_engine_can_be_used() {
    let server = Server::start().await;
    let place = Place::of(&server);
    let layer = fs::read(server.image()).unwrap();
    for (name, others) in [
        ("localhost/box:latest", &["localhost/box", "localhost/box:latest"][..]),
        ("docker.io/library/two:latest", &["two", "two:latest", "docker.io/library/two"]),
        ("localhost:5000/a/three:1", &["localhost:5000/a/three:1"]),
        ("quay.io/x/four:v2", &["quay.io/x/four:v2"]),
    ] {
        let file = server.base().join("saved.tar");
        fs::write(&file, saved(Some(name), &[&layer])).unwrap();
        place.say(&["image", "import", file.to_str().unwrap(), "--force"]);
        fs::remove_file(file).unwrap();
        for name in others.iter().copied().chain([name]) {
            let said =
                Said::from(command(&server, &["run", "--rm", name, "echo", "hello"]).output().unwrap());
            assert_eq!((said.code, said.out.as_str()), (Some(0), "hello\n"), "{name}: {said:?}");
            place.say(&["image", "inspect", name]);
            let path = place.say(&["rootfs", "create", name, "r"]);
            assert!(Path::new(path.trim()).is_dir());
            place.say(&["rootfs", "delete", "r"]);
        }
    }
    server.finish().await;
}

#[test]
fn garbage_is_first_what_has_no_name() {
    let alone = Alone::new();
    let place = &alone.place;
    let file = |name: &str| alone.write(&format!("{name}.tar"), &tar_of(&[(name, &noise(100_000))]));
    let chain = |args: &[&str]| -> String {
        let said = Said::from(place.command(&[args, &["--json"]].concat()).output().unwrap());
        assert_eq!(said.code, Some(0), "{said:?}");
        let said: Value = serde_json::from_str(&said.out).unwrap();
        said["layers"][0]["chain_id"].as_str().unwrap().to_owned()
    };
    let named = chain(&["image", "import", &file("a"), "-t", "a"]);
    let unnamed = chain(&["image", "import", &file("b")]);
    let usage = place.usage();
    assert!(
        usage["unnamed_bytes"].as_u64() > Some(0)
            && usage["unnamed_bytes"].as_u64() < usage["reclaimable_bytes"].as_u64()
    );
    // Said, not done.
    let would = place.json(&["store", "gc", "--dry-run"]);
    assert_eq!((&would["layers"], &would["images"]), (&json!([unnamed]), &json!([])));
    let would = place.json(&["store", "gc", "--dry-run", "--threshold", "0"]);
    assert_eq!((would["layers"].as_array().unwrap().len(), &would["images"]), (2, &json!(["a"])));
    let text = place.say(&["store", "gc", "--dry-run"]);
    assert!(text.contains(&format!("layer  {unnamed}\n")) && text.contains("would free"), "{text}");
    assert_eq!(place.names("layers").len(), 2);
    // Done.
    let done = place.json(&["store", "gc"]);
    assert_eq!(done["layers"], json!([unnamed]));
    assert_eq!(place.images(), ["a"]);
    assert!(place.names("layers")[0].ends_with(&named));
    let again = place.json(&["store", "gc"]);
    assert_eq!(again["layers"].as_array().unwrap().len(), 0);
    let all = place.json(&["store", "gc", "--threshold", "0"]);
    assert_eq!((&all["layers"], &all["images"]), (&json!([named]), &json!(["a"])));
    alone.finish();
}

/// On a terminal somebody is asked; util-linux's script(1) is one.
#[test]
fn on_a_terminal_garbage_is_shown_first() {
    let alone = Alone::new();
    let place = &alone.place;
    assert!(place.wardian(&["image", "import", &alone.image()]).code == Some(0));
    let on_terminal = |args: &str, answer: &str| {
        let line = format!("{WARDIAN} {args}");
        let mut command = Command::new("script");
        command
            .args(["-qec", &line, "/dev/null"])
            .env("WARDIAN_ROOT", &place.root)
            .env("WARDIAN_RUN", &place.run);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        use std::io::Write as _;
        child.stdin.take().unwrap().write_all(answer.as_bytes()).unwrap();
        Said::from(child.wait_with_output().unwrap())
    };
    let said = on_terminal("store gc", "n\n");
    assert!(said.code == Some(1), "{said:?}");
    for word in ["layer  ", "this would free", "Go on? [y/N]", "nothing was done"] {
        assert!(said.out.contains(word), "{word}: {said:?}");
    }
    assert_eq!(place.names("layers").len(), 1);
    let said = on_terminal("store gc", "y\n");
    assert!(said.code == Some(0) && said.out.contains("\nfreed "), "{said:?}");
    assert_eq!(place.names("layers"), Vec::<String>::new());
    // Nothing to ask about.
    assert!(!on_terminal("store gc", "").out.contains("Go on?"));
    // Nor is an archive for a terminal.
    let said = on_terminal("image export bb -", "");
    assert!(said.code == Some(2) && said.out.contains("an archive on a terminal helps nobody"), "{said:?}");
    alone.finish();
}

#[test]
fn an_import_that_is_interrupted_late_says_what_stays() {
    let alone = Alone::new();
    let place = &alone.place;
    // It may be written too fast to be caught.
    for tries in 1..=10 {
        let size = (16 << 20) * tries;
        let file = alone.write("big.tar", &tar_of(&[("big", &noise(size))]));
        let import = place.spawn(&["image", "import", &file, "-t", "late"]);
        place.until("it has no name", |place| place.root.join("images/late.json").exists());
        signal(import.id(), Signal::INT);
        let said = Said::from(import.wait_with_output().unwrap());
        // A signal after the work ends the process without a word.
        if said.code == Some(130) && said.err.is_empty() && said.out.is_empty() {
            place.say(&["image", "rm", "late"]);
            continue;
        }
        if said.code == Some(130) {
            assert!(
                said.err.contains("the image is in the store as late") && said.err.contains(&file),
                "{said:?}"
            );
            assert!(!said.err.contains("cleaned up") && said.out.is_empty(), "{said:?}");
            // It is as it says: there, and fetched again where it has to be.
            assert_eq!(place.images(), ["late"]);
            place.say(&["rootfs", "create", "late", "r"]);
            place.say(&["rootfs", "delete", "r"]);
            place.say(&["image", "rm", "late"]);
            assert_eq!(place.names("layers"), Vec::<String>::new());
            alone.finish();
            return;
        }
        // What came when all was done has changed nothing.
        assert_eq!(said.code, Some(0), "{said:?}");
        place.say(&["image", "rm", "late"]);
    }
    panic!("no import was slow enough");
}

#[test]
fn a_recording_ends_as_a_shell_does_and_blames_nobody_else() {
    let base = tempfile::tempdir().unwrap();
    let plain = base.path().join("plain");
    fs::write(&plain, "x").unwrap();
    let record = |command: &[&str]| {
        let json = base.path().join("out.json");
        let all = [&["lab", "record", "--json", json.to_str().unwrap(), "--"], command].concat();
        let said = Said::from(Command::new(WARDIAN).args(all).current_dir("/var/tmp").output().unwrap());
        (said, fs::read(json).ok().map(|json| serde_json::from_slice::<Value>(&json).unwrap()))
    };
    for (code, program) in [(127, "nosuch"), (127, "/no/such"), (126, plain.to_str().unwrap()), (126, "/etc")]
    {
        let (said, _) = record(&[program]);
        assert!(said.code == Some(code) && said.err.contains(program), "{said:?}");
    }
    // Somebody else writes all the time.
    let victim = tempfile::tempdir_in("/var/tmp").unwrap();
    let script = "while :; do echo x > f; sync f; sleep 0.05; done";
    let mut other = Command::new("sh").args(["-c", script]).current_dir(victim.path()).spawn().unwrap();
    let (said, report) = record(&["sleep", "1"]);
    let (_, own) =
        record(&["sh", "-c", &format!("cd {}; echo x > mine; sync mine", victim.path().display())]);
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(said.code, Some(0), "{said:?}");
    let (report, own) = (report.unwrap(), own.unwrap());
    let watched = |report: &Value| report["recording"]["watched"].as_array().map(Vec::len);
    // Without the kernel's trace nothing is claimed of anybody.
    if lacks(&[Need::Tracefs], Some("who is blamed")) {
        return;
    }
    assert!(watched(&report).is_some() && watched(&own).is_some(), "{report} {own}");
    let verdict = report["diagnosis"]["verdict"].as_str().unwrap();
    assert!(verdict.starts_with("what was watched has written nothing"), "{verdict}");
    assert_eq!(report["diagnosis"]["advice"], json!([]));
    let verdict = own["diagnosis"]["verdict"].as_str().unwrap();
    assert!(verdict.contains("because of a sync"), "{verdict}");
}

//! One unit of time in JSON, and names that tell it (docs/words.md).

use crate::commands::ok;
use crate::support::Server;
use serde_json::Value;

/// Numbers whose names end so, or are these words, are in milliseconds, bytes, or units of Garden's and the kernel's own.
const UNITS: [&str; 5] = ["_ms", "_bytes", "_ns", "_centisecs", "_percent"];
/// Parts of names of a time whose unit a reader would have to guess, or that is another one.
const TIMES: [&str; 11] = [
    "time", "began", "created", "started", "exited", "age", "duration", "timeout", "seconds", "secs",
    "uptime",
];

/// Collects the paths of numbers that are a time by their name, without its unit or in another one.
fn guessed(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let is_time = name.split('_').any(|part| TIMES.contains(&part));
                let is_other =
                    ["_s", "_us", "_sec", "_secs", "_seconds", "_min"].iter().any(|end| name.ends_with(end));
                if value.is_number()
                    && (is_other || is_time && !UNITS.iter().any(|unit| name.ends_with(unit)))
                {
                    found.push(format!("{path}.{name}"));
                }
                guessed(value, &format!("{path}.{name}"), found);
            }
        }
        Value::Array(all) => all.iter().for_each(|value| guessed(value, path, found)),
        _ => {}
    }
}

#[test]
fn a_guess_is_found() {
    let text =
        r#"{"a": [{"time": 1.5, "time_ms": 2, "wait_s": 1, "n": 3, "time_text": "x"}], "started": null}"#;
    let mut found = Vec::new();
    guessed(&serde_json::from_str(text).unwrap(), "", &mut found);
    assert_eq!(found, [".a.time", ".a.wait_s"]);
}

#[tokio::test]
async fn times_are_in_milliseconds() {
    let server = Server::start().await;
    ok(&server, &["run", "-d", "--name", "a", "--", "sleep", "1000"]);
    ok(&server, &["exec", "a", "true"]);
    ok(&server, &["volume", "create", "v"]);
    let (mut found, mut read) = (Vec::new(), 0);
    for args in [
        &["ps", "-a", "--json"][..],
        &["inspect", "a"],
        &["stats", "--no-stream", "--json"],
        &["top", "a", "--json"],
        &["events", "--since", "1h", "--until", "0m", "--json"],
        &["why", "a", "--json"],
        &["info", "--json"],
        &["version", "--json"],
        &["volume", "ls", "--json"],
        &["images", "--json"],
        &["diff", "a", "--json"],
    ] {
        let out = ok(&server, args);
        for value in serde_json::Deserializer::from_str(&out).into_iter::<Value>() {
            guessed(&value.unwrap_or_else(|error| panic!("{args:?}: {error}\n{out}")), args[0], &mut found);
            read += 1;
        }
    }
    assert!(read >= 11, "{read}");
    assert!(found.is_empty(), "{found:#?}");
    server.finish().await;
}

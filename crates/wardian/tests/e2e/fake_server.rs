//! Commands against a server that means ill, or is none of ours.

use crate::support::WARDIAN;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::thread;

/// Commands that end by themselves do so long before.
const FOR_EVER: &str = "30";

/// A server on TCP that does this with each connection, given the first line of its request; where it listens.
pub fn fake(serve: impl Fn(&str, &mut TcpStream) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp:{}", listener.local_addr().unwrap());
    let serve = std::sync::Arc::new(serve);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let serve = serve.clone();
            thread::spawn(move || {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    if stream.read(&mut byte).unwrap_or(0) == 0 {
                        return;
                    }
                    head.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                serve(head.lines().next().unwrap_or_default(), &mut stream);
                // A connection that is closed with something unread is reset.
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            });
        }
    });
    address
}

pub fn wardian(address: &str, args: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.args([FOR_EVER, &WARDIAN]).args(args).env("WARDIAN_SOCKET", address).output().unwrap()
}

/// That a command has failed by itself, and was not held up.
fn has_failed(output: &Output) -> bool {
    output.status.code().is_some_and(|code| code != 0 && code != 124)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A command for each way in which the client talks: by whole replies, by a stream, by a connection that leaves HTTP.
const COMMANDS: [&[&str]; 3] = [&["ps"], &["cp", "c:/x", "-"], &["exec", "c", "true"]];

#[test]
fn replies_that_only_announce_another_one_do_not_hold_a_client() {
    let address =
        fake(|_, stream| while stream.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n").is_ok() {});
    for command in COMMANDS {
        let output = wardian(&address, command);
        assert!(has_failed(&output), "{command:?}: {}", said(&output));
        assert!(said(&output).contains("announce another one"), "{command:?}: {}", said(&output));
    }
}

#[test]
fn what_a_server_says_instead_of_an_answer_is_shown_in_short() {
    let address = fake(|_, stream| {
        let body = "\x1b[31mno \u{202e}way ".repeat(4 << 20);
        let head = format!("HTTP/1.1 500 Oh\r\nContent-Length: {}\r\n\r\n", body.len());
        let _ = stream.write_all((head + &body).as_bytes());
    });
    for command in COMMANDS {
        let output = wardian(&address, command);
        let text = said(&output);
        assert!(has_failed(&output), "{command:?}");
        assert!(text.len() < 64 << 10, "{command:?}: {} bytes", text.len());
        assert!(
            text.contains("status 500") && text.contains("no ") && text.contains("more bytes"),
            "{command:?}"
        );
        // It speaks HTTP, and no TLS is missing.
        assert!(!text.contains("HTTP") && !text.contains("--tls-ca"), "{command:?}: {text:.500}");
        assert!(!text.contains('\x1b') && !text.contains('\u{202e}'), "{command:?}");
    }
}

/// An error whose body does not come is told all the same.
#[test]
fn the_rest_of_an_error_is_not_waited_for() {
    let address = fake(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 503 Later\r\nContent-Length: 1000\r\n\r\nbusy");
        let _ = stream.read(&mut [0]);
    });
    for command in COMMANDS {
        let output = wardian(&address, command);
        assert!(has_failed(&output), "{command:?}: {}", said(&output));
        assert!(said(&output).contains("status 503: busy"), "{command:?}: {}", said(&output));
    }
}

#[test]
fn what_is_no_http_is_called_so() {
    // An alert of TLS.
    let address = fake(|_, stream| drop(stream.write_all(b"\x15\x03\x03\0\x02\x02\x32")));
    for command in COMMANDS {
        let output = wardian(&address, command);
        assert!(said(&output).contains("does not speak HTTP"), "{command:?}: {}", said(&output));
    }
}

/// Containers whose handles cannot be in a bulk request are asked for one by one; they may have gone since they were listed.
#[test]
fn containers_that_have_gone_since_they_were_listed_are_left_out() {
    let address = fake(|line, stream| {
        let path = line.split(' ').nth(1).unwrap_or_default();
        let (status, body) = match path.split('?').next().unwrap_or_default() {
            "/containers" => ("200 OK", r#"{"Handles":["a","gone","b,c","gone,too"]}"#),
            "/containers/bulk_info" => (
                "200 OK",
                r#"{"a":{"Info":{"State":"active"},"Err":null},"gone":{"Info":{},"Err":{"Type":"","Message":"unknown handle: gone"}}}"#,
            ),
            "/containers/bulk_metrics" => ("200 OK", r#"{"a":{"Metrics":{},"Err":null}}"#),
            "/containers/b%2Cc/info" => ("200 OK", r#"{"State":"active"}"#),
            "/containers/b%2Cc/metrics" => ("200 OK", "{}"),
            _ => (
                "404 Not Found",
                r#"{"Type":"ContainerNotFoundError","Message":"unknown handle: gone,too","Handle":"gone,too"}"#,
            ),
        };
        let reply =
            format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        let _ = stream.write_all(reply.as_bytes());
    });
    for args in [&["stats", "--no-stream"][..], &["stats", "--no-stream", "--json"]] {
        let output = wardian(&address, args);
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{args:?}: {}", said(&output));
        assert!(!out.contains("gone"), "{args:?}: {out}");
    }
}

/// An environment that is meant for a server on TCP is none of a command's that goes to a unix socket.
#[test]
fn certificates_in_the_environment_are_for_tcp_alone() {
    let run = |address: &str, names: &[&str], args: &[&str]| {
        let mut command = Command::new(WARDIAN);
        command
            .arg("ps")
            .args(args)
            .env("WARDIAN_SOCKET", address)
            .envs(names.iter().map(|name| (name, "/nowhere.pem")));
        command.output().unwrap()
    };
    let all = ["WARDIAN_TLS_CA", "WARDIAN_TLS_CLIENT_CERT", "WARDIAN_TLS_CLIENT_KEY"];
    for names in [&all[..], &all[..1], &all[1..]] {
        let output = run("unix:/nowhere.sock", names, &[]);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("no server answers at unix:/nowhere.sock"), "{}", said(&output));
    }
    assert!(said(&run("tcp:127.0.0.1:9", &all, &[])).contains("/nowhere.pem"));
    let output = run("tcp:127.0.0.1:9", &all[..1], &[]);
    assert!(output.status.code() == Some(2) && said(&output).contains("go together"), "{}", said(&output));
    // By a flag it is asked for, and cannot be had.
    let flags = ["--tls-ca", "/a", "--tls-cert", "/b", "--tls-key", "/c"];
    let output = run("unix:/nowhere.sock", &[], &flags);
    assert!(said(&output).contains("which has no TLS"), "{}", said(&output));
}

#[test]
fn an_exit_status_that_no_process_has_is_a_failure() {
    for (last, code) in [("256", 125), ("-1", 125), ("255", 255), ("0", 0)] {
        let address = fake(move |line, stream| {
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            let _ = stream.write_all(head.as_bytes());
            if !line.contains("/attaches/") {
                let told = format!(
                    "{{\"process_id\":\"p\",\"stream_id\":\"1\"}}\n{{\"process_id\":\"p\",\"exit_status\":{last}}}\n"
                );
                let _ = stream.write_all(told.as_bytes());
            }
        });
        let output = wardian(&address, &["exec", "c", "true"]);
        assert_eq!(output.status.code(), Some(code), "{last}: {}", said(&output));
        assert_eq!(said(&output).contains("no process ends with"), code == 125, "{}", said(&output));
    }
}

//! The monitor: the command, and its page in a real browser.

use crate::browser::Browser;
use crate::support::{STUCK, Server, WARDIAN, base, ended_within, signal};
use rustix::process::Signal;
use serde_json::json;
use std::future::Future;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::pin::Pin;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;
use wardian_history::{Bar, Machine, Run, Sample, Timeline, Wait};
use wardian_monitor::live::{Host, Live, News, Row, Seen};
use wardian_monitor::runs::Lines;
use wardian_monitor::{Hosts, Limits, Page, serve};
use wardian_needs::needs;

/// A run of the story, so many hours ago. `number` varies its figures, without chance.
fn run(mode: &str, number: usize, hours: f64, level: f64, kernel: &str) -> Run {
    let noise = f64::from(u32::try_from(number * 7919 % 101).unwrap()) / 101.0 - 0.5;
    let value = level * (1.0 + 0.1 * noise);
    let bar = |phase: &str, begin_ms: f64, ms: f64| Bar { phase: phase.into(), begin_ms, ms };
    let row = |at: usize| wardian_history::Row {
        name: format!("instance <b>{at}</b>"),
        bars: vec![
            bar("create", 0.0, 9.0),
            bar("stream_in", 9.0, value / 2.0),
            bar("pea", value / 2.0, value / 3.0),
        ],
    };
    let wait = Wait {
        row: Some("instance <b>1</b>".into()),
        who: "umount".into(),
        begin_ms: 20.0,
        ms: value / 4.0,
        place: "umount in wb_wait_for_completion".into(),
        on: Some("a sync".into()),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    Run {
        begun_ms: i64::try_from(now).unwrap() - (hours * 3_600_000.0) as i64,
        experiment: "scale".into(),
        mode: mode.into(),
        engine: "wardian".into(),
        version: "0.1.0".into(),
        parameters: [("to".to_owned(), "3".to_owned())].into(),
        machine: Machine { host: "wall".into(), kernel: kernel.into(), ..Machine::default() },
        headline: "waiting_ms".into(),
        figures: [("waiting_ms".to_owned(), value)].into(),
        complete: true,
        command: vec!["wardian".into(), "lab".into(), "scale".into()],
        timeline: Some(Timeline {
            length_ms: value,
            rows: (1..4).map(row).collect(),
            samples: [0.0, value]
                .map(|t_ms| Sample { t_ms, dirty_bytes: 5_000_000, writeback_bytes: 0 })
                .into(),
            marks: Vec::new(),
            waits: vec![wait],
        }),
        ..Run::default()
    }
}

/// Runs in both modes, one in three hours. The second half of those that stream is slower, with another kernel.
fn story(runs: usize) -> Vec<Run> {
    let hours = |at: usize| 3.0 * (runs - at) as f64;
    let stream = (0..runs).map(|at| match at < runs / 2 {
        true => run("stream", at, hours(at), 900.0, "6.1"),
        false => run("stream", at, hours(at), 1900.0, "6.18"),
    });
    stream.chain((0..runs).map(|at| run("oci", at, hours(at) - 0.5, 240.0, "6.18"))).collect()
}

fn command(listen: &str, more: &[&str]) -> Command {
    let mut command = Command::new(WARDIAN);
    command.args(["monitor", "--listen", listen]).args(more).env("WARDIAN_CONFIG", "").stdin(Stdio::null());
    command
}

fn said(mut command: Command) -> Output {
    command.output().unwrap()
}

/// A monitor, and the address of its page.
struct Monitor {
    child: Child,
    url: String,
}

impl Monitor {
    fn start(socket: &Path, history: &Path) -> Self {
        let (socket, history) = (socket.to_str().unwrap(), history.to_str().unwrap());
        let mut command = command("127.0.0.1:0", &["--socket", socket, "--runs", history]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let url = line.split(' ').find(|word| word.starts_with("http://")).expect("an address").to_owned();
        Self { child, url }
    }

    /// Ends it as Ctrl-C does.
    fn end(mut self) {
        signal(self.child.id(), Signal::INT);
        let status = ended_within(&mut self.child, STUCK).expect("the end of the monitor");
        assert_eq!(status.code(), Some(130));
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn save(runs: &[Run], path: &Path) {
    let lines: String = runs.iter().map(|run| serde_json::to_string(run).unwrap() + "\n").collect();
    std::fs::write(path, lines).unwrap();
}

#[test]
fn what_cannot_be_served_is_told() {
    let base = base();
    let history = base.path().join("runs.jsonl");
    let runs = ["--runs", history.to_str().unwrap()];
    let text = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = said(command(&address, &runs));
    let told = format!(
        "port {} of 127.0.0.1 is in use: choose another one with --listen",
        taken.local_addr().unwrap().port()
    );
    assert!(output.status.code() == Some(1) && text(&output).contains(&told), "{}", text(&output));
    let output = said(command("0.0.0.0:0", &runs));
    assert!(
        output.status.code() == Some(1) && text(&output).contains("--insecure-listen"),
        "{}",
        text(&output)
    );
    for bad in ["localhost", "127.0.0.1", "unix:/x"] {
        assert_eq!(said(command(bad, &runs)).status.code(), Some(2), "{bad}");
    }
    std::fs::write(&history, "{\"begun_ms\": 1\n").unwrap();
    let output = said(command("127.0.0.1:0", &runs));
    assert!(
        output.status.code() == Some(1) && text(&output).contains("runs.jsonl: line 1"),
        "{}",
        text(&output)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_clicked_through() {
    needs!(Chromium);
    let mut server = Server::start().await;
    let client = server.client();
    for handle in ["web-1", "web-2", "job<i>x<i>"] {
        server.create(handle).await;
    }
    let history = server.base().join("runs.jsonl");
    save(&story(60), &history);
    let monitor = Monitor::start(&server.socket(), &history);
    let mut page = Browser::start(1280, 900);
    page.prefer("light");
    page.open(&monitor.url);

    // What is live, and comes and goes meanwhile.
    page.until("document.querySelectorAll('#table tbody tr[data-id]').length === 3");
    page.until("document.querySelector('#status-text').textContent === 'live'");
    page.until("document.querySelector('#table').textContent.includes('job<i>x<i>')");
    assert_eq!(page.value("document.querySelectorAll('#table i:not(.meter)').length"), json!(0));
    page.until("[...document.querySelectorAll('#store dt')].some(name => name.textContent === 'Durable')");
    page.until("document.querySelector('.spark output').textContent.includes('B')");
    server.create("late").await;
    page.until("document.querySelector('#table').textContent.includes('late')");
    page.until("document.querySelector('#events [data-what=create] .ms').textContent.includes('ms')");
    client.destroy("late").await.unwrap();
    page.until("!document.querySelector('#table').textContent.includes('late')");
    page.until("document.querySelector('#events [data-what=destroy] .phases i')");

    // A filter, and a column to sort by.
    page.click("#filter");
    page.type_text("WEB-2");
    page.until("document.querySelectorAll('#table tbody tr[data-id]').length === 1");
    page.until("document.querySelector('#count').textContent === '1 of 3'");
    page.value(
        "(f => { f.value = ''; f.dispatchEvent(new Event('input')); })(document.querySelector('#filter'))",
    );
    let first = "document.querySelector('#table tbody tr[data-id] td').textContent";
    page.until(&format!("{first} === 'job<i>x<i>'"));
    page.click("#table th[data-key=handle] button");
    page.until(&format!("{first} === 'web-2'"));
    page.until(
        "document.querySelector('#table th[data-key=handle]').getAttribute('aria-sort') === 'descending'",
    );

    // The step, and the timeline of the run after it.
    page.until("document.querySelectorAll('#flags .flag').length === 1");
    page.until("document.querySelector('#steps .step .cause').textContent === 'kernel 6.1 → 6.18'");
    page.click("#flags .flag");
    page.until("document.querySelector('#run .timeline svg')");
    page.until("document.activeElement === document.querySelector('#run h2')");
    page.until("document.querySelector('#run').textContent.includes('instance <b>1</b>')");
    page.until("document.querySelector('#run .waits').textContent.includes('wb_wait_for_completion')");
    let step = page.value("location.hash.match(/run=(\\d+)/)[1]");
    assert_eq!(page.value("document.querySelector('.step').dataset.run"), step);
    page.press("Escape");
    page.until("document.querySelector('#run').hidden && !location.hash.includes('run=')");

    // The same by keys alone, and by a link.
    page.until("document.activeElement.id === 'plot'");
    page.press("Home");
    page.press("ArrowRight");
    page.until("document.querySelector('#plot-said').textContent.includes('stream')");
    page.press("Enter");
    page.until("document.querySelector('#run .timeline svg')");
    assert_ne!(page.value("location.hash.match(/run=(\\d+)/)[1]"), step);
    page.value("document.querySelector('.skip').focus()");
    page.press("Enter");
    page.until("document.activeElement.id === 'history'");
    page.open("about:blank");
    page.open(&format!("{}monitor/#run={}", monitor.url, step.as_str().unwrap()));
    page.until("document.querySelector('#run .timeline svg')");
    page.until("document.querySelector('#run h2').textContent.startsWith('scale · stream')");

    // Range, scale and theme.
    page.click("#range [data-range='7']");
    page.until("document.querySelector('#range [data-range=\"7\"]').getAttribute('aria-pressed') === 'true'");
    page.click("#scale [data-scale=log]");
    page.until("location.hash.includes('scale=log')");
    let paper = "getComputedStyle(document.body.parentElement).backgroundColor";
    let light = page.value(paper);
    page.click("#theme");
    page.click("#theme");
    page.until("document.documentElement.dataset.theme === 'dark'");
    assert_ne!(page.value(paper), light);
    page.click("#theme");
    page.until("document.documentElement.dataset.theme === 'auto'");
    assert_eq!(page.value(paper), light);
    page.prefer("dark");
    assert_ne!(page.value(paper), light);

    // A new run appears by itself.
    let shown = "document.querySelector('#legend small').textContent";
    let before = page.value(shown);
    save(&story(61), &history);
    page.until(&format!("{shown} !== {before}"));

    // Without a server the history is still there, and the server is found again.
    let complaints = page.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
    server.terminate().await;
    page.until("document.querySelector('#banner').textContent.includes('does not answer')");
    page.until("document.querySelectorAll('#steps .step').length > 0");
    server.restart().await;
    page.until("document.querySelector('#status-text').textContent === 'live'");
    page.until("document.querySelectorAll('#table tbody tr[data-id]').length === 3");
    let origin = monitor.url.clone();
    let elsewhere: Vec<_> =
        page.requests().iter().filter(|url| !url.starts_with(&origin) && *url != "about:blank").collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
    let complaints = page.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
    drop(page);
    monitor.end();
    for handle in ["web-1", "web-2", "job<i>x<i>"] {
        client.destroy(handle).await.unwrap();
    }
    server.finish().await;
}

/// Sends a request to a TCP address, and returns what has come when the answer ends, or when `enough` is in it.
fn asked(address: &str, lines: &str, enough: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(STUCK)).unwrap();
    stream.write_all(format!("{lines}\r\nconnection: close\r\n\r\n").as_bytes()).unwrap();
    let (mut text, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let read = stream.read(&mut piece).unwrap();
        text.extend_from_slice(&piece[..read]);
        let known = String::from_utf8_lossy(&text);
        if read == 0 || known.contains(enough) {
            return known.into_owned();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_serves_the_page_itself() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let tcp = format!("tcp:{address}");
    let mut server = Server::start_with(&["--listen", &tcp, "--insecure-listen"]).await;
    server.create("seen").await;
    let get = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nhost: {address}{more}");
    let status = |lines: &str| asked(&address, lines, "\r\n").split(' ').nth(1).unwrap().to_owned();
    let own = "\r\nsec-fetch-site: same-origin";
    assert_eq!(status(&get("/monitor/", own)), "200");
    assert_eq!(status(&get("/monitor", own)), "302");
    assert_eq!(status(&get("/monitor/series", "\r\norigin: http://evil.example")), "403");
    assert_eq!(status("GET /monitor/series HTTP/1.1\r\nhost: evil.example"), "421");
    assert_eq!(
        status(&format!("POST /monitor/series HTTP/1.1\r\nhost: {address}\r\ncontent-length: 0")),
        "405"
    );
    // The API itself is for no page, not even for this one.
    assert_eq!(status(&get("/containers", own)), "403");
    assert!(server.http("GET /monitor/series", "", "").starts_with("HTTP/1.1 200"));
    let events = asked(&address, &get("/monitor/events", own), "\"handle\":\"seen\"");
    assert!(events.contains("text/event-stream") && events.contains("\"handle\":\"seen\""), "{events}");
    // A listener does not keep the server from ending.
    let (listening, lines) = (address.clone(), get("/monitor/events", own));
    let listener = std::thread::spawn(move || asked(&listening, &lines, "\n\nnever"));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(server.terminate().await.success());
    assert!(listener.join().unwrap().contains("event: whole"));
    server.restart().await;
    server.client().destroy("seen").await.unwrap();
    server.finish().await;
}

/// A thousand containers, a third of which change each second.
struct Crowd;

impl Live for Crowd {
    fn tell<'a>(&'a self, to: mpsc::Sender<News>) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(async move {
            for look in 1_u64.. {
                let row = |at: u64| Row {
                    id: format!("{at:032x}"),
                    handle: format!("app-{at}"),
                    state: "running".into(),
                    memory: 8_000_000 + if (at + look).is_multiple_of(3) { look * 1000 } else { 0 },
                    memory_limit: 64 << 20,
                    ..Row::default()
                };
                let seen = Seen {
                    at_ms: 1_764_500_000_000 + look * 1000,
                    server: Some(wardian_monitor::live::Server::default()),
                    host: Some(Host::default()),
                    rows: (0..1000).map(row).collect(),
                    ..Seen::default()
                };
                if to.send(News::Seen(Box::new(seen))).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_runs_and_a_thousand_containers_are_shown() {
    needs!(Chromium);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let page = Page::new(Arc::new(Lines::of(story(5000))), Crowd);
    let hosts = Hosts::new(address, &[]);
    let serving = tokio::spawn(serve(listener, page, hosts, Limits::default(), std::future::pending()));
    let mut page = Browser::start(1920, 1080);
    // The first opening also starts the browser's own processes.
    for _ in 0..2 {
        page.open("about:blank");
        page.open(&format!("http://{address}/monitor/#range=all"));
        page.until("document.querySelector('#table').getAttribute('aria-rowcount') === '1001'");
        page.until(
            "[...document.querySelectorAll('#legend small')].map(n => n.textContent).join() === '5000,5000'",
        );
        page.until("performance.getEntriesByName('first-contentful-paint').length === 1");
    }
    let rows = page.value("document.querySelectorAll('#table tbody tr[data-id]').length");
    assert!((10..100).contains(&rows.as_i64().unwrap()), "{rows}");
    page.value("document.querySelector('#scroll').scrollTop = 1e6");
    page.until("document.querySelector('#table').textContent.includes('app-999')");
    // Frames while rows change and the graph is drawn anew.
    let frames = page.value(
        "new Promise(done => { const times = []; let last = performance.now();
         const frame = now => { times.push(now - last); last = now;
           if (times.length < 90) requestAnimationFrame(frame); else done(times); };
         document.querySelector('#scale [data-scale=log]').click(); requestAnimationFrame(frame); })",
    );
    let mut frames: Vec<f64> =
        frames.as_array().unwrap().iter().filter_map(serde_json::Value::as_f64).collect();
    frames.sort_unstable_by(f64::total_cmp);
    let paint = page.value("performance.getEntriesByName('first-contentful-paint')[0].startTime");
    // A measurement, for those who look: the test asserts nothing of it.
    eprintln!(
        "10,000 runs and 1,000 containers: first contentful paint after {paint} ms; frames: median {:.0} ms, slowest {:.0} ms",
        frames[frames.len() / 2],
        frames[frames.len() - 1]
    );
    let complaints = page.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
    drop(page);
    serving.abort();
}

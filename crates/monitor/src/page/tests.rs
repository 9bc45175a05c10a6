use super::*;
use crate::live::News;
use crate::runs::Lines;
use http_body_util::BodyExt as _;
use hyper::Request;
use hyper::header::HOST;
use tokio::sync::mpsc;
use wardian_history::{Run, Timeline};

struct Nothing;

impl Live for Nothing {
    fn tell<'a>(&'a self, _: mpsc::Sender<News>) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(std::future::pending())
    }
}

fn page() -> Arc<Page> {
    let run = |at: i64| Run {
        begun_ms: at,
        experiment: "<script>".into(),
        headline: "x_ms".into(),
        figures: [("x_ms".to_owned(), at as f64)].into(),
        timeline: Some(Timeline { length_ms: 5.0, ..Timeline::default() }),
        complete: true,
        ..Run::default()
    };
    Page::new(Arc::new(Lines::of(vec![run(1), run(2)])), Nothing)
}

async fn ask(page: &Page, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, Answer) {
    let mut request = Request::builder().method(method).uri(path).header(HOST, "127.0.0.1:8080");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let parts = request.body(()).unwrap().into_parts().0;
    let answer = page.answer(&parts, Some(&Hosts::new("127.0.0.1:8080".parse().unwrap(), &[]))).await;
    (answer.status().as_u16(), answer)
}

async fn body(answer: Answer) -> Bytes {
    answer.into_body().collect().await.unwrap().to_bytes()
}

#[tokio::test]
async fn the_page_and_its_files_are_answered_with_a_policy_and_a_tag() {
    let page = page();
    let (status, answer) = ask(&page, "GET", "/", &[]).await;
    assert_eq!((status, answer.headers()[LOCATION].to_str().unwrap()), (302, "/monitor/"));
    for path in ["/monitor/", "/monitor/main.js", "/monitor/style.css"] {
        let (status, answer) = ask(&page, "GET", path, &[]).await;
        assert_eq!(status, 200, "{path}");
        let headers = answer.headers();
        assert_eq!(headers[X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert!(headers[CONTENT_SECURITY_POLICY].to_str().unwrap().starts_with("default-src 'none'"));
        let tag = headers[ETAG].to_str().unwrap().to_owned();
        assert!(!body(answer).await.is_empty());
        let (status, answer) =
            ask(&page, "GET", path, &[("if-none-match", &format!("\"x\", W/{tag}"))]).await;
        assert_eq!((status, body(answer).await.len()), (304, 0));
    }
    for path in
        ["/monitor/../Cargo.toml", "/monitor/nope", "/x", "//monitor/", "/monitor/run", "/monitor/run?id=x"]
    {
        assert_eq!(ask(&page, "GET", path, &[]).await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn nothing_but_reading_is_answered() {
    let page = page();
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"] {
        let (status, answer) = ask(&page, method, "/monitor/series", &[]).await;
        assert_eq!((status, answer.headers()[ALLOW].to_str().unwrap()), (405, "GET, HEAD"), "{method}");
    }
    assert_eq!(ask(&page, "HEAD", "/monitor/events", &[]).await.0, 200);
    assert!(!page.hub.is_heard());
    let (status, _) = ask(&page, "GET", "/monitor/series", &[("origin", "http://evil.example")]).await;
    assert_eq!(status, 403);
    let (status, _) = ask(&page, "GET", "/monitor/events", &[("sec-fetch-site", "cross-site")]).await;
    assert_eq!((status, page.hub.is_heard()), (403, false));
}

#[tokio::test]
async fn series_points_and_runs_are_json() {
    let page = page();
    let json = |bytes: Bytes| serde_json::from_slice::<serde_json::Value>(&bytes).unwrap();
    let series = json(body(ask(&page, "GET", "/monitor/series", &[]).await.1).await);
    assert_eq!((&series[0]["runs"], &series[0]["experiment"]), (&2.into(), &"<script>".into()));
    let key = percent_encoding::utf8_percent_encode(
        series[0]["key"].as_str().unwrap(),
        percent_encoding::NON_ALPHANUMERIC,
    );
    let points = json(body(ask(&page, "GET", &format!("/monitor/points?series={key}"), &[]).await.1).await);
    assert_eq!((&points["at"][1], &points["value"][1]), (&2.into(), &2.0.into()));
    let (status, answer) = ask(&page, "GET", "/monitor/run?id=2", &[]).await;
    let run = json(body(answer).await);
    assert_eq!((status, &run["run"]["begun_ms"]), (200, &2.into()));
    assert!(run["picture"].as_str().unwrap().starts_with("<svg"), "{run}");
    let (status, answer) = ask(&page, "GET", "/monitor/run?id=3", &[]).await;
    assert!(status == 404 && json(body(answer).await)["error"].is_string());
}

#[tokio::test]
async fn events_begin_with_everything() {
    let page = page();
    let (_, answer) = ask(&page, "GET", "/monitor/events", &[]).await;
    assert_eq!(
        (answer.headers()[CONTENT_TYPE].to_str().unwrap(), page.hub.is_heard()),
        ("text/event-stream", true)
    );
    let mut body = answer.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(first.starts_with(b"event: whole\ndata: {"), "{first:?}");
    page.hub.runs_changed();
    let second = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(second, "event: runs\ndata: 1\n\n");
    drop(body);
    assert!(!page.hub.is_heard());
}

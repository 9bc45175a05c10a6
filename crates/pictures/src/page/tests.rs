use super::*;
use wardian_history::Timeline;

fn report() -> Page {
    let evil = "</script><script>alert(1)</script><!-- \u{2028}";
    let data = serde_json::json!({ "name": evil, "n": 1.5, "list": [evil, "&amp;"] }).to_string();
    let table = Table {
        head: vec!["who".into(), "ms".into()],
        rows: vec![vec![evil.into(), "1.5 ms".into()], vec!["5 evil".into(), "–".into()]],
    };
    let picture = Part::picture(|look| crate::timeline(&Timeline::default(), &look.clone().titled(evil)));
    Page {
        title: evil.into(),
        verdict: evil.into(),
        advice: vec![evil.into()],
        incomplete: Some(evil.into()),
        made: evil.into(),
        command: vec!["wardian".into(), "it's".into()],
        machine: vec![("kernel".into(), evil.into())],
        settings: vec![(evil.into(), "1".into())],
        sections: vec![Section {
            heading: evil.into(),
            parts: vec![Part::Text(evil.into()), Part::Lines(evil.into()), Part::Table(table), picture],
        }],
        data,
    }
}

#[test]
fn the_data_come_out_as_they_went_in() {
    let of = report();
    let html = page(&of);
    let begin = html.find("id=\"data\">").unwrap() + "id=\"data\">".len();
    let end = begin + html[begin..].find("</script>").unwrap();
    let read: serde_json::Value = serde_json::from_str(&html[begin..end]).unwrap();
    assert_eq!(read, serde_json::from_str::<serde_json::Value>(&of.data).unwrap());
    // The only script is the data, and it is the last thing.
    assert_eq!(html.matches("<script").count(), 1);
    assert_eq!(&html[end..], "</script>\n</body>\n</html>\n");
}

#[test]
fn it_needs_nothing_from_outside() {
    let html = page(&report());
    for word in
        ["http://", "https://", "src=", "href=", "@import", "url(", "<link", "<img", "<iframe", "style=\""]
    {
        let all = html.matches(word).count();
        // The name of the name space of SVG is no address that anybody asks.
        let names = html.matches("xmlns=\"http://www.w3.org/2000/svg\"").count();
        assert_eq!(all - if word == "http://" { names } else { 0 }, 0, "{word}");
    }
    let style = html.split("<style>").nth(1).unwrap().split("</style>").next().unwrap();
    let hash = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(style));
    assert!(html.contains(&format!("default-src 'none'; style-src 'sha256-{hash}';")));
    assert_eq!(html.matches("<style>").count(), 1);
}

#[test]
fn everything_is_there() {
    let html = page(&report());
    assert!(html.contains("<strong>Incomplete.</strong>"));
    assert!(html.contains("wardian &#39;it&#39;\\&#39;&#39;s&#39;"), "{html}");
    assert!(html.contains("class=\"wide\"") && html.contains("class=\"narrow\""));
    assert!(
        html.contains("<td class=\"n\">1.5 ms</td>")
            && html.contains("<th scope=\"col\" class=\"n\">ms</th>")
    );
    // A column is one or the other as a whole.
    assert!(html.contains("<td>5 evil</td>") && html.contains("<td class=\"n\">–</td>"));
    let plain = page(&Page::default());
    assert!(!plain.contains("<strong>Incomplete") && !plain.contains("Again"));
}

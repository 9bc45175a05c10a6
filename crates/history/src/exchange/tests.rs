use super::*;
use crate::Timeline;
use crate::store::tests::{place, run};

fn stores() -> (tempfile::TempDir, Store, Store) {
    let dir = place();
    let (one, other) = (dir.path().join("a"), dir.path().join("b"));
    let (one, other) = (Store::open(&one).unwrap(), Store::open(&other).unwrap());
    (dir, one, other)
}

#[test]
fn there_and_back() {
    for form in [Form::Csv, Form::Lines] {
        let (_dir, mut from, mut to) = stores();
        let timeline = (form == Form::Lines).then(|| Timeline { length_ms: 1.5, ..Timeline::default() });
        for n in 0..20 {
            from.append(&Run { timeline: timeline.clone(), ..run(n) }).unwrap();
        }
        let broken = Run {
            complete: false,
            error: Some("é, \"x\"\r\ny".into()),
            figures: [("rare, and \"odd\"".to_owned(), 1e-300)].into(),
            parameters: [("=a".to_owned(), "@SUM(1)".to_owned()), ("q".to_owned(), "\"\"".to_owned())].into(),
            mode: "=1+1".into(),
            revision: Some("'x".into()),
            version: String::new(),
            ..run(30)
        };
        from.append(&broken).unwrap();
        let mut text = Vec::new();
        assert_eq!(export(&from, &Filter::default(), form, &mut text).unwrap(), 21);
        let runs_formulas =
            String::from_utf8_lossy(&text).lines().any(|line| line.contains(",=") || line.contains(",@"));
        assert!(form == Form::Lines || !runs_formulas);
        let first = import(&mut to, &mut &text[..]).unwrap();
        assert_eq!(first, Imported { new: 21, known: 0 });
        assert_eq!(to.list(&Filter::default()).unwrap(), from.list(&Filter::default()).unwrap(), "{form:?}");
        assert_eq!(to.run(3).unwrap(), from.run(3).unwrap(), "{form:?}");
        // Again: nothing is there twice.
        assert_eq!(import(&mut to, &mut &text[..]).unwrap(), Imported { new: 0, known: 21 });
        assert_eq!(to.list(&Filter::default()).unwrap().len(), 21);
    }
}

#[test]
fn a_bad_line_is_named_and_nothing_is_imported() {
    let (_dir, mut from, mut to) = stores();
    for n in 0..3 {
        from.append(&run(n)).unwrap();
    }
    let text = |form| {
        let mut text = Vec::new();
        export(&from, &Filter::default(), form, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    };
    let (csv, lines) = (text(Form::Csv), text(Form::Lines));
    let mut refused = |text: &[u8], words: &str| {
        let said = import(&mut to, &mut &text[..]).unwrap_err().to_string();
        assert!(said.contains(words) && said.contains("nothing was imported"), "{words}: {said}");
        assert!(to.list(&Filter::default()).unwrap().is_empty());
    };
    refused(b"", "line 1: the file is empty");
    refused(b"a,b\n1,2\n", "line 1: the header has no column id");
    refused(
        csv.replace("figure.waiting_ms", "waiting").as_bytes(),
        "line 1: the header has the unknown column",
    );
    refused(csv.replace("figure.written_bytes", "figure.waiting_ms").as_bytes(), "twice");
    refused(&[csv.as_bytes(), b"4,5\n"].concat(), "it has 2 cells");
    refused(
        csv.replace("100.5", "many").as_bytes(),
        "figure.waiting_ms is \"many\"".trim_start_matches("figure."),
    );
    refused(csv.replace("100.5", "inf").as_bytes(), "its figure waiting_ms is inf");
    refused(csv.replace("true", "yes").as_bytes(), "complete is \"yes\"");
    refused(&[csv.as_bytes(), &[0xff, b'\n']].concat(), "line ");
    refused(&[lines.as_bytes(), b"{}\n"].concat(), "line 4: this is no run");
    refused(&[lines.as_bytes(), b"\n\n{\"id\":"].concat(), "line 6: this is no run");
    refused(lines.replacen("\"begun_ms\":2", "\"begun_ms\":-2", 1).as_bytes(), "line 3: begun_ms is -2");
    let long = "x".repeat(usize::try_from(LONGEST).unwrap() + 20_000);
    refused(format!("{lines}{{\"id\":\"{long}").as_bytes(), "line 4: it is longer than");
    refused(format!("{csv}\"{long}").as_bytes(), "it is longer than");
    let columns = (0..5000).map(|n| format!("figure.{n},")).collect::<String>();
    refused(format!("{columns}\n").as_bytes(), "more than 4000 columns");
}

//! Any text as an address with an app, and as the rest of one that holds a secret.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wardian_image::{App, Source};

const PRELOADED: &str = "preloaded+layer:";
const SECRET: &str = "Z9secret9Z";

fuzz_target!(|text: &str| {
    let preloaded = text.get(..PRELOADED.len()).is_some_and(|scheme| scheme.eq_ignore_ascii_case(PRELOADED));
    match App::parse(text) {
        Ok(Some((image, app))) => {
            if preloaded {
                let source = Source::parse(&image).expect("the base of a droplet is a tar file");
                assert!(source.to_uri() == image && image.starts_with("tar:///"));
            } else {
                assert!(text.starts_with(&image) && text[image.len()..].starts_with('?'));
            }
            // What is shown is an address again, unless the image holds what cannot be shown.
            let shown = app.to_string();
            if let Ok(Some((_, again))) = App::parse(&shown) {
                assert_eq!(again.to_string(), shown);
            }
        }
        Ok(None) => assert!(!preloaded),
        Err(_) => {}
    }
    if text.contains(SECRET) {
        return;
    }
    for uri in [
        format!("{PRELOADED}///r?layer=https://u:{SECRET}@h/?{SECRET}&{text}"),
        format!("x?app=https://h/?{SECRET}{text}&app_path=/"),
        format!("x?app_path=/&app=https://{SECRET}@h/%3f{SECRET}&{text}"),
    ] {
        let shown = match App::parse(&uri) {
            Ok(Some((_, app))) => format!("{app} {app:?}"),
            Ok(None) => panic!("it has an app"),
            Err(error) => format!("{error} {error:?}"),
        };
        assert!(!shown.contains(SECRET), "{shown}");
    }
});

//! Any text as an address with an app.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wardian_image::{App, Source};

fuzz_target!(|text: &str| {
    match App::parse(text) {
        Ok(Some((image, app))) => {
            if text.starts_with("preloaded+layer:") {
                let source = Source::parse(&image).expect("the base of a droplet is a tar file");
                assert!(source.to_uri() == image && image.starts_with("tar:///"));
            } else {
                assert!(text.starts_with(&image) && text[image.len()..].starts_with('?'));
            }
            let shown = app.to_string();
            // What is shown is an address again, unless the image holds what cannot be shown.
            if let Ok(Some((_, again))) = App::parse(&shown) {
                assert_eq!(again.to_string(), shown);
            }
            assert!(app.identity().is_none_or(|id| id.len() == 64));
        }
        Ok(None) => assert!(!text.starts_with("preloaded+layer:")),
        Err(error) => {
            let shown = format!("{error} {error:?}");
            // A value is never shown: what stands behind a signature's name, above all.
            if let Some((_, secret)) = text.split_once("?layer=https://h/?sig=0123456789") {
                assert!(secret.is_empty() || !shown.contains("0123456789"));
            }
        }
    }
});

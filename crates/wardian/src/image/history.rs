//! `wardian image history`.

use super::{layers_of, size};
use crate::print;
use crate::store::Place;
use anyhow::Result;
use serde::Deserialize;
use serde_json::json;
use wardian_store::{LayerInfo, Store};
use wardian_sys::text::clip;

/// The bytes of a command that fit beside the other columns.
const COMMAND: usize = 45;

/// The part of an image's config that is read here (OCI image config, `history`).
#[derive(Debug, Default, Deserialize)]
struct Config {
    #[serde(default)]
    history: Option<Vec<Step>>,
}

/// How one layer was made, or something that has made none.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
struct Step {
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    created_by: Option<String>,
    #[serde(default)]
    comment: Option<String>,
    #[serde(default)]
    empty_layer: bool,
}

/// Gives each step its layer, newest first. What an image says need not fit its layers: those without a step get an
/// empty one, and steps without a layer keep none.
fn joined(steps: Vec<Step>, layers: Vec<LayerInfo>) -> Vec<(Step, Option<LayerInfo>)> {
    let mut layers = layers.into_iter();
    let mut all: Vec<_> = steps
        .into_iter()
        .map(|step| {
            let layer = if step.empty_layer { None } else { layers.next() };
            (step, layer)
        })
        .collect();
    all.extend(layers.map(|layer| (Step::default(), Some(layer))));
    all.reverse();
    all
}

/// Prints how an image was made.
pub fn print(place: &Place, store: &Store, name: &str, quiet: bool, no_trunc: bool) -> Result<()> {
    let (image, documents) = store.read_image(name)?;
    let config: Config =
        documents.config.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let all = joined(config.history.unwrap_or_default(), layers_of(store, &image));
    if place.json {
        let entry = |(step, layer): &(Step, Option<LayerInfo>)| {
            json!({
                "layer": layer.as_ref().map(|layer| &layer.chain_id),
                "bytes": layer.as_ref().map(size),
                "created": step.created,
                "created_by": step.created_by,
                "comment": step.comment,
            })
        };
        return print::json(&all.iter().map(entry).collect::<Vec<_>>());
    }
    let id = |layer: &Option<LayerInfo>| {
        layer.as_ref().map_or_else(|| "-".to_owned(), |layer| print::short(&layer.chain_id).to_owned())
    };
    if quiet {
        return print::text(&all.iter().map(|(_, layer)| id(layer) + "\n").collect::<String>());
    }
    let row = |(step, layer): &(Step, Option<LayerInfo>)| {
        let command = step.created_by.as_deref().or(step.comment.as_deref()).unwrap_or("-");
        // One line for each: what is escaped would be longer than what it says.
        let command = command.split_whitespace().collect::<Vec<_>>().join(" ");
        let command = if no_trunc { command } else { short(&command) };
        let created = step.created.as_deref().map_or("-", |created| created.get(..10).unwrap_or(created));
        let bytes = layer.as_ref().map_or_else(|| "-".to_owned(), |layer| print::bytes(size(layer)));
        [id(layer), created.to_owned(), bytes, command]
    };
    let rows: Vec<_> = all.iter().map(row).collect();
    print::text(&print::table(["LAYER", "CREATED", "SIZE", "CREATED BY"], &rows))
}

fn short(command: &str) -> String {
    if command.len() <= COMMAND {
        return command.to_owned();
    }
    let clipped = clip(command, COMMAND - 1);
    format!("{}…", clipped.split('…').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_commands_are_cut() {
        assert_eq!(short("RUN true"), "RUN true");
        let cut = short(&"x".repeat(100));
        assert_eq!((cut.chars().count(), cut.ends_with('…')), (COMMAND, true));
        assert!(short(&"ä".repeat(100)).chars().count() <= COMMAND);
    }

    #[test]
    fn steps_get_their_layers() {
        let step =
            |by: &str, empty_layer| Step { created_by: Some(by.into()), empty_layer, ..Step::default() };
        let all = joined(vec![step("a", true), step("b", false)], Vec::new());
        let commands: Vec<_> =
            all.iter().map(|(step, layer)| (step.created_by.as_deref(), layer.is_some())).collect();
        assert_eq!(commands, [(Some("b"), false), (Some("a"), false)]);
    }
}

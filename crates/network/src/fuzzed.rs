//! What other programs answer, for the fuzz target `plugins`.

use crate::cni::{self, List};
use crate::plugin;
use crate::{Transport, Wanted};
use serde_json::{Map, Value};

/// Parses text as each of the answers of network plugins, and as a list of CNI plugins. Returns the errors, as a client
/// or the log gets them.
pub fn errors(text: &[u8]) -> Vec<String> {
    let mut errors = Vec::new();
    errors.extend(plugin::parse(text).err().map(|error| error.to_string()));
    let wanted = Wanted { transport: Transport::Tcp, host: 0, container: 80 };
    errors.extend(plugin::parse_ports(text, wanted).err().map(|error| error.to_string()));
    if let Ok(value) = serde_json::from_slice::<Value>(text) {
        errors.extend(cni::parse(&value).err());
    }
    errors.push(cni::failure(text, "said"));
    errors.extend(cni::versions(text).err());
    match List::parse(text) {
        Ok(list) => {
            for (place, name) in list.types().enumerate() {
                assert!(!name.contains('/') && !name.starts_with('.'), "{name}");
                let derived = list.derive(place, &Map::new(), None);
                assert!(derived.is_some_and(|derived| derived["name"] == list.name.as_str()));
            }
        }
        Err(error) => errors.push(error),
    }
    errors
}

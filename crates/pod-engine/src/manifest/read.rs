//! Text to one JSON tree, within bounds: the text is whatever a user, or an
//! attacker, sent. YAML aliases are followed, but every node they yield counts.

use super::{FieldError, ManifestError};
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::cell::Cell;
use std::fmt;

/// Largest stream of documents in bytes.
pub(super) const MAX_BYTES: usize = 3 << 20;
/// Most documents of a stream.
const MAX_DOCUMENTS: usize = 1024;
/// Most levels of maps and lists.
const MAX_DEPTH: usize = 64;
/// Most values of all documents, aliases expanded.
const MAX_NODES: usize = 100_000;
/// Most bytes of strings of all documents, aliases expanded.
const MAX_TEXT: usize = 4 << 20;

/// The trees of the documents in `text`, without their nulls: Kubernetes takes
/// a null for an absent field.
pub(super) fn read(text: &str) -> Result<Vec<Value>, ManifestError> {
    if text.len() > MAX_BYTES {
        return Err(ManifestError::TooLarge { bytes: text.len() });
    }
    let mut json_error = None;
    if text.trim_start().starts_with('{') {
        match read_json(text) {
            Ok(trees) => return Ok(trees),
            // YAML allows what begins like this, too.
            Err(error) => json_error = Some(error.to_string()),
        }
    }
    read_yaml(text).map_err(|error| match (error, json_error) {
        (ManifestError::Syntax(_), Some(json)) => ManifestError::Syntax(json),
        (error, _) => error,
    })
}

/// One value after the other.
fn read_json(text: &str) -> Result<Vec<Value>, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let budget = Budget::new();
    let mut trees = Vec::new();
    loop {
        let tree = budget.root().deserialize(&mut deserializer)?;
        trees.push(without_nulls(tree));
        // Says whether anything but white space is left.
        if deserializer.end().is_ok() {
            return Ok(trees);
        }
        if trees.len() >= MAX_DOCUMENTS {
            return Err(de::Error::custom(too_many()));
        }
    }
}

fn read_yaml(text: &str) -> Result<Vec<Value>, ManifestError> {
    let budget = Budget::new();
    let mut trees = Vec::new();
    for document in serde_norway::Deserializer::from_str(text) {
        let tree = budget
            .root()
            .deserialize(document)
            .map_err(|error| ManifestError::Syntax(error.to_string()))?;
        if tree.is_null() {
            continue;
        }
        if trees.len() >= MAX_DOCUMENTS {
            return Err(ManifestError::Syntax(too_many()));
        }
        trees.push(without_nulls(tree));
    }
    if trees.is_empty() {
        return Err(ManifestError::Empty);
    }
    Ok(trees)
}

fn too_many() -> String {
    format!("more than {MAX_DOCUMENTS} documents; give them in several parts")
}

/// Removes map entries that are null.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => map
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key, without_nulls(value)))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

/// What is left of the bounds.
struct Budget {
    nodes: Cell<usize>,
    text: Cell<usize>,
}

impl Budget {
    fn new() -> Self {
        Self {
            nodes: Cell::new(MAX_NODES),
            text: Cell::new(MAX_TEXT),
        }
    }

    fn root(&self) -> Node<'_> {
        Node {
            budget: self,
            depth: 0,
        }
    }
}

/// One value of the tree, about to be read.
#[derive(Clone, Copy)]
struct Node<'a> {
    budget: &'a Budget,
    depth: usize,
}

impl Node<'_> {
    fn count<E: de::Error>(&self, text: usize) -> Result<(), E> {
        let nodes = self.budget.nodes.get().checked_sub(1);
        let text = self.budget.text.get().checked_sub(text);
        let (Some(nodes), Some(text)) = (nodes, text) else {
            return Err(E::custom(
                "the manifest holds too many values (are there nested aliases?)",
            ));
        };
        self.budget.nodes.set(nodes);
        self.budget.text.set(text);
        Ok(())
    }

    fn child<E: de::Error>(&self) -> Result<Self, E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom(format_args!(
                "the manifest is nested more than {MAX_DEPTH} levels deep"
            )));
        }
        Ok(Self {
            budget: self.budget,
            depth: self.depth + 1,
        })
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON can express")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        self.count(0)?;
        Ok(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        self.count(0)?;
        Ok(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        self.count(0)?;
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        self.count(0)?;
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        self.count(0)?;
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number is infinite or no number"))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        self.count(value.len())?;
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.count(0)?;
        let child = self.child()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(child)? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.count(0)?;
        let child = self.child()?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key_seed(child)? {
            let Value::String(key) = key else {
                return Err(de::Error::custom(format_args!(
                    "the key {key} is no string; put it in quotes"
                )));
            };
            let value = entries.next_value_seed(child)?;
            if map.contains_key(&key) {
                return Err(de::Error::custom(format_args!(
                    "the key {key:?} occurs twice"
                )));
            }
            map.insert(key, value);
        }
        Ok(map.into())
    }
}

/// Reads `tree` as a `T`: what `T` does not know goes to `ignored` by path.
pub(super) fn typed<T: for<'de> serde::Deserialize<'de>>(
    tree: &Value,
    ignored: &mut Vec<Vec<String>>,
) -> Result<T, FieldError> {
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(tree, &mut track);
    let mut collect = |path: serde_ignored::Path<'_>| {
        let mut parts = Vec::new();
        path_parts(&path, &mut parts);
        ignored.push(parts);
    };
    let result = T::deserialize(serde_ignored::Deserializer::new(deserializer, &mut collect));
    result.map_err(|error| FieldError::new(path_text(&track.path()), error.to_string()))
}

fn path_parts(path: &serde_ignored::Path<'_>, parts: &mut Vec<String>) {
    use serde_ignored::Path;
    match path {
        Path::Root => {}
        Path::Seq { parent, index } => {
            path_parts(parent, parts);
            parts.push(index.to_string());
        }
        Path::Map { parent, key } => {
            path_parts(parent, parts);
            parts.push(key.clone());
        }
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => path_parts(parent, parts),
    }
}

/// `spec.containers[0].name`, as the API server writes it.
fn path_text(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let mut text = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => text.push_str(&format!("[{index}]")),
            other => {
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(&other.to_string());
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn yaml_and_json_give_the_same_tree() {
        let yaml = read("a: 1\nb: [x, null]\nc: ~\n").unwrap();
        let json = read(r#"{"a": 1, "b": ["x", null], "c": null}"#).unwrap();
        assert_eq!(yaml, json);
        assert_eq!(json, [serde_json::json!({"a": 1, "b": ["x", null]})]);
    }

    #[test]
    fn streams_are_read_whole() {
        let two = [serde_json::json!({"a": 1}), serde_json::json!({"b": 2})];
        assert_eq!(read("a: 1\n---\n---\nb: 2\n---\n").unwrap(), two);
        assert_eq!(read("{\"a\": 1}\n{\"b\": 2} ").unwrap(), two);
        assert!(matches!(read(""), Err(ManifestError::Empty)));
        assert!(matches!(read("---\n"), Err(ManifestError::Empty)));
        for text in ["{\"a\": 1} }", "{\"a\": 1} {"] {
            assert!(
                matches!(read(text), Err(ManifestError::Syntax(_))),
                "{text}"
            );
        }
        for text in ["a: 1\n---\n".repeat(1025), "{}".repeat(1025)] {
            assert!(matches!(read(&text), Err(ManifestError::Syntax(_))));
        }
    }

    #[test]
    fn alias_bomb_is_refused() {
        let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..9 {
            let items = vec![format!("*a{}", level - 1); 10].join(",");
            text.push_str(&format!("a{level}: &a{level} [{items}]\n"));
        }
        assert!(matches!(read(&text), Err(ManifestError::Syntax(_))));
    }

    #[test]
    fn depth_bomb_is_refused() {
        for text in [
            "[".repeat(10_000),
            "{\"a\":".repeat(10_000),
            "- ".repeat(10_000),
        ] {
            assert!(
                matches!(read(&text), Err(ManifestError::Syntax(_))),
                "{}",
                &text[..9]
            );
        }
    }

    #[test]
    fn size_twice_keys_and_odd_keys_are_refused() {
        let long = format!("a: {}", "x".repeat(MAX_BYTES));
        assert!(matches!(read(&long), Err(ManifestError::TooLarge { .. })));
        assert!(matches!(read("a: 1\na: 2"), Err(ManifestError::Syntax(_))));
        assert!(matches!(read("1: 2"), Err(ManifestError::Syntax(_))));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[-a-c{}\\[\\]:,&*!|> \n\"'#%0-9]{0,200}") {
            let _ = read(&text);
        }
    }
}

//! What an operator tells a guest: one JSON object of limited size.

use std::sync::Arc;

use serde_json::{Map, Value};

/// A JSON object, as it may be put into the store or merged into what is there.
///
/// Nested no deeper than serde_json reads (128 levels), which bounds the recursion of everything done with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Document(Map<String, Value>);

impl Document {
    /// As JSON.
    pub fn to_text(&self) -> String {
        Value::Object(self.0.clone()).to_string()
    }

    /// The object that a JSON text is, if it is one.
    pub fn of_text(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok().map(Self)
    }
}

impl From<Map<String, Value>> for Document {
    fn from(object: Map<String, Value>) -> Self {
        Self(object)
    }
}

/// Why the store does not take something. The texts are those of the v1 contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It would be larger than the limit.
    #[error("The MMDS patch request doesn't fit.")]
    TooLarge,
    /// There is nothing to merge into.
    #[error("The MMDS data store is not initialized.")]
    NotInitialized,
}

/// How a value is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// As JSON.
    Json,
    /// As EC2's metadata service does: a string as it is, an object as the list of its keys.
    Text,
}

/// Why a value is not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unshown {
    /// There is none at this path.
    NotFound,
    /// It is neither a string nor an object, and asked for as text.
    NotText,
}

/// The store.
#[derive(Debug, Clone)]
pub struct Store {
    /// Null until something is put.
    root: Value,
    /// The whole of it, serialised. Shared with the answers that show it.
    text: Arc<[u8]>,
    limit: usize,
}

impl Store {
    /// An empty store for at most `limit` bytes of JSON text.
    pub fn new(limit: usize) -> Self {
        Self { root: Value::Null, text: Arc::from(*b"null"), limit }
    }

    /// Whether anything was ever put.
    pub fn is_initialized(&self) -> bool {
        !self.root.is_null()
    }

    /// Replaces everything.
    pub fn put(&mut self, document: Document) -> Result<(), StoreError> {
        self.replace(document.0)
    }

    /// The same, and returns the store as it was.
    pub fn exchange(&mut self, document: Document) -> Result<Self, StoreError> {
        let before = self.clone();
        self.put(document).map(|()| before)
    }

    /// Merges `patch` into what is there (RFC 7396).
    pub fn patch(&mut self, patch: Document) -> Result<(), StoreError> {
        let Value::Object(mut object) = self.root.clone() else { return Err(StoreError::NotInitialized) };
        merge(&mut object, patch.0);
        self.replace(object)
    }

    fn replace(&mut self, object: Map<String, Value>) -> Result<(), StoreError> {
        let root = Value::Object(object);
        let text = root.to_string();
        if text.len() > self.limit {
            return Err(StoreError::TooLarge);
        }
        self.text = text.into_bytes().into();
        self.root = root;
        Ok(())
    }

    /// Everything, as JSON; an empty object if nothing was put.
    pub fn json(&self) -> Arc<[u8]> {
        if self.is_initialized() { self.text.clone() } else { Arc::from(*b"{}") }
    }

    /// The value at `path`: a JSON pointer (RFC 6901), in which repeated slashes count as one and one at the end does not count.
    pub fn get(&self, path: &str, format: Format) -> Result<Arc<[u8]>, Unshown> {
        let pointer = pointer(path);
        let value = self.root.pointer(&pointer).ok_or(Unshown::NotFound)?;
        Ok(match (format, value) {
            (Format::Json, _) if pointer.is_empty() => self.text.clone(),
            (Format::Json, value) => value.to_string().into_bytes().into(),
            (Format::Text, Value::String(text)) => text.as_bytes().into(),
            (Format::Text, Value::Object(object)) => list(object).into_bytes().into(),
            (Format::Text, _) => return Err(Unshown::NotText),
        })
    }
}

fn pointer(path: &str) -> String {
    let mut pointer = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !pointer.ends_with('/') {
            pointer.push(c);
        }
    }
    if pointer.ends_with('/') {
        pointer.pop();
    }
    pointer
}

/// One key a line; those of objects end with a slash.
fn list(object: &Map<String, Value>) -> String {
    let mut text = String::new();
    for (key, value) in object {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(key);
        if value.is_object() {
            text.push('/');
        }
    }
    text
}

fn merge(target: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.remove(&key);
            }
            Value::Object(part) => {
                let place = target.entry(key).or_insert(Value::Null);
                if !place.is_object() {
                    *place = Value::Object(Map::new());
                }
                if let Value::Object(object) = place {
                    merge(object, part);
                }
            }
            value => {
                target.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn document(value: Value) -> Document {
        match value {
            Value::Object(object) => Document(object),
            other => panic!("{other} is no object"),
        }
    }

    fn store(value: Value) -> Store {
        let mut store = Store::new(51_200);
        store.put(document(value)).unwrap();
        store
    }

    fn shown(store: &Store, path: &str, format: Format) -> Result<String, Unshown> {
        store.get(path, format).map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[test]
    fn an_empty_store_shows_nothing_and_takes_no_patch() {
        let mut store = Store::new(100);
        assert_eq!(&*store.json(), b"{}");
        assert_eq!(shown(&store, "/", Format::Json).unwrap(), "null");
        assert_eq!(shown(&store, "/", Format::Text), Err(Unshown::NotText));
        assert_eq!(shown(&store, "/a", Format::Json), Err(Unshown::NotFound));
        assert_eq!(store.patch(document(json!({"a": 1}))), Err(StoreError::NotInitialized));
        assert!(!store.is_initialized());
        store.put(document(json!({}))).unwrap();
        store.patch(document(json!({"a": 1}))).unwrap();
        assert_eq!(&*store.json(), br#"{"a":1}"#);
    }

    #[test]
    fn values_are_found_by_path() {
        let store = store(json!({
            "latest": {"meta-data": {"ami-id": "ami-1", "list": ["x", {"y": 1}], "none": "", "half": 0.5, "no": null}},
            "a/b": {"~": "tilde"},
        }));
        let json = |path| shown(&store, path, Format::Json);
        let text = |path| shown(&store, path, Format::Text);
        assert_eq!(json("/"), Ok(String::from_utf8(store.json().to_vec()).unwrap()));
        assert_eq!(json("//latest///meta-data//ami-id/"), Ok("\"ami-1\"".to_owned()));
        assert_eq!(text("/latest/meta-data/ami-id"), Ok("ami-1".to_owned()));
        assert_eq!(text("/latest/meta-data/"), Ok("ami-id\nhalf\nlist\nno\nnone".to_owned()));
        assert_eq!(text("/"), Ok("a/b/\nlatest/".to_owned()));
        assert_eq!(text("/latest/meta-data/none"), Ok(String::new()));
        assert_eq!(text("/latest/meta-data/list/0"), Ok("x".to_owned()));
        assert_eq!(text("/a~1b/~0"), Ok("tilde".to_owned()));
        assert_eq!(json("/latest/meta-data/list/1"), Ok("{\"y\":1}".to_owned()));
        for path in ["/latest/meta-data/half", "/latest/meta-data/list", "/latest/meta-data/no"] {
            assert_eq!(text(path), Err(Unshown::NotText), "{path}");
        }
        for path in ["/latest/meta-data/list/2", "/latest/meta-data/list/00", "/latest/x", "/latest/meta-data/ami-id/x"]
        {
            assert_eq!(json(path), Err(Unshown::NotFound), "{path}");
        }
    }

    #[test]
    fn the_limit_holds_after_every_change_and_a_refusal_changes_nothing() {
        // {"a":""} is eight bytes.
        let mut store = Store::new(20);
        store.put(document(json!({"a": "123456789012"}))).unwrap();
        let full = store.json();
        assert_eq!(full.len(), 20);
        assert_eq!(store.put(document(json!({"a": "1234567890123"}))), Err(StoreError::TooLarge));
        assert_eq!(store.patch(document(json!({"b": null, "a": "1234567890123"}))), Err(StoreError::TooLarge));
        assert_eq!(store.patch(document(json!({"b": 1}))), Err(StoreError::TooLarge));
        assert_eq!(store.json(), full);
        // As characters arrive, not as they are written: é is two bytes.
        assert_eq!(store.patch(document(json!({"a": "123456789éé"}))), Err(StoreError::TooLarge));
        store.patch(document(json!({"a": null, "b": 1}))).unwrap();
        assert_eq!(&*store.json(), br#"{"b":1}"#);
    }

    #[test]
    fn merging_is_what_rfc_7396_says() {
        // Appendix A, as far as both sides are objects.
        for (target, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            let mut store = store(target.clone());
            store.patch(document(patch.clone())).unwrap();
            assert_eq!(store.root, result, "{target} patched with {patch}");
        }
    }

    /// MergePatch, word for word from RFC 7396 section 2.
    fn merge_patch(target: Value, patch: &Value) -> Value {
        let Value::Object(patch) = patch else { return patch.clone() };
        let mut target = match target {
            Value::Object(target) => target,
            _ => Map::new(),
        };
        for (name, value) in patch {
            if value.is_null() {
                target.remove(name);
            } else {
                let old = target.remove(name).unwrap_or(Value::Null);
                target.insert(name.clone(), merge_patch(old, value));
            }
        }
        Value::Object(target)
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-c\u{e9}\"\\\\]{0,4}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::vec(("[a-d]", inner), 0..4)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    fn any_object() -> impl Strategy<Value = Value> {
        prop::collection::vec(("[a-d]", any_value()), 0..5).prop_map(|pairs| Value::Object(pairs.into_iter().collect()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn patches_do_what_a_naive_merge_does(first in any_object(), patches in prop::collection::vec(any_object(), 1..5)) {
            let mut expected = first.clone();
            let mut store = store(first);
            for patch in patches {
                expected = merge_patch(expected, &patch);
                store.patch(document(patch)).unwrap();
                prop_assert_eq!(&store.root, &expected);
                prop_assert_eq!(store.json().to_vec(), serde_json::to_vec(&expected).unwrap());
            }
        }

        #[test]
        fn the_store_never_outgrows_its_limit(limit in 2usize..80, objects in prop::collection::vec((any::<bool>(), any_object()), 1..6)) {
            let mut store = Store::new(limit);
            for (patch, object) in objects {
                let before = store.json();
                let outcome = if patch { store.patch(document(object)) } else { store.put(document(object)) };
                prop_assert!(store.json().len() <= limit);
                prop_assert!(outcome.is_ok() || store.json() == before);
            }
        }

        #[test]
        fn no_path_breaks_it(value in any_object(), path in "[/a-d~01]{0,12}") {
            let store = store(value);
            let _ = store.get(&path, Format::Json);
            let _ = store.get(&path, Format::Text);
        }
    }
}

//! What `$ref` refers to, within the schema alone: JSON pointers, anchors, and identifiers of embedded schemas (JSON Schema
//! 2020-12, core, section 8). Nothing is fetched.

use std::collections::HashMap;

use serde_json::Value;

use super::{Holds, holds};

/// Places of identifiers and anchors in a schema.
pub(super) struct References {
    /// JSON pointers by identifier, or by identifier, `#` and anchor.
    places: HashMap<String, String>,
    /// Identifiers by JSON pointer, of those that have one of their own.
    bases: HashMap<String, String>,
}

impl References {
    pub(super) fn new(root: &Value) -> Self {
        let mut references = References { places: HashMap::new(), bases: HashMap::new() };
        references.places.insert(String::new(), String::new());
        references.visit(root, "", "");
        references
    }

    fn visit(&mut self, schema: &Value, pointer: &str, base: &str) {
        let Some(members) = schema.as_object() else { return };
        let own = members.get("$id").and_then(Value::as_str).map(|id| join(base, id));
        let base = own.as_deref().map_or(base, |own| own.split('#').next().unwrap_or_default());
        if own.is_some() {
            self.places.entry(base.to_owned()).or_insert_with(|| pointer.to_owned());
            self.bases.insert(pointer.to_owned(), base.to_owned());
        }
        for keyword in ["$anchor", "$dynamicAnchor"] {
            if let Some(anchor) = members.get(keyword).and_then(Value::as_str) {
                self.places.entry(format!("{base}#{anchor}")).or_insert_with(|| pointer.to_owned());
            }
        }
        for (keyword, value) in members {
            let at = format!("{pointer}/{}", escape(keyword));
            match (holds(keyword), value) {
                (Holds::Nothing, _) => {}
                (Holds::Named, Value::Object(named)) => {
                    named.iter().for_each(|(name, schema)| {
                        self.visit(schema, &format!("{at}/{}", escape(name)), base)
                    });
                }
                (_, Value::Array(list)) => {
                    list.iter()
                        .enumerate()
                        .for_each(|(i, schema)| self.visit(schema, &format!("{at}/{i}"), base));
                }
                (_, schema) => self.visit(schema, &at, base),
            }
        }
    }

    /// The identifier that a reference at `pointer` starts from.
    fn base_of(&self, pointer: &str) -> &str {
        let mut prefix = pointer;
        loop {
            if let Some(base) = self.bases.get(prefix) {
                return base;
            }
            match prefix.rfind('/') {
                Some(end) => prefix = prefix.get(..end).unwrap_or_default(),
                None => return "",
            }
        }
    }

    /// The JSON pointer of what a reference in the schema at `pointer` refers to.
    pub(super) fn resolve(&self, reference: &str, pointer: &str) -> Option<String> {
        let whole = join(self.base_of(pointer), reference);
        let (document, fragment) = whole.split_once('#').unwrap_or((&whole, ""));
        let fragment = percent_decoded(fragment)?;
        if fragment.is_empty() || fragment.starts_with('/') {
            return Some(format!("{}{fragment}", self.places.get(document)?));
        }
        self.places.get(&format!("{document}#{fragment}")).cloned()
    }
}

/// A name as a part of a JSON pointer (RFC 6901, section 3).
pub(super) fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// A reference from a base (RFC 3986, section 5.2, as far as schemas go: no `..`).
fn join(base: &str, reference: &str) -> String {
    let has_scheme = reference.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    });
    if has_scheme {
        return reference.to_owned();
    }
    let base = base.split('#').next().unwrap_or_default();
    if reference.is_empty() || reference.starts_with('#') {
        return format!("{base}{reference}");
    }
    // Scheme and authority, then the path.
    let path_start =
        base.find("://").map_or(0, |at| base[at + 3..].find('/').map_or(base.len(), |slash| at + 3 + slash));
    if reference.starts_with('/') {
        return format!("{}{reference}", base.get(..path_start).unwrap_or_default());
    }
    let folder = base.rfind('/').filter(|&slash| slash >= path_start).map_or(path_start, |slash| slash + 1);
    let slash = if folder == path_start && path_start > 0 { "/" } else { "" };
    format!("{}{slash}{}", base.get(..folder).unwrap_or_default(), reference.trim_start_matches("./"))
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn references_from_bases() {
        for (base, reference, want) in [
            ("", "#/a", "#/a"),
            ("http://x.org/a/b.json", "c.json#d", "http://x.org/a/c.json#d"),
            ("http://x.org/a/b.json", "/c.json", "http://x.org/c.json"),
            ("http://x.org", "c.json", "http://x.org/c.json"),
            ("http://x.org/a/b.json#f", "", "http://x.org/a/b.json"),
            ("http://x.org/a/", "urn:uuid:1", "urn:uuid:1"),
            ("a/b", "./c", "a/c"),
        ] {
            assert_eq!(join(base, reference), want);
        }
    }

    #[test]
    fn what_is_within_the_schema_is_found() {
        let schema = json!({
            "$id": "http://x.org/root.json",
            "$defs": {
                "a/b": {"$anchor": "first"},
                "c": {"$id": "other.json", "$defs": {"d": {"$anchor": "second"}, "e~f": {}}},
            },
            "enum": [{"$id": "http://x.org/no.json"}],
        });
        let references = References::new(&schema);
        for (reference, at, want) in [
            ("#", "", Some("")),
            ("#first", "", Some("/$defs/a~1b")),
            ("root.json#first", "/$defs/c", Some("/$defs/a~1b")),
            ("#first", "/$defs/c/$defs/d", None),
            ("other.json#second", "", Some("/$defs/c/$defs/d")),
            ("#/$defs/e~0f", "/$defs/c", Some("/$defs/c/$defs/e~0f")),
            ("#/$defs/a~1b", "", Some("/$defs/a~1b")),
            ("http://x.org/no.json", "", None),
            ("http://elsewhere.org/x.json", "", None),
        ] {
            assert_eq!(references.resolve(reference, at).as_deref(), want, "{reference} at {at}");
        }
    }
}

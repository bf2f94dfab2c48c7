//! The documents of metadata services: plain texts, JSON and YAML, and what is picked from them.

use serde_json::Value;

use crate::base::yaml::{self, text_of};

/// Picks texts from a document. An empty `pointer` takes all of it; else the document is JSON or YAML, and each part of the
/// pointer is a key, a number, `*` for all elements, or `[key=value]` for those elements whose key has this value:
/// `/network/addresses/[public=true]/address`. What is absent, null or empty is left out.
///
/// # Errors
/// The document is neither JSON nor YAML.
pub(super) fn pick(text: &str, pointer: &str) -> Result<Vec<String>, String> {
    if pointer.is_empty() {
        let text = text.trim();
        return Ok(if text.is_empty() {
            Vec::new()
        } else {
            vec![text.to_owned()]
        });
    }
    let document = yaml::parse(text)?;
    let mut found = vec![&document];
    for part in pointer.trim_start_matches('/').split('/') {
        found = (found.into_iter())
            .flat_map(|value| step(value, part))
            .collect();
    }
    let texts = found.into_iter().filter_map(text_of);
    Ok(texts.filter(|text| !text.is_empty()).collect())
}

fn step<'a>(value: &'a Value, part: &str) -> Vec<&'a Value> {
    let condition = part
        .strip_prefix('[')
        .and_then(|part| part.strip_suffix(']')?.split_once('='));
    match value {
        Value::Object(object) if part == "*" => object.values().collect(),
        Value::Object(object) => object.get(part).into_iter().collect(),
        Value::Array(elements) if part == "*" => elements.iter().collect(),
        Value::Array(elements) => match condition {
            Some((key, wanted)) => elements
                .iter()
                .filter(|element| element.get(key).and_then(text_of).as_deref() == Some(wanted))
                .collect(),
            None => (part.parse().ok())
                .and_then(|index: usize| elements.get(index))
                .into_iter()
                .collect(),
        },
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shortened from Hetzner's documentation of its server metadata.
    const HETZNER: &str = "\
availability-zone: hel1-dc2
hostname: my-server
instance-id: 42
local-ipv4: ''
network-config:
    version: 1
    config:
        - type: physical
          name: eth0
          mac_address: 96:00:00:08:19:da
          subnets:
            - type: dhcp
              ipv4: true
            - type: static
              address: 2a01:4f8:c17:e6f::1/64
              ipv6: true
              gateway: fe80::1
public-keys:
    - ssh-ed25519 AAAAC3Nz me@laptop
";

    #[test]
    fn values_are_picked_from_json_and_yaml() {
        let json = r#"{"a":{"b":[{"ip":"10.0.0.1","public":false},{"ip":"1.2.3.4","public":true}]},"n":7,"no":null,"e":""}"#;
        for (text, pointer, expected) in [
            (" 10.0.0.1\n", "", &["10.0.0.1"][..]),
            ("\n", "", &[]),
            (json, "/a/b/*/ip", &["10.0.0.1", "1.2.3.4"]),
            (json, "/a/b/[public=true]/ip", &["1.2.3.4"]),
            (json, "/a/b/1/ip", &["1.2.3.4"]),
            (json, "/a/b/7/ip", &[]),
            (json, "/n", &["7"]),
            (json, "/no", &[]),
            (json, "/e", &[]),
            (json, "/a", &[]),
            (HETZNER, "/hostname", &["my-server"]),
            (HETZNER, "/instance-id", &["42"]),
            (HETZNER, "/local-ipv4", &[]),
            (
                HETZNER,
                "/network-config/config/*/subnets/[ipv6=true]/address",
                &["2a01:4f8:c17:e6f::1/64"],
            ),
            (
                HETZNER,
                "/public-keys/*",
                &["ssh-ed25519 AAAAC3Nz me@laptop"],
            ),
            (
                "- ip: 10.0.0.2\n- ip: 10.128.0.2\n",
                "/*/ip",
                &["10.0.0.2", "10.128.0.2"],
            ),
        ] {
            assert_eq!(pick(text, pointer).unwrap(), expected, "{pointer}");
        }
    }

    #[test]
    fn bad_documents_are_errors_and_deep_ones_do_not_overflow() {
        for (text, expected) in [
            ("{\"a\":", "bad JSON: EOF"),
            ("a: [1\nb: c", "bad YAML: "),
            (&"[".repeat(100_000), "bad JSON: "),
            (&format!("a: {}", "[".repeat(100_000)), "it nests too deep"),
            (&"- ".repeat(100_000), "it nests too deep"),
            (
                &format!("a:\n{}b: 1", " ".repeat(100_000)),
                "it nests too deep",
            ),
        ] {
            let error = pick(text, "/a").unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(pick("just a text", "/a"), Ok(Vec::new()));
        assert_eq!(pick("", "/a"), Ok(Vec::new()));
    }
}

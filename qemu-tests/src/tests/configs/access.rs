//! The configuration that a machine of these tests boots from: those under test, merged with the run's key.

use serde_json::{Value, json};

use crate::description::data_url;

/// Merged into a machine's configuration by `remote-merge.ign`.
pub(super) const REMOTE: &[u8] = include_bytes!("../../../configs/served/remote.ign");
/// Fetched by `files.ign`.
const TOOL: &[u8] = include_bytes!("../../../configs/served/transmogrify.gz");
/// Fetched by `refused/newer-remote.ign`, and not translated then.
const NEWER: &[u8] = include_bytes!("../../../configs/served/newer.ign");
/// Users that the harness logs in as, beside `core`. Those of `users.ign` have keys of their own as well.
pub(super) const USERS: [&str; 2] = ["mira", "tomas"];

/// A configuration that merges `texts`, in this order, and lets the run's key in.
pub(super) fn merged(texts: &[&str], public_key: &str) -> String {
    let mut merge: Vec<Value> = texts.iter().map(|text| source(text)).collect();
    merge.push(source(&access(texts, public_key)));
    json!({"ignition": {"version": "3.3.0", "config": {"merge": merge}}}).to_string()
}

/// What a machine finds by HTTP. `replacement` is what `remote-replace.ign` is replaced by.
pub(super) fn served(replacement: &str) -> Vec<(String, Vec<u8>)> {
    vec![
        ("remote.ign".into(), REMOTE.into()),
        ("transmogrify.gz".into(), TOOL.into()),
        ("newer.ign".into(), NEWER.into()),
        ("replacement.ign".into(), replacement.into()),
    ]
}

/// The run's key for `core`, and for those of [`USERS`] that `texts` make: a user that is named is made.
fn access(texts: &[&str], public_key: &str) -> String {
    let made = |user: &&str| {
        texts
            .iter()
            .any(|text| text.contains(&format!("\"name\": \"{user}\"")))
    };
    let users: Vec<Value> = ["core"]
        .into_iter()
        .chain(USERS.into_iter().filter(made))
        .map(|name| json!({"name": name, "sshAuthorizedKeys": [public_key]}))
        .collect();
    json!({"ignition": {"version": "3.0.0"}, "passwd": {"users": users}}).to_string()
}

/// A configuration to merge.
fn source(text: &str) -> Value {
    json!({"source": data_url(text)})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_merged_in_order_and_the_key_is_let_in() {
        let config = merged(&["{\"a\": 1}", "{}"], "ssh-ed25519 AAAA x");
        let config: Value = serde_json::from_str(&config).unwrap();
        let merge = config["ignition"]["config"]["merge"].as_array().unwrap();
        assert_eq!(merge.len(), 3);
        assert_eq!(merge[0]["source"], "data:,%7B%22a%22%3A%201%7D");
    }

    #[test]
    fn only_users_that_are_made_get_a_key() {
        let users = |text: &str| access(&[text], "key").matches("sshAuthorizedKeys").count();
        assert_eq!(users("{}"), 1);
        assert_eq!(users(include_str!("../../../configs/users.ign")), 3);
    }
}

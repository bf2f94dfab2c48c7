//! Settings of the Kubernetes lease store.

use regex_lite::Regex;

/// The allowed prefixes of annotations, for messages.
pub(super) const ANNOTATION_PREFIX: &str = "a domain name of at least two parts, and after a slash a name or nothing, in lower case: \
     flannel.alpha.coreos.com or org.com/blue";

/// The allowed names of a node, for messages.
pub(super) const NODE_NAME: &str =
    "the name of a node: 1 to 253 lower-case letters, digits, '-' or '.'";

/// The part of an annotation's name that comes before `backend-data` and the others, as flannel completes it; `None` if
/// flannel refuses it (`pkg/subnet/kube/annotations.go`).
///
/// flannel does not check how the prefix begins, so that `UPPER.org.com` passes there and the API server then refuses
/// the annotation; here the whole of it is checked.
pub(super) fn annotation_prefix(text: &str) -> Option<String> {
    let mut prefix = text.to_owned();
    if !prefix.contains('/') {
        prefix.push('/');
    }
    if !prefix.ends_with(['/', '-']) {
        prefix.push('-');
    }
    let form = Regex::new(r"^(?:[a-z0-9_-]+\.)+[a-z0-9_-]+/(?:[a-z0-9_-]+-)?$").ok()?;
    form.is_match(&prefix).then_some(prefix)
}

/// Whether a node may have this name (RFC 1123 subdomain). It becomes a part of URLs.
pub(crate) fn is_node_name(name: &str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    (1..=253).contains(&name.len()) && name.bytes().all(good) && !name.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cases are those of flannel's `annotations_test.go`.
    #[test]
    fn prefixes_are_completed_as_flannel_does() {
        for (text, backend_type) in [
            (
                "flannel.alpha.coreos.com",
                "flannel.alpha.coreos.com/backend-type",
            ),
            (
                "flannel.alpha.coreos.com/",
                "flannel.alpha.coreos.com/backend-type",
            ),
            (
                "flannel.alpha.coreos.com/prefix",
                "flannel.alpha.coreos.com/prefix-backend-type",
            ),
            (
                "flannel.alpha.coreos.com/prefix-",
                "flannel.alpha.coreos.com/prefix-backend-type",
            ),
            ("org.com", "org.com/backend-type"),
            ("org9.com", "org9.com/backend-type"),
            ("org.com/9", "org.com/9-backend-type"),
        ] {
            let prefix = annotation_prefix(text).unwrap();
            assert_eq!(format!("{prefix}backend-type"), backend_type);
        }
        for text in [
            "org",
            "org/",
            "org/prefix",
            "org.COM",
            "org.com/PREFIX",
            "org.com/a/b",
            "ORG.org.com",
            "",
        ] {
            assert_eq!(annotation_prefix(text), None, "{text:?}");
        }
    }

    #[test]
    fn node_names_are_parts_of_urls() {
        for name in ["node1", "ip-10-0-0-1.ec2.internal", "0"] {
            assert!(is_node_name(name), "{name}");
        }
        let long = "x".repeat(254);
        for name in ["", ".", "..", "a/b", "Node", "a b", "ä", "a%2f", &long] {
            assert!(!is_node_name(name), "{name}");
        }
    }
}

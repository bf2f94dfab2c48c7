//! The events of a watch.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::client::Failure;
use super::node::{Meta, Node};

/// What a line of a watch says.
#[derive(Debug)]
pub(super) enum Event {
    /// A node was created or changed.
    Set(Node),
    /// A node is gone; this is what it was.
    Deleted(Node),
    /// Nothing happened up to this revision.
    Bookmark(Meta),
    /// The watch ends.
    Error(Failure),
    /// Something that this agent does not know.
    Other,
}

/// One line.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// An object, of which only the metadata counts.
#[derive(Deserialize)]
struct Bare {
    metadata: Meta,
}

/// The object of an `ERROR`.
#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
}

impl Event {
    /// Reads a line. The error says that it is no event, or has no revision to go on from.
    pub(super) fn read(line: &[u8]) -> Result<Self, String> {
        let wrong = |error: serde_json::Error| error.to_string();
        let line: Line<'_> = serde_json::from_slice(line).map_err(wrong)?;
        let text = line.object.get();
        let event = match line.kind.as_str() {
            "ERROR" => {
                let status: Status = serde_json::from_str(text).map_err(wrong)?;
                return Ok(Self::Error(Failure::Refused {
                    status: status.code,
                    text: status.message,
                }));
            }
            "BOOKMARK" => {
                let bare: Bare = serde_json::from_str(text).map_err(wrong)?;
                Self::Bookmark(bare.metadata)
            }
            "ADDED" | "MODIFIED" => Self::Set(serde_json::from_str(text).map_err(wrong)?),
            "DELETED" => Self::Deleted(serde_json::from_str(text).map_err(wrong)?),
            _ => return Ok(Self::Other),
        };
        match event.meta().is_some_and(Meta::has_version) {
            true => Ok(event),
            false => Err(format!("an event {} without a resourceVersion", line.kind)),
        }
    }

    /// The metadata of its object, if that is one with a revision.
    pub(super) fn meta(&self) -> Option<&Meta> {
        match self {
            Self::Set(node) | Self::Deleted(node) => Some(&node.metadata),
            Self::Bookmark(meta) => Some(meta),
            Self::Error(_) | Self::Other => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str) -> (u16, String) {
        match Event::read(line.as_bytes()) {
            Ok(Event::Error(Failure::Refused { status, text })) => (status, text),
            other => panic!("{line}: {other:?}"),
        }
    }

    /// What clients met when they had been away for long.
    #[test]
    fn an_expired_revision_is_known_by_its_code() {
        // wso2/apk#571, and obmarg/kazan#76 of an older server.
        for (line, text) in [
            (
                r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old resource version: 657887 (680402)","reason":"Expired","code":410}}"#,
                "too old resource version: 657887 (680402)",
            ),
            (
                r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"The resourceVersion for the provided watch is too old.","reason":"Expired","code":410}}"#,
                "The resourceVersion for the provided watch is too old.",
            ),
            // A server that leaves out what kind of object it is: kubeclipper/kubeclipper#996.
            (
                r#"{"type":"ERROR","object":{"metadata":{},"status":"Failure","message":"too old","reason":"Expired","code":410}}"#,
                "too old",
            ),
        ] {
            assert_eq!(refused(line), (410, text.to_owned()));
        }
        assert_eq!(
            refused(r#"{"type":"ERROR","object":{}}"#),
            (0, String::new())
        );
    }

    #[test]
    fn an_event_has_a_revision_to_go_on_from() {
        let read = |line: &str| Event::read(line.as_bytes());
        let line = r#"{"type":"BOOKMARK","object":{"kind":"Node","metadata":{"resourceVersion":"12746","creationTimestamp":null}}}"#;
        let version = read(line).unwrap();
        assert_eq!(version.meta().unwrap().resource_version, "12746");
        assert!(matches!(
            read(&line.replace("BOOKMARK", "DELETED")),
            Ok(Event::Deleted(_))
        ));
        assert!(matches!(
            read(&line.replace("BOOKMARK", "NEW")),
            Ok(Event::Other)
        ));
        for version in ["", "0"] {
            let without = line.replace("12746", version);
            let error = read(&without).unwrap_err();
            assert_eq!(error, "an event BOOKMARK without a resourceVersion");
        }
        assert!(read("").is_err() && read("{}").is_err() && read(r#"{"type":"ADDED"}"#).is_err());
    }
}

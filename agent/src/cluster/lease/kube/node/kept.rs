//! What is kept of a node as it is read. The rest of its JSON is skipped where it lies: of a page of the list, which has
//! some megabytes, nothing else is copied.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::Condition;

/// How the names of annotations that count end, after whatever prefix.
const SUFFIXES: [&str; 10] = [
    "kube-subnet-manager",
    "backend-type",
    "backend-data",
    "backend-v6-data",
    "public-ip",
    "public-ipv6",
    "public-ip-overwrite",
    "public-ipv6-overwrite",
    "node-public-ip",
    "node-public-ipv6",
];

/// An annotation's name, if it counts.
struct Name(Option<String>);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl Visitor<'_> for Names {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an annotation's name")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Name, E> {
                let counts = SUFFIXES.iter().any(|suffix| name.ends_with(suffix));
                Ok(Name(counts.then(|| name.to_owned())))
            }
        }
        deserializer.deserialize_str(Names)
    }
}

/// The annotations that count; `None` if there are none at all.
pub(super) fn annotations<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    struct All;
    impl<'de> Visitor<'de> for All {
        type Value = Option<BTreeMap<String, String>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("annotations")
        }

        fn visit_none<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(
            self,
            deserializer: D,
        ) -> Result<Self::Value, D::Error> {
            deserializer.deserialize_map(self)
        }

        fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
            let mut kept = BTreeMap::new();
            while let Some(Name(name)) = map.next_key()? {
                match name {
                    Some(name) => drop(kept.insert(name, map.next_value()?)),
                    None => drop(map.next_value::<IgnoredAny>()?),
                }
            }
            Ok(Some(kept))
        }
    }
    deserializer.deserialize_option(All)
}

/// The condition `NetworkUnavailable`, if there is one; a kubelet writes four or five others.
pub(super) fn conditions<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<Condition>, D::Error> {
    #[derive(Deserialize)]
    #[serde(default)]
    struct Seen<'a> {
        #[serde(rename = "type", borrow)]
        kind: Cow<'a, str>,
        #[serde(borrow)]
        status: Cow<'a, str>,
        #[serde(borrow)]
        reason: Cow<'a, str>,
    }
    impl Default for Seen<'_> {
        fn default() -> Self {
            let empty = || Cow::Borrowed("");
            Self {
                kind: empty(),
                status: empty(),
                reason: empty(),
            }
        }
    }
    struct All;
    impl<'de> Visitor<'de> for All {
        type Value = Vec<Condition>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("conditions")
        }

        fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Self::Value, S::Error> {
            let mut kept = Vec::new();
            while let Some(seen) = seq.next_element::<Seen<'de>>()? {
                if seen.kind == Condition::NETWORK_UNAVAILABLE {
                    kept.push(Condition {
                        status: seen.status.into_owned(),
                        reason: seen.reason.into_owned(),
                    });
                }
            }
            Ok(kept)
        }
    }
    deserializer.deserialize_seq(All)
}

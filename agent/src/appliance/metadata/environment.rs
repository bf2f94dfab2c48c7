//! Metadata as a file of variables, for `EnvironmentFile=` and shells.

use std::fmt::Write as _;

use super::{Metadata, provider};

/// What starts the names that are the same on all platforms. Not `SELVAGE_` alone: that starts the agent's settings.
const COMMON_START: &str = "SELVAGE_METADATA_";

/// The names that are the same on all platforms, and those that the platforms have for it; the first counts.
const COMMON: [(&str, &[&str]); 8] = [
    ("HOSTNAME", &["HOSTNAME", "LOCAL_HOSTNAME"]),
    ("INSTANCE_ID", &["INSTANCE_ID", "INSTANCE_UUID", "VM_ID"]),
    (
        "INSTANCE_TYPE",
        &[
            "INSTANCE_TYPE",
            "INSTANCE_SHAPE",
            "MACHINE_TYPE",
            "PLAN",
            "SERVICE_OFFERING",
            "VMSIZE",
        ],
    ),
    (
        "IPV4_LOCAL",
        &[
            "IPV4_LOCAL",
            "IPV4_PRIVATE",
            "IPV4_PRIVATE_0",
            "PRIVATE_IPV4_0",
            "LOCAL_IPV4",
            "IP_LOCAL_0",
            "IPV4_DYNAMIC",
            "IPV4",
        ],
    ),
    (
        "IPV4_PUBLIC",
        &[
            "EIPV4",
            "IPV4_PUBLIC",
            "IPV4_PUBLIC_0",
            "PUBLIC_IPV4",
            "PUBLIC_IPV4_0",
            "IP_EXTERNAL_0",
            "IPV4_VIRTUAL",
        ],
    ),
    (
        "IPV6",
        &[
            "IPV6",
            "IPV6_PUBLIC",
            "IPV6_PUBLIC_0",
            "PUBLIC_IPV6",
            "IPV6_SLAAC",
        ],
    ),
    (
        "REGION",
        &["REGION", "REGION_ID", "REGION_CODE", "INSTANCE_REGION"],
    ),
    (
        "ZONE",
        &[
            "AVAILABILITY_ZONE",
            "AVAILABILITY_DOMAIN",
            "ZONE",
            "ZONE_ID",
        ],
    ),
];

/// The attribute that has a common name.
pub(super) fn common<'a>(attributes: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let (_, names) = COMMON.iter().find(|(common, _)| *common == name)?;
    names.iter().find_map(|name| {
        let mut attributes = attributes.iter();
        attributes
            .find(|(has, _)| has == name)
            .map(|(_, value)| value.as_str())
    })
}

/// The file: every attribute as `COREOS_EC2_…` and `AFTERBURN_AWS_…`, and those that all platforms have as
/// `SELVAGE_METADATA_…`, with `SELVAGE_METADATA_PLATFORM`.
pub fn environment(metadata: &Metadata) -> String {
    let mut text = String::new();
    let mut add = |start: &str, name: &str, value: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{start}{name}={}", quoted(value));
    };
    add(COMMON_START, "PLATFORM", &metadata.platform);
    for (name, _) in COMMON {
        if let Some(value) = metadata.common(name) {
            add(COMMON_START, name, value);
        }
    }
    if let Some(provider) = provider(&metadata.platform) {
        for (start, platform) in [
            ("COREOS", provider.coreos),
            ("AFTERBURN", provider.afterburn),
        ] {
            for (name, value) in &metadata.attributes {
                add(&format!("{start}_{platform}_"), name, value);
            }
        }
    }
    text
}

/// A value as systemd and shells both read it.
fn quoted(value: &str) -> String {
    let is_plain = |c: char| {
        c.is_ascii_alphanumeric()
            || matches!(c, '-' | '_' | '.' | ':' | '/' | '@' | ',' | '+' | '%')
    };
    if !value.is_empty() && value.chars().all(is_plain) {
        return value.to_owned();
    }
    let mut text = String::from("\"");
    for c in value.chars() {
        match c {
            '"' | '\\' | '$' | '`' => text.extend(['\\', c]),
            // Neither reader has a line of its own in a value, nor has a platform.
            c if c.is_control() => text.push(' '),
            c => text.push(c),
        }
    }
    text + "\""
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::env_file::{Variables, source};

    fn metadata(platform: &str, attributes: &[(&str, &str)]) -> Metadata {
        let attributes = attributes.iter();
        Metadata {
            platform: platform.to_owned(),
            attributes: attributes
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            ..Metadata::default()
        }
    }

    #[test]
    fn names_are_those_of_coreos_afterburn_and_ours() {
        let text = environment(&metadata(
            "aws",
            &[("IPV4_LOCAL", "10.0.0.1"), ("INSTANCE_TYPE", "t3.micro")],
        ));
        assert_eq!(
            text,
            "SELVAGE_METADATA_PLATFORM=aws\n\
             SELVAGE_METADATA_INSTANCE_TYPE=t3.micro\n\
             SELVAGE_METADATA_IPV4_LOCAL=10.0.0.1\n\
             COREOS_EC2_IPV4_LOCAL=10.0.0.1\n\
             COREOS_EC2_INSTANCE_TYPE=t3.micro\n\
             AFTERBURN_AWS_IPV4_LOCAL=10.0.0.1\n\
             AFTERBURN_AWS_INSTANCE_TYPE=t3.micro\n"
        );
        let of_none = environment(&metadata("metal", &[]));
        assert_eq!(of_none, "SELVAGE_METADATA_PLATFORM=metal\n");
    }

    #[test]
    fn values_survive_a_shell() {
        for value in [
            "plain-1.2:3/4",
            "with space",
            "$HOME `id` \"quoted\" back\\slash",
            "it's",
            "a=b;c#d",
        ] {
            let text = environment(&metadata("aws", &[("HOSTNAME", value)]));
            let mut variables = Variables::new();
            assert_eq!(source(&text, &mut variables), Ok(Vec::new()), "{value}");
            assert_eq!(variables["COREOS_EC2_HOSTNAME"], value);
        }
        let text = environment(&metadata("aws", &[("HOSTNAME", "a\nEVIL=1")]));
        assert!(!text.lines().any(|line| line.starts_with("EVIL")), "{text}");
    }
}

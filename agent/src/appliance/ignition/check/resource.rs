//! External contents: sources, checksums, compression, HTTP headers; and the `ignition` section, which consists of
//! them.

use ignition_config::v3_3::{Ignition, Resource};

use super::super::data_url;
use super::super::locate::join_index;
use super::Findings;

/// Checks one resource. The `minor` spec version decides which schemes and hashes exist.
pub(super) fn check(path: &str, resource: &Resource, minor: u64, findings: &mut Findings<'_>) {
    let source = resource.source.as_deref().unwrap_or_default();
    if !source.is_empty()
        && let Err(reason) = check_source(source, minor)
    {
        findings.error(format!("{path}.source"), reason);
    }
    let compression = resource.compression.as_deref().unwrap_or_default();
    if !["", "gzip"].contains(&compression) {
        findings.error(
            format!("{path}.compression"),
            format!("{compression:?} is not a compression: expected \"gzip\" or nothing"),
        );
    }
    let hash = resource
        .verification
        .as_ref()
        .and_then(|v| v.hash.as_deref());
    if let Some(Err(reason)) = hash.map(|hash| check_hash(hash, minor)) {
        findings.error(format!("{path}.verification.hash"), reason);
    }
    let headers = resource.http_headers.as_deref().unwrap_or_default();
    let headers_path = format!("{path}.httpHeaders");
    if !headers.is_empty() && !source.starts_with("http://") && !source.starts_with("https://") {
        findings.error(&headers_path, "headers need an http or https source");
    }
    for (i, header) in headers.iter().enumerate() {
        if header.name.is_empty() {
            let path = join_index(&headers_path, i);
            findings.error(format!("{path}.name"), "a header needs a name");
        }
    }
    findings.check_unique(&headers_path, "name", headers.iter().map(|h| &h.name));
}

fn check_source(source: &str, minor: u64) -> Result<(), String> {
    let scheme = source.split(':').next().unwrap_or_default();
    match scheme {
        "data" => data_url::decode(source)
            .map(drop)
            .map_err(|error| error.to_string()),
        "http" | "https" | "tftp" | "s3" if source.contains("://") => check_characters(source),
        "gs" if minor >= 2 && source.contains("://") => check_characters(source),
        // Which ones is for the translation to 3.3 to say.
        "arn" if minor >= 4 => check_characters(source),
        _ => Err(format!(
            "{:?} is not a source that spec 3.{minor}.0 knows: expected a data, http, https, s3, tftp{} URL",
            source.chars().take(60).collect::<String>(),
            if minor >= 2 { " or gs" } else { "" },
        )),
    }
}

/// Go's URL parser refuses control characters everywhere and white space in the host.
fn check_characters(source: &str) -> Result<(), String> {
    match source.find(|c: char| c.is_whitespace() || c.is_control()) {
        Some(at) => Err(format!(
            "a URL has no white space (byte {at}); write %20 for a space"
        )),
        None => Ok(()),
    }
}

/// `sha512-HEX`, or from spec 3.1 on also `sha256-HEX`.
fn check_hash(hash: &str, minor: u64) -> Result<(), String> {
    let expected = if minor >= 1 {
        "sha512-HEX or sha256-HEX"
    } else {
        "sha512-HEX"
    };
    let Some((function, sum)) = hash.split_once('-') else {
        return Err(format!("{hash:?} is not a checksum: expected {expected}"));
    };
    let digits = match function {
        "sha512" => 128,
        "sha256" if minor >= 1 => 64,
        _ => {
            return Err(format!(
                "spec 3.{minor}.0 does not know the hash {function:?}: expected {expected}"
            ));
        }
    };
    if sum.len() != digits || !sum.bytes().all(|b| b.is_ascii_hexdigit()) {
        let found = sum.len();
        return Err(format!(
            "a {function} checksum has {digits} hexadecimal digits, this has {found} characters"
        ));
    }
    Ok(())
}

/// Checks the `ignition` section: merged and replacing configs, certificate authorities, proxies.
pub(super) fn check_ignition(ignition: &Ignition, minor: u64, findings: &mut Findings<'_>) {
    if let Some(config) = &ignition.config {
        let sources = config.merge.iter().flatten().map(|r| &r.source);
        findings.check_unique("ignition.config.merge", "source", sources);
        for (i, resource) in config.merge.iter().flatten().enumerate() {
            let path = join_index("ignition.config.merge", i);
            check_required(&path, resource, minor, findings);
        }
        if let Some(resource) = &config.replace {
            check("ignition.config.replace", resource, minor, findings);
        }
    }
    let tls = ignition.security.as_ref().and_then(|s| s.tls.as_ref());
    let authorities = tls.and_then(|tls| tls.certificate_authorities.as_deref());
    let authorities = authorities.unwrap_or_default();
    let list = "ignition.security.tls.certificateAuthorities";
    for (i, resource) in authorities.iter().enumerate() {
        check_required(&join_index(list, i), resource, minor, findings);
    }
    findings.check_unique(list, "source", authorities.iter().map(|r| &r.source));
    if let Some(proxy) = &ignition.proxy {
        let excepted = proxy.no_proxy.iter().flatten();
        findings.check_unique("ignition.proxy.noProxy", "text", excepted);
        for (name, value) in [
            ("httpProxy", &proxy.http_proxy),
            ("httpsProxy", &proxy.https_proxy),
        ] {
            if let Some(value) = value.as_deref()
                && let Err(reason) = check_http(value)
            {
                findings.error(format!("ignition.proxy.{name}"), reason);
            }
        }
    }
}

/// An `http` or `https` URL, the scheme in any case as Go's URL parser takes it.
pub(super) fn check_http(url: &str) -> Result<(), String> {
    let scheme = url.split(':').next().unwrap_or_default();
    if url.contains(':')
        && (scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https"))
    {
        check_characters(url)
    } else {
        Err(format!("{url:?} is not an http or https URL"))
    }
}

fn check_required(path: &str, resource: &Resource, minor: u64, findings: &mut Findings<'_>) {
    if resource.source.as_deref().unwrap_or_default().is_empty() {
        findings.error(path, "a source is required");
    }
    check(path, resource, minor, findings);
}

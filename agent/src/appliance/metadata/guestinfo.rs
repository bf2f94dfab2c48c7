//! VMware's guestinfo: keys and values that somebody gave to the virtual machine.
//!
//! A program asks for one at an I/O port at which the hypervisor listens, which needs neither privileges nor a program
//! of VMware's; Ignition and Afterburn do the same. Where the machine has `monitor_control.restrict_backdoor`, the
//! processor ends who asks by a signal. So a process of its own asks ([`print`]), which whoever wants the values starts
//! ([`of_host`]). The names are those of cloud-init's datasource (`guestinfo.metadata`, `guestinfo.userdata`) and
//! Afterburn's (`guestinfo.afterburn.initrd.network-kargs`).

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::read::GzDecoder;
use tracing::warn;

use super::Site;
use super::http::Trouble;

/// The platform whose hosts have it.
pub(super) const PLATFORM: &str = "vmware";

/// What starts all keys.
const START: &str = "guestinfo.";

/// What cloud-init writes into a key that it has read, in place of its value: YAML without contents.
const REDACTED: &str = "---";

/// The largest unpacked value, and all values together, in bytes; VMware's hosts take about 1 MB.
const LARGEST: u64 = 16 << 20;

/// The keys that others here look at.
pub(super) const METADATA: &str = "metadata";
pub(super) const HOSTNAME: &str = "hostname";
pub(super) const USERDATA: &str = "userdata";
pub(super) const NETWORK: &str = "afterburn.initrd.network-kargs";

/// Where Ignition looks for its config by itself: a key, and a property of the OVF environment.
const IGNITIONS: &str = "ignition.config.data";
const OVF_ENVIRONMENT: &str = "ovfEnv";

/// All keys that the host is asked for. Each may have an encoding.
const KEYS: [&str; 6] = [
    METADATA,
    HOSTNAME,
    USERDATA,
    NETWORK,
    IGNITIONS,
    OVF_ENVIRONMENT,
];

/// What the host says, by whole keys; nothing, with a warning, where it cannot be asked: the machine does without, as
/// if nobody had given it anything.
pub(super) fn of_host() -> BTreeMap<String, String> {
    let mut program = Command::new("/proc/self/exe");
    program.args(["metadata", "guestinfo"]);
    asked(program).unwrap_or_else(|error| {
        warn!("VMware's guestinfo is not used: {error}");
        BTreeMap::new()
    })
}

/// What a program prints that asks as [`print`] does.
fn asked(mut program: Command) -> io::Result<BTreeMap<String, String>> {
    let mut child = program
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = Vec::new();
    // The pipe is closed behind this, so that the program ends whatever it still has to say.
    let read = match child.stdout.take() {
        Some(output) => output.take(LARGEST + 1).read_to_end(&mut said),
        None => Ok(0),
    };
    let status = child.wait()?;
    read?;
    if said.len() as u64 > LARGEST {
        return Err(io::Error::other(format!(
            "all its values are larger than {LARGEST} bytes"
        )));
    }
    if status.signal() == Some(nix::libc::SIGSEGV) {
        return Err(io::Error::other(
            "the host does not let programs ask it; does the machine have monitor_control.restrict_backdoor?",
        ));
    }
    if !status.success() {
        let text = format!("the program that asks the host for it: {status}");
        return Err(io::Error::other(text));
    }
    serde_json::from_slice(&said).map_err(io::Error::other)
}

/// Asks the host for all keys that are used here, and prints those that have a value, as one JSON object. Only for a
/// process of its own: the processor may end it.
///
/// # Errors
/// The processor is none of VMware's, the host does not answer, or printing failed.
pub fn print(output: &mut impl Write) -> io::Result<()> {
    let mut values = BTreeMap::new();
    for key in KEYS {
        for name in [format!("{START}{key}"), format!("{START}{key}.encoding")] {
            if let Some(value) = ask(&name).map_err(io::Error::other)? {
                values.insert(name, String::from_utf8_lossy(&value).into_owned());
            }
        }
    }
    serde_json::to_writer(&mut *output, &values)?;
    output.flush()
}

/// A key's value, decoded as the key with `.encoding` behind its name says; `None` if it has none.
///
/// # Errors
/// The value is not encoded as its encoding says.
pub(super) fn decoded(site: &Site, key: &str) -> Result<Option<Vec<u8>>, Trouble> {
    let Some(value) = value(site, key) else {
        return Ok(None);
    };
    let encoding = value_or_empty(site, &format!("{key}.encoding"));
    decode(value, encoding)
        .map(Some)
        .map_err(|problem| Trouble::Document {
            place: name(key),
            problem,
        })
}

/// Whether Ignition finds a config by itself.
pub(super) fn has_ignitions(site: &Site) -> bool {
    let environment = value_or_empty(site, OVF_ENVIRONMENT);
    value(site, IGNITIONS).is_some()
        || property(environment, &format!("{START}{IGNITIONS}")).is_some()
}

/// A value as it is; `None` where there is none, or an empty one.
pub(super) fn value<'s>(site: &'s Site, key: &str) -> Option<&'s str> {
    let value = site.guestinfo.get(&format!("{START}{key}"))?;
    // C's end of a text.
    let value = value.trim_end_matches(|end: char| end == '\0' || end.is_ascii_whitespace());
    Some(value).filter(|value| !value.is_empty() && *value != REDACTED)
}

fn value_or_empty<'s>(site: &'s Site, key: &str) -> &'s str {
    value(site, key).unwrap_or_default()
}

/// A key, for people.
pub(super) fn name(key: &str) -> String {
    format!("VMware's {START}{key}")
}

#[cfg(target_arch = "x86_64")]
fn ask(name: &str) -> Result<Option<Vec<u8>>, String> {
    // On other processors the instruction ends the program.
    if !vmw_backdoor::is_vmware_cpu() {
        return Err("the processor does not say that it is one of VMware's".to_owned());
    }
    let wrong = |error: vmw_backdoor::VmwError| error.to_string();
    // Not the privileged way, which the kernel forbids where Secure Boot is on.
    let mut guard = vmw_backdoor::probe_backdoor().map_err(wrong)?;
    let mut channel = guard.open_enhanced_chan().map_err(wrong)?;
    channel.get_guestinfo(name.as_bytes()).map_err(wrong)
}

#[cfg(not(target_arch = "x86_64"))]
fn ask(_: &str) -> Result<Option<Vec<u8>>, String> {
    Err("it can be read on x86-64 only".to_owned())
}

pub(super) fn decode(value: &str, encoding: &str) -> Result<Vec<u8>, String> {
    match encoding.trim() {
        "" => Ok(value.as_bytes().to_vec()),
        "base64" | "b64" => base64(value),
        "gzip+base64" | "gz+b64" => unpacked(&base64(value)?),
        other => Err(format!(
            "its encoding is {other:?}: expected base64, gzip+base64 or none"
        )),
    }
}

fn base64(value: &str) -> Result<Vec<u8>, String> {
    let text: Vec<u8> = value
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    STANDARD
        .decode(text)
        .map_err(|error| format!("it is no base64 ({error}), as its encoding says"))
}

fn unpacked(value: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    GzDecoder::new(value)
        .take(LARGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("it is not packed by gzip ({error}), as its encoding says"))?;
    match bytes.len() as u64 <= LARGEST {
        true => Ok(bytes),
        false => Err(format!("unpacked it is larger than {LARGEST} bytes")),
    }
}

/// A property's value in an OVF environment; `None` if there is none, or an empty one. The properties are attributes of
/// elements without contents, which VMware writes in this order (DSP0243, "OVF environment").
fn property<'e>(environment: &'e str, key: &str) -> Option<&'e str> {
    let (_, rest) = environment.split_once(&format!("oe:key=\"{key}\""))?;
    let (rest, _) = rest.split_once('>')?;
    let (_, rest) = rest.split_once("oe:value=\"")?;
    let (value, _) = rest.split_once('"')?;
    Some(value).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::appliance::metadata::tests::site_of_vmware;

    fn packed(bytes: &[u8]) -> String {
        let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
        packer.write_all(bytes).unwrap();
        STANDARD.encode(packer.finish().unwrap())
    }

    #[test]
    fn values_are_decoded_as_their_encoding_says() {
        let text = "local-hostname: cloud-vm\n";
        let base64 = STANDARD.encode(text);
        let lines = format!("{}\n{}\n", &base64[..10], &base64[10..]);
        let packed = packed(text.as_bytes());
        for (value, encoding) in [
            (&*base64, "base64"),
            (&*lines, "b64"),
            (&*packed, "gzip+base64"),
            (&*packed, "gz+b64\n"),
        ] {
            let site = site_of_vmware(&[
                ("guestinfo.metadata", value),
                ("guestinfo.metadata.encoding", encoding),
            ]);
            let found = decoded(&site, "metadata").unwrap().unwrap();
            assert_eq!(found, text.as_bytes(), "{encoding}");
        }
        // Nothing, in all ways in which there is nothing.
        for value in ["", " ", "\0", "---", "---\n"] {
            let site = site_of_vmware(&[("guestinfo.metadata", value)]);
            assert_eq!(decoded(&site, "metadata").unwrap(), None, "{value:?}");
        }
        let site = site_of_vmware(&[]);
        assert_eq!(decoded(&site, "metadata").unwrap(), None);
    }

    #[test]
    fn values_that_are_not_what_their_encoding_says_are_errors() {
        let packed = packed(&vec![0; (16 << 20) + 1]);
        for (value, encoding, expected) in [
            ("{}", "rot13", "its encoding is \"rot13\": expected base64"),
            ("{}", "base64", "it is no base64 (Invalid symbol 123"),
            (
                "eyJpZ25pdGlvbiI6e319",
                "gzip+base64",
                "it is not packed by gzip (invalid",
            ),
            ("H4sI", "gzip+base64", "it is not packed by gzip ("),
            (
                &*packed,
                "gz+b64",
                "unpacked it is larger than 16777216 bytes",
            ),
        ] {
            let site = site_of_vmware(&[
                ("guestinfo.userdata", value),
                ("guestinfo.userdata.encoding", encoding),
            ]);
            let error = decoded(&site, "userdata").unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with("VMware's guestinfo.userdata: "), "{text}");
            assert!(text.contains(expected), "{expected:?} is not in {text}");
            assert!(error.is_final());
        }
    }

    #[test]
    fn a_config_of_ignitions_is_known_by_its_key_or_its_property() {
        // VMware's documentation of the OVF environment, shortened, with the properties of our OVA.
        let environment = |value: &str| {
            format!(
                "<?xml version=\"1.0\"?>\n\
                 <Environment xmlns:oe=\"http://schemas.dmtf.org/ovf/environment/1\" oe:id=\"\">\n\
                 <PropertySection>\n<Property oe:key=\"guestinfo.ignition.config.data\" oe:value=\"{value}\"/>\n\
                 <Property oe:key=\"guestinfo.ignition.config.data.encoding\" oe:value=\"base64\"/>\n\
                 </PropertySection>\n"
            )
        };
        for (key, value, expected) in [
            ("guestinfo.ignition.config.data", "e30=", true),
            ("guestinfo.ignition.config.data", "", false),
            ("guestinfo.ovfEnv", &environment("e30="), true),
            ("guestinfo.ovfEnv", &environment(""), false),
            (
                "guestinfo.ovfEnv",
                "<Property oe:key=\"guestinfo.ignition.config.data\"",
                false,
            ),
            ("guestinfo.userdata", "e30=", false),
        ] {
            let site = site_of_vmware(&[(key, value)]);
            assert_eq!(has_ignitions(&site), expected, "{key}: {value}");
        }
    }

    /// What becomes of the values when the program that asks is this script.
    fn asked_by(script: &str) -> Result<BTreeMap<String, String>, String> {
        let mut program = Command::new("sh");
        program.args(["-c", script]);
        asked(program).map_err(|error| error.to_string())
    }

    #[test]
    fn a_program_that_asks_may_end_in_any_way() {
        let values = asked_by("echo '{\"guestinfo.hostname\":\"coreos1\"}'").unwrap();
        assert_eq!(values["guestinfo.hostname"], "coreos1");
        for (script, expected) in [
            // As the processor does it where the port is closed.
            ("kill -SEGV $$", "monitor_control.restrict_backdoor?"),
            ("echo '{'; exit 1", "asks the host for it: exit status: 1"),
            ("echo '{'", "EOF while parsing"),
            ("yes", "all its values are larger than 16777216 bytes"),
        ] {
            let error = asked_by(script).unwrap_err();
            assert!(error.contains(expected), "{script}: {error}");
        }
    }

    #[test]
    fn elsewhere_nobody_is_asked() {
        let mut output = Vec::new();
        if let Err(error) = print(&mut output) {
            let text = error.to_string();
            assert!(text.contains("the processor does not say"), "{text}");
            assert!(output.is_empty());
        } else {
            eprintln!("skipped: this is a machine of VMware's");
        }
    }
}

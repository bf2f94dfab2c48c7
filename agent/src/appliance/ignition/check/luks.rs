//! Encrypted volumes.

use ignition_config::v3_3::{Clevis, Storage};

use super::super::locate::join_index;
use super::devices::check_device;
use super::{Findings, resource};

/// LUKS2 has 48 bytes for a label, including the final NUL.
const LABEL_MAX: usize = 47;

/// Checks the volumes, and how they are unlocked.
pub(super) fn check(storage: &Storage, minor: u64, findings: &mut Findings<'_>) {
    let volumes = storage.luks.as_deref().unwrap_or_default();
    let names = volumes.iter().map(|volume| &volume.name);
    findings.check_unique("storage.luks", "name", names);
    for (i, volume) in volumes.iter().enumerate() {
        let at = join_index("storage.luks", i);
        if volume.name.contains('/') {
            findings.error(format!("{at}.name"), "a volume name must not contain '/'");
        }
        let device = volume.device.as_deref().unwrap_or_default();
        check_device(format!("{at}.device"), device, findings);
        if volume.label.as_deref().unwrap_or_default().len() > LABEL_MAX {
            let message = format!("a LUKS label has at most {LABEL_MAX} characters");
            findings.error(format!("{at}.label"), message);
        }
        if let Some(key) = &volume.key_file {
            resource::check(&format!("{at}.keyFile"), key, minor, findings);
        }
        if let Some(clevis) = &volume.clevis {
            check_clevis(&format!("{at}.clevis"), clevis, minor, findings);
        }
    }
}

fn check_clevis(at: &str, clevis: &Clevis, minor: u64, findings: &mut Findings<'_>) {
    let servers = clevis.tang.as_deref().unwrap_or_default();
    let list = format!("{at}.tang");
    findings.check_unique(&list, "url", servers.iter().map(|server| &server.url));
    for (i, server) in servers.iter().enumerate() {
        let at = join_index(&list, i);
        if let Err(reason) = resource::check_http(server.url.as_deref().unwrap_or_default()) {
            findings.error(format!("{at}.url"), reason);
        }
        if server.thumbprint.as_deref().unwrap_or_default().is_empty() {
            findings.error(format!("{at}.thumbprint"), "a thumbprint is required");
        }
    }
    let Some(custom) = &clevis.custom else { return };
    let pin = custom.pin.as_deref().unwrap_or_default();
    let config = custom.config.as_deref().unwrap_or_default();
    // An empty one is none since spec 3.3 (`ClevisCustom`); in 3.2 it lacks its pin.
    if pin.is_empty() && config.is_empty() && minor >= 3 {
        return;
    }
    if !["tpm2", "tang", "sss"].contains(&pin) {
        findings.error(
            format!("{at}.custom.pin"),
            format!("{pin:?} is not a pin: expected tpm2, tang or sss"),
        );
    }
    if config.is_empty() {
        findings.error(format!("{at}.custom.config"), "a config is required");
    }
    if !servers.is_empty() || clevis.tpm2 == Some(true) || clevis.threshold.unwrap_or_default() != 0
    {
        findings.error(
            format!("{at}.custom"),
            "a custom config cannot be combined with tang, tpm2 or threshold",
        );
    }
}

//! The configuration of the machine `embedded`.

use super::{Ask, Config, ask, config};

/// The only one.
pub(super) const CONFIGS: &[Config] = &[config!(
    "embedded_in_the_image",
    "embedded",
    "coreos/fedora-coreos-docs modules/ROOT/pages/hostname.adoc, and coreos-installer's `iso ignition embed`",
    EMBEDDED
)];

const EMBEDDED: &[Ask] = &[
    ask("the host name", "uname -n", "harbour"),
    ask(
        "who gave the configuration",
        "sudo journalctl -b -o cat -u ignition-platform.service | grep -o 'the config is from .*'",
        "the config is from the credential /.extra/global_credentials/ignition.config.cred",
    ),
    ask(
        "the boot partition, whole",
        "sudo ls /efi/loader/credentials /efi/EFI/Linux | grep -c -e '^ignition.config.cred$' -e '^selvage_.*efi$'",
        "2",
    ),
];

//! The names of all settings: the key in a file, the flag, and the environment variables.

/// One setting's names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Key {
    /// Table and key in a settings file, for example `etcd.prefix`.
    pub(crate) path: &'static str,
    /// The flag without its dashes, for example `etcd-prefix`; flannel's name if flannel has the setting.
    pub(crate) flag: &'static str,
}

/// The prefix of our own environment variables.
const OURS: &str = "SELVAGE_";

/// The prefix of flanneld's; ours win.
const FLANNELS: &str = "FLANNELD_";

impl Key {
    pub(super) const fn new(path: &'static str, flag: &'static str) -> Self {
        Self { path, flag }
    }

    /// The environment variables for this setting, the stronger first.
    pub(crate) fn variables(self) -> [String; 2] {
        variables(self.flag)
    }
}

/// The environment variables for a flag: its name in upper case, with underscores for dashes.
pub(crate) fn variables(flag: &str) -> [String; 2] {
    let name = flag.to_ascii_uppercase().replace('-', "_");
    [format!("{OURS}{name}"), format!("{FLANNELS}{name}")]
}

/// Whether an environment variable may be a setting.
pub(crate) fn is_variable(name: &str) -> bool {
    name.starts_with(OURS) || name.starts_with(FLANNELS)
}

/// Whether it is one of our own rather than flannel's.
pub(crate) fn is_ours(name: &str) -> bool {
    name.starts_with(OURS)
}

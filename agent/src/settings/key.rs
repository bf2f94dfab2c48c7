//! The names of all settings: as a key in a file, as a flag, and as environment variables.

/// One setting's names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Key {
    /// Table and key in a settings file, such as `etcd.prefix`.
    pub(crate) path: &'static str,
    /// The flag without its dashes, such as `etcd-prefix`; flannel's name where it has the setting.
    pub(crate) flag: &'static str,
}

/// What our own environment variables begin with.
const OURS: &str = "SELVAGE_";

/// What flanneld's begin with; ours win.
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

/// Whether an environment variable could be a setting.
pub(crate) fn is_variable(name: &str) -> bool {
    name.starts_with(OURS) || name.starts_with(FLANNELS)
}

/// Whether it is one of our own, not flannel's.
pub(crate) fn is_ours(name: &str) -> bool {
    name.starts_with(OURS)
}

//! What a setting is, and `settings!`, which makes all that the agent needs from the entries in [`super::table`].

use std::ops::RangeInclusive;

use super::kind::Kind;
use crate::base::network_name::NetworkName;

/// The commands that have a flag for a setting; the others read it from files and environment only.
pub mod command {
    /// `run`.
    pub const RUN: u16 = 1;
    /// `serve`.
    pub const SERVE: u16 = 1 << 1;
    /// `status`.
    pub const STATUS: u16 = 1 << 2;
    /// `peers`.
    pub const PEERS: u16 = 1 << 3;
    /// `doctor`.
    pub const DOCTOR: u16 = 1 << 4;
    /// `network`, except `network reserve`.
    pub const NETWORK: u16 = 1 << 5;
    /// `network reserve`.
    pub const RESERVE: u16 = 1 << 6;
    /// `leave`.
    pub const LEAVE: u16 = 1 << 7;
    /// `cleanup`.
    pub const CLEANUP: u16 = 1 << 8;
    /// `options docker`.
    pub const OPTIONS: u16 = 1 << 9;
    /// `migrate from-flannel` and `migrate back`.
    pub const MIGRATE: u16 = 1 << 10;
    /// Every command that has settings.
    pub const ALL: u16 = (1 << 11) - 1;
    /// Beside the commands: the flag is in the manual page, but not in `run --help`, which fits a screen.
    pub const RARE: u16 = 1 << 15;
    /// The commands that talk to etcd.
    pub(crate) const STORE: u16 = RUN | SERVE | DOCTOR | NETWORK | RESERVE | LEAVE;
    /// The commands that may talk to a lease server instead.
    pub(crate) const CLIENT: u16 = RUN | DOCTOR | LEAVE;
}

/// When a changed setting takes effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OnReload {
    Live,
    Restart,
}

/// One setting.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Setting {
    /// Table and key in a settings file, for example `etcd.lease-ttl`.
    pub(crate) path: &'static str,
    /// The table, for example `etcd`.
    pub(crate) table: &'static str,
    /// The key in its table, for example `lease-ttl`.
    pub(crate) name: &'static str,
    /// The flag without its dashes, for example `etcd-lease-ttl`; flannel's name if flannel has the setting.
    pub(crate) flag: &'static str,
    /// The heading in `--help`.
    pub(crate) heading: &'static str,
    /// The value's name in `--help`.
    pub(crate) value: &'static str,
    /// What it means, without the range.
    pub(super) about: &'static str,
    pub(crate) range: Option<RangeInclusive<i64>>,
    /// A value, or words where there is none.
    pub(crate) default: &'static str,
    /// The default in the network NAME, for a setting whose value no two networks of a host can share. Such a network
    /// ignores the value in the common files; only to that of `etcd.prefix` its name is appended.
    pub(crate) named: Option<&'static str>,
    pub(crate) kind: Kind,
    /// Flags from [`command`].
    pub(crate) commands: u16,
    pub(crate) on_reload: OnReload,
}

/// The prefix of our own environment variables.
const OURS: &str = "SELVAGE_";

/// The prefix of flanneld's; ours win.
const FLANNELS: &str = "FLANNELD_";

impl Setting {
    /// What it means, with the range.
    pub(crate) fn help(&self) -> String {
        match &self.range {
            Some(range) => format!("{} ({} to {})", self.about, range.start(), range.end()),
            None => self.about.to_owned(),
        }
    }

    /// The environment variables, the stronger first.
    pub(crate) fn variables(&self) -> [String; 2] {
        variables(self.flag)
    }

    /// The default of a network, or of the one without a name.
    pub(crate) fn default_of(&self, network: Option<&NetworkName>) -> String {
        match (network, self.named) {
            (Some(name), Some(named)) => named.replace("NAME", name.as_str()),
            _ => self.default.to_owned(),
        }
    }
}

/// The environment variables for a flag: its name in upper case, with underscores for dashes.
pub(super) fn variables(flag: &str) -> [String; 2] {
    let name = flag.to_ascii_uppercase().replace('-', "_");
    [format!("{OURS}{name}"), format!("{FLANNELS}{name}")]
}

/// Whether an environment variable may be a setting.
pub(super) fn is_variable(name: &str) -> bool {
    name.starts_with(OURS) || name.starts_with(FLANNELS)
}

/// Whether it is one of our own rather than flannel's.
pub(super) fn is_ours(name: &str) -> bool {
    name.starts_with(OURS)
}

/// Makes [`super::Settings`] and its tables, a [`Setting`] in `key` for each entry, and the list of them.
macro_rules! settings {
    ($($(#[$about:meta])* $table:ident: $Table:ident, $heading:literal {
        $($(#[$doc:meta])* $field:ident: $Type:ty = $check:expr, $kind:ident $(key $name:literal)?,
            flag $flag:literal $value:literal, help $help:literal $(range $range:expr)?,
            default $default:literal $(named $named:literal)?,
            commands $commands:expr, on_reload $reload:ident;)+
    })+) => {
        /// What the agent works by, all of it checked.
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub struct Settings {
            $(#[doc = concat!("`[", stringify!($table), "]`.")] pub $table: $Table,)+
        }

        $(
            $(#[$about])*
            #[derive(Clone, PartialEq, Eq, Debug)]
            pub struct $Table {
                $($(#[$doc])* pub $field: $Type,)+
            }

            impl Default for $Table {
                /// The settings when nothing is configured.
                fn default() -> Self {
                    Settings::default().$table
                }
            }
        )+

        /// Each setting.
        #[expect(non_upper_case_globals, reason = "named as the fields")]
        pub(crate) mod key {
            $(pub(crate) mod $table {
                use crate::settings::kind::Kind;
                use crate::settings::setting::{OnReload, Setting, command::*, settings};

                $(pub(crate) static $field: Setting = Setting {
                    path: concat!(stringify!($table), ".", settings!(@name $field $($name)?)),
                    table: stringify!($table),
                    name: settings!(@name $field $($name)?),
                    flag: $flag,
                    heading: $heading,
                    value: $value,
                    about: $help,
                    range: settings!(@option $($range)?),
                    default: $default,
                    named: settings!(@option $($named)?),
                    kind: Kind::$kind,
                    commands: $commands,
                    on_reload: OnReload::$reload,
                };)+
            })+
        }

        /// Every setting, in the order of the sample file.
        pub(crate) static ALL: &[&Setting] = &[$($(&key::$table::$field,)+)+];

        impl Settings {
            /// Checks everything and fills in the defaults.
            pub(crate) fn check(inputs: &Inputs) -> Result<Self, Error> {
                Ok(Self {
                    $($table: $Table {
                        $($field: ($check)(&inputs.given(&key::$table::$field))?,)+
                    },)+
                })
            }

            /// The differences to `new`, in the order of the sample file.
            pub(crate) fn changes(&self, new: &Self) -> Vec<Change> {
                let mut changes = Vec::new();
                $($(changes.extend(Change::between(
                    &key::$table::$field, &self.$table.$field, &new.$table.$field,
                ));)+)+
                changes
            }

            /// These settings, but the old values of those that need a restart.
            pub(crate) fn without_restart(mut self, old: &Self) -> Self {
                $($(if key::$table::$field.on_reload == OnReload::Restart {
                    self.$table.$field.clone_from(&old.$table.$field);
                })+)+
                self
            }
        }
    };
    (@name $field:ident) => { stringify!($field) };
    (@name $field:ident $name:literal) => { $name };
    (@option) => { None };
    (@option $value:expr) => { Some($value) };
}

pub(super) use settings;

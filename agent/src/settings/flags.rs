//! Settings from the command line.

use std::ops::Deref;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, value_parser};

use super::kind::Value;
use super::setting::{Setting, command};
use super::table::ALL;

/// Settings given as flags; they override the environment and the files.
#[derive(Clone, Debug, Default)]
pub struct SettingsFlags {
    /// The only settings file to read, instead of those in the system's directories.
    pub config: Option<PathBuf>,
    given: Vec<(&'static Setting, Value)>,
}

impl SettingsFlags {
    /// The flags that are given.
    pub(crate) fn given(&self) -> &[(&'static Setting, Value)] {
        &self.given
    }

    /// Whether the setting's flag is given.
    pub(crate) fn has(&self, setting: &Setting) -> bool {
        self.given.iter().any(|(given, _)| *given == setting)
    }
}

/// The flags that a command of [`command`] uses.
#[derive(Clone, Debug, Default)]
pub struct FlagsOf<const COMMAND: u16>(SettingsFlags);

/// The flags of `selvage run`.
pub type RunFlags = FlagsOf<{ command::RUN }>;
/// The flags of `selvage serve`.
pub type ServeFlags = FlagsOf<{ command::SERVE }>;
/// The settings among the flags of `selvage status`.
pub type StatusSettings = FlagsOf<{ command::STATUS }>;
/// The settings among the flags of `selvage peers`.
pub type PeersSettings = FlagsOf<{ command::PEERS }>;
/// The settings among the flags of `selvage doctor`.
pub type DoctorSettings = FlagsOf<{ command::DOCTOR }>;
/// The settings among the flags of `selvage network`.
pub type NetworkSettings = FlagsOf<{ command::NETWORK }>;
/// The settings among the flags of `selvage network reserve`.
pub type ReserveSettings = FlagsOf<{ command::RESERVE }>;
/// The flags of `selvage leave`.
pub type LeaveFlags = FlagsOf<{ command::LEAVE }>;
/// The flags of `selvage cleanup`.
pub type CleanupFlags = FlagsOf<{ command::CLEANUP }>;
/// The settings among the flags of `selvage migrate`.
pub type MigrateSettings = FlagsOf<{ command::MIGRATE }>;
/// The settings among the flags of `selvage options docker`.
pub type OptionsSettings = FlagsOf<{ command::OPTIONS }>;

impl<const COMMAND: u16> Deref for FlagsOf<COMMAND> {
    type Target = SettingsFlags;

    fn deref(&self) -> &SettingsFlags {
        &self.0
    }
}

impl<const COMMAND: u16> Args for FlagsOf<COMMAND> {
    fn augment_args(parser: Command) -> Command {
        let config = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help("Settings file to read in place of /etc/selvage and the like");
        let used = ALL.iter().filter(|setting| setting.commands & COMMAND != 0);
        parser
            .arg(config)
            .args(used.map(|setting| argument(setting, COMMAND)))
    }

    fn augment_args_for_update(parser: Command) -> Command {
        Self::augment_args(parser)
    }
}

impl<const COMMAND: u16> FromArgMatches for FlagsOf<COMMAND> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |setting: &&'static Setting| {
            let value = setting.kind.flag(matches, setting.flag)?;
            Some((*setting, value))
        };
        Ok(Self(SettingsFlags {
            config: matches.get_one("config").cloned(),
            given: ALL.iter().filter_map(given).collect(),
        }))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// One line in `--help`; the manual page adds the key in a settings file.
fn argument(setting: &'static Setting, of: u16) -> Arg {
    let (help, default) = (setting.help(), setting.default);
    let short = match default {
        "none" => help.clone(),
        default => format!("{help} [default: {default}]"),
    };
    let argument = Arg::new(setting.flag)
        .long(setting.flag)
        .value_name(setting.value)
        .help_heading(setting.heading)
        .hide_short_help(of == command::RUN && setting.commands & command::RARE != 0)
        .help(short)
        .long_help(format!("{help} [{}; default: {default}]", setting.path));
    setting.kind.argument(argument)
}

/// The flags of any command.
#[cfg(test)]
pub(crate) fn parse(arguments: &[&str]) -> SettingsFlags {
    let parser =
        FlagsOf::<{ command::ALL }>::augment_args(Command::new("selvage").no_binary_name(true));
    let matches = parser.try_get_matches_from(arguments).unwrap();
    FlagsOf::<{ command::ALL }>::from_arg_matches(&matches)
        .unwrap()
        .0
}

//! The command line of `selvage run` without the tree of all other commands.

use std::ffi::OsString;

use clap::{Args, FromArgMatches};

use super::{Cli, Command};
use crate::settings::RunFlags;

impl Cli {
    /// Parses the command line of `selvage run`, the program's name first. `None` for another command, for wrong
    /// arguments and for a question for help: then [`clap::Parser::try_parse`] has the words.
    ///
    /// To build the whole tree takes milliseconds, which every start of the agent would take longer.
    pub fn of_run(arguments: impl IntoIterator<Item = OsString>) -> Option<Self> {
        let mut arguments = arguments.into_iter().skip(1).peekable();
        if arguments.peek()? != "run" {
            return None;
        }
        // Help is the tree's, and its flag is unknown here.
        let command = clap::Command::new("run").disable_help_flag(true);
        let matches = RunFlags::augment_args(command)
            .try_get_matches_from(arguments)
            .ok()?;
        Some(Self {
            help: None,
            command: Command::Run(RunFlags::from_arg_matches(&matches).ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn both(line: &str) -> (Option<Cli>, Result<Cli, clap::Error>) {
        let words = || line.split(' ').map(OsString::from);
        (Cli::of_run(words()), Cli::try_parse_from(words()))
    }

    #[test]
    fn it_says_what_the_tree_says() {
        for line in [
            "selvage run",
            "selvage run --iface eth0 --iface eth1 --ip-masq",
            "selvage run --ip-masq=false --etcd-endpoints http://10.0.0.1:2379,http://10.0.0.2:2379",
            "selvage run --config /etc/agent.toml --kube-subnet-mgr",
            "/usr/bin/selvage run --subnet-file=/run/x",
        ] {
            let (alone, tree) = both(line);
            assert_eq!(
                format!("{:?}", alone.expect(line)),
                format!("{:?}", tree.expect(line))
            );
        }
    }

    #[test]
    fn all_else_is_left_to_the_tree() {
        for line in [
            "selvage",
            "selvage status",
            "selvage run --help",
            "selvage run -h",
            "selvage run --version",
            "selvage -h run",
            "selvage run --no-such-flag",
            "selvage run --iface",
            "selvage run word",
            "selvage run --ip-masq=perhaps",
        ] {
            assert!(both(line).0.is_none(), "{line}");
        }
    }
}

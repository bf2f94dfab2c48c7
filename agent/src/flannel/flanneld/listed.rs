//! The flags and variables of a flanneld that runs somewhere else, for who moves it: each by itself, so that one which is
//! wrong hides no other.

use std::ffi::OsString;
use std::iter::Peekable;

use super::definition::{self, Definition, Kind};
use super::flags::RENEW_MARGIN;
use super::go_flag::{self, Next};
use crate::base::go_json::shorten;

/// A flag or variable that somebody gave to flanneld.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Listed {
    /// The flag's name without dashes; of an unknown one, the whole argument, shortened.
    pub(crate) name: String,
    /// Its value, as it was given.
    pub(crate) value: String,
    /// What is known of it; `None` if no flanneld that we know has it.
    pub(crate) meaning: Option<Meaning>,
    /// Why the value is not allowed.
    pub(crate) fault: Option<&'static str>,
}

/// What a flag does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Meaning {
    /// What it is for.
    pub(crate) help: &'static str,
    /// What holds without it; empty for nothing.
    pub(crate) default: &'static str,
    /// Whether it counts for a node of Kubernetes, with this agent.
    pub(crate) counts: bool,
    /// Whether flannel v0.28.9 has it.
    pub(crate) is_flannels: bool,
}

/// The flags that flannel had before 0.8, and we have again.
const ONLY_OURS: [&str; 7] = [
    "listen",
    "networks",
    "remote",
    "remote-cafile",
    "remote-certfile",
    "remote-keyfile",
    "subnet-dir",
];

/// What has no effect on a node of Kubernetes, or none at all.
fn counts(name: &str) -> bool {
    let idle = ["log_backtrace_at", "vmodule", "version", RENEW_MARGIN];
    !name.starts_with("etcd-") && !ONLY_OURS.contains(&name) && !idle.contains(&name)
}

impl Listed {
    fn new(definition: &'static Definition, value: String) -> Self {
        // Kubernetes replaces $(NAME) before flanneld sees it.
        let fault = match value.contains("$(") {
            true => None,
            false => go_flag::value(definition.kind, &value).err(),
        };
        let name = definition.name;
        Self {
            name: name.to_owned(),
            value,
            meaning: Some(Meaning {
                help: definition.help,
                default: definition.default,
                counts: counts(name),
                is_flannels: !ONLY_OURS.contains(&name),
            }),
            fault,
        }
    }

    /// Whether this is what holds anyway.
    pub(crate) fn is_default(&self) -> bool {
        self.meaning
            .is_some_and(|meaning| meaning.default == self.value)
    }

    /// As on a command line.
    pub(crate) fn argument(&self) -> String {
        match &self.meaning {
            None => self.name.clone(),
            Some(_) => format!("--{}={}", self.name, self.value),
        }
    }
}

/// What a command line says.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct CommandLine {
    /// Its flags, in order.
    pub(crate) flags: Vec<Listed>,
    /// The first argument that flanneld does not read, because it is no flag.
    pub(crate) unread: Option<String>,
}

impl CommandLine {
    /// Reads the arguments after the program's name.
    pub(crate) fn read(arguments: &[String]) -> Self {
        let mut line = Self::default();
        let mut rest = arguments.iter().map(OsString::from).peekable();
        loop {
            let first = rest.peek().map(|argument| argument.to_string_lossy());
            let first = first.map(|text| shorten(&text)).unwrap_or_default();
            match go_flag::next(&mut rest) {
                Ok(Next::Flag(definition, value)) => {
                    line.flags.push(Listed::new(definition, value));
                }
                // Whoever asks for help, or for a flag that there is not, has a flanneld that ends at once, or another one.
                Ok(Next::Help) => line.flags.push(unknown(first)),
                Err(_) => {
                    line.flags.push(unknown(first));
                    skip_values(&mut rest);
                }
                Ok(Next::End { unread }) => {
                    line.unread = unread.map(|argument| shorten(&argument));
                    return line;
                }
            }
        }
    }

    /// The last value of a flag.
    pub(crate) fn last(&self, name: &str) -> Option<&str> {
        let mut found = self.flags.iter().rev().filter(|flag| flag.name == name);
        found.next().map(|flag| flag.value.as_str())
    }

    /// Whether a switch is on.
    pub(crate) fn is_on(&self, name: &str) -> bool {
        let value = self
            .last(name)
            .map(|value| go_flag::value(Kind::Switch, value));
        matches!(value, Some(Ok(super::flags::Value::Switch(true))))
    }
}

fn unknown(argument: String) -> Listed {
    Listed {
        name: argument,
        value: String::new(),
        meaning: None,
        fault: None,
    }
}

/// Passes over what may be the value of a flag that is not known.
fn skip_values(rest: &mut Peekable<impl Iterator<Item = OsString>>) {
    while rest
        .next_if(|argument| !argument.to_string_lossy().starts_with('-'))
        .is_some()
    {}
}

/// The flag that a variable sets; `None` if it sets none.
pub(crate) fn of_variable(name: &str, value: &str) -> Option<Listed> {
    let flag = name.strip_prefix("FLANNELD_")?;
    let flag = flag.to_ascii_lowercase().replace('_', "-");
    let definition = definition::find(&flag)?;
    Some(Listed::new(definition, value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str]) -> CommandLine {
        let arguments: Vec<_> = arguments.iter().map(|text| (*text).to_owned()).collect();
        CommandLine::read(&arguments)
    }

    fn texts(line: &CommandLine) -> Vec<String> {
        line.flags.iter().map(Listed::argument).collect()
    }

    #[test]
    fn each_flag_is_read_by_itself() {
        let line = read(&[
            "-ip-masq",
            "--cloud-provider",
            "aws",
            "--iface=$(HOST_IP)",
            "--iptables-resync=$(SECONDS)",
            "--healthz-port=many",
            "-kube-subnet-mgr=true",
        ]);
        let expected = [
            "--ip-masq=true",
            "--cloud-provider",
            "--iface=$(HOST_IP)",
            "--iptables-resync=$(SECONDS)",
            "--healthz-port=many",
            "--kube-subnet-mgr=true",
        ];
        assert_eq!(texts(&line), expected);
        let faults: Vec<_> = line.flags.iter().map(|flag| flag.fault.is_some()).collect();
        assert_eq!(faults, [false, false, false, false, true, false]);
        assert!(line.flags[1].meaning.is_none() && line.unread.is_none());
        assert!(line.is_on("ip-masq") && line.is_on("kube-subnet-mgr") && !line.is_on("version"));
        assert_eq!(line.last("iface"), Some("$(HOST_IP)"));
    }

    #[test]
    fn what_flanneld_does_not_read_is_told() {
        let line = read(&["--ip-masq", "false", "--kube-subnet-mgr"]);
        assert_eq!(texts(&line), ["--ip-masq=true"]);
        assert_eq!(line.unread.as_deref(), Some("false"));
        assert_eq!(read(&["--", "x"]).unread.as_deref(), Some("x"));
        assert_eq!(read(&["--help", "--iface"]).flags.len(), 2);
        let long = "-".repeat(3) + &"x".repeat(1 << 20);
        assert!(read(&[&long]).flags[0].name.len() < 1000);
    }

    #[test]
    fn variables_are_flags() {
        let listed = of_variable("FLANNELD_IFACE_REGEX", "^192[.]168[.]35[.]").unwrap();
        assert_eq!(listed.argument(), "--iface-regex=^192[.]168[.]35[.]");
        for name in ["FLANNELD_", "FLANNELD_NONE", "SELVAGE_IFACE", "POD_NAME"] {
            assert_eq!(of_variable(name, "x"), None, "{name}");
        }
    }

    #[test]
    fn what_counts_in_kubernetes_is_known_of_every_flag() {
        let all = definition::ALL.iter().map(|definition| definition.name);
        let idle: Vec<_> = all.filter(|name| !counts(name)).collect();
        assert_eq!(idle.len(), 7 + ONLY_OURS.len() + 4, "{idle:?}");
        assert!(
            ONLY_OURS
                .iter()
                .all(|name| definition::find(name).is_some())
        );
    }
}

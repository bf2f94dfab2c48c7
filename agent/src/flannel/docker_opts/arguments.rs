//! The script's arguments, as a shell's `getopts` reads them.

use std::ffi::OsString;
use std::path::PathBuf;

/// What follows the program's name in the usage message.
pub(super) const USAGE: &str = "\
[-f FLANNEL-ENV-FILE] [-d DOCKER-ENV-FILE] [-i] [-c] [-m] [-k COMBINED-KEY]

Write the options that give Docker the subnet that flannel leased.
  -f FILE  what flannel wrote [/run/flannel/subnet.env]
  -d FILE  what to write for Docker [/run/docker_opts.env]
  -i       write each option as a variable: DOCKER_OPT_BIP, DOCKER_OPT_IPMASQ, DOCKER_OPT_MTU
  -c       write all options as one variable; without -i and -c, both
  -k KEY   the name of that one variable [DOCKER_OPTS]
  -m       leave --ip-masq out, which old Dockers do not know
";

/// What was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Arguments {
    pub(super) subnet_file: PathBuf,
    pub(super) output: PathBuf,
    pub(super) individual: bool,
    pub(super) combined: bool,
    pub(super) masquerade: bool,
    pub(super) key: String,
}

/// The usage message is wanted, or needed because of this.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Usage(pub(super) Option<String>);

/// Reads the arguments up to the first that is none of the options, which getopts(1p) leaves alone.
pub(super) fn parse(arguments: Vec<OsString>) -> Result<Arguments, Usage> {
    let mut parsed = Arguments {
        subnet_file: "/run/flannel/subnet.env".into(),
        output: "/run/docker_opts.env".into(),
        individual: false,
        combined: false,
        masquerade: true,
        key: "DOCKER_OPTS".to_owned(),
    };
    let mut arguments = arguments.into_iter().map(text);
    while let Some(argument) = arguments.next() {
        let argument = argument?;
        let Some(mut letters) = argument.strip_prefix('-').map(str::chars) else {
            break;
        };
        if matches!(letters.as_str(), "" | "-") {
            break;
        }
        while let Some(letter) = letters.next() {
            match letter {
                'i' => parsed.individual = true,
                'c' => parsed.combined = true,
                'm' => parsed.masquerade = false,
                'f' | 'd' | 'k' => {
                    let attached = letters.as_str();
                    letters = "".chars();
                    let value = if attached.is_empty() {
                        let missing = || Usage(Some(format!("option -{letter} needs an argument")));
                        arguments.next().ok_or_else(missing)??
                    } else {
                        attached.to_owned()
                    };
                    match letter {
                        'f' => parsed.subnet_file = value.into(),
                        'd' => parsed.output = value.into(),
                        _ => parsed.key = value,
                    }
                }
                'h' | '?' => return Err(Usage(None)),
                _ => return Err(Usage(Some(format!("there is no option -{letter}")))),
            }
        }
    }
    if !parsed.individual && !parsed.combined {
        parsed.individual = true;
        parsed.combined = true;
    }
    Ok(parsed)
}

fn text(argument: OsString) -> Result<String, Usage> {
    argument
        .into_string()
        .map_err(|argument| Usage(Some(format!("{argument:?} is not UTF-8"))))
}

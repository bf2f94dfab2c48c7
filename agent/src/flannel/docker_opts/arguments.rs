//! The script's arguments, parsed like a shell's `getopts`.

use std::ffi::OsString;
use std::path::PathBuf;

/// The part of the usage message after the program's name.
pub(super) const USAGE: &str = "\
[-f FLANNEL-ENV-FILE] [-d DOCKER-ENV-FILE] [-i] [-c] [-m] [-k COMBINED-KEY]

Write Docker's options for the subnet that flannel leased.
  -f FILE  flannel's subnet file [/run/flannel/subnet.env]
  -d FILE  output file for Docker [/run/docker_opts.env]
  -i       write each option as a variable: DOCKER_OPT_BIP, DOCKER_OPT_IPMASQ, DOCKER_OPT_MTU
  -c       write all options as one variable; without -i and -c, both
  -k KEY   the name of that one variable [DOCKER_OPTS]
  -m       omit --ip-masq, which old versions of Docker do not have
";

/// The parsed arguments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Arguments {
    pub(super) subnet_file: PathBuf,
    pub(super) output: PathBuf,
    pub(super) individual: bool,
    pub(super) combined: bool,
    pub(super) masquerade: bool,
    pub(super) key: String,
}

/// Print the usage message: on request, or because of this error.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Usage(pub(super) Option<String>);

/// Parses the arguments up to the first that is not an option, which getopts(1p) leaves alone.
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
                _ => return Err(Usage(Some(format!("unknown option -{letter}")))),
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

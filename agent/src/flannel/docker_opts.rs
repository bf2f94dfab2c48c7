//! flannel's `mk-docker-opts.sh`: options for the Docker daemon, made from `subnet.env`.
//!
//! Other units and scripts read its output, so it is identical to the byte with flannel's shell script (since 0.11).
//! Two accidents of the script are left out: what only a shell does with odd values, and running the subnet file as a
//! program.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ipnet::Ipv4Net;
use thiserror::Error;

use self::arguments::Arguments;
use crate::base::atomic_file;
use crate::base::env_file::{self, Variables, is_name};
use crate::base::logging;

mod arguments;
mod routes;

/// The options cannot be made.
#[derive(Debug, Error)]
enum Error {
    #[error("failed to read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("failed to read {}", path.display())]
    Parse {
        path: PathBuf,
        #[source]
        source: env_file::Error,
    },
    /// flannel's own text.
    #[error("Invalid value of {name}: {value}")]
    Value { name: &'static str, value: String },
    #[error("{0:?} is not a variable name")]
    Key(String),
    #[error("failed to write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// flannel's own text.
    #[error("Your routing table already contains the subnet: {}", .0.join("\n"))]
    Routed(Vec<String>),
}

/// Runs with the arguments after the program's name, `program`.
pub fn main(program: &str, arguments: Vec<OsString>) -> ExitCode {
    let arguments = match arguments::parse(arguments) {
        Ok(arguments) => arguments,
        Err(usage) => {
            if let Some(complaint) = usage.0 {
                say(&format!("{program}: {complaint}"));
            }
            say(&format!("{program} {}", arguments::USAGE));
            return ExitCode::FAILURE;
        }
    };
    match run(program, &arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&logging::chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(program: &str, arguments: &Arguments) -> Result<(), Error> {
    let mut variables = inherited();
    let subnet_file = &arguments.subnet_file;
    if subnet_file.is_file() {
        let text = fs::read_to_string(subnet_file).map_err(|source| Error::Read {
            path: subnet_file.clone(),
            source,
        })?;
        let inherited = variables.get(IPMASQ).cloned();
        let ignored = env_file::source(&text, &mut variables).map_err(|source| Error::Parse {
            path: subnet_file.clone(),
            source,
        })?;
        // `-m` also concerns the option that our own subnet file contains.
        if !arguments.masquerade {
            variables.remove(IPMASQ);
            variables.extend(inherited.map(|value| (IPMASQ.to_owned(), value)));
        }
        for line in ignored {
            say(&format!(
                "{program}: {}:{line}: not an assignment, ignored",
                subnet_file.display()
            ));
        }
    }
    let subnet = subnet(&variables)?;
    let text = render(arguments, variables)?;
    write(&arguments.output, &text).map_err(|source| Error::Write {
        path: arguments.output.clone(),
        source,
    })?;
    let Some(subnet) = subnet else {
        return Ok(());
    };
    match routes::gateways(subnet) {
        Ok(routes) if routes.is_empty() => Ok(()),
        Ok(routes) => Err(Error::Routed(routes)),
        // The script did not notice either if it could not run `ip`.
        Err(error) => {
            say(&format!(
                "{program}: failed to look for routes to {subnet}: {error}"
            ));
            Ok(())
        }
    }
}

/// Prints a line to standard error, if it is still open.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// The variable with the `--ip-masq` option.
const IPMASQ: &str = "DOCKER_OPT_IPMASQ";

/// The environment as a shell imports it: valid variable names only. systemd reads back only UTF-8.
fn inherited() -> Variables {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| is_name(name))
        .collect()
}

/// A variable's value; empty counts as missing.
fn value<'a>(variables: &'a Variables, name: &str) -> Option<&'a str> {
    let value = variables.get(name)?;
    (!value.is_empty()).then_some(value.as_str())
}

/// The leased subnet.
fn subnet(variables: &Variables) -> Result<Option<Ipv4Net>, Error> {
    let name = "FLANNEL_SUBNET";
    let Some(text) = value(variables, name) else {
        return Ok(None);
    };
    match text.parse::<Ipv4Net>() {
        Ok(bridge) => Ok(Some(bridge.trunc())),
        Err(_) => Err(Error::Value {
            name,
            value: text.to_owned(),
        }),
    }
}

/// The output file's text.
fn render(arguments: &Arguments, mut variables: Variables) -> Result<String, Error> {
    let key = &arguments.key;
    if !is_name(key) {
        return Err(Error::Key(key.clone()));
    }
    let bip = value(&variables, "FLANNEL_SUBNET").map(|subnet| format!("--bip={subnet}"));
    let mtu = value(&variables, "FLANNEL_MTU").map(|mtu| format!("--mtu={mtu}"));
    let name = "FLANNEL_IPMASQ";
    let ip_masq = match value(&variables, name) {
        _ if !arguments.masquerade => None,
        None => None,
        // Either the agent or Docker masquerades.
        Some("true") => Some("--ip-masq=false".to_owned()),
        Some("false") => Some("--ip-masq=true".to_owned()),
        Some(value) => {
            return Err(Error::Value {
                name,
                value: value.to_owned(),
            });
        }
    };
    for (name, option) in [
        ("DOCKER_OPT_BIP", bip),
        ("DOCKER_OPT_MTU", mtu),
        (IPMASQ, ip_masq),
    ] {
        if let Some(option) = option {
            variables.insert(name.to_owned(), option);
        }
    }

    let mut combined = match value(&variables, key) {
        Some(value) => format!("{value} "),
        None => String::new(),
    };
    let mut text = String::new();
    let mut assign = |name: &str, value: &str| {
        text.extend([name, "=\"", value, "\"\n"]);
    };
    for (name, value) in &variables {
        if !name.contains("DOCKER_OPT_") {
            continue;
        }
        // The script passes each value through an unquoted `echo`.
        let value = value.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
        if arguments.individual {
            assign(name, &value);
        }
        combined.push(' ');
        combined.push_str(&value);
    }
    if arguments.combined {
        assign(key, &combined);
    }
    Ok(text)
}

/// Replaces a file atomically; anything but a regular file (`/dev/stdout`) is written in place.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let plain = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.is_file(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    if plain {
        return atomic_file::replace(path, text.as_bytes(), 0o644);
    }
    let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests;

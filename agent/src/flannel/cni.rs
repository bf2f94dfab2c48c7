//! The CNI meta plugin `flannel`: reads this host's subnet from `subnet.env`, and delegates the work to another plugin.
//!
//! ```text
//!  runtime ──CNI_*, configuration──► flannel ──CNI_*, delegate's configuration──► bridge ──► host-local
//!          ◄──result or error──────           ◄──result or error────────────────
//!                                       │
//!                        subnet.env ────┴──── dataDir: the delegate's configuration, for DEL
//! ```
//!
//! A replacement for the plugin of flannel-io/cni-plugin, for CNI specification 0.1.0 to 1.1.0; so rkt's
//! `{"name":"containers","type":"flannel"}` works too. The delegate's configuration is identical to the byte;
//! `docs/flannel.md` lists the differences.
//!
//! It runs once per call, with blocking system calls: it waits only for the delegate.

mod attachment;
mod bridge;
mod config;
mod delegate;
mod environment;
mod error;
mod host_local;
mod plugin;
mod reboot;
mod subnet_env;
mod verbs;
mod version;

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::process::ExitCode;

use serde_json::json;

pub use self::error::Error;
pub use self::version::Version;

use self::attachment::Store;
use self::config::NetConf;
use self::environment::{Call, Command};
use self::subnet_env::SubnetEnv;

/// The main function of the binary under the name `flannel`.
///
/// Exits with 1 after an error, which is printed to standard output as the specification requires. Without
/// `CNI_COMMAND` it prints its version to standard error and succeeds.
pub fn main() -> ExitCode {
    let mut stdout = io::stdout().lock();
    let get = |name: &str| std::env::var_os(name);
    let Err((error, version)) = run(get, &mut io::stdin().lock(), &mut stdout) else {
        return ExitCode::SUCCESS;
    };
    if let Error::NoCommand = error {
        verbs::note(&about());
        return ExitCode::SUCCESS;
    }
    // Standard output is gone, so the error cannot be reported.
    let _ = stdout.write_all(&error.report(version));
    let _ = stdout.flush();
    ExitCode::FAILURE
}

/// Executes one call: the variables through `get`, the configuration from `stdin`, the result to `stdout`.
///
/// # Errors
///
/// The error, and the configuration's version if it is known.
pub fn run(
    get: impl Fn(&str) -> Option<OsString>,
    stdin: &mut dyn Read,
    stdout: &mut dyn Write,
) -> Result<(), (Error, Option<Version>)> {
    let without_version = |error| (error, None);
    let call = Call::parse(get).map_err(without_version)?;
    if call.command == Command::Version {
        return stdout
            .write_all(versions().as_bytes())
            .map_err(|error| without_version(Error::Stdout(error)));
    }
    let mut configuration = Vec::new();
    stdin
        .read_to_end(&mut configuration)
        .map_err(|error| without_version(Error::Stdin(error)))?;
    let conf = NetConf::parse(&configuration).map_err(without_version)?;
    let outcome = if conf.version() < call.command.since() {
        Err(Error::CommandTooNew {
            command: call.command.as_str(),
            config: conf.version(),
            since: call.command.since(),
        })
    } else {
        match call.command {
            Command::Add => verbs::add(&call, &conf, stdout),
            Command::Del => verbs::del(&call, &conf),
            Command::Check => verbs::check(&call, &conf),
            Command::Status => verbs::status(&call, &conf),
            Command::Gc => verbs::gc(&call, &conf),
            Command::Version => Ok(()),
        }
    };
    outcome.map_err(|error| (error, Some(conf.version())))
}

/// The delegate's configuration for an ADD: a pure function of the configuration and the text of `subnet.env`.
///
/// # Errors
///
/// The configuration or the file is invalid.
pub fn delegate_configuration(stdin: &[u8], subnet_env: &[u8]) -> Result<String, Error> {
    let conf = NetConf::parse(stdin)?;
    let text = String::from_utf8_lossy(subnet_env);
    let env = SubnetEnv::parse(&text, &conf.subnet_file).map_err(|source| {
        let path = conf.subnet_file.clone();
        Error::BadSubnetFile { path, source }
    })?;
    delegate::configuration(&conf, &env).map(delegate::serialize)
}

/// How many containers are attached by a configuration, or were when the host went down.
///
/// # Errors
/// The configuration is invalid, or the directory of records cannot be read.
pub fn count_attachments(stdin: &[u8]) -> Result<usize, Error> {
    let conf = NetConf::parse(stdin)?;
    let attachments = Store::new(conf.data_dir).list(&conf.name)?;
    Ok(attachments.len())
}

/// The answer to VERSION.
fn versions() -> String {
    let all = Version::ALL.map(Version::as_str);
    let answer = json!({"cniVersion": Version::NEWEST.as_str(), "supportedVersions": all});
    format!("{answer}\n")
}

/// The text for users who run the plugin by hand.
fn about() -> String {
    let all = Version::ALL.map(Version::as_str);
    format!(
        "CNI Plugin flannel version {} (selvage, {}/{})\nCNI protocol versions supported: {}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH,
        all.join(", ")
    )
}

#[cfg(test)]
mod tests;

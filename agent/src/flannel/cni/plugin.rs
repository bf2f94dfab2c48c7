//! Runs another plugin: found in `CNI_PATH`, with our environment; its output is passed on unchanged.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::Value;

use super::environment::Interface;
use super::error::{Error, INTERNAL};
use super::version::Version;
use crate::base::go_json::shorten;

/// An executable plugin.
#[derive(Debug)]
pub(super) struct Plugin {
    name: String,
    program: PathBuf,
}

/// Attempts to start a plugin whose file is open for writing (ETXTBSY), one per second: an update of the plugins may be
/// copying over the executables. Upstream uses the same numbers.
const BUSY_ATTEMPTS: u32 = 5;

impl Plugin {
    /// Finds the executable; `command` is for the error message.
    pub(super) fn find(name: &str, path: &OsStr, command: &str) -> Result<Self, Error> {
        if name.is_empty() || name.contains('/') {
            return Err(Error::PluginName(name.to_owned()));
        }
        let directories: Vec<_> = std::env::split_paths(path).collect();
        let mut programs = directories.iter().map(|directory| directory.join(name));
        match programs.find(|program| program.is_file()) {
            Some(program) => Ok(Self {
                name: name.to_owned(),
                program,
            }),
            None => {
                let list: Vec<_> = directories.iter().map(|d| d.to_string_lossy()).collect();
                Err(Error::NoPlugin {
                    command: command.to_lowercase(),
                    name: name.to_owned(),
                    path: list.join(" "),
                })
            }
        }
    }

    /// Runs `command` with the configuration on standard input; returns the output.
    ///
    /// The other variables are those of our own call.
    pub(super) fn call(&self, command: &str, configuration: &str) -> Result<Vec<u8>, Error> {
        self.run(command, configuration, |_| {})
    }

    /// The same for another interface than that of our call, of which only the parameters are known.
    pub(super) fn call_about(
        &self,
        interface: &Interface,
        command: &str,
        configuration: &str,
    ) -> Result<Vec<u8>, Error> {
        self.run(command, configuration, |process| {
            process
                .env("CNI_CONTAINERID", &interface.container_id)
                .env("CNI_IFNAME", &interface.name)
                .env_remove("CNI_NETNS")
                .env_remove("CNI_ARGS");
        })
    }

    /// Whether the plugin supports the version. A plugin that does not say counts as not supporting it.
    pub(super) fn speaks(&self, version: Version) -> bool {
        let question = format!(r#"{{"cniVersion":"{version}"}}"#);
        let Ok(answer) = self.call("VERSION", &question) else {
            return false;
        };
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        let versions = answer.get("supportedVersions").and_then(Value::as_array);
        versions.is_some_and(|list| list.iter().any(|v| v == version.as_str()))
    }

    fn run(
        &self,
        command: &str,
        configuration: &str,
        adjust: impl FnOnce(&mut Command),
    ) -> Result<Vec<u8>, Error> {
        let mut process = Command::new(&self.program);
        process.env("CNI_COMMAND", command);
        adjust(&mut process);
        let output = self.output(&mut process, command, configuration)?;
        // Standard error is gone, so the error cannot be reported.
        let _ = io::stderr().write_all(&output.stderr);
        if output.status.success() {
            return Ok(output.stdout);
        }
        let is_error = |value: &Value| value.get("code").is_some() || value.get("msg").is_some();
        match serde_json::from_slice(&output.stdout) {
            Ok(answer) if is_error(&answer) => Err(Error::Delegate(with_code(answer, output))),
            _ => Err(Error::DelegateDied(self.failure_text(&output))),
        }
    }

    fn output(
        &self,
        process: &mut Command,
        command: &str,
        configuration: &str,
    ) -> Result<Output, Error> {
        let mut attempts_left = BUSY_ATTEMPTS;
        loop {
            attempts_left -= 1;
            // A file instead of a pipe: a plugin that does not read its input can neither block us nor kill us by
            // SIGPIPE.
            let outcome = memory(configuration).and_then(|file| process.stdin(file).output());
            match outcome {
                Ok(output) => return Ok(output),
                Err(error)
                    if error.kind() == io::ErrorKind::ExecutableFileBusy && attempts_left > 0 =>
                {
                    sleep(Duration::from_secs(1));
                }
                Err(source) => {
                    return Err(Error::Spawn {
                        command: command.to_lowercase(),
                        program: self.program.clone(),
                        source,
                    });
                }
            }
        }
    }

    /// The available information about a plugin that failed without an error object.
    fn failure_text(&self, output: &Output) -> String {
        let printed = if output.stdout.is_empty() {
            &output.stderr
        } else {
            &output.stdout
        };
        let printed = String::from_utf8_lossy(printed);
        let Self { name, .. } = self;
        match printed.trim() {
            "" => format!("{name} ended with {} and without a message", output.status),
            text => format!("{name} ended with {}: {:?}", output.status, shorten(text)),
        }
    }

    /// The plugin's name, as in `type`.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

/// A plugin's error in a form that a runtime can read: unchanged if it has a code.
fn with_code(mut error: Value, output: Output) -> Vec<u8> {
    match &mut error {
        Value::Object(fields) if !fields.contains_key("code") => {
            fields.insert("code".into(), INTERNAL.into());
            error.to_string().into_bytes()
        }
        _ => output.stdout,
    }
}

/// An in-memory file with this text, positioned at its start.
fn memory(text: &str) -> io::Result<File> {
    let mut file = File::from(memfd_create("cni-configuration", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

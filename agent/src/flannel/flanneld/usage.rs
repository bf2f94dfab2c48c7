//! What `--help` prints.

use std::fmt::Write;

use super::definition::{self, Kind};

/// The message for a program that was called `program`.
pub(super) fn text(program: &str) -> String {
    let mut text = format!(
        "Usage: {program} [OPTION]...\n\
         Flags take one dash or two, and their value after = or as the next argument. Each can also be given as an\n\
         environment variable: FLANNELD_ and its name in upper case with _ for -.\n"
    );
    for definition in definition::ALL {
        let value = match definition.kind {
            Kind::Switch => "",
            Kind::Number | Kind::Verbosity => " int",
            Kind::Text | Kind::Location => " string",
            Kind::Texts => " string (repeatable)",
            Kind::Modules => " pattern=N,...",
        };
        let default = match definition.default {
            "" | "false" => String::new(),
            default => format!(" [{default}]"),
        };
        // Writing into a `String` never fails.
        let _ = writeln!(
            text,
            "  --{}{value}\n    \t{}{default}",
            definition.name, definition.help
        );
    }
    text
}

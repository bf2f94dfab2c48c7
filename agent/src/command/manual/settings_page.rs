//! agent.toml(5), from the flags of `selvage run`: whichever is a setting says so at the end of its help, as
//! `[etcd.prefix; default: /coreos.com/network]`.

use std::any::TypeId;
use std::io;

use clap::{Arg, ArgAction, Command};
use clap_mangen::roff::{Roff, bold, italic, line_break, roman};

use super::{MANUAL, NO_DATE, Page, SOURCE, prose, references};

/// A whole file, which the settings' own check must take.
pub(super) const EXAMPLE: &str = "\
[etcd]
endpoints = [\"https://10.77.0.11:2379\", \"https://10.77.0.12:2379\"]
cafile = \"/etc/selvage/ca.pem\"

[underlay]
interfaces = [\"eth1\"]

[firewall]
masquerade = true
";

/// What the list of exit statuses begins with, which ends the help of `selvage run` and is nothing about files.
const EXIT_STATUS: &str = "\n\nExit status:";

/// One key of the file.
pub(crate) struct Setting {
    /// Such as `etcd`.
    pub(crate) table: String,
    /// Such as `prefix`.
    pub(crate) key: String,
    pub(crate) form: Form,
    pub(crate) description: String,
    pub(crate) default: String,
    /// The flag with its value, such as `--etcd-prefix KEY` or `--ip-masq[=BOOL]`.
    pub(crate) flag: String,
}

/// What stands behind the `=`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    Text,
    Texts,
    Integer,
    Boolean,
}

impl Form {
    fn of(argument: &Arg, help: &str) -> Self {
        let parsed = argument.get_value_parser().type_id();
        if parsed == TypeId::of::<bool>() {
            Self::Boolean
        } else if parsed == TypeId::of::<i64>() {
            Self::Integer
        } else if matches!(argument.get_action(), ArgAction::Append)
            || help.contains(SEPARATED_BY_COMMAS)
        {
            Self::Texts
        } else {
            Self::Text
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Texts => "list of texts",
            Self::Integer => "whole number",
            Self::Boolean => "true or false",
        }
    }
}

/// How a flag's help says that it takes a list; a file has TOML's lists.
const SEPARATED_BY_COMMAS: &str = ", separated by commas";

impl Setting {
    /// Nothing for a flag that has no place in a file.
    fn of(argument: &Arg) -> Option<Self> {
        let help = argument.get_help()?.to_string();
        let (description, place) = help.strip_suffix(']')?.rsplit_once('[')?;
        let (path, default) = place.split_once("; default: ")?;
        let (table, key) = path.split_once('.')?;
        let long = argument.get_long()?;
        let value = argument.get_value_names().unwrap_or_default().join(" ");
        let flag = if argument.is_require_equals_set() {
            format!("--{long}[={value}]")
        } else {
            format!("--{long} {value}")
        };
        Some(Self {
            table: table.to_owned(),
            key: key.to_owned(),
            form: Form::of(argument, description),
            description: description.trim_end().replace(SEPARATED_BY_COMMAS, ""),
            default: default.to_owned(),
            flag,
        })
    }
}

/// All settings that `run` has flags for, in the flags' order.
pub(crate) fn settings(run: &Command) -> Vec<Setting> {
    run.get_arguments().filter_map(Setting::of).collect()
}

/// The page.
pub(super) fn page(run: &Command) -> io::Result<Page> {
    let mut roff = Roff::new();
    roff.control("TH", ["AGENT.TOML", "5", NO_DATE, SOURCE, MANUAL]);
    roff.control("SH", ["NAME"]);
    roff.text([roman("agent.toml - settings of the selvage agent")]);
    roff.control("SH", ["SYNOPSIS"]);
    for file in ["agent.toml", "agent.d/*.toml", "networks/NAME.toml"] {
        roff.text([roman(format!("/etc/selvage/{file}"))]);
        roff.control("br", []);
    }
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([roman(
        "Settings of this host's agent, in TOML. Every key may be missing. A key or table that is not listed here is \
         an error.",
    )]);
    if let Some(help) = run.get_after_long_help() {
        let help = help.to_string();
        let sources = help
            .split_once(EXIT_STATUS)
            .map_or(&*help, |(help, _)| help);
        roff.control("PP", []);
        prose(&mut roff, sources);
    }

    let settings = settings(run);
    let mut tables: Vec<&str> = Vec::new();
    for setting in &settings {
        if !tables.contains(&&*setting.table) {
            tables.push(&setting.table);
        }
    }
    for table in tables {
        roff.control("SH", [&*format!("[{table}]")]);
        for setting in settings.iter().filter(|setting| setting.table == table) {
            entry(&mut roff, setting);
        }
    }

    roff.control("SH", ["EXAMPLE"]);
    prose(&mut roff, &indented(EXAMPLE));
    roff.control("SH", ["SEE ALSO"]);
    roff.text(references(&[("selvage", "(1), "), ("selvage-run", "(1)")]));

    let mut text = Vec::new();
    roff.to_writer(&mut text)?;
    Ok(Page {
        name: "agent.toml".to_owned(),
        section: 5,
        text,
    })
}

fn entry(roff: &mut Roff, setting: &Setting) {
    roff.control("TP", []);
    roff.text([
        bold(&*setting.key),
        roman(" ("),
        italic(setting.form.name()),
        roman(")"),
    ]);
    roff.text([
        roman(format!("{}.", setting.description)),
        line_break(),
        roman(format!("Default: {}. Flag: ", setting.default)),
        bold(&*setting.flag),
    ]);
}

fn indented(text: &str) -> String {
    text.lines()
        .map(|line| {
            if line.is_empty() {
                "\n".to_owned()
            } else {
                format!("  {line}\n")
            }
        })
        .collect()
}

//! agent.toml(5), from the table of the settings.

use std::io;

use clap_mangen::roff::{Roff, bold, italic, line_break, roman};

use super::{MANUAL, NO_DATE, Page, SOURCE, prose, references};
use crate::command::cli::RUN_HELP;
use crate::settings::kind::Kind;
use crate::settings::setting::{OnReload, Setting};
use crate::settings::table::ALL;

/// A complete file; the settings' own check must accept it.
pub(super) const EXAMPLE: &str = "\
[etcd]
endpoints = [\"https://10.77.0.11:2379\", \"https://10.77.0.12:2379\"]
cafile = \"/etc/selvage/ca.pem\"

[underlay]
interfaces = [\"eth1\"]

[firewall]
masquerade = true
";

/// The start of the list of exit statuses at the end of `selvage run`'s help, which does not belong in a file's page.
pub(super) const EXIT_STATUS: &str = "\n\nExit status:";

/// The page.
pub(super) fn page() -> io::Result<Page> {
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
    let sources = RUN_HELP
        .split_once(EXIT_STATUS)
        .map_or(RUN_HELP, |(help, _)| help);
    roff.control("PP", []);
    prose(&mut roff, sources);

    let mut table = "";
    for setting in ALL {
        if setting.table != table {
            table = setting.table;
            roff.control("SH", [&*format!("[{table}]")]);
        }
        entry(&mut roff, setting);
    }

    roff.control("SH", ["[update]"]);
    roff.text([
        roman("Updates of the image; selvage does not mind mistakes in it, "),
        bold("selvage update"),
        roman(" does. See "),
        bold("selvage-update"),
        roman("(1)."),
    ]);

    roff.control("SH", ["[fleet]"]);
    roff.text([
        roman("How machines take turns at updates of the image; selvage does not mind mistakes in it, "),
        bold("selvage fleet"),
        roman(" does. See "),
        bold("selvage-fleet"),
        roman("(1)."),
    ]);

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
    let (flag, value, default) = (setting.flag, setting.value, setting.default);
    let flag = match setting.kind {
        Kind::Switch => format!("--{flag}[={value}]"),
        _ => format!("--{flag} {value}"),
    };
    let change = match setting.on_reload {
        OnReload::Live => "A reload is enough.",
        OnReload::Restart => "A change needs a restart.",
    };
    roff.control("TP", []);
    let form = setting.kind.form();
    let named = match setting.named.filter(|named| *named != default) {
        Some(named) => format!(" In the network NAME: {named}."),
        None => String::new(),
    };
    roff.text([bold(setting.name), roman(" ("), italic(form), roman(")")]);
    roff.text([
        roman(format!("{}.", setting.help())),
        line_break(),
        roman(format!("Default: {default}.{named} {change} Flag: ")),
        bold(flag),
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

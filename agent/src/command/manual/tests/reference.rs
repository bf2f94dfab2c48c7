//! The settings in `docs`: `settings.md` is made from the table, and the others name only what is there.

use std::env;

use regex_lite::Regex;

use super::*;
use crate::command::cli::RUN_HELP;
use crate::settings::setting::OnReload;

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")
}

/// `settings.md` as it should be.
fn reference() -> String {
    let sources = RUN_HELP.split(settings_page::EXIT_STATUS).next().unwrap();
    let mut text = format!(
        "# Settings\n\n<!-- Made from src/settings/table.rs by UPDATE=1 cargo test -p selvage --lib settings_md -->\n\n\
         The settings of `agent.toml`, as in agent.toml(5).\nThe environment variable of `--etcd-prefix` is `SELVAGE_ETCD_PREFIX`, \
         and so on.\nOther commands than those named here read a setting from the files and the environment only.\n\n\
         ```\n{sources}\n```\n"
    );
    let mut table = "";
    for setting in ALL {
        if setting.table != table {
            table = setting.table;
            text += &format!(
                "\n## `[{table}]`\n\n| key | meaning | default | flag of | a change needs |\n|---|---|---|---|---|\n"
            );
        }
        let (name, flag, help) = (setting.name, setting.flag, setting.help());
        let value = setting.value.replace('|', "\\|");
        let named = setting
            .named
            .filter(|named| *named != setting.default)
            .map(|named| format!("; in the network NAME: {named}"));
        let default = format!("{}{}", setting.default, named.unwrap_or_default());
        let change = match setting.on_reload {
            OnReload::Live => "a reload",
            OnReload::Restart => "a restart",
        };
        let commands = match commands(flag) {
            all if all == commands("network") => "all".to_owned(),
            some => some,
        };
        text += &format!(
            "| `{name}`, `--{flag} {value}` | {help} | {default} | {commands} | {change} |\n"
        );
    }
    // Not in the table: `settings/update.rs`.
    text + "\n## `[update]` and `[fleet]`\n\n[updates.md](updates.md#by-itself) and [fleet.md](fleet.md#settings) have these.\n"
}

/// The commands that have the flag.
fn commands(flag: &str) -> String {
    fn add(command: &Command, words: &str, flag: &str, found: &mut Vec<String>) {
        if command
            .get_arguments()
            .any(|argument| argument.get_long() == Some(flag))
        {
            found.push(words.trim().to_owned());
        }
        for below in command.get_subcommands() {
            add(below, &format!("{words} {}", below.get_name()), flag, found);
        }
    }
    let mut found = Vec::new();
    add(&Cli::command(), "", flag, &mut found);
    let all = found.len();
    found.retain(|words| !words.starts_with("network ") || words == "network reserve");
    if found.len() < all {
        found.push("network".to_owned());
        found.retain(|words| words != "network reserve");
    }
    found.join(", ")
}

#[test]
fn settings_md_is_made_from_the_table() {
    let path = docs().join("settings.md");
    let text = reference();
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap();
    assert!(
        found == text,
        "{}: run this test with UPDATE=1",
        path.display()
    );
}

#[test]
fn docs_name_no_other_settings() {
    let key = Regex::new("`([a-z]+)\\.([a-z0-9-]+)`").unwrap();
    let mut count = 0;
    for file in fs::read_dir(docs()).unwrap() {
        let path = file.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        for found in key.captures_iter(&text) {
            let of_table = |setting: &&&Setting| setting.table == &found[1];
            // `agent.toml` is a file, and the status document has tables of these names, too.
            let is_other = path.ends_with("status.md") || &found[2] == "toml";
            if is_other || !ALL.iter().any(|setting| of_table(&setting)) {
                continue;
            }
            count += 1;
            let mut keys = ALL.iter().filter(of_table);
            let there = keys.any(|setting| setting.name == &found[2]);
            assert!(there, "{}: {}", path.display(), &found[0]);
        }
    }
    assert!(count > 20, "{count}");
}

#[test]
fn monitoring_md_names_the_settings_that_a_reload_changes() {
    let text = fs::read_to_string(docs().join("monitoring.md")).unwrap();
    let rows = text.split("| keys | effect |\n|---|---|\n").nth(1).unwrap();
    let code = Regex::new("`([^`]+)`").unwrap();
    let mut named = BTreeSet::new();
    for row in rows.lines().take_while(|line| line.starts_with('|')) {
        let mut table = "";
        for found in code.captures_iter(row.split('|').nth(1).unwrap()) {
            let key = found.get(1).unwrap().as_str();
            let (of, name) = key.split_once('.').unwrap_or((table, key));
            table = of;
            let all = ALL.iter().filter(|setting| setting.table == of);
            named.extend(
                all.filter(|setting| name == "*" || setting.name == name)
                    .map(|setting| setting.path),
            );
        }
    }
    let live = ALL
        .iter()
        .filter(|setting| setting.on_reload == OnReload::Live);
    assert_eq!(named, live.map(|setting| setting.path).collect());
}

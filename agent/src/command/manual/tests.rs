use std::collections::BTreeSet;
use std::process::{Command as Process, Stdio};

use super::*;
use crate::settings;
use crate::settings::kind::Kind;
use crate::settings::setting::Setting;
use crate::settings::table::ALL;

fn text_of(page: &Page) -> &str {
    std::str::from_utf8(&page.text).unwrap()
}

/// `name` and the names of its subcommands in the command line's definition, without hidden ones.
fn names(command: &Command, name: &str, all: &mut BTreeSet<String>) {
    all.insert(name.to_owned());
    for below in command
        .get_subcommands()
        .filter(|below| !below.is_hide_set())
    {
        names(below, &format!("{name}-{}", below.get_name()), all);
    }
}

#[test]
fn every_command_has_a_page_that_describes_its_flags() {
    let mut expected = BTreeSet::new();
    names(&Cli::command(), NAME, &mut expected);
    let pages = pages().unwrap();
    let commands: Vec<&Page> = pages.iter().filter(|page| page.section == 1).collect();
    let found: BTreeSet<String> = commands.iter().map(|page| page.name.clone()).collect();
    assert_eq!(found, expected);
    assert_eq!(commands.len(), found.len());
    assert!(!found.contains("selvage-man") && !found.contains("selvage-sysroot"));

    for (name, part) in [
        ("selvage", "selvage\\-status(1)"),
        ("selvage-status", "\\-\\-watch"),
        ("selvage-network-set", "\\-\\-if\\-absent"),
        ("selvage-run", "bad configuration"),
    ] {
        let page = commands.iter().find(|page| page.name == name).unwrap();
        assert!(text_of(page).contains(part), "{name} without {part}");
    }
}

#[test]
fn pages_say_whose_they_are_where_a_page_has_its_date_and_version() {
    for page in pages().unwrap() {
        let expected = format!(
            ".TH {} {} \"\" \"selvage {}\" \"Selvage Manual\"\n",
            page.name.to_uppercase(),
            page.section,
            env!("CARGO_PKG_VERSION")
        );
        assert!(text_of(&page).contains(&expected), "{}", page.name);
    }
}

#[test]
fn page_of_the_settings_says_nothing_of_a_commands_exit_status() {
    let pages = pages().unwrap();
    let page = pages.iter().find(|page| page.section == 5).unwrap();
    assert_eq!(page.name, "agent.toml");
    assert!(text_of(page).contains("stronger than those before"));
    assert!(!text_of(page).contains("Exit status"));
}

#[test]
fn example_of_a_settings_file_is_taken() {
    settings::check_file(settings_page::EXAMPLE, Path::new("agent.toml")).unwrap();
}

#[test]
fn pages_are_written_below_their_sections_and_mandoc_takes_them() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("man");
    write(&root).unwrap();
    let mut files = Vec::new();
    for section in ["man1", "man5"] {
        for file in fs::read_dir(root.join(section)).unwrap() {
            files.push(file.unwrap().path());
        }
    }
    assert_eq!(files.len(), pages().unwrap().len());
    assert!(root.join("man1/selvage-status.1").is_file());
    assert!(root.join("man5/agent.toml.5").is_file());

    let said = Process::new("mandoc")
        .args(["-Tlint", "-Werror"])
        .args(&files)
        .output()
        .expect("mandoc, which agent/host-packages test installs");
    let lint = String::from_utf8_lossy(&said.stdout);
    assert!(said.status.success(), "{lint}");
}

#[test]
fn page_that_cannot_be_written_is_named() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("man1"), "in the way").unwrap();
    let error = write(directory.path()).unwrap_err().to_string();
    assert!(error.contains("man1/selvage.1"), "{error}");
}

#[test]
fn completions_offer_commands_and_flags_and_nothing_hidden() {
    for (shell, flag) in [
        (Shell::Bash, "--if-absent"),
        (Shell::Zsh, "--if-absent"),
        (Shell::Fish, "-l if-absent"),
    ] {
        let mut text = Vec::new();
        completions(shell, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains(flag), "{shell:?}");
        assert!(text.contains("reservations"), "{shell:?}");
        assert!(!text.contains("sysroot"), "{shell:?}");
    }
}

#[test]
fn bash_completes_what_is_begun() {
    let mut text = Vec::new();
    completions(Shell::Bash, &mut text).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("selvage");
    fs::write(&path, text).unwrap();
    let said = Process::new("bash")
        .args(["--norc", "-c"])
        .arg(
            "set -e; bash -n \"$1\"; . \"$1\"; complete -p selvage >&2; COMP_WORDS=(selvage network res)
             COMP_CWORD=2; _selvage selvage res network; echo \"${COMPREPLY[@]}\"",
        )
        .arg("bash")
        .arg(&path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{errors}");
    assert!(errors.contains("_selvage selvage"), "{errors}");
    let said = String::from_utf8_lossy(&said.stdout);
    assert_eq!(said.trim(), "reservations reserve");
}

#[test]
fn output_that_takes_no_more_is_an_error() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::from(io::ErrorKind::StorageFull))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    assert!(matches!(
        completions(Shell::Zsh, &mut Full),
        Err(Error::Output(_))
    ));
}

/// A value of the form on the page, so that only a wrong type can fail.
fn value(kind: Kind) -> &'static str {
    match kind {
        Kind::Text => "\"\"",
        Kind::Number => "60",
        Kind::Switch => "true",
        Kind::Urls | Kind::Commas | Kind::Each | Kind::Networks => "[]",
    }
}

/// Whether the file's type is accepted, even if the value is not.
fn takes(setting: &Setting, value: &str) -> bool {
    let text = format!("[{}]\n{} = {value}\n", setting.table, setting.name);
    match settings::check_file(&text, Path::new("agent.toml")) {
        Ok(()) => true,
        Err(error) => !error.to_string().contains("invalid type"),
    }
}

#[test]
fn page_has_every_key_with_description_default_flag_and_type() {
    let page = settings_page::page().unwrap();
    let text = text_of(&page).replace("\\-", "-").replace("\\*(Aq", "'");
    assert_eq!(text.matches("\n.TP\n").count(), ALL.len());
    for setting in ALL {
        let path = setting.path;
        assert!(
            !setting.help().is_empty() && !setting.default.is_empty(),
            "{path}"
        );
        assert!(!setting.help().contains(['[', ']']), "{path}");
        assert!(text.contains(&format!("{}.\n", setting.help())), "{path}");
        assert!(text.contains(&format!("--{}", setting.flag)), "{path}");
        assert!(
            text.contains(&format!("Default: {}.", setting.default)),
            "{path}"
        );
        assert!(
            takes(setting, value(setting.kind)),
            "{path}: {:?}",
            setting.kind
        );
        // A single string is accepted for lists, too, so only an array distinguishes them.
        assert_eq!(
            takes(setting, "[]"),
            setting.kind.form() == "list of texts",
            "{path}"
        );
    }
}

mod reference;

//! agent.toml(5) has every setting.

use super::*;
use crate::command::manual::settings_page::{self, Form, Setting};

/// A value of the form that the page names, so that only another type can be what is wrong.
fn value(form: Form) -> &'static str {
    match form {
        Form::Text => "\"\"",
        Form::Texts => "[]",
        Form::Integer => "60",
        Form::Boolean => "true",
    }
}

/// Whether the file's type is right, whatever is said about the value.
fn takes(setting: &Setting, value: &str) -> bool {
    let text = format!("[{}]\n{} = {value}\n", setting.table, setting.key);
    match check_file(&text, Path::new("agent.toml")) {
        Ok(()) => true,
        Err(error) => !error.to_string().contains("invalid type"),
    }
}

#[test]
fn page_has_every_key_once_with_description_default_flag_and_type() {
    let command = Cli::command();
    let settings = settings_page::settings(command.find_subcommand("run").unwrap());
    let mut found: Vec<String> = settings
        .iter()
        .map(|setting| format!("{}.{}", setting.table, setting.key))
        .collect();
    let mut expected: Vec<String> = key::ALL.iter().map(|key| key.path.to_owned()).collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);

    for setting in &settings {
        let path = format!("{}.{}", setting.table, setting.key);
        assert!(!setting.description.is_empty(), "{path}");
        assert!(!setting.description.contains(['[', ']']), "{path}");
        assert!(!setting.default.is_empty(), "{path}");
        let key = key::ALL.iter().find(|key| key.path == path).unwrap();
        let name = format!("--{}", key.flag);
        let value_of_it = setting.flag.strip_prefix(&name).unwrap();
        assert!(value_of_it.starts_with([' ', '[']), "{}", setting.flag);

        assert!(
            takes(setting, value(setting.form)),
            "{path}: {:?}",
            setting.form
        );
        // Lists are taken as one text as well, so that this alone tells them apart.
        assert_eq!(takes(setting, "[]"), setting.form == Form::Texts, "{path}");
    }
}

//! What `check` passes and what it refuses, both made from the one table that the image's build is held to.

use serde_json::{Value, json};

use super::super::image::{Image, image};
use super::*;

fn findings(sections: &Value) -> Vec<Finding> {
    let mut config = json!({"ignition": {"version": "3.3.0"}});
    let sections = sections.as_object().unwrap().clone();
    config.as_object_mut().unwrap().extend(sections);
    check(&config.to_string()).findings
}

fn users(user: &Value) -> Value {
    json!({"passwd": {"users": [user]}})
}

fn groups(group: &Value) -> Value {
    json!({"passwd": {"groups": [group]}})
}

fn units(unit: &Value) -> Value {
    json!({"systemd": {"units": [unit]}})
}

fn file(path: &str, more: &Value) -> Value {
    let mut file = json!({"path": path, "contents": {"source": "data:,x"}});
    file.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    json!({"storage": {"files": [file]}})
}

fn service(command: &str) -> Value {
    units(&json!({"name": "a.service", "contents": format!("[Service]\nExecStart={command}\n")}))
}

fn zone(name: &str) -> Value {
    let target = format!("../usr/share/zoneinfo/{name}");
    json!({"storage": {"links": [{"path": "/etc/localtime", "target": target}]}})
}

/// Configs that ask for what the image has.
fn passes(image: &Image) -> Vec<Value> {
    let mut configs = Vec::new();
    for user in image.users.keys() {
        configs.push(file("/opt/x", &json!({"user": {"name": user}})));
    }
    for group in image.groups.keys() {
        configs.push(file("/opt/x", &json!({"group": {"name": group}})));
        configs.push(groups(&json!({"name": group})));
        configs.push(users(
            &json!({"name": "ops", "groups": [group], "primaryGroup": group}),
        ));
        configs.push(users(&json!({"name": group})));
    }
    for unit in image.units.enabled.iter().chain(&image.units.available) {
        configs.push(units(&json!({"name": unit, "enabled": true})));
    }
    let listed = [
        &image.units.enabled,
        &image.units.available,
        &image.units.static_,
    ];
    for unit in listed
        .into_iter()
        .flatten()
        .chain(image.units.aliases.keys())
    {
        configs.push(units(&json!({"name": unit, "dropins": [{"name": "x.conf", "contents": "[Unit]\nRefuseManualStop=no\n"}]})));
        configs.push(units(
            &json!({"name": "a.service", "contents": format!("[Unit]\nRequires={unit}\n")}),
        ));
    }
    for alias in image.units.enabled_by_alias.keys() {
        configs.push(units(&json!({"name": alias, "enabled": true})));
    }
    for program in &image.programs.path {
        configs.push(service(program));
        configs.push(service(&format!("/usr/bin/{program} --flag")));
    }
    for program in &image.programs.other {
        configs.push(service(program));
    }
    for path in image.etc.files.iter().chain(image.etc.links.keys()) {
        if image.foreign_path(path).is_none() {
            configs.push(file(path, &json!({"overwrite": true})));
        }
    }
    for shell in image.shells.login.iter().chain(&image.shells.none) {
        configs.push(users(&json!({"name": "ops", "shell": shell})));
    }
    for path in image.paths.elsewhere.keys() {
        configs.push(file(&format!("{path}/bin/x"), &json!({})));
    }
    configs.extend(image.time.zones.iter().map(|name| zone(name)));
    let tools = image.tools.usr.keys().chain(image.tools.initrd.keys());
    for format in tools.filter_map(|tool| tool.strip_prefix("mkfs.")) {
        let format = if format == "fat" { "vfat" } else { format };
        configs.push(json!({"storage": {"filesystems": [{"device": "/dev/a", "format": format, "wipeFilesystem": true}]}}));
    }
    configs
}

/// Configs that stop the first boot.
fn refused(image: &Image) -> Vec<Value> {
    let mut configs = Vec::new();
    for (name, id) in &image.users {
        configs.push(users(&json!({"name": "ops", "uid": id})));
        configs.push(file(
            "/opt/x",
            &json!({"user": {"name": format!("{name}-x")}}),
        ));
    }
    for (name, id) in &image.groups {
        let other = format!("{name}-x");
        configs.push(groups(&json!({"name": "ops", "gid": id})));
        configs.push(file("/opt/x", &json!({"group": {"name": other}})));
        configs.push(users(&json!({"name": "ops", "groups": [other]})));
        configs.push(users(&json!({"name": "ops", "primaryGroup": other})));
    }
    for path in image.etc.files.iter().chain(image.etc.links.keys()) {
        configs.push(file(path, &json!({})));
    }
    for path in &image.paths.read_only {
        configs.push(file(&format!("{path}/x"), &json!({})));
        configs.push(json!({"storage": {"directories": [{"path": path}]}}));
    }
    for path in image.paths.read_only.iter().chain(&image.paths.covered) {
        configs.push(json!({"storage": {"filesystems": [{"device": "/dev/a", "format": "ext4", "path": path}]}}));
    }
    configs
}

/// Configs that Ignition applies and that do nothing then, or less than they say.
fn does_nothing(image: &Image) -> Vec<Value> {
    let mut configs = Vec::new();
    for unit in &image.units.static_ {
        configs.push(units(&json!({"name": unit, "enabled": true})));
    }
    for unit in &image.units.masked {
        configs.push(units(&json!({"name": unit, "enabled": true})));
        configs.push(units(
            &json!({"name": "a.service", "contents": format!("[Unit]\nRequires={unit}\n")}),
        ));
    }
    for alias in image.units.aliases.keys() {
        configs.push(units(&json!({"name": alias, "mask": true})));
    }
    for unit in image.units.enabled.iter().chain(&image.units.available) {
        let other = format!("x-{unit}");
        configs.push(units(&json!({"name": other, "enabled": true})));
        configs.push(units(
            &json!({"name": other, "dropins": [{"name": "x.conf", "contents": "[Unit]\nA=b\n"}]}),
        ));
        configs.push(units(
            &json!({"name": "a.service", "contents": format!("[Unit]\nWants={other}\n")}),
        ));
    }
    for unit in image.foreign.units.keys() {
        configs.push(units(&json!({"name": unit, "enabled": true})));
    }
    for program in image.foreign.programs.keys() {
        configs.push(service(&format!("/usr/bin/{program}")));
    }
    for path in image.foreign.paths.keys() {
        configs.push(file(&format!("{path}/x"), &json!({})));
    }
    for path in &image.paths.covered {
        configs.push(file(&format!("{path}/x"), &json!({})));
    }
    configs.extend(
        image
            .time
            .zones
            .iter()
            .map(|name| zone(&format!("{name}x"))),
    );
    configs
}

#[test]
fn the_table_makes_configs_that_pass() {
    let configs = passes(image());
    assert!(configs.len() > 2500, "{}", configs.len());
    for config in configs {
        assert_eq!(findings(&config), [], "{config}");
    }
}

#[test]
fn the_table_makes_configs_that_are_refused() {
    for config in refused(image()) {
        let findings = findings(&config);
        let is_error = |finding: &Finding| finding.severity == Severity::Error;
        assert!(findings.iter().any(is_error), "{config}: {findings:?}");
    }
}

#[test]
fn the_table_makes_configs_that_do_nothing() {
    for config in does_nothing(image()) {
        let findings = findings(&config);
        let is_warning = |finding: &Finding| finding.severity == Severity::Warning;
        assert!(
            !findings.is_empty() && findings.iter().all(is_warning),
            "{config}: {findings:?}"
        );
    }
}

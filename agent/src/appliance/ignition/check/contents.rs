//! Contents of files for programs of the image: units that are written as files, and Docker's configuration. Only
//! uncompressed `data:` URLs are read here; the rest is known only on the machine.

use ignition_config::v3_3::{File, Storage};
use serde_json::{Map, Value};

use super::super::data_url;
use super::super::locate::join_index;
use super::accounts::Accounts;
use super::machine::{Machine, UNIT_DIRECTORY};
use super::unit_file::assignments;
use super::{Findings, units};

/// The path of dockerd's configuration.
const DOCKER_CONFIG: &str = "/etc/docker/daemon.json";
/// Options that the image's docker.service always has on its command line, by their names in daemon.json.
const DOCKER_FLAGS: [&str; 2] = ["containerd", "hosts"];
/// Options that it also has, from subnet.env, once the agent holds a lease.
const DOCKER_BRIDGE_FLAGS: [&str; 3] = ["bip", "ip-masq", "mtu"];

/// Checks the contents of all files that can be read here.
pub(super) fn check(
    storage: &Storage,
    machine: &Machine<'_>,
    accounts: &Accounts,
    findings: &mut Findings<'_>,
) {
    for (i, file) in storage.files.iter().flatten().enumerate() {
        let Some(text) = text_of(file) else { continue };
        let at = format!("{}.contents.source", join_index("storage.files", i));
        if let Some(unit) = unit_of(&file.path) {
            units::check_text(at, unit, &text, machine, accounts, findings);
        } else if file.path == DOCKER_CONFIG
            && let Some(message) = check_docker_config(&text, machine)
        {
            findings.warn(at, message);
        }
    }
}

fn text_of(file: &File) -> Option<String> {
    let contents = file.contents.as_ref()?;
    let is_plain = contents.compression.as_deref().unwrap_or_default() == "";
    let source = contents.source.as_deref().filter(|_| is_plain)?;
    let data = data_url::decode(source.starts_with("data:").then_some(source)?).ok()?;
    String::from_utf8(data).ok()
}

/// The unit that a file at this path defines or extends.
fn unit_of(path: &str) -> Option<&str> {
    let name = path.strip_prefix(UNIT_DIRECTORY)?;
    match name.split_once('/') {
        None => Some(name),
        Some((directory, file)) => directory
            .strip_suffix(".d")
            .filter(|_| file.ends_with(".conf")),
    }
}

/// Why dockerd would not start with this configuration (moby, `daemon/config/config.go`, `findConfigurationConflicts`).
fn check_docker_config(text: &str, machine: &Machine<'_>) -> Option<String> {
    if text.trim().is_empty() {
        return None;
    }
    let config: Map<String, Value> = match serde_json::from_str(text) {
        Ok(config) => config,
        Err(error) => return Some(format!("Docker does not start: {error}")),
    };
    if has_own_command(machine) {
        return None;
    }
    let bridge = if machine.is_on("selvage.service") {
        &DOCKER_BRIDGE_FLAGS[..]
    } else {
        &[]
    };
    let flags = DOCKER_FLAGS.iter().chain(bridge);
    let twice: Vec<&str> = flags
        .copied()
        .filter(|flag| config.contains_key(*flag))
        .collect();
    if twice.is_empty() {
        return None;
    }
    let twice = twice.join(", ");
    Some(format!(
        "Docker does not start: {twice} is set in daemon.json and on the command line of docker.service; remove {twice} from daemon.json"
    ))
}

/// Whether the config changes dockerd's command line.
fn has_own_command(machine: &Machine<'_>) -> bool {
    let docker = machine.units().filter(|unit| unit.name == "docker.service");
    let mut texts = docker.flat_map(|unit| {
        let drop_ins = unit.dropins.iter().flatten();
        drop_ins
            .map(|drop_in| &drop_in.contents)
            .chain([&unit.contents])
    });
    let sets_command = |text: &str| {
        assignments(text)
            .iter()
            .any(|a| a.is("Service", &["ExecStart"]))
    };
    texts.any(|text| text.as_deref().is_some_and(sets_command))
        || machine.brings(&format!("{UNIT_DIRECTORY}docker.service"))
        || machine.brings_below(&format!("{UNIT_DIRECTORY}docker.service.d"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::appliance::ignition::check::check;

    /// The messages about a config that writes one file and has these units.
    fn messages(path: &str, text: &str, units: &Value) -> Vec<String> {
        let source = data_url::encode(text);
        let config = json!({
            "ignition": {"version": "3.3.0"},
            "storage": {"files": [{"path": path, "contents": {"source": source}}]},
            "systemd": {"units": units},
        });
        let findings = check(&config.to_string()).findings;
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn options_that_docker_would_have_twice_are_told() {
        let agent = json!([{"name": "flanneld.service", "enabled": true}]);
        let told = |config: &str, units: &Value| messages(DOCKER_CONFIG, config, units).join("\n");
        let bridge = r#"{"bip": "172.26.0.1/16", "mtu": 1400, "log-driver": "journald"}"#;
        assert!(
            told(bridge, &agent).contains("bip, mtu is set in daemon.json"),
            "{}",
            told(bridge, &agent)
        );
        // Without the agent the bridge is Docker's own concern.
        assert_eq!(told(bridge, &json!([])), "");
        let hosts = r#"{"hosts": ["unix:///var/run/docker.sock", "tcp://0.0.0.0:2376"]}"#;
        assert!(told(hosts, &json!([])).contains("hosts is set in daemon.json"));
        // The usual remedy: a command line of one's own.
        let command = "[Service]\nExecStart=\nExecStart=/usr/sbin/dockerd $DOCKER_OPTS\n";
        let own = json!([{"name": "docker.service", "dropins": [{"name": "10-hosts.conf", "contents": command}]}]);
        assert_eq!(told(hosts, &own), "");
        assert_eq!(
            told(
                r#"{"log-opts": {"max-size": "10m"}, "live-restore": true}"#,
                &agent
            ),
            ""
        );
        assert!(
            told("{\"log-driver\": \"json-file\",}", &agent)
                .contains("Docker does not start: trailing comma")
        );
        assert!(told("[]", &agent).contains("Docker does not start: invalid type"));
        assert_eq!(told("", &agent), "");
    }

    #[test]
    fn units_that_are_written_as_files_are_read() {
        let command = "[Service]\nExecStart=/usr/bin/toolbox\n";
        for path in [
            "/etc/systemd/system/a.service",
            "/etc/systemd/system/a.service.d/10-a.conf",
        ] {
            let found = messages(path, command, &json!([]));
            assert!(
                found.len() == 1 && found[0].contains("/usr/bin/toolbox"),
                "{path}: {found:?}"
            );
        }
        let path = "/etc/systemd/system/a.service.d/README";
        assert_eq!(messages(path, command, &json!([])), Vec::<String>::new());
    }

    #[test]
    fn etcdctl_in_words_of_api_2_is_told() {
        let path = "/etc/systemd/system/flanneld.service.d/50-network-config.conf";
        let told = |command: &str| {
            messages(
                path,
                &format!("[Service]\nExecStartPre={command}\n"),
                &json!([]),
            )
        };
        for command in [
            r#"/usr/bin/etcdctl set /coreos.com/network/config '{"Network":"10.1.0.0/16"}'"#,
            r#"-/usr/bin/etcdctl --endpoints=http://10.0.0.5:2379 mk /coreos.com/network/config '{}'"#,
            r#"/usr/bin/sh -c "etcdctl ls / && true""#,
        ] {
            let found = told(command);
            assert!(
                found.len() == 1 && found[0].contains("API 2"),
                "{command}: {found:?}"
            );
        }
        for command in [
            r#"/usr/bin/etcdctl put /coreos.com/network/config '{"Network":"10.1.0.0/16"}'"#,
            "/usr/bin/etcdctl get set",
            "/usr/bin/env set",
        ] {
            assert_eq!(told(command), Vec::<String>::new(), "{command}");
        }
    }
}

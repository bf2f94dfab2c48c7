//! Duplicate Docker options. dockerd refuses to start if an option is both on its command line and in its configuration
//! file, whatever the values (moby, `daemon/config/config.go`, `findConfigurationConflicts`).

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use super::{Own, listed};
use crate::command::doctor::{Context, Finding, Outcome, Severity};

pub(super) const NAME: &str = "docker-config";

/// dockerd's default configuration file.
const CONFIG: &str = "/etc/docker/daemon.json";

/// The unit directories that administrators and packages write to.
const UNITS: [&str; 4] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

pub(super) fn check(context: &Context<'_>) -> Outcome {
    let own = Own::new(context)?;
    let file = &own.status.files.subnet_file;
    let texts = (fs::read_to_string(file), fs::read_to_string(CONFIG));
    let (Ok(subnet_file), Ok(config)) = texts else {
        return Ok(Vec::new());
    };
    let units: String = UNITS.into_iter().map(unit).collect();
    let twice = twice(&subnet_file, &units, &config);
    if twice.is_empty() {
        return Ok(Vec::new());
    }
    let options = listed(twice);
    Ok(vec![Finding::new(
        NAME,
        Severity::Error,
        CONFIG,
        format!("Docker does not start with {options} in {CONFIG} and also on its command line"),
        &format!(
            "dockerd refuses an option that is set twice. On its command line docker.service puts the options from {file}, which follow the lease"
        ),
        vec![format!(
            "remove {options} from {CONFIG}, then systemctl restart docker.service"
        )],
    )])
}

/// The text of Docker's unit and of its drop-ins in a directory.
fn unit(directory: &str) -> String {
    let unit = Path::new(directory).join("docker.service");
    let drop_ins = fs::read_dir(unit.with_extension("service.d"));
    let drop_ins = drop_ins.into_iter().flatten().flatten();
    let paths = drop_ins.map(|entry| entry.path()).chain([unit]);
    paths
        .filter_map(|path| fs::read_to_string(path).ok())
        .collect()
}

/// The options that are both in the configuration and in the unit, from the subnet file.
fn twice<'a>(subnet_file: &'a str, units: &str, config: &str) -> Vec<&'a str> {
    // Docker itself reports invalid JSON.
    let config: Map<String, Value> = serde_json::from_str(config).unwrap_or_default();
    let options = subnet_file.lines().filter_map(|line| {
        let (variable, option) = line.split_once("=--")?;
        let (name, _) = option.split_once('=')?;
        let used = [format!("${variable}"), format!("${{{variable}}}")];
        let is_used = used.iter().any(|word| {
            let mut words = units.split_whitespace();
            words.any(|found| found == word)
        });
        (is_used && config.contains_key(name)).then_some(name)
    });
    options.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBNET_FILE: &str = "FLANNEL_MTU=1450\nDOCKER_OPT_BIP=--bip=10.5.34.1/24\nDOCKER_OPT_IPMASQ=--ip-masq=false\n\
                               DOCKER_OPT_MTU=--mtu=1450\n";

    #[test]
    fn options_that_the_unit_takes_and_the_configuration_has_are_told() {
        let ours = "ExecStart=/usr/sbin/dockerd $DOCKER_OPT_BIP ${DOCKER_OPT_MTU}\n";
        let look = |units, config| twice(SUBNET_FILE, units, config);
        let config =
            r#"{"bip": "192.168.9.1/24", "mtu": 1450, "ip-masq": true, "live-restore": true}"#;
        assert_eq!(look(ours, config), ["bip", "mtu"]);
        // A foreign unit, without duplicates.
        assert!(look("ExecStart=/usr/bin/dockerd $DOCKER_OPTS\n", config).is_empty());
        assert!(look(ours, r#"{"live-restore": true}"#).is_empty());
        assert!(look(ours, "{").is_empty());
    }
}

//! The runtimes' CNI configurations: containerd and CRI-O take the first by name, whatever else is there
//! (github.com/containerd/go-cni, `loadFromConfDir`).

use std::fs;
use std::io;
use std::path::Path;

use serde::Deserialize;

use crate::command::doctor::{Context, Finding, NotChecked, Outcome, Severity};

pub(super) const NAME: &str = "cni-config";

/// The directory of containerd and CRI-O.
const DIRECTORY: &str = "/etc/cni/net.d";

/// The longest file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

pub(super) fn check(_: &Context<'_>) -> Outcome {
    judge(Path::new(DIRECTORY))
}

fn judge(directory: &Path) -> Outcome {
    let shown = directory.display();
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(NotChecked(format!("there is no {shown} here")));
        }
        Err(error) => return Err(NotChecked(format!("failed to read {shown}: {error}"))),
    };
    let names = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_config = |name: &String| {
        let end = Path::new(name).extension().and_then(|end| end.to_str());
        matches!(end, Some("conf" | "conflist" | "json"))
    };
    let mut names: Vec<_> = names.filter(is_config).collect();
    names.sort();
    let Some(first) = names.first() else {
        return Ok(vec![Finding::new(
            NAME,
            Severity::Error,
            shown.to_string(),
            format!("there is no CNI configuration in {shown}"),
            "the kubelet reports the node as not ready, and no pod starts",
            vec!["write it: selvage cni install".to_owned()],
        )]);
    };
    let types = match read(&directory.join(first)) {
        Ok(types) => types,
        Err(reason) => {
            return Ok(vec![Finding::new(
                NAME,
                Severity::Error,
                format!("{shown}/{first}"),
                format!("the CNI configuration {shown}/{first} cannot be read: {reason}"),
                "the runtime takes the first configuration by name, so no pod starts, or pods get another network",
                vec![format!("correct or remove it: {shown}/{first}")],
            )]);
        }
    };
    if types.iter().any(|kind| kind == "flannel") {
        return Ok(Vec::new());
    }
    let is_there = names[1..].iter().any(|name| {
        read(&directory.join(name)).is_ok_and(|types| types.iter().any(|kind| kind == "flannel"))
    });
    let severity = if is_there {
        Severity::Error
    } else {
        Severity::Warning
    };
    let first_type = types.first().map_or("unknown", String::as_str);
    let write = match is_there {
        true => format!(
            "if that network is not wanted any more: rm {shown}/{first}, then start the pods again"
        ),
        false => "if pods should be in the overlay: selvage cni install".to_owned(),
    };
    Ok(vec![Finding::new(
        NAME,
        severity,
        format!("{shown}/{first}"),
        format!(
            "pods on this node get their network from {shown}/{first} (plugin {first_type}), not from the overlay"
        ),
        "the runtime takes the first configuration by name; what is left of a former network plugin counts as well",
        vec![write],
    )])
}

/// The types of a configuration's plugins, the first first.
fn read(path: &Path) -> Result<Vec<String>, String> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default, rename = "type")]
        kind: String,
        #[serde(default)]
        plugins: Vec<Plugin>,
    }
    #[derive(Deserialize)]
    struct Plugin {
        #[serde(default, rename = "type")]
        kind: String,
    }
    let length = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > MAX_BYTES {
        return Err(format!("it has more than {MAX_BYTES} bytes"));
    }
    let text = fs::read(path).map_err(|error| error.to_string())?;
    let config: Config = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let kinds = config.plugins.into_iter().map(|plugin| plugin.kind);
    let kinds = std::iter::once(config.kind).chain(kinds);
    Ok(kinds.filter(|kind| !kind.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// kube-flannel's.
    const OURS: &str = r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[{"type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}},{"type":"portmap","capabilities":{"portMappings":true}}]}"#;
    /// What Calico's installer leaves (docs.tigera.io, "Configure the Calico CNI plugins").
    const CALICO: &str = r#"{"name":"k8s-pod-network","cniVersion":"0.3.1","plugins":[{"type":"calico","datastore_type":"kubernetes"},{"type":"portmap"}]}"#;
    /// CRI-O's package has it (contrib/cni/11-crio-ipv4-bridge.conflist).
    const CRIO: &str = r#"{"cniVersion":"1.0.0","name":"crio","plugins":[{"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true}]}"#;
    /// podman's, of one plugin alone (87-podman-bridge.conflist, and older ones by .conf).
    const SINGLE: &str = r#"{"cniVersion":"0.4.0","name":"podman","type":"bridge"}"#;

    fn said(files: &[(&str, &str)]) -> Vec<(Severity, String)> {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let shown = directory.path().display().to_string();
        let findings = judge(directory.path()).unwrap();
        let said = findings.into_iter();
        said.map(|finding| (finding.severity, finding.what.replace(&shown, "DIR")))
            .collect()
    }

    #[test]
    fn the_first_configuration_counts() {
        assert!(said(&[("10-flannel.conflist", OURS)]).is_empty());
        // CRI-O's own comes later, and a file that is kept aside is none.
        assert!(
            said(&[
                ("10-flannel.conflist", OURS),
                ("11-crio-ipv4-bridge.conflist", CRIO)
            ])
            .is_empty()
        );
        assert!(
            said(&[
                ("10-flannel.conflist", OURS),
                ("05-cilium.conflist.cilium_bak", CALICO)
            ])
            .is_empty()
        );
        let text = "pods on this node get their network from DIR/10-calico.conflist (plugin calico), not from the overlay";
        let both = said(&[
            ("10-flannel.conflist", OURS),
            ("10-calico.conflist", CALICO),
        ]);
        assert_eq!(both, [(Severity::Error, text.to_owned())]);
        let alone = said(&[("10-calico.conflist", CALICO), ("calico-kubeconfig", "x")]);
        assert_eq!(alone, [(Severity::Warning, text.to_owned())]);
        assert!(
            said(&[("87-podman.conf", SINGLE)])[0]
                .1
                .contains("(plugin bridge)")
        );
    }

    #[test]
    fn none_and_a_broken_one_are_told() {
        assert_eq!(said(&[])[0].1, "there is no CNI configuration in DIR");
        let broken = said(&[
            ("00-half.conflist", "{\"name\":"),
            ("10-flannel.conflist", OURS),
        ]);
        assert!(
            broken[0]
                .1
                .starts_with("the CNI configuration DIR/00-half.conflist cannot be read: EOF")
        );
        let missing = judge(Path::new("/nonexistent/net.d"));
        assert!(missing.is_err());
    }
}

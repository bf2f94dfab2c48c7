//! The runtimes' CNI configurations: containerd and CRI-O take the first by name, whatever else is there
//! (github.com/containerd/go-cni, `loadFromConfDir`).

use std::fs;
use std::io;
use std::path::Path;

use crate::command::doctor::{Context, Finding, NotChecked, Outcome, Severity};
use crate::flannel::install;

pub(super) const NAME: &str = "cni-config";

/// The longest file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

pub(super) fn check(context: &Context<'_>) -> Outcome {
    judge(&context.settings.cni.conf_dir)
}

fn judge(directory: &Path) -> Outcome {
    let shown = directory.display();
    let names = match install::configs(directory) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(NotChecked(format!("there is no {shown} here")));
        }
        Err(error) => return Err(NotChecked(format!("failed to read {shown}: {error}"))),
    };
    let Some(first) = names.first() else {
        return Ok(vec![Finding::new(
            NAME,
            Severity::Error,
            shown.to_string(),
            format!("there is no CNI configuration in {shown}"),
            "the kubelet reports the node as not ready, and no pod starts",
            vec![format!("write it: selvage cni install --conf-dir {shown}")],
        )]);
    };
    let finding = match read(&directory.join(first)) {
        Ok(types) if install::leads_to_flannel(&types) => return Ok(Vec::new()),
        Ok(types) => of_another(directory, &names, &types),
        Err(reason) => Finding::new(
            NAME,
            Severity::Error,
            format!("{shown}/{first}"),
            format!("the CNI configuration {shown}/{first} cannot be read: {reason}"),
            "the runtime takes the first configuration by name, so no pod starts, or pods get another network",
            vec![format!("correct or remove it: {shown}/{first}")],
        ),
    };
    Ok(vec![finding])
}

/// The first of the configurations is another plugin's, and has these types.
fn of_another(directory: &Path, names: &[String], types: &[String]) -> Finding {
    let (shown, first) = (directory.display(), &names[0]);
    let is_there = names[1..].iter().any(|name| {
        read(&directory.join(name)).is_ok_and(|types| install::leads_to_flannel(&types))
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
        false => {
            format!("if pods should be in the overlay: selvage cni install --conf-dir {shown}")
        }
    };
    Finding::new(
        NAME,
        severity,
        format!("{shown}/{first}"),
        format!(
            "pods on this node get their network from {shown}/{first} (plugin {first_type}), not from the overlay"
        ),
        "the runtime takes the first configuration by name; what is left of a former network plugin counts as well",
        vec![write],
    )
}

/// The types of a configuration's plugins, the first first.
fn read(path: &Path) -> Result<Vec<String>, String> {
    let length = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > MAX_BYTES {
        return Err(format!("it has more than {MAX_BYTES} bytes"));
    }
    let text = fs::read(path).map_err(|error| error.to_string())?;
    install::plugin_types(&text).map_err(|error| error.to_string())
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

    /// What Multus's thin and thick plugins write of kube-flannel's (k8snetworkplumbingwg/multus-cni, docs/how-to-use.md and
    /// docs/thick-plugin.md), and its own example with a named default network (docs/configuration.md).
    const MULTUS: [&str; 3] = [
        r#"{"cniVersion":"0.3.1","name":"multus-cni-network","type":"multus","kubeconfig":"/etc/cni/net.d/multus.d/multus.kubeconfig","delegates":[{"name":"cbr0","cniVersion":"0.3.1","plugins":[{"type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}},{"type":"portmap","capabilities":{"portMappings":true}}]}]}"#,
        r#"{"cniVersion":"0.3.1","name":"multus-cni-network","type":"multus-shim","logLevel":"verbose","clusterNetwork":"/host/etc/cni/net.d/10-flannel.conflist"}"#,
        r#"{"cniVersion":"0.3.1","name":"node-cni-network","type":"multus","kubeconfig":"/etc/kubernetes/node-kubeconfig.yaml","confDir":"/etc/cni/multus/net.d","clusterNetwork":"/etc/cni/net.d/99-flannel.conf","defaultNetworks":["sidecarCRD"]}"#,
    ];

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
        // Multus calls the overlay's plugin itself.
        for multus in MULTUS {
            let both = [("10-flannel.conflist", OURS), ("00-multus.conf", multus)];
            assert!(said(&both).is_empty(), "{multus}");
        }
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
        // Runtimes pass over directories.
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("00-old.conf")).unwrap();
        fs::write(directory.path().join("10-flannel.conflist"), OURS).unwrap();
        assert!(judge(directory.path()).unwrap().is_empty());
        let missing = judge(Path::new("/nonexistent/net.d"));
        assert!(missing.is_err());
    }
}

//! The commands that a move consists of, as `docs/kubernetes.md` has them.

/// Where the manifest has everything, and the names of what it has: flannel's since 0.20.
pub(super) const NAMESPACE: &str = "kube-flannel";
pub(super) const DAEMON_SET: &str = "kube-flannel-ds";
pub(super) const CONFIG_MAP: &str = "kube-flannel-cfg";

/// Our manifest.
pub(super) const MANIFEST: &str = "units/kubernetes/selvage.yaml";

/// flannel's, of the version that is compared with.
pub(super) const FLANNELS: &str =
    "https://github.com/flannel-io/flannel/releases/download/v0.28.9/kube-flannel.yml";

/// A foreign text as one word of a shell's command line.
pub(super) fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._/=:@,+".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// Applies our manifest, with its ConfigMap or without.
pub(super) fn apply(with_config: bool) -> String {
    let but = if with_config {
        ""
    } else {
        " -l component!=network-config"
    };
    format!(
        "sed 's|registry.example/selvage:.*|REGISTRY/selvage:VERSION|' {MANIFEST} | kubectl apply{but} -f -"
    )
}

/// Restarts a DaemonSet's pods, or waits for its new ones.
pub(super) fn rollout(verb: &str, namespace: &str, name: &str) -> String {
    let name = word(&format!("daemonset/{name}"));
    format!("kubectl -n {} rollout {verb} {name}", word(namespace))
}

/// Waits for the new pods.
pub(super) fn wait() -> String {
    rollout("status", NAMESPACE, DAEMON_SET)
}

/// Runs a command of ours in one of the new pods.
pub(super) fn exec(command: &str) -> String {
    format!("kubectl -n {NAMESPACE} exec ds/{DAEMON_SET} -c kube-flannel -- selvage {command}")
}

/// Opens a ConfigMap in an editor.
pub(super) fn edit_config_map(namespace: &str, name: &str) -> String {
    let (namespace, name) = (word(namespace), word(name));
    format!("kubectl -n {namespace} edit configmap {name}")
}

/// Makes the ConfigMap that our manifest has of one that is elsewhere.
pub(super) fn copy_config_map(namespace: &str, name: &str) -> String {
    format!(
        "kubectl -n {} get configmap {} -o yaml | sed -e '/^  \\(uid\\|resourceVersion\\|creationTimestamp\\):/d' -e 's/^  namespace: .*/  namespace: {NAMESPACE}/' -e 's/^  name: .*/  name: {CONFIG_MAP}/' | kubectl create -f -",
        word(namespace),
        word(name)
    )
}

/// Deletes a DaemonSet, with its pods or without.
pub(super) fn delete(namespace: &str, name: &str, with_pods: bool) -> String {
    let pods = if with_pods { "" } else { " --cascade=orphan" };
    let (namespace, name) = (word(namespace), word(name));
    format!("kubectl -n {namespace} delete daemonset {name}{pods}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_names_are_one_word() {
        for plain in [
            "kube-flannel-ds",
            "psp.flannel",
            "--iface=eth1",
            "a/b:1@sha",
        ] {
            assert_eq!(word(plain), plain);
        }
        assert_eq!(word(""), "''");
        assert_eq!(word("x; rm -rf /"), "'x; rm -rf /'");
        assert_eq!(word("it's $(id)"), r"'it'\''s $(id)'");
        assert_eq!(
            delete("kube-system", "a`b", false),
            "kubectl -n kube-system delete daemonset 'a`b' --cascade=orphan"
        );
    }
}

//! The `[kubernetes]` table: nodes that kubeadm joins to a Kubernetes cluster.
//!
//! The agent of such a node is the cluster's DaemonSet, which runs on every Linux node, so the host's own stays off: only
//! one of the two gets the lock. That one could not do the work either: it would have the kubelet's credentials, and since
//! Kubernetes 1.32 these read no node but their own (`AuthorizeNodeWithSelectors`).

#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use ignition_config::v3_3 as spec;
use serde::{Deserialize, Deserializer};
use thiserror::Error;

use super::cluster::{Cluster, Node};
use super::locate::{join_index, join_key};
use super::render::{enabled, file};
use super::validate::is_endpoint;
use crate::appliance::update::index::parse_hash;
use crate::appliance::update::sysext::parse_file_name;
use crate::settings::Secret;

/// The extension's name at a release server.
const EXTENSION: &str = "kubernetes";

/// Tables of `[agent]` that mean something where the agent does not run.
const HOST_TABLES: [&str; 2] = ["fleet", "update"];

/// Debian's file, with two changes: the cgroup driver is the kubelet's default, and plugins are where pods install them.
/// The image has links to its own there.
const CONTAINERD: &str = r#"# Written by `selvage ignition render`.
version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/opt/cni/bin"
      conf_dir = "/etc/cni/net.d"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = true
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd/opt"
"#;

/// The image loads br_netfilter, which applies these, and forwards packets.
const SYSCTL: &str = "\
# Written by `selvage ignition render`: kube-proxy's rules are for bridged packets, too.
net.bridge.bridge-nf-call-iptables = 1
net.bridge.bridge-nf-call-ip6tables = 1
";

/// systemd plans a boot before it merges extensions. A link to the kubelet's unit leads nowhere then, so that this unit,
/// which is in /etc, starts it at each boot.
const NODE_UNIT: &str = "\
# Written by `selvage ignition render`.
[Unit]
Description=Start the Kubelet, and Join the Cluster Once
Wants=kubernetes-programs.service
After=kubernetes-programs.service
StartLimitIntervalSec=0

[Service]
Type=oneshot
RemainAfterExit=yes
# Both are units of the extension.
ExecStart=/usr/bin/systemctl enable --now --no-block kubelet.service
ExecStart=/usr/bin/systemctl start --no-block kubeadm-join.service
Restart=on-failure
RestartSec=10s

[Install]
WantedBy=multi-user.target
";

/// The `[kubernetes]` table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Kubernetes {
    /// The API server as `kubeadm join` has it, `HOST:PORT`.
    pub endpoint: String,
    /// The bootstrap token.
    #[serde(deserialize_with = "secret")]
    pub token: Secret,
    /// Hashes of the public keys of the cluster's CAs, `sha256:` and 64 hexadecimal digits; at least one.
    pub ca_cert_hashes: Vec<String>,
    /// The URL of the system extension with kubelet and kubeadm; without it the release server has it.
    #[serde(default)]
    pub sysext: Option<String>,
    /// The SHA-256 of that file, in place of a signature.
    #[serde(default)]
    pub sysext_sha256: Option<String>,
}

fn secret<'de, D: Deserializer<'de>>(input: D) -> Result<Secret, D::Error> {
    String::deserialize(input).map(Secret::new)
}

/// What is wrong in a description with a `[kubernetes]` table.
#[derive(Debug, Error)]
pub enum KubernetesFault {
    /// Not the address of an API server.
    #[error(
        "{0:?} is not an API server as `kubeadm join` has it: expected HOST:PORT, such as 192.168.10.5:6443"
    )]
    Endpoint(String),
    /// Not a bootstrap token. Perhaps one with a typing error, so it is not shown.
    #[error(
        "the value, not shown here, is not a bootstrap token: expected 6 and 16 of a-z and 0-9 with a dot between, such \
         as abcdef.0123456789abcdef"
    )]
    Token,
    /// No hash of a CA.
    #[error(
        "the list is empty: `kubeadm token create --print-join-command` prints the hash by which a node knows the cluster"
    )]
    NoHash,
    /// Not the hash of a CA.
    #[error("{0:?} is not the hash of a CA's key: expected sha256: and 64 hexadecimal digits")]
    Hash(String),
    /// Not where an extension can be.
    #[error(
        "{0:?} is not where `make sysexts` puts an extension: expected the URL http://HOST/.../selvage_VERSION_NAME.sysext.raw \
         or https://..., of letters, digits and -._~:/[]"
    )]
    Sysext(String),
    /// Nobody has the extension.
    #[error(
        "say where the kubelet comes from: sysext, the extension's URL, which sysext-sha256 needs; or agent.update.server, \
         whose release has it"
    )]
    NoSource,
    /// Not a SHA-256.
    #[error("{0:?} is not a SHA-256: expected 64 hexadecimal digits")]
    Sha256(String),
    /// Something for an agent that the nodes do not run.
    #[error("this has no effect on nodes of Kubernetes: {0}")]
    NoEffect(&'static str),
}

/// Checks a description that has the table; returns the path of each fault.
pub(super) fn check(kubernetes: &Kubernetes, cluster: &Cluster) -> Vec<(String, KubernetesFault)> {
    let mut faults = Vec::new();
    let mut add = |path: &str, fault| faults.push((path.to_owned(), fault));
    let Kubernetes { endpoint, .. } = kubernetes;
    if !is_endpoint(&format!("https://{endpoint}")) {
        add(
            "kubernetes.endpoint",
            KubernetesFault::Endpoint(endpoint.clone()),
        );
    }
    if !is_token(kubernetes.token.expose()) {
        add("kubernetes.token", KubernetesFault::Token);
    }
    if kubernetes.ca_cert_hashes.is_empty() {
        add("kubernetes.ca-cert-hashes", KubernetesFault::NoHash);
    }
    for (i, hash) in kubernetes.ca_cert_hashes.iter().enumerate() {
        if hash.strip_prefix("sha256:").and_then(parse_hash).is_none() {
            let path = join_index("kubernetes.ca-cert-hashes", i);
            add(&path, KubernetesFault::Hash(hash.clone()));
        }
    }
    if let Some(sha256) = &kubernetes.sysext_sha256
        && parse_hash(sha256).is_none()
    {
        let path = "kubernetes.sysext-sha256";
        add(path, KubernetesFault::Sha256(sha256.clone()));
    }
    let update = cluster.agent.get("update");
    let has_server = update.and_then(|table| table.get("server")).is_some();
    match &kubernetes.sysext {
        Some(url) if !is_extension(url) => {
            add("kubernetes.sysext", KubernetesFault::Sysext(url.clone()));
        }
        None if !has_server || kubernetes.sysext_sha256.is_some() => {
            add("kubernetes", KubernetesFault::NoSource);
        }
        _ => {}
    }
    if cluster.etcd != super::Etcd::default() {
        let why = "leases are the cluster's objects of the nodes";
        add("etcd", KubernetesFault::NoEffect(why));
    }
    if !cluster.network.is_null() {
        let why = "the network config is net-conf.json in the ConfigMap kube-flannel-cfg";
        add("network", KubernetesFault::NoEffect(why));
    }
    for table in cluster.agent.keys() {
        if !HOST_TABLES.contains(&table.as_str()) {
            let why = "the agent there is the DaemonSet's, with flags in its manifest; fleet and update are the host's";
            add(&join_key("agent", table), KubernetesFault::NoEffect(why));
        }
    }
    faults
}

/// What kubeadm takes (`BootstrapTokenPattern` of k8s.io/cluster-bootstrap).
fn is_token(text: &str) -> bool {
    let is_part = |part: &str| {
        part.bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    let (id, secret) = text.split_once('.').unwrap_or_default();
    id.len() == 6 && secret.len() == 16 && is_part(id) && is_part(secret)
}

/// Nothing that means something to systemd in a command line is in it.
fn is_extension(url: &str) -> bool {
    let rest = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"));
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-._~:/[]".contains(&b);
    rest.and_then(|rest| rest.rsplit_once('/'))
        .is_some_and(|(place, name)| !place.is_empty() && parse_file_name(name).is_some())
        && url.bytes().all(good)
}

impl Kubernetes {
    /// What the files and units of every node are joined by on one that joins a Kubernetes cluster.
    pub(super) fn add_to(
        &self,
        cluster: &str,
        node: &Node,
        files: &mut Vec<spec::File>,
        units: &mut Vec<spec::Unit>,
    ) {
        let mut join = file(
            "/etc/kubernetes/join.yaml",
            &self.join_configuration(cluster),
        );
        join.mode = Some(0o600);
        let address = node.address.addr();
        files.extend([
            file("/etc/containerd/config.toml", CONTAINERD),
            file(
                "/etc/default/kubelet",
                &format!(
                    "# Written by `selvage ignition render`.\nKUBELET_EXTRA_ARGS=--node-ip={address}\n"
                ),
            ),
            join,
            file("/etc/sysctl.d/60-kubernetes.conf", SYSCTL),
        ]);
        // Docker would take the subnet that the agent's pod writes to subnet.env, and with it the address of cni0.
        for name in ["docker.service", "docker.socket"] {
            let mut docker = spec::Unit::new(name.to_owned());
            docker.enabled = Some(false);
            units.push(docker);
        }
        let mut programs = spec::Unit::new("kubernetes-programs.service".to_owned());
        programs.contents = Some(self.programs_unit());
        let mut starter = enabled("kubernetes-node.service");
        starter.contents = Some(NODE_UNIT.to_owned());
        units.extend([programs, starter]);
    }

    /// kubeadm's `JoinConfiguration`, whose form kubeadm 1.31 and later read. The values need no escapes in quotes.
    fn join_configuration(&self, cluster: &str) -> String {
        let mut hashes = String::new();
        for hash in &self.ca_cert_hashes {
            // Writing to a String cannot fail.
            let _infallible = writeln!(hashes, "    - \"{hash}\"");
        }
        format!(
            "\
# Written by `selvage ignition render` for cluster {cluster}.
apiVersion: kubeadm.k8s.io/v1beta4
kind: JoinConfiguration
discovery:
  bootstrapToken:
    apiServerEndpoint: \"{endpoint}\"
    token: \"{token}\"
    caCertHashes:
{hashes}nodeRegistration:
  criSocket: unix:///run/containerd/containerd.sock
  ignorePreflightErrors:
  # The image has no file of the kernel's options, without which kubeadm joins nothing.
  - SystemVerification
  # What is left by a try that did not come to its end.
  - FileAvailable--etc-kubernetes-bootstrap-kubelet.conf
  - FileAvailable--etc-kubernetes-pki-ca.crt
  - Port-10250
",
            endpoint = self.endpoint,
            token = self.token.expose(),
        )
    }

    /// An update of the image brings the new version's extension along; if it did not, this does so at the next boot. Not
    /// confined, since with mounts of its own it would not see what is merged into /usr.
    fn programs_unit(&self) -> String {
        let source = match (&self.sysext, &self.sysext_sha256) {
            (Some(url), Some(sha256)) => format!("--sha256 {sha256} {url}"),
            (Some(url), None) => url.clone(),
            (None, _) => EXTENSION.to_owned(),
        };
        format!(
            "\
# Written by `selvage ignition render`.
[Unit]
Description=Bring the Programs of Kubernetes
Documentation=man:selvage-sysext(1)
ConditionPathExists=!/usr/bin/kubeadm
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=oneshot
ExecStart=/usr/bin/selvage sysext add {source}
Restart=on-failure
RestartSec=10s
"
        )
    }
}

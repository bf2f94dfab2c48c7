//! Whole nodes: network namespaces on a switch, with the tests' API server.
//!
//! ```text
//!   n1                n2                API server
//!   agent, container  agent, container  10.77.0.1:8001
//!   eth0 10.77.0.11   eth0 10.77.0.12   eth0
//!        └─────────────────┴───── switch ──┘
//! ```

use std::path::PathBuf;

use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;

use crate::host::Host;
use crate::namespace::Namespace;
use crate::node::bare;
use crate::server::ApiServer;
use crate::wait::look_until;

/// A network config as kube-flannel's ConfigMap has it.
pub(crate) const VXLAN: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// An API server, and the switch that it and all hosts hang on.
pub(crate) struct Fleet {
    pub(crate) server: ApiServer,
    pub(crate) switch: Namespace,
    _namespace: Namespace,
    directory: TempDir,
}

impl Fleet {
    pub(crate) fn start(config: &str) -> Self {
        Self::start_with(config, None)
    }

    /// The same, with TLS if there is an acceptor.
    pub(crate) fn start_with(config: &str, tls: Option<TlsAcceptor>) -> Self {
        let switch = Namespace::new();
        switch.ip("link add switch type bridge");
        switch.ip("link set switch up");
        let namespace = Namespace::new();
        namespace.connect("eth0", &switch, "port1");
        switch.ip("link set port1 master switch up");
        namespace.ip("address add 10.77.0.1/24 dev eth0");
        namespace.ip("link set eth0 up");
        let fleet = Self {
            server: ApiServer::start_in_with(&namespace, "10.77.0.1:8001", tls),
            switch,
            _namespace: namespace,
            directory: tempfile::tempdir().expect("a directory"),
        };
        std::fs::write(fleet.config(), config).expect("the network config");
        fleet
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.directory.path().join("net-conf.json")
    }

    /// The node `nNUMBER` with these podCIDRs, on a host whose agent does not run yet.
    pub(crate) fn host(&self, number: u8, cidrs: &[&str]) -> Host {
        let name = format!("n{number}");
        self.server
            .change(|cluster| cluster.put(bare(&name, cidrs)));
        let mut host = Host::on(&self.switch, number, "http://10.77.0.1:2379".to_owned());
        host.environment.push(("NODE_NAME", name));
        host.arguments = vec![
            "--kube-subnet-mgr=true".to_owned(),
            "--kube-api-url=http://10.77.0.1:8001".to_owned(),
            format!("--net-config-path={}", self.config().display()),
        ];
        host
    }

    /// Two hosts whose containers reach each other.
    pub(crate) fn pair(config: &str, cidrs: [&[&str]; 2]) -> (Self, Host, Host) {
        let fleet = Self::start(config);
        let [mut one, mut two] =
            [(1, cidrs[0]), (2, cidrs[1])].map(|(number, cidrs)| fleet.host(number, cidrs));
        one.join();
        two.join();
        one.wait_reaches(&two);
        (fleet, one, two)
    }

    pub(crate) fn wait_condition(&self, name: &str, status: &str, reason: &str) {
        let wanted = Some((status.to_owned(), reason.to_owned()));
        look_until(
            "the condition",
            || self.server.look(|cluster| cluster.condition(name)),
            |seen| *seen == wanted,
        );
    }
}

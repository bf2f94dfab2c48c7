//! The network config: a file, which in a pod is a key of a ConfigMap.
//!
//! The kubelet replaces a ConfigMap's files by turning a symbolic link to another directory, some 60 seconds after the
//! change. So the file is read again and again by its path, which needs no watch of any link on it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::time::sleep;

use super::Shared;
use crate::cluster::lease::{StoreError, StoreEvent, SubnetKey};
use crate::cluster::network_config::NetworkConfig;

/// The time between two looks.
const PERIOD: Duration = Duration::from_secs(5);

/// The longest config that is read, in bytes; a ConfigMap has at most 1 MiB.
const LONGEST: u64 = 1 << 20;

impl Shared {
    /// Reads the file.
    pub(super) async fn read_config(&self) -> Result<String, StoreError> {
        let key = || self.net_config.display().to_string();
        let path = self.net_config.clone();
        let read = tokio::task::spawn_blocking(move || {
            use std::io::Read;
            let mut text = String::new();
            let file = std::fs::File::open(path)?;
            file.take(LONGEST).read_to_string(&mut text).map(|_| text)
        });
        let read = read.await.map_err(std::io::Error::other);
        read.and_then(|read| read)
            .map_err(|error| StoreError::NoNetworkConfig {
                key: format!("{} ({error})", key()),
            })
    }

    /// Checks the file's text; the subnet is given, so that only its place in the network counts.
    pub(super) fn parse_config(
        &self,
        text: &str,
        own: &SubnetKey,
    ) -> Result<NetworkConfig, StoreError> {
        match NetworkConfig::parse(text) {
            Ok(config) => Ok(config.assigned(own.v4, own.v6)),
            Err(error) => Err(StoreError::BadNetworkConfig {
                key: self.net_config.display().to_string(),
                error,
            }),
        }
    }
}

/// Reports each change of the file, until the receiver of the events is dropped.
pub(super) async fn follow(shared: Arc<Shared>, own: SubnetKey, events: Sender<StoreEvent>) {
    loop {
        sleep(PERIOD).await;
        let (text, config) = match shared.read_config().await {
            Ok(text) => {
                let config = shared.parse_config(&text, &own);
                (text, config.map(Box::new).map_err(|error| (&error).into()))
            }
            Err(error) => (error.to_string(), Err((&error).into())),
        };
        let is_other = {
            let mut known = shared.known_config();
            let other = known.as_ref() != Some(&text);
            *known = Some(text);
            other
        };
        let event = StoreEvent::NetworkConfig(config);
        if is_other && events.send(event).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::lease::allocate;

    /// Kubernetes gives the first node the first subnet, which flannel's range in etcd leaves out, and the length is
    /// that of the controller-manager's `--node-cidr-mask-size`.
    #[test]
    fn assigned_subnets_are_those_inside_the_network() {
        let config = NetworkConfig::parse(
            r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/56","SubnetMin":"10.244.9.0"}"#,
        )
        .unwrap();
        let key = |name| SubnetKey::parse_name(name).unwrap();
        let own = key("10.244.0.0-25&fd00:10:244::-64");
        assert!(!allocate::allows(&config, &own));
        let config = config.assigned(own.v4, own.v6);
        for (name, allowed) in [
            ("10.244.0.0-25&fd00:10:244::-64", true),
            ("10.244.255.128-25&fd00:10:244:ff::-64", true),
            ("10.245.0.0-25&fd00:10:244::-64", false),
            ("10.244.0.0-25&fd00:10:244:100::-64", false),
            ("10.244.0.0-24&fd00:10:244::-64", false),
            ("10.244.0.0-25", false),
        ] {
            assert_eq!(allocate::allows(&config, &key(name)), allowed, "{name}");
        }
        assert_eq!(config.subnets(), 256);
    }
}

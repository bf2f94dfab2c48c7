//! Remedies where the lease store is Kubernetes: what is written by `selvage network` and `etcdctl` elsewhere is in its
//! objects there.

use super::{Advice, WITHOUT_STORE};
use crate::settings::Kubernetes;
use crate::telemetry::status::Code;

/// The advice for a code that means something else in Kubernetes; `None` for the others, and without it.
pub(super) fn advise(code: Code, settings: &Kubernetes) -> Option<Advice> {
    if !settings.enabled {
        return None;
    }
    let file = settings.net_config.display();
    Some(match code {
        Code::NoNetworkConfig | Code::BadNetworkConfig | Code::NetworkConfigChanged => Advice::new(
            "the network config defines the overlay's addresses and its backend; a bad one changes nothing on nodes that have joined",
            [
                "correct net-conf.json in the ConfigMap: kubectl -n kube-flannel edit configmap kube-flannel-cfg; pods see it a minute later".into(),
                format!("see that it is mounted: the agent reads {file}"),
            ],
        ),
        Code::SubnetOutsideNetwork => Advice::new(
            "pods get addresses that the overlay does not carry",
            [
                "make Network in net-conf.json the cluster's: kubectl -n kube-system get pod -l component=kube-controller-manager -o yaml | grep cluster-cidr".into(),
            ],
        ),
        Code::NoNode | Code::NoPodCidr => Advice::new(
            "without a podCIDR this node has no subnet; the agent waits for it",
            [
                "see what Kubernetes has: kubectl get node -o custom-columns=NAME:.metadata.name,PODCIDR:.spec.podCIDRs".into(),
                "have kube-controller-manager assign them: --allocate-node-cidrs=true --cluster-cidr=NETWORK".into(),
                "if the node has another name there: set NODE_NAME".into(),
            ],
        ),
        Code::LeaseLost => Advice::new(
            "the node was deleted, or has another podCIDR; the data plane stays in place until the agent has a subnet again",
            ["see what Kubernetes has: kubectl get node -o custom-columns=NAME:.metadata.name,PODCIDR:.spec.podCIDRs".into()],
        ),
        Code::LostRaces => Advice::new(
            "another writer changes this node's object all the time; the agent retries",
            ["see who: kubectl get node NODE -o yaml --show-managed-fields".into()],
        ),
        Code::StoreLogin => Advice::new(
            WITHOUT_STORE,
            [
                "give the service account or user what docs/kubernetes.md lists: get, list and watch nodes, patch nodes/status".into(),
                "if its token or certificate expired: restart the pod, or renew the kubeconfig; new files need no restart".into(),
            ],
        ),
        Code::StoreTls => Advice::new(
            WITHOUT_STORE,
            [
                "check the server's certificate against the authority in the kubeconfig or the service account's ca.crt".into(),
                "check this host's clock: timedatectl".into(),
            ],
        ),
        Code::StoreUnreachable | Code::StoreRefused => Advice::new(
            WITHOUT_STORE,
            [
                "check that this host reaches the API server: curl -k https://HOST:PORT/readyz".into(),
                "if it does not reach the service's address, because kube-proxy does not run: name the server itself by --kube-api-url".into(),
            ],
        ),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    #[test]
    fn nobody_is_sent_to_etcd() {
        let mut settings = Settings::default().kubernetes;
        assert_eq!(advise(Code::NoPodCidr, &settings), None);
        settings.enabled = true;
        let mut found = 0;
        for advice in Code::ALL.iter().filter_map(|code| advise(*code, &settings)) {
            found += 1;
            for remedy in &advice.remedy {
                assert!(!remedy.contains("etcd"), "{remedy}");
                assert!(!remedy.contains("selvage network"), "{remedy}");
            }
        }
        assert_eq!(found, 12);
        let codes = Code::ALL
            .iter()
            .filter(|code| code.as_str().starts_with("store-"));
        assert!(codes.clone().all(|code| advise(*code, &settings).is_some()));
    }
}

//! The configurations of the machine `flatcar`.

use super::{Ask, Config, ask, config};

/// Merged in this order.
pub(super) const CONFIGS: &[Config] = &[
    config!(
        "static_network",
        "static-network",
        "flatcar/flatcar-docs docs/setup/customization/network-config-with-networkd.md",
        STATIC_NETWORK
    ),
    config!(
        "flannel_on_flatcar",
        "flannel",
        "flatcar/flatcar-docs docs/installing/cloud/vmware.md (coreos-metadata.service), docs/setup/clusters/discovery.md \
         (etcd-member.service); flatcar/mantle kola/tests/flannel/flannel.go (network config, flannel-docker-opts.service); \
         coreos/coreos-kubernetes Documentation/deploy-master.md (options.env, Docker's drop-in)",
        FLANNEL
    ),
];

const STATIC_NETWORK: &[Ask] = &[
    ask(
        "the address, and no other",
        "ip -4 -o addr show scope global | grep -v -e docker0 -e flannel | grep -o 'inet [^ ]*'",
        "inet 10.0.2.15/24",
    ),
    ask("no lease for it", "ip -4 -o addr show dynamic", ""),
    ask(
        "the gateway",
        "ip route show default | grep -o 'default via [^ ]*'",
        "default via 10.0.2.2",
    ),
    ask(
        "a route",
        "ip route show 172.16.0.0/24 | grep -o '172.16.0.0/24 via [^ ]*'",
        "172.16.0.0/24 via 10.0.2.2",
    ),
    ask(
        "a name server",
        "resolvectl dns | grep -o '10\\.0\\.2\\.3'",
        "10.0.2.3",
    ),
];

const FLANNEL: &[Ask] = &[
    ask(
        "a unit of its own by the name of one of Flatcar's",
        "systemctl is-active coreos-metadata.service; cat /run/metadata/flatcar",
        "active\nCOREOS_CUSTOM_PRIVATE_IPV4=10.0.2.15",
    ),
    ask(
        "etcd by Flatcar's name",
        "systemctl is-active etcd-member.service",
        "active",
    ),
    ask(
        "its flags, from the drop-in",
        "etcdctl member list | cut -d, -f3-5 | tr -d ' '",
        "infra0,http://10.0.2.15:2380,http://10.0.2.15:2379",
    ),
    ask(
        "its former port",
        "curl -sS http://127.0.0.1:4001/version | grep -c etcdserver",
        "1",
    ),
    ask("flanneld", "systemctl is-active flanneld.service", "active"),
    ask(
        "the network config that a drop-in writes",
        "etcdctl get --print-value-only /coreos.com/network/config",
        "{ \"Network\": \"10.64.0.0/16\", \"Backend\": { \"Type\": \"vxlan\" } }",
    ),
    ask(
        "the options that a drop-in links to",
        "readlink /run/flannel/options.env; . /run/flannel/subnet.env; echo $FLANNEL_NETWORK",
        "/etc/flannel/options.env\n10.64.0.0/16",
    ),
    ask(
        "its lease, on the card that the options name",
        "etcdctl get --print-value-only --prefix /coreos.com/network/subnets/ | grep -o '\"PublicIP\":\"[^\"]*\"'",
        "\"PublicIP\":\"10.0.2.15\"",
    ),
    ask(
        "its log by that name",
        "sudo journalctl -b -q -o cat -u flanneld | grep -c . | sed 's/[1-9].*/some/'",
        "some",
    ),
    ask(
        "Docker's options, made by a drop-in's command",
        "systemctl show -P Result flannel-docker-opts.service; grep -c '^DOCKER_OPT_BIP=\"--bip=10\\.64\\.' /run/flannel/flannel_docker_opts.env",
        "success\n1",
    ),
    ask(
        "Docker, which needs flanneld",
        "systemctl is-active docker.service; systemctl show -P Requires docker.service | grep -o -w -e flanneld.service -e selvage.service | head -n 1 | wc -l",
        "active\n1",
    ),
    ask(
        "Docker on the leased subnet",
        ". /run/flannel/subnet.env; ip -4 -o addr show dev docker0 | grep -c \" $FLANNEL_SUBNET \"",
        "1",
    ),
];

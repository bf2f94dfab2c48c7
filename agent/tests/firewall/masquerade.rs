//! Which address a packet arrives with, for every rule and real packets, in every mode and both families.

use selvage::host::firewall::{Mode, Rules};

use crate::host::{Agent, Installed, IptablesLegacy, IptablesNft, Nft, dual, nothing, on_host, sh};
use crate::topology::{
    CONTAINER, CONTAINER6, ELSEWHERE, ELSEWHERE6, OUTSIDE, OUTSIDE6, Topology, seen_source,
};

fn source_is_kept_inside_the_overlay_and_replaced_where_replies_need_it(
    installed: Installed,
    mode: Mode,
) {
    on_host(installed, || {
        let net = Topology::new();
        let (container, elsewhere, outside) = (&net.container, &net.elsewhere, &net.outside);
        let seen = |from, to, address| seen_source(from, to, address).unwrap();
        let mut agent = Agent::new(mode);
        assert_eq!(seen(container, outside, OUTSIDE), CONTAINER);
        assert_eq!(seen(container, outside, OUTSIDE6), CONTAINER6);

        agent.ensure(&dual());
        assert_eq!(seen(container, elsewhere, ELSEWHERE), CONTAINER);
        assert_eq!(seen(elsewhere, container, CONTAINER), ELSEWHERE);
        assert_eq!(seen(outside, container, CONTAINER), OUTSIDE);
        assert_eq!(seen(container, outside, OUTSIDE), "192.0.2.1");
        // flannel's own nftables rules leave this one as it is.
        assert_eq!(seen(outside, elsewhere, ELSEWHERE), "10.5.99.1");

        assert_eq!(seen(container, elsewhere, ELSEWHERE6), CONTAINER6);
        assert_eq!(seen(elsewhere, container, CONTAINER6), ELSEWHERE6);
        assert_eq!(seen(outside, container, CONTAINER6), OUTSIDE6);
        assert_eq!(seen(container, outside, OUTSIDE6), "2001:db8::1");
        assert_eq!(seen(outside, elsewhere, ELSEWHERE6), "fd00:5:0:63::1");

        let exclude = ["192.0.2.0/24", "fd00:5:0:63::/64"].map(|net| net.parse().unwrap());
        let excluded = Rules {
            exclude: exclude.into(),
            ..dual()
        };
        assert!(agent.ensure(&excluded));
        assert_eq!(seen(container, outside, OUTSIDE), CONTAINER);
        assert_eq!(seen(container, outside, OUTSIDE6), "2001:db8::1");
        assert_eq!(seen(outside, elsewhere, ELSEWHERE), "10.5.99.1");
        assert_eq!(seen(outside, elsewhere, ELSEWHERE6), OUTSIDE6);
        assert!(agent.ensure(&dual()));

        // A part of the network that is the underlay's is treated as any place outside.
        let apart = Rules {
            outside: ["10.5.99.0/24", "fd00:5:0:63::/64"]
                .map(|net| net.parse().unwrap())
                .into(),
            devices: vec!["flannel.1".parse().unwrap()],
            ..dual()
        };
        assert!(agent.ensure(&apart));
        assert!(!agent.ensure(&apart), "the rules are known again");
        assert_eq!(seen(container, elsewhere, ELSEWHERE), "10.5.99.1");
        assert_eq!(seen(elsewhere, container, CONTAINER), ELSEWHERE);
        assert_eq!(seen(elsewhere, outside, OUTSIDE), ELSEWHERE);
        assert_eq!(seen(outside, elsewhere, ELSEWHERE), OUTSIDE);
        assert_eq!(seen(container, outside, OUTSIDE), "192.0.2.1");
        assert_eq!(seen(container, elsewhere, ELSEWHERE6), "fd00:5:0:63::1");
        assert_eq!(seen(elsewhere, outside, OUTSIDE6), ELSEWHERE6);
        assert!(agent.ensure(&dual()));
        assert_eq!(seen(elsewhere, outside, OUTSIDE), "192.0.2.1");

        // What kube-proxy marked is its own to masquerade, whatever else the mark says.
        sh("nft 'add table inet marks
            add chain inet marks early { type filter hook prerouting priority mangle; }
            add rule inet marks early iifname container meta mark set 0x4001'");
        assert_eq!(seen(container, outside, OUTSIDE), CONTAINER);
        assert_eq!(seen(container, outside, OUTSIDE6), CONTAINER6);
        sh("nft delete table inet marks");
        assert_eq!(seen(container, outside, OUTSIDE), "192.0.2.1");

        assert!(agent.ensure(&nothing()));
        assert_eq!(seen(outside, elsewhere, ELSEWHERE), OUTSIDE);
        assert_eq!(seen(outside, elsewhere, ELSEWHERE6), OUTSIDE6);
    });
}

#[test]
fn nftables_masquerades_what_leaves_the_overlay() {
    source_is_kept_inside_the_overlay_and_replaced_where_replies_need_it(Nft, Mode::Nftables);
}

#[test]
fn iptables_nft_masquerades_what_leaves_the_overlay() {
    source_is_kept_inside_the_overlay_and_replaced_where_replies_need_it(
        IptablesNft,
        Mode::Iptables,
    );
}

#[test]
fn iptables_legacy_masquerades_what_leaves_the_overlay() {
    source_is_kept_inside_the_overlay_and_replaced_where_replies_need_it(
        IptablesLegacy,
        Mode::Iptables,
    );
}

//! Devices that change, are replaced, or are in the way.

use super::*;

#[test]
fn mtu_and_address_change_in_place_and_the_port_does_not() {
    let mut host = Host::new();
    block_on(async {
        host.agent(&peers(2)).await.resync().await;
        let index = if_nametoindex("flannel.1").unwrap();
        host.ns.ip("address add 192.0.2.9/24 dev up0");
        let config = r#"{"Type":"VXLAN","mtu":1400,"learning":true}"#;
        let mut changed = host.agent_configured(0, config, &peers(2)).await;
        assert_eq!(changed.backend.mtu(), 1350);
        assert_eq!(changed.resync().await.counts.made(), 1);
        assert_eq!(if_nametoindex("flannel.1").unwrap(), index);

        host.underlay.v4 = Some(attachment(Ipv4Addr::new(192, 0, 2, 9)));
        let mut moved = host.agent_configured(0, config, &peers(2)).await;
        assert_eq!(moved.resync().await.counts.made(), 1);
        assert_eq!(if_nametoindex("flannel.1").unwrap(), index);

        let config = r#"{"Type":"vxlan","Port":4789}"#;
        let mac = mac_of(&host.ns, "flannel.1");
        let mut recreated = host.agent_configured(0, config, &peers(2)).await;
        recreated.resync().await;
        assert_ne!(if_nametoindex("flannel.1").unwrap(), index);
        assert_eq!(mac_of(&host.ns, "flannel.1"), mac);
        assert!(
            host.ns
                .ip("-d link show flannel.1")
                .contains("dstport 4789")
        );
        assert_eq!(host.ns.ip("route show proto 83").lines().count(), 2);
        assert_eq!(recreated.resync().await.counts, Counts::default());
    });
}

#[test]
fn a_device_that_cannot_be_changed_still_gets_its_peers() {
    let host = Host::new();
    block_on(async {
        host.agent(&[]).await.resync().await;
        // The underlay shrinks, and we have not heard of it yet.
        host.ns.ip("link set flannel.1 mtu 1300");
        host.ns.ip("link set up0 mtu 1400");
        let mut agent = host.agent(&peers(2)).await;
        let report = agent.reconciler.resync().await.unwrap();
        let [failure] = report.failures.as_slice() else {
            panic!("{:?}", report.failures)
        };
        assert!(
            failure.to_string().starts_with("failed to replace link"),
            "{failure}"
        );
        assert_eq!(report.counts.created, 2 * 4);
    });
}

#[test]
fn another_vni_is_another_device_and_the_former_goes() {
    let host = Host::new();
    block_on(async {
        let mut agent = host.agent(&peers(2)).await;
        agent.resync().await;
        let config = r#"{"Type":"vxlan","VNI":7}"#;
        let changed = host.agent_configured(0, config, &peers(2)).await;
        agent.reconciler.set_scope(changed.backend.scope());
        agent.reconciler.set_desired(changed.plan.state());
        agent.resync().await;
        let links = host.ns.ip("link");
        assert!(
            links.contains("flannel.7") && !links.contains("flannel.1"),
            "{links}"
        );
        assert_eq!(
            host.ns
                .ip("route show proto 83")
                .matches("dev flannel.7")
                .count(),
            2
        );
        assert_eq!(agent.resync().await.counts, Counts::default());
    });
}

#[test]
fn a_device_of_another_kind_in_our_place_is_replaced() {
    let host = Host::new();
    host.ns.ip("link add flannel.1 type bridge");
    block_on(async {
        let mut agent = host.agent(&peers(1)).await;
        agent.resync().await;
        assert!(host.ns.ip("-d link show flannel.1").contains("vxlan id 1"));
    });
}

#[test]
fn a_foreign_device_with_our_vni_is_named_as_the_obstacle() {
    let host = Host::new();
    host.ns
        .ip("link add other type vxlan id 1 dev up0 local 192.0.2.1 dstport 8472");
    block_on(async {
        let mut agent = host.agent(&peers(3)).await;
        let report = agent.reconciler.resync().await.unwrap();
        let first = report.failures.first().unwrap().to_string();
        assert!(
            first.starts_with("failed to add link flannel.1 type vxlan id 1")
                && first.contains("VNI"),
            "{first}"
        );
        host.ns.ip("link del other");
        agent.resync().await;
    });
}

//! What keeps a whole host waiting, as its operator sees it: the service's status, `/readyz`, the code, the event. It never
//! ends because of it, and joins when it is over.

use std::fs;

use serde_json::Value;

use crate::access::{acceptor, kubeconfig};
use crate::authority::Authority;
use crate::fleet::{Fleet, VXLAN};
use crate::host::Host;
use crate::rbac::LIMITED;
use crate::rights;
use crate::wait::wait_until;

/// The rights of our manifest.
const RIGHTS: [(&str, &str); 5] = [
    ("nodes", "get"),
    ("nodes", "list"),
    ("nodes", "watch"),
    ("nodes/status", "patch"),
    ("events", "create"),
];

/// All rights but one, or all.
fn give(fleet: &Fleet, but: Option<(&str, &str)>) {
    let kept = RIGHTS.iter().filter(|right| Some(**right) != but);
    let rules: Vec<_> = kept.map(|(of, verb)| (*of, [*verb])).collect();
    let rules: Vec<_> = rules
        .iter()
        .map(|(of, verbs)| (*of, verbs.as_slice()))
        .collect();
    rights::give(&fleet.server, &rules);
}

/// A cluster with TLS, without which no token is sent.
fn secure() -> (Fleet, Authority) {
    let authority = Authority::new();
    let fleet = Fleet::start_with(VXLAN, Some(acceptor(&authority)));
    (fleet, authority)
}

/// A host whose user has only the rights that it is given.
fn limited((fleet, authority): &(Fleet, Authority)) -> Host {
    let mut host = fleet.host(1, &["10.244.1.0/24"]);
    let path = fleet.config().with_file_name("kubeconfig");
    let config = kubeconfig(
        "https://10.77.0.1:8001",
        Some(&authority.path("ca.pem")),
        &format!("    token: {LIMITED}\n"),
    );
    fs::write(&path, config).expect("a kubeconfig");
    host.arguments
        .retain(|argument| !argument.starts_with("--kube-api-url"));
    host.arguments
        .push(format!("--kubeconfig-file={}", path.display()));
    host.arguments.push("--healthz-port=8081".to_owned());
    host
}

/// What an operator is to see.
struct Seen<'a> {
    words: &'a str,
    code: &'a str,
}

/// Starts the agent and looks at all that it says of what it waits for.
fn wait_for_fault(host: &mut Host, seen: &Seen<'_>) {
    host.start_agent();
    let status = host.wait_told(seen.words, |line| line.contains(seen.words));
    assert!(status.starts_with("STATUS=waiting to join: "), "{status}");
    let code = format!("[{}]", seen.code);
    wait_until("/readyz", || {
        let line = "curl -s -w %{http_code} http://127.0.0.1:8081/readyz";
        let ready = host.namespace.run(line);
        ready.contains(seen.words) && ready.contains(&code) && ready.ends_with("503")
    });
    assert_eq!(
        host.namespace
            .run("curl -s -o /dev/null -w %{http_code} http://127.0.0.1:8081/healthz"),
        "200"
    );
    let (_, status) = host.ask("/v1/status");
    let status: Value = serde_json::from_str(&status).expect("a status");
    let cause = &status["health"]["causes"][0];
    assert_eq!(cause["code"], seen.code, "{status}");
    assert!(
        cause["text"]
            .as_str()
            .is_some_and(|text| text.contains(seen.words)),
        "{cause}"
    );
}

/// The same process joins.
fn wait_end(fleet: &Fleet, host: &mut Host, agent: u32) {
    host.wait_ready();
    assert_eq!(host.agent_id(), agent);
    assert_eq!(host.subnet_env("FLANNEL_SUBNET"), "10.244.1.1/24");
    fleet.wait_condition("n1", "False", "FlannelIsUp");
}

fn events(fleet: &Fleet) -> Vec<String> {
    let reason = |event: &Value| event["reason"].as_str().unwrap_or_default().to_owned();
    fleet
        .server
        .look(|cluster| cluster.events.iter().map(reason).collect())
}

#[test]
fn a_right_that_is_missing_is_told_everywhere() {
    for (but, words) in [
        (
            ("nodes", "get"),
            "nodes \"n1\" is forbidden: User \"flannel\" cannot get resource \"nodes\"",
        ),
        (
            ("nodes", "list"),
            "nodes is forbidden: User \"flannel\" cannot list resource \"nodes\"",
        ),
        (
            ("nodes/status", "patch"),
            "nodes \"n1\" is forbidden: User \"flannel\" cannot patch resource \"nodes/status\"",
        ),
    ] {
        let cluster = secure();
        let (mut host, fleet) = (limited(&cluster), &cluster.0);
        give(fleet, Some(but));
        let code = "store-login";
        wait_for_fault(&mut host, &Seen { words, code });
        let agent = host.agent_id();
        wait_until("an event", || events(fleet) == ["StoreLogin"]);
        fleet.server.look(|cluster| {
            let event = &cluster.events[0];
            assert_eq!(event["involvedObject"]["name"], "n1");
            assert!(
                event["message"]
                    .as_str()
                    .is_some_and(|it| it.contains(words))
            );
        });
        give(fleet, None);
        wait_end(fleet, &mut host, agent);
    }
}

/// The condition is the pod's affair no less: the scheduler reads it.
#[test]
fn a_node_that_may_not_read_itself_is_unavailable() {
    let cluster = secure();
    let (mut host, fleet) = (limited(&cluster), &cluster.0);
    give(fleet, Some(("nodes", "get")));
    host.start_agent();
    fleet.wait_condition("n1", "True", "StoreLogin");
    give(fleet, None);
    host.wait_ready();
    fleet.wait_condition("n1", "False", "FlannelIsUp");
}

/// Who is not known, and whom nobody answers, has no way to write an event.
#[test]
fn an_expired_token_and_a_server_that_is_away_are_told_here() {
    let cluster = secure();
    let (mut host, fleet) = (limited(&cluster), &cluster.0);
    give(fleet, None);
    fleet
        .server
        .change(|cluster| cluster.tokens = vec!["fresh".to_owned()]);
    let seen = Seen {
        words: "Unauthorized: the token in ",
        code: "store-login",
    };
    wait_for_fault(&mut host, &seen);
    let agent = host.agent_id();
    assert!(events(fleet).is_empty());
    fleet.server.change(|cluster| cluster.tokens.clear());
    wait_end(fleet, &mut host, agent);
    host.kill_agent();

    fs::remove_file(host.subnet_file()).expect("subnet.env");
    fleet
        .server
        .change(|cluster| cluster.faults.dropped = u32::MAX);
    let seen = Seen {
        words: "API server at https://10.77.0.1:8001",
        code: "store-unreachable",
    };
    wait_for_fault(&mut host, &seen);
    let agent = host.agent_id();
    assert!(events(fleet).is_empty());
    fleet.server.change(|cluster| cluster.faults.dropped = 0);
    wait_end(fleet, &mut host, agent);
}

/// A clock that is behind makes a new certificate one of the future; one that is ahead makes all expired.
#[test]
fn a_certificate_that_is_not_valid_now_is_told_here() {
    let cluster = secure();
    let (fleet, authority) = &cluster;
    let good = acceptor(authority);
    let mut host = limited(&cluster);
    give(fleet, None);
    let day = 86_400;
    for (from, until, words) in [
        (-day, -3600, "certificate expired"),
        (3600, day, "certificate not valid yet"),
    ] {
        authority.date("server", from, until);
        fleet.server.set_tls(acceptor(authority));
        let code = "store-tls";
        wait_for_fault(&mut host, &Seen { words, code });
        let agent = host.agent_id();
        assert!(events(fleet).is_empty());
        fleet.server.set_tls(good.clone());
        wait_end(fleet, &mut host, agent);
        host.kill_agent();
    }
}

const LIST: &str = "GET /api/v1/nodes?";

/// The own device and `subnet.env` need none of the list, however long that takes.
#[test]
fn a_host_is_prepared_before_its_peers_are_known() {
    let fleet = Fleet::start(VXLAN);
    let mut host = fleet.host(1, &["10.244.1.0/24"]);
    fleet
        .server
        .change(|cluster| cluster.faults.forbidden.push(LIST));
    host.start_agent();
    wait_until("subnet.env", || host.subnet_file().exists());
    assert_eq!(host.subnet_env("FLANNEL_SUBNET"), "10.244.1.1/24");
    let address = host.namespace.ip("address show dev flannel.1");
    assert!(address.contains("10.244.1.0/32"), "{address}");
    host.wait_told("what it waits for", |line| line.contains("cannot list"));
    assert!(!host.told().iter().any(|line| line == "READY=1"));
    fleet
        .server
        .change(|cluster| cluster.faults.forbidden.clear());
    host.wait_ready();
}

#[test]
fn what_an_earlier_run_left_for_peers_stays_until_the_list_is_there() {
    let (fleet, mut one, mut two) = Fleet::pair(VXLAN, [&["10.244.0.0/24"], &["10.244.7.0/24"]]);
    let before = one.overlay_objects();
    one.kill_agent();
    two.kill_agent();
    fs::remove_file(one.subnet_file()).expect("subnet.env");
    fleet.server.change(|cluster| {
        cluster.delete("n2");
        cluster.faults.forbidden.push(LIST);
    });
    one.start_agent();
    one.wait_told("what it waits for", |line| line.contains("cannot list"));
    wait_until("subnet.env", || one.subnet_file().exists());
    assert_eq!(one.overlay_objects(), before);
    assert!(one.reaches(&two));
    one.kill_agent();

    // A device that has to be made anew would take the peers with it.
    let other_port = VXLAN.replace(r#""vxlan""#, r#""vxlan","Port":8473"#);
    fs::write(fleet.config(), other_port).expect("the network config");
    fs::remove_file(one.subnet_file()).expect("subnet.env");
    one.start_agent();
    wait_until("the decision", || {
        one.log().contains("is programmed when the peers are known")
    });
    assert!(!one.subnet_file().exists());
    assert_eq!(one.overlay_objects(), before);

    fleet
        .server
        .change(|cluster| cluster.faults.forbidden.clear());
    one.wait_ready();
    let routes = one.namespace.ip("route show dev flannel.1");
    assert!(routes.is_empty(), "the peer is gone: {routes}");
    let device = one.namespace.ip("-d link show flannel.1");
    assert!(device.contains("dstport 8473"), "{device}");
}

/// Nothing but that file tells of a network that the config does not have any more.
#[test]
fn a_former_network_is_removed_though_the_list_was_long_in_coming() {
    let fleet = Fleet::start(VXLAN);
    let mut host = fleet.host(1, &["10.244.1.0/24"]);
    host.start_agent();
    host.wait_ready();
    host.kill_agent();
    host.namespace.ip("address add 10.99.1.0/32 dev flannel.1");
    let former = "FLANNEL_NETWORK=10.99.0.0/16\nFLANNEL_SUBNET=10.99.1.1/24\n";
    fs::write(host.subnet_file(), former).expect("subnet.env");
    fleet
        .server
        .change(|cluster| cluster.faults.forbidden.push(LIST));
    for _ in 0..2 {
        host.start_agent();
        host.wait_told("what it waits for", |line| line.contains("cannot list"));
        host.kill_agent();
    }
    fleet
        .server
        .change(|cluster| cluster.faults.forbidden.clear());
    host.start_agent();
    host.wait_ready();
    assert_eq!(host.subnet_env("FLANNEL_NETWORK"), "10.244.0.0/16");
    let addresses = host.namespace.ip("address show dev flannel.1");
    assert!(addresses.contains("10.244.1.0/32"), "{addresses}");
    assert!(!addresses.contains("10.99."), "{addresses}");
}

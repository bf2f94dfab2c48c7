//! `aws-vpc` against a local server that plays EC2.

use std::time::Duration;

use super::ec2::{Ec2, Entry, Fault, Table};
use super::server::Double;
use super::{ADDRESS, Node, net, told, wanted};
use crate::cloud::pass::Made;
use crate::cloud::plan::Wanted;
use crate::cloud::worker::{Job, Reach, Worker};
use crate::plan::backend::CloudConfig;

const OWN: &str = "10.5.1.0/24";

fn start() -> Double<Ec2> {
    Double::start("127.0.0.1:0", Ec2::new(&[ADDRESS]))
}

fn node(double: &Double<Ec2>) -> Node {
    Node::new("aws-vpc", &double.url(), CloudConfig::default())
}

/// Whether a table routes the own subnet to the instance under test.
fn leads_here(double: &Double<Ec2>, table: &str) -> bool {
    let state = double.state();
    let interface = state.instances[0].interface.clone();
    state.hop(table, OWN) == Some(interface)
}

fn entry(destination: &str, hop: &str) -> Entry {
    Entry {
        destination: destination.to_owned(),
        hop: hop.to_owned(),
    }
}

#[tokio::test]
async fn a_node_switches_the_check_off_and_adds_its_route() {
    let double = start();
    let mut node = node(&double);
    let first = node.pass().await;
    assert_eq!(told(&first), Vec::<String>::new());
    // What was accepted is read back before it counts.
    assert!(first.is_pending && !first.is_settled());
    assert_eq!(first.made.added, 1);
    let second = node.pass().await;
    assert!(second.is_settled(), "{second:?}");
    assert_eq!(second.made, Made::default());
    assert_eq!(second.tables[0].id, "rtb-main");
    let state = double.state();
    assert!(!state.instances[0].is_checked);
    assert_eq!(state.count("CreateRoute"), 1);
    assert_eq!(state.count("ModifyNetworkInterfaceAttribute"), 1);
    // Every signature was right, and of the time that the transport's clock shows.
    assert_eq!(state.signed_at, "20150830T123600Z");
    assert_eq!(state.wrong, Vec::<String>::new());
    drop(state);
    assert!(leads_here(&double, "rtb-main"));
}

#[tokio::test]
async fn the_subnets_own_table_goes_before_the_main_one_on_whatever_page() {
    let double = start();
    double.state().in_pages = true;
    let table = Table {
        subnet: Some("subnet-a"),
        routes: Vec::new(),
    };
    let other = Table {
        subnet: Some("subnet-b"),
        ..table.clone()
    };
    let tables = [("rtb-a", table), ("rtb-b", other)];
    let tables = tables.map(|(id, table)| (id.to_owned(), table));
    double.state().tables.extend(tables);
    node(&double).settle().await;
    assert!(leads_here(&double, "rtb-a"));
    for other in ["rtb-main", "rtb-b"] {
        assert_eq!(double.state().hop(other, OWN), None);
    }
}

#[tokio::test]
async fn a_full_table_does_not_keep_the_route_out_of_the_others() {
    let double = start();
    {
        let mut state = double.state();
        state.quota = 2;
        let full = Table {
            subnet: Some("subnet-b"),
            routes: vec![
                entry("172.16.0.0/16", "igw-1"),
                entry("172.17.0.0/16", "igw-1"),
            ],
        };
        state.tables.insert("rtb-full".to_owned(), full);
        let roomy = Table::default();
        state.tables.insert("rtb-roomy".to_owned(), roomy);
    }
    let tables = ["rtb-full", "rtb-missing", "rtb-roomy"].map(str::to_owned);
    let config = CloudConfig {
        tables: tables.to_vec(),
        ..CloudConfig::default()
    };
    let mut node = Node::new("aws-vpc", &double.url(), config);
    node.pass().await;
    let pass = node.pass().await;
    assert_eq!(
        told(&pass),
        [
            "rtb-full: CreateRoute: \"Routes per route table\" is used up; remove routes that nobody needs, or ask the provider to raise it",
            "rtb-missing: DescribeRouteTables: rtb-missing does not exist",
        ]
    );
    let complete: Vec<bool> = pass.tables.iter().map(|table| table.is_complete).collect();
    assert_eq!(complete, [false, true]);
    assert!(leads_here(&double, "rtb-roomy"));
    // Room was made, and the third table too.
    double.state().quota = 3;
    double
        .state()
        .tables
        .insert("rtb-missing".to_owned(), Table::default());
    node.settle().await;
}

#[tokio::test]
async fn missing_permissions_are_named_and_so_is_the_command_of_an_administrator() {
    let double = start();
    double
        .state()
        .denied
        .extend(["CreateRoute", "ModifyNetworkInterfaceAttribute"]);
    let mut node = node(&double);
    let pass = node.pass().await;
    assert_eq!(
        told(&pass),
        [
            "the provider drops packets that this instance forwards: ModifyNetworkInterfaceAttribute: not allowed; give this instance's role the permission ec2:ModifyNetworkInterfaceAttribute; to allow them: aws ec2 modify-network-interface-attribute --network-interface-id eni-00000000000000000 --no-source-dest-check",
            "rtb-main: CreateRoute: not allowed; give this instance's role the permission ec2:CreateRoute",
        ]
    );
    assert!(pass.problems.iter().all(|problem| !problem.is_transient()));
    // An administrator did both.
    double.state().denied.clear();
    double.state().instances[0].is_checked = false;
    node.settle().await;
    assert_eq!(double.state().count("ModifyNetworkInterfaceAttribute"), 1);
}

#[tokio::test]
async fn throttling_ends_the_pass_and_says_how_long_to_wait() {
    let double = start();
    let fault = Fault {
        retry_after: Some(7),
        ..Fault::new("DescribeInstances", 503, "RequestLimitExceeded")
    };
    double.state().faults.push_back(fault);
    let mut node = node(&double);
    let pass = node.pass().await;
    assert_eq!(
        told(&pass),
        ["DescribeInstances: the provider asks to slow down (RequestLimitExceeded)"]
    );
    assert_eq!(pass.problems[0].retry_after(), Some(Duration::from_secs(7)));
    assert_eq!(double.state().calls, ["DescribeInstances"]);
    node.settle().await;
}

#[tokio::test]
async fn lists_that_lag_behind_do_not_make_it_add_again() {
    let double = start();
    double.state().lag = 3;
    // Only lists of this table, so that each pass sees one.
    let config = CloudConfig {
        tables: vec!["rtb-main".to_owned()],
        ..CloudConfig::default()
    };
    let mut node = Node::new("aws-vpc", &double.url(), config);
    node.pass().await;
    for _ in 0..3 {
        let pass = node.pass().await;
        assert!(pass.is_pending && pass.problems.is_empty(), "{pass:?}");
        assert!(!pass.tables[0].is_complete);
    }
    assert!(node.pass().await.is_settled());
    assert_eq!(double.state().count("CreateRoute"), 1);
}

#[tokio::test]
async fn a_change_whose_answer_was_lost_is_found_done() {
    let double = start();
    let fault = Fault {
        is_done: true,
        ..Fault::new("CreateRoute", 500, "InternalError")
    };
    double.state().faults.push_back(fault);
    let mut node = node(&double);
    let pass = node.pass().await;
    assert!(pass.problems[0].is_transient(), "{pass:?}");
    node.settle().await;
    assert_eq!(double.state().count("CreateRoute"), 1);
}

#[tokio::test]
async fn what_was_left_goes_and_what_is_others_stays() {
    let double = start();
    {
        let mut state = double.state();
        let mut other = state.instances[0].clone();
        (other.id, other.interface) = ("i-other".to_owned(), "eni-live".to_owned());
        state.instances.push(other);
        let own = state.instances[0].interface.clone();
        let routes = &mut state.tables.get_mut("rtb-main").unwrap().routes;
        routes.extend([
            // An earlier subnet of this node.
            entry("10.5.9.0/24", &own),
            // A dead node's, nobody's, and one that a node that is off for a while still leases.
            entry("10.5.8.0/24", "eni-gone"),
            entry("10.5.2.0/24", "eni-gone"),
            // Live nodes', and what is no node's.
            entry("10.5.7.0/24", "eni-live"),
            entry("10.5.128.0/17", &own),
            entry("172.16.1.0/24", "eni-gone"),
            entry("10.5.6.0/24", "igw-1"),
        ]);
    }
    node(&double).settle().await;
    let state = double.state();
    for gone in ["10.5.9.0/24", "10.5.8.0/24"] {
        assert_eq!(state.hop("rtb-main", gone), None, "{gone}");
    }
    for stays in [
        "10.5.2.0/24",
        "10.5.7.0/24",
        "10.5.128.0/17",
        "172.16.1.0/24",
        "10.5.6.0/24",
        "0.0.0.0/0",
        OWN,
    ] {
        assert!(state.hop("rtb-main", stays).is_some(), "{stays}");
    }
}

#[tokio::test]
async fn a_dead_nodes_route_for_our_subnet_is_replaced_and_a_live_ones_is_reported() {
    let double = start();
    let set = |hop: &str| {
        let mut state = double.state();
        let routes = &mut state.tables.get_mut("rtb-main").unwrap().routes;
        routes.retain(|route| route.destination != OWN);
        routes.push(entry(OWN, hop));
    };
    set("eni-gone");
    let mut node = node(&double);
    node.settle().await;
    assert_eq!(double.state().count("ReplaceRoute"), 1);
    assert!(leads_here(&double, "rtb-main"));

    set("igw-1");
    let pass = node.pass().await;
    assert_eq!(
        told(&pass),
        [
            "rtb-main: the route to 10.5.1.0/24 leads to igw-1, which this agent did not make; if it is left over: aws ec2 replace-route --route-table-id rtb-main --destination-cidr-block 10.5.1.0/24 --network-interface-id eni-00000000000000000"
        ]
    );
    assert_eq!(
        double.state().hop("rtb-main", OWN).as_deref(),
        Some("igw-1")
    );
}

#[tokio::test]
async fn replaced_credentials_are_fetched_again() {
    let double = start();
    let mut node = node(&double);
    node.settle().await;
    double.state().generation = 2;
    let pass = node.pass().await;
    let told = told(&pass);
    assert!(
        told[0].contains("no usable credentials") && told[0].contains("ExpiredToken"),
        "{told:?}"
    );
    assert!(!told[0].contains("session"), "{told:?}");
    assert!(node.pass().await.is_settled());
}

#[tokio::test]
async fn keys_of_the_environment_go_before_the_role_and_no_keys_are_told() {
    let double = start();
    double.state().user = Some("AKIDEXAMPLE");
    let mut node = node(&double);
    let pass = node.pass().await;
    assert!(
        told(&pass)[0].contains("this instance has no role"),
        "{pass:?}"
    );
    let mut node = Node::with("aws-vpc", &double.url(), CloudConfig::default(), |name| {
        let value = match name {
            "AWS_ACCESS_KEY_ID" => "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY" => "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
            _ => return None,
        };
        Some(value.to_owned())
    });
    node.settle().await;
    assert_eq!(double.state().wrong, Vec::<String>::new());
}

#[tokio::test]
async fn only_a_missing_domain_is_the_usual_one() {
    let double = start();
    let mut node = node(&double);
    double.state().metadata_fault = Some(("services/domain", 503));
    let away = told(&node.pass().await);
    assert_eq!(
        away,
        ["metadata service: the provider cannot do this now (503)"]
    );
    double.state().metadata_fault = Some(("services/domain", 404));
    self::node(&double).settle().await;
    assert_eq!(double.state().metadata_fault, None);
    assert!(leads_here(&double, "rtb-main"));
}

/// The task, not only one pass.
#[tokio::test]
async fn a_table_that_the_config_no_longer_names_is_left() {
    let double = start();
    double
        .state()
        .tables
        .insert("rtb-next".to_owned(), Table::default());
    let mut worker = Worker::start(None);
    let hops = || ["rtb-main", "rtb-next"].map(|table| double.state().hop(table, OWN).is_some());
    for (tables, has) in [
        (&["rtb-main"][..], [true, false]),
        (&["rtb-main", "rtb-next"], [true, true]),
        (&["rtb-next"], [false, true]),
    ] {
        work(&mut worker, job(&double, tables)).await;
        assert_eq!(hops(), has, "{tables:?}");
    }
}

fn job(double: &Double<Ec2>, tables: &[&str]) -> Job {
    Job {
        kind: "aws-vpc",
        config: CloudConfig {
            tables: tables.iter().map(|table| (*table).to_owned()).collect(),
            ..CloudConfig::default()
        },
        address: ADDRESS,
        wanted: wanted(),
        reach: Reach {
            api_url: Some(double.url()),
            metadata_url: Some(double.url()),
            credentials_file: None,
            resync: Duration::from_secs(300),
        },
    }
}

/// Works on a job until nothing is left to do.
async fn work(worker: &mut Worker, job: Job) {
    worker.submit(job);
    loop {
        let outcome = worker.outcome().await;
        if worker.is_last(&outcome) && outcome.pass.is_done() {
            return;
        }
    }
}

#[tokio::test]
async fn a_table_is_left_with_the_network_that_it_had_last() {
    let double = start();
    let next = ("rtb-next".to_owned(), Table::default());
    double.state().tables.extend([next]);
    let mut worker = Worker::start(None);
    work(&mut worker, job(&double, &["rtb-main"])).await;
    let mut later = wanted();
    later.own = [net("10.6.1.0/24")].into();
    later.network = Some((net("10.6.0.0/16"), 24));
    for (tables, has) in [("rtb-main", [true, false]), ("rtb-next", [false, true])] {
        let job = Job {
            wanted: later.clone(),
            ..job(&double, &[tables])
        };
        work(&mut worker, job).await;
        let hop = |table| double.state().hop(table, "10.6.1.0/24").is_some();
        assert_eq!(["rtb-main", "rtb-next"].map(hop), has, "{tables}");
    }
}

/// By an agent that was restarted meanwhile.
#[tokio::test]
async fn tables_of_an_earlier_run_are_left_as_well() {
    let double = start();
    let next = ("rtb-next".to_owned(), Table::default());
    double.state().tables.extend([next]);
    work(&mut Worker::start(None), job(&double, &["rtb-main"])).await;
    let mut left = job(&double, &["rtb-main"]);
    left.wanted = Wanted {
        former: std::mem::take(&mut left.wanted.own),
        ..Wanted::default()
    };
    let mut worker = Worker::start(Some(left));
    // The present table does not wait for that.
    double.state().denied.insert("DeleteRoute");
    worker.submit(job(&double, &["rtb-next"]));
    loop {
        let outcome = worker.outcome().await;
        if outcome.pass.is_settled() {
            assert!(!outcome.pass.is_done() && !outcome.pass.left.is_empty());
            break;
        }
    }
    double.state().denied.clear();
    while !worker.outcome().await.pass.is_done() {}
    assert_eq!(double.state().hop("rtb-main", OWN), None);
    assert!(double.state().hop("rtb-next", OWN).is_some());
}

#[tokio::test]
async fn a_provider_that_is_away_is_told_with_its_address() {
    let mut node = Node::new("aws-vpc", "http://127.0.0.1:1", CloudConfig::default());
    let pass = node.pass().await;
    assert_eq!(
        told(&pass),
        ["http://127.0.0.1:1: failed to connect: connection refused"]
    );
    assert!(pass.problems[0].is_transient());
}

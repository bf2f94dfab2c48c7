//! The provider before Azure's resource manager.

mod answers;
mod group;
mod login;

use self::group::{GROUP, Group, OWN, double, refused, table};
use super::*;
use crate::cloud::providers::double::{
    Reply, access, in_the_way, net, once, settle, shown, start, wanted,
};
use crate::plan::backend::CloudConfig;

/// The example of "Routes - List" (RouteTableRouteList), with the other forms that the documentation names.
#[test]
fn the_documentations_example_is_read() {
    let page = r#"{"value":[
        {"properties":{"provisioningState":"Succeeded","addressPrefix":"10.0.3.0/24","nextHopType":"VirtualNetworkGateway"},
         "name":"route1","id":"/subscriptions/subid/resourceGroups/rg1/providers/Microsoft.Network/routeTables/testrt/routes/route1"},
        {"properties":{"provisioningState":"Succeeded","addressPrefix":"10.0.2.0/24","nextHopType":"VirtualAppliance","nextHopIpAddress":"10.0.0.7"},
         "name":"selvage-10-0-2-0-24","etag":"W/\"1\""},
        {"properties":{"provisioningState":"Failed","addressPrefix":"10.0.4.0/24","nextHopType":"VirtualAppliance","nextHopIpAddress":"10.0.0.7"},
         "name":"selvage-10-0-4-0-24"},
        {"properties":{"provisioningState":"Succeeded","addressPrefix":"ApiManagement","nextHopType":"Internet"},"name":"ControlPlane"}]}"#;
    let page: Page<Entry> = serde_json::from_str(page).unwrap();
    let routes: Vec<Route> = page
        .value
        .iter()
        .filter_map(|entry| route(entry, OWN))
        .collect();
    assert_eq!(
        shown(&routes),
        [
            "10.0.2.0/24 own ours",
            "10.0.3.0/24 VirtualNetworkGateway foreign",
            "10.0.4.0/24 dead 10.0.0.7 ours",
        ]
    );
    assert_eq!(
        parts(&routes[1].handle),
        ("selvage-10-0-2-0-24", Some("W/\"1\""))
    );
    assert_eq!(parts(&routes[0].handle), ("route1", None));
}

#[tokio::test]
async fn a_list_that_cannot_be_followed_is_no_whole_one() {
    let mut group = Group::new();
    let page = json!({"value": [], "nextLink": "https://elsewhere.example/routes?page=2"});
    group
        .instead
        .push(("GET", "/routes", Reply::new(200, page)));
    let (_double, mut azure) = double(group);
    let error = azure.list(&table()).await.unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("a nextLink that leads to no subscription"),
        "{error}"
    );
}

#[tokio::test]
async fn the_subnets_table_is_listed_whole_and_changed() {
    for is_scale_set in [false, true] {
        let mut group = Group::new();
        group.is_scale_set = is_scale_set;
        group.page = 3;
        for number in 0..10 {
            let prefix = format!("10.9.{number}.0/24");
            group.has(&format!("r{number}"), &prefix, MACHINE, "10.0.0.9");
        }
        group.has("internet", "0.0.0.0/0", "Internet", "");
        let (double, mut azure) = double(group);
        let azure: &mut dyn RouteTable = &mut azure;
        let tables = azure.tables().await.unwrap();
        assert_eq!(tables, [table()]);
        assert_eq!(azure.list(&tables[0]).await.unwrap().len(), 11);
        let before = double.state().routes.clone();
        settle(azure, &wanted(), 5).await;
        let has = azure.list(&tables[0]).await.unwrap();
        assert!(shown(&has).contains(&"10.5.1.0/24 own ours".to_owned()));
        let ours = has.iter().find(|route| route.mark == Mark::Ours).unwrap();
        assert!(ours.handle.starts_with("selvage-10-5-1-0-24 "));
        azure.remove(&tables[0], ours).await.unwrap();
        let again = azure.remove(&tables[0], ours).await;
        assert!(
            matches!(again, Err(CloudError::Unavailable { .. })),
            "{again:?}"
        );
        assert_eq!(double.state().routes, before);
        let gone = azure.list(&format!("{GROUP}/gone")).await.unwrap_err();
        assert!(matches!(gone, CloudError::NotFound { .. }), "{gone}");
    }
}

#[tokio::test]
async fn tables_of_the_config_may_be_names() {
    let double = start(Group::new());
    let elsewhere = "/subscriptions/1/resourceGroups/2/providers/Microsoft.Network/routeTables/3";
    let config = CloudConfig {
        tables: vec!["table".to_owned(), elsewhere.to_owned()],
        ..CloudConfig::default()
    };
    let mut azure = Azure::new(access(&double, config));
    let tables = azure.tables().await.unwrap();
    assert_eq!(tables, [table(), elsewhere.to_owned()]);
    let mut group = Group::new();
    group.has_table = false;
    let (_double, mut azure) = self::double(group);
    let error = azure.tables().await.unwrap_err();
    assert!(
        error.to_string().contains("az network vnet subnet update"),
        "{error}"
    );
}

#[tokio::test]
async fn a_route_of_ours_is_replaced_and_one_of_somebody_else_is_not() {
    let mut group = Group::new();
    group.has("selvage-10-5-1-0-24", "10.5.1.0/24", MACHINE, "10.0.0.8");
    let (double, mut azure) = double(group);
    // Listed, and then changed by somebody else.
    let listed = RouteTable::list(&mut azure, &table()).await.unwrap();
    double.state().routes[0].etag += 1;
    let error = azure.replace(&table(), &listed[0]).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "PUT route: the provider cannot do this now (PreconditionFailed)"
    );
    settle(&mut azure, &wanted(), 3).await;
    assert_eq!(double.state().routes[0].hop, OWN);
    assert_eq!(double.state().routes.len(), 1);
    let mut group = Group::new();
    group.has("db", "10.5.1.0/24", MACHINE, "10.0.0.9");
    let (double, mut azure) = self::double(group);
    assert_eq!(
        in_the_way(&mut azure, &wanted()).await,
        format!(
            "az network route-table route delete --ids {}/routes/db",
            table()
        )
    );
    let error = azure.add(&table(), net("10.5.1.0/24")).await.unwrap_err();
    assert!(matches!(error, CloudError::Exists { .. }), "{error}");
    assert_eq!(double.state().routes[0].hop, "10.0.0.9");
}

#[tokio::test]
async fn a_dead_nodes_route_goes_and_nobody_elses() {
    for may_ask in [true, false] {
        let mut group = Group::new();
        for (number, hop) in [(1, OWN), (2, "10.0.1.8"), (6, "10.0.0.8"), (7, "10.0.0.9")] {
            let name = format!("selvage-10-5-{number}-0-24");
            group.has(&name, &format!("10.5.{number}.0/24"), MACHINE, hop);
        }
        group.has("db", "10.5.8.0/24", MACHINE, "10.0.0.8");
        if !may_ask {
            let denied = refused(403, "AuthorizationFailed");
            group.instead = vec![("GET", "/CheckIPAddressAvailability", denied); 40];
        }
        let (double, mut azure) = double(group);
        for _ in 0..40 {
            assert_eq!(once(&mut azure, &wanted()).await.problems, []);
        }
        let routes = double.state().routes.clone();
        let mut routes = routes.iter().map(|route| &*route.prefix);
        assert_eq!(routes.any(|to| to == "10.5.6.0/24"), !may_ask);
        assert_eq!(double.state().routes.len(), if may_ask { 4 } else { 5 });
    }
}

/// Any troubles, with and without an effect, end in the wanted table, and nobody else's route is touched.
#[tokio::test]
async fn any_troubles_end_in_the_wanted_table() {
    for seed in 0..40 {
        let mut group = Group::new();
        group.page = 2;
        group.has("db", "10.5.9.0/24", MACHINE, "10.0.0.9");
        group.has("selvage-10-5-7-0-24", "10.5.7.0/24", MACHINE, OWN);
        group.has("internet", "0.0.0.0/0", "Internet", "");
        if seed % 2 == 0 {
            group.has("selvage-10-5-1-0-24", "10.5.1.0/24", MACHINE, "10.0.0.8");
        }
        group.trouble = Some((seed, 40));
        let (double, mut azure) = double(group);
        for _ in 0..80 {
            // Nobody follows an operation whose answer was lost.
            if !once(&mut azure, &wanted()).await.problems.is_empty() {
                for route in &mut double.state().routes {
                    route.updating = 0;
                }
            }
        }
        settle(&mut azure, &wanted(), 3).await;
        let mut texts: Vec<String> = double
            .state()
            .routes
            .iter()
            .map(|route| format!("{} {}", route.prefix, route.hop))
            .collect();
        texts.sort();
        assert_eq!(
            texts,
            ["0.0.0.0/0 ", "10.5.1.0/24 10.0.0.7", "10.5.9.0/24 10.0.0.9"],
            "{seed}"
        );
    }
}

//! Operations that go on after they were accepted, and refusals.

use super::*;

#[tokio::test]
async fn operations_are_followed_to_their_end() {
    let (double, mut azure) = double(Group::new());
    let azure: &mut dyn RouteTable = &mut azure;
    let (own, next) = (net("10.5.1.0/24"), net("10.5.3.0/24"));
    azure.add(&table(), own).await.unwrap();
    let calls = double.state().calls.clone();
    let polls = calls.iter().filter(|call| call.contains("/operations/"));
    assert_eq!(polls.count(), 2, "{calls:?}");
    double.state().ends =
        r#"{"status":"Failed","error":{"code":"RoutesPerRouteTableLimitReached","message":"x"}}"#;
    let error = azure.add(&table(), next).await.unwrap_err();
    assert!(matches!(error, CloudError::Quota { .. }), "{error}");
    // Who may not see operations.
    double.state().instead = vec![("GET", "/operations/", refused(403, "AuthorizationFailed"))];
    azure.add(&table(), own).await.unwrap();
    double.state().routes[0].updating = 0;
    // One that goes on for long.
    double.state().routes.last_mut().unwrap().updating = 0;
    double.state().ends = r#"{"status":"InProgress"}"#;
    let slow = Reply::new(200, r#"{"status":"InProgress"}"#).with("retry-after", 60);
    double.state().instead = vec![("GET", "/operations/", slow)];
    let error = azure.add(&table(), next).await.unwrap_err();
    assert_eq!(error.to_string(), "PUT route 10.5.3.0/24 does not show yet");
    assert!(error.is_transient());
    // Another change meanwhile is refused, and told when.
    let error = azure.add(&table(), own).await.unwrap_err();
    assert_eq!(error.retry_after().map(|wait| wait.as_secs()), Some(10));
}

#[tokio::test]
async fn forwarding_is_switched_on_or_told_how() {
    let mut group = Group::new();
    group.forwards = false;
    let (double, mut azure) = double(group);
    assert_eq!(azure.forward().await.unwrap(), Forwarding::SwitchedOn);
    assert!(double.state().forwards);
    assert_eq!(azure.forward().await.unwrap(), Forwarding::Allowed);
    let calls = double.state().calls.len();
    assert_eq!(azure.forward().await.unwrap(), Forwarding::Allowed);
    assert_eq!(double.state().calls.len(), calls);
    for (is_scale_set, expected) in [
        (false, "az network nic update --ids"),
        (true, "az vmss update --ids"),
    ] {
        let mut group = Group::new();
        group.forwards = false;
        group.is_scale_set = is_scale_set;
        group.instead = vec![(
            "PUT",
            "/networkInterfaces/",
            refused(403, "AuthorizationFailed"),
        )];
        let (double, mut azure) = self::double(group);
        let Forwarding::Forbidden { command, .. } = azure.forward().await.unwrap() else {
            panic!("allowed");
        };
        assert!(command.starts_with(expected), "{command}");
        assert!(!double.state().forwards);
    }
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let (double, mut azure) = double(Group::new());
    let azure: &mut dyn RouteTable = &mut azure;
    let own = net("10.5.1.0/24");
    double.state().instead = vec![
        (
            "PUT",
            "/routes/",
            refused(429, "TooManyRequests").with("retry-after", 17),
        ),
        ("PUT", "/routes/", refused(403, "AuthorizationFailed")),
        ("PUT", "/routes/", refused(400, "InvalidRequestFormat")),
        (
            "PUT",
            "/routes/",
            refused(409, "AnotherOperationInProgress"),
        ),
    ];
    for (expected, transient, wait) in [
        (
            "PUT route: the provider asks to slow down (TooManyRequests)",
            true,
            Some(17),
        ),
        (
            "PUT route: not allowed; give this instance's role the permission Microsoft.Network/routeTables/routes/write",
            false,
            None,
        ),
        (
            "PUT route: refused: InvalidRequestFormat: No, really.",
            false,
            None,
        ),
        (
            "PUT route: the provider cannot do this now (AnotherOperationInProgress)",
            true,
            None,
        ),
    ] {
        let error = azure.add(&table(), own).await.unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.is_transient(), transient, "{error}");
        assert_eq!(error.retry_after().map(|wait| wait.as_secs()), wait);
    }
    double.state().limit = 0;
    let error = azure.add(&table(), own).await.unwrap_err();
    assert!(matches!(error, CloudError::Quota { .. }), "{error}");
    // A machine without an identity.
    let mut group = Group::new();
    group.token = 0;
    let (_double, mut azure) = self::double(group);
    let error = RouteTable::list(&mut azure, &table()).await.unwrap_err();
    assert!(
        error.to_string().contains("az vm identity assign"),
        "{error}"
    );
}

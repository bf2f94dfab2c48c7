//! The rights that a node needs, each given or not. With a real server behind the tests' own, RBAC gives them.

use std::fs;
use std::time::{Duration, Instant};

use hyper::Method;
use selvage::cluster::lease::kube::KubeStore;
use selvage::cluster::lease::{Fault, LeaseStore, StoreEvent};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::access::kubeconfig;
use crate::herald::wait;
use crate::node::{Files, acquire, attrs, bare, connected, flannel, snapshot};
use crate::real::{Ask, Real};
use crate::server::ApiServer;
use crate::wait::PATIENCE;

/// How long an attempt waits for a refusal: a real server takes a moment to learn of a role.
const MOMENT: Duration = Duration::from_secs(2);

/// Those of agent/docs/kubernetes.md.
const RULES: [(&str, &[&str]); 2] = [
    ("nodes", &["get", "list", "watch"]),
    ("nodes/status", &["patch"]),
];

/// Gives the user `flannel` these rights and no others.
pub(crate) fn give(server: &ApiServer, rules: &[(&str, &[&str])]) {
    if let Some(real) = server.real() {
        return give_by_role(real, rules);
    }
    let each = rules.iter().flat_map(|(of, verbs)| {
        let right = |verb: &&str| ((*of).to_owned(), (*verb).to_owned());
        verbs.iter().map(right)
    });
    server.change(|cluster| cluster.rights = each.collect());
}

fn give_by_role(real: &Real, rules: &[(&str, &[&str])]) {
    let rules: Vec<Value> = rules
        .iter()
        // A rule without a verb is refused (`ValidatePolicyRule`).
        .filter(|(_, verbs)| !verbs.is_empty())
        .map(
            |(resource, verbs)| json!({"apiGroups": [""], "resources": [resource], "verbs": verbs}),
        )
        .collect();
    let group = "rbac.authorization.k8s.io";
    let role = json!({"metadata": {"name": "flannel"}, "rules": rules});
    let binding = json!({
        "metadata": {"name": "flannel"},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "flannel"},
        "subjects": [{"apiGroup": group, "kind": "User", "name": "flannel"}],
    });
    for (kind, object) in [("clusterroles", role), ("clusterrolebindings", binding)] {
        let path = format!("/apis/{group}/v1/{kind}");
        let (status, value) = real.ask(Ask::new(Method::POST, &path, Some(&object)));
        if status == 409 {
            real.must(Method::PUT, &format!("{path}/flannel"), Some(&object));
        } else {
            assert_eq!(status, 201, "{value}");
        }
    }
}

/// All of them but one.
fn without(resource: &str, verb: &str) -> Vec<(&'static str, Vec<&'static str>)> {
    let keeps = |of: &str, given: &str| of != resource || given != verb;
    let rule = |(of, verbs): &(&'static str, &'static [&'static str])| {
        let verbs = verbs.iter().copied().filter(|given| keeps(of, given));
        (*of, verbs.collect())
    };
    RULES.iter().map(rule).collect()
}

/// A node whose token is `flannel`'s.
fn node() -> (ApiServer, Files) {
    let server = ApiServer::start();
    server.change(|cluster| {
        cluster.put(bare("n1", &["10.244.1.0/24"]));
        cluster.put(flannel("n2", 2));
    });
    give(&server, &[]);
    let mut files = Files::new("");
    let config = kubeconfig(&server.url(), None, "    token: flannel\n");
    fs::write(files.path("kubeconfig"), config).unwrap();
    files.settings.api_url = None;
    files.settings.kubeconfig = Some(files.path("kubeconfig"));
    (server, files)
}

#[tokio::test]
async fn each_right_is_needed_and_is_named_when_it_is_missing() {
    let (server, files) = node();
    for (resource, verb) in [
        ("nodes", "get"),
        ("nodes/status", "patch"),
        ("nodes", "list"),
        ("nodes", "watch"),
    ] {
        let rules = without(resource, verb);
        let rules: Vec<_> = rules
            .iter()
            .map(|(of, verbs)| (*of, verbs.as_slice()))
            .collect();
        give(&server, &rules);
        let mut store = files.store();
        let words = format!("User \"flannel\" cannot {verb} resource \"{resource}\" in API group");
        let text = timeout(PATIENCE, refusal(&mut store, &words)).await;
        let text = text.unwrap_or_else(|_| panic!("waited in vain for: {words}"));
        assert!(text.contains("refused the request: nodes"), "{text}");
    }
}

/// The doctor's question, of a user who may do nothing but that.
#[tokio::test]
async fn who_has_no_right_may_ask_for_them() {
    let (server, files) = node();
    let survey = files.survey();
    assert_eq!(survey.missing_rights().await.unwrap().len(), 5);
    give(&server, &RULES);
    let begin = Instant::now();
    loop {
        let missing = survey.missing_rights().await.unwrap();
        if missing.len() == 1 {
            assert_eq!(missing[0].resource, "events");
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "{missing:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits for a refusal in these words of what the store does by itself. A list may come before: who may list need not be
/// allowed to watch.
async fn refused_later(store: &mut KubeStore, words: &str) -> String {
    loop {
        if let StoreEvent::Unreachable { error } = store.next_event().await
            && error.text.contains(words)
        {
            assert_eq!(error.fault, Fault::Login, "{error}");
            return error.text;
        }
    }
}

/// Tries until it is refused in these words: the server takes a moment to learn of a role.
async fn refusal(store: &mut KubeStore, words: &str) -> String {
    loop {
        let attempt = async {
            let config = store.network_config().await?;
            store.acquire(&config, &attrs(), None).await
        };
        match attempt.await {
            Err(error) if error.to_string().contains(words) => {
                assert_eq!(error.fault(), Fault::Login, "{error}");
                return error.to_string();
            }
            Err(_) => {}
            Ok(_) => {
                if let Ok(text) = timeout(MOMENT, refused_later(store, words)).await {
                    return text;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn the_rights_of_the_docs_are_enough() {
    let (server, files) = node();
    give(&server, &RULES);
    let mut store = files.store();
    let begin = Instant::now();
    while let Err(error) = store.network_config().await {
        assert!(begin.elapsed() < PATIENCE, "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    acquire(&mut store).await;
    assert_eq!(snapshot(&mut store).await.0, ["10.244.2.0/24"]);
    connected(&mut store).await;
    store.publish_health(true, Vec::new);
    wait(&server, "the condition", |cluster| {
        let condition = cluster.condition("n1");
        condition.is_some_and(|(status, _)| status == "False")
    })
    .await;
}

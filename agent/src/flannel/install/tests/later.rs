//! What comes after an installation: looking at it, and removing it.

use super::*;
use crate::flannel::install::status::ConflistState;

#[test]
fn uninstall_removes_only_what_is_ours() {
    let host = Host::new();
    let uninstall = |force| {
        let outcome = uninstall_program(&host.program, &host.places, force).unwrap();
        (host.says(&outcome), outcome.is_left)
    };
    let nothing = [
        "net.d/10-flannel.conflist: is not there",
        "bin/flannel: is not there",
    ];
    assert_eq!(uninstall(false), (nothing.map(String::from).into(), false));
    let removed = ["net.d/10-flannel.conflist: removed", "bin/flannel: removed"];

    host.install(&host.copying(&custom(1300)));
    assert_eq!(uninstall(false), (removed.map(String::from).into(), false));
    assert_eq!(host.names("net.d"), [""; 0]);
    assert_eq!(host.names("bin"), [""; 0]);

    // Somebody's config list, flannel's plugin.
    host.put("net.d/10-flannel.conflist", &custom(1400), 0o644);
    let flannels = saying("CNI Plugin flannel version v1.9.1-flannel3 (linux/amd64)");
    host.put("bin/flannel", &flannels, 0o755);
    let (says, is_left) = uninstall(false);
    assert!(is_left);
    assert!(
        says[0].ends_with("somebody has changed it; --force removes it"),
        "{says:?}"
    );
    assert!(says[1].ends_with("it is another plugin"), "{says:?}");
    let (says, is_left) = uninstall(true);
    assert_eq!((says[0].as_str(), is_left), (removed[0], false));
    assert_eq!(host.read("bin/flannel"), flannels, "not even with force");

    // Somebody's config list names our plugin.
    host.install(&Wish::default());
    host.put("net.d/10-flannel.conflist", &custom(1400), 0o644);
    let (says, is_left) = uninstall(false);
    assert!(
        is_left && says[1].contains("no pod could start"),
        "{says:?}"
    );
    assert!(host.path("bin/flannel").exists());
    assert_eq!(uninstall(true), (removed.map(String::from).into(), false));
}

#[test]
fn plugin_stays_while_containers_need_it() {
    let host = Host::new();
    let data = host.path("data");
    let list = json!({"name": "cbr0", "plugins": [{"type": "flannel", "dataDir": data}]});
    host.install(&host.copying(&list.to_string()));
    let record = json!({"name": "cbr0", "type": "bridge"}).to_string();
    host.put("data/a1:cbr0:eth0", &record, 0o600);
    host.put("data/a1", &record, 0o600);
    host.put("data/b2:other:eth0", "{}", 0o600);
    let uninstall = |force| uninstall_program(&host.program, &host.places, force).unwrap();
    let outcome = uninstall(false);
    assert!(outcome.is_left);
    assert!(
        outcome.done[1].contains("kept, since 1 of the containers that it has attached"),
        "{outcome:?}"
    );
    assert!(host.path("bin/flannel").exists());
    assert!(
        !host.path("net.d/10-flannel.conflist").exists(),
        "no pod is added any more"
    );
    assert!(!uninstall(true).is_left);
    assert!(!host.path("bin/flannel").exists());
}

#[test]
fn status_says_what_is_there_and_what_the_plugin_says() {
    let host = Host::new();
    let look = || Status::look(&host.places).unwrap();
    let status = look();
    assert_eq!(status.plugin_state, PluginState::Missing);
    assert_eq!(status.conflist_state, ConflistState::Missing);
    assert!(!status.is_well());

    let list = json!({
        "name": "cbr0", "cniVersion": "0.3.1",
        "plugins": [{"type": "flannel", "subnetFile": host.path("subnet.env")}, {"type": "portmap"}],
    });
    host.install(&host.copying(&list.to_string()));
    let status = look();
    // The test's own version, not that of the program it stands for.
    assert_eq!(status.plugin_state, PluginState::Newer);
    assert_eq!(status.plugin_version.as_deref(), Some("0.2.0"));
    assert_eq!(status.conflist_state, ConflistState::Ours);
    let why = status.not_ready.clone().unwrap();
    assert!(why.contains("has not written it yet"), "{why}");
    assert!(!status.is_well());
    let text = status.text();
    for part in [
        "bin/flannel: version 0.2.0, newer than this program\n",
        "as installed, network cbr0, CNI 0.3.1, of which runtimes ask neither STATUS nor GC\n",
        "ready     failed to load flannel 'subnet.env' file",
    ] {
        assert!(text.contains(part), "{text}");
    }

    let env = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
               FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    host.put("subnet.env", env, 0o644);
    assert!(look().is_well(), "{:?}", look());
    assert!(look().text().ends_with("ready     yes\n"));
    host.put("net.d/10-flannel.conflist", "{", 0o644);
    let status = look();
    assert_eq!(status.conflist_state, ConflistState::Changed);
    assert!(status.warnings[0].contains("not valid JSON"), "{status:?}");
}

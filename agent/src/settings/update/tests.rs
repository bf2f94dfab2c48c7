use std::fs;

use super::*;
use crate::settings::{Environment, SettingsFlags};

/// What one file says, without a time zone.
fn checked(table: &str) -> Result<Update, String> {
    let text = format!("[agent]\nlog = \"debug\"\n[update]\n{table}\n");
    let path = Path::new("/etc/selvage/agent.toml");
    let mut inputs = Inputs::default();
    let result = inputs.overlay(&text, path).and_then(|()| {
        let name = inputs.zone()?.value;
        inputs.check(Zone {
            name,
            rules: TimeZone::utc(),
        })
    });
    result.map_err(|error| error.to_string())
}

#[test]
fn nothing_said_is_a_daily_look_at_no_server() {
    let update = checked("").unwrap();
    assert_eq!(update.server, None);
    assert_eq!(update.channel, "stable");
    assert_eq!(update.auto, Auto::Check);
    assert!(update.windows.is_empty());
    assert_eq!(update.time_zone.name, "local");
    assert_eq!(update.skip_window, Some(Severity::Critical));
    assert_eq!(
        (update.rate_limit, update.proxy, update.cafile),
        (None, None, None)
    );
    assert_eq!(update.check_interval, Duration::from_secs(21_600));
}

#[test]
fn every_setting_is_taken() {
    let update = checked(
        "server = \"https://releases.example:8443/selvage/\"
         channel = \"testing-2\"
         auto = \"apply\"
         windows = [\"Sat 02:00-05:00\", \"Mon..Fri 22:00-02:00\"]
         time-zone = \"Europe/Berlin\"
         skip-window = \"never\"
         rate-limit = 512
         proxy = \"http://me:se:cret@proxy.example:3128/\"
         cafile = \"/etc/selvage/ca.pem\"
         check-interval = 300",
    )
    .unwrap();
    let server = update.server.unwrap();
    assert_eq!(server.to_string(), "https://releases.example:8443/selvage/");
    assert_eq!(update.channel, "testing-2");
    assert_eq!(update.auto, Auto::Apply);
    assert_eq!(update.windows.len(), 2);
    assert_eq!(update.time_zone.name, "Europe/Berlin");
    assert_eq!(update.skip_window, None);
    assert_eq!(update.rate_limit, Some(512 * 1024));
    let proxy = update.proxy.unwrap();
    assert_eq!(proxy.authority, "proxy.example:3128");
    assert_eq!(
        proxy.credentials,
        Some(Secret::new("me:se:cret".to_owned()))
    );
    assert!(!format!("{proxy:?}").contains("cret"));
    assert_eq!(update.cafile.unwrap(), Path::new("/etc/selvage/ca.pem"));
    // One text is a list of one, and an empty text is none.
    assert_eq!(
        checked("windows = \"03:00-04:00\"").unwrap().windows.len(),
        1
    );
    assert_eq!(checked("server = \"\"").unwrap().server, None);
}

#[test]
fn wrong_values_are_named_with_file_line_and_range() {
    for (line, expected) in [
        ("server = \"ftp://a/b\"", SERVER),
        ("server = \"https://\"", SERVER),
        ("server = \"releases.example\"", SERVER),
        ("server = \"/srv/releases\"", SERVER),
        ("server = \"https://me:pw@a/b\"", SERVER),
        ("server = \"https://a/b?c\"", SERVER),
        ("server = \"https://a/b#c\"", SERVER),
        ("server = \"https://a:/b\"", SERVER),
        ("server = \"https://a:0/b\"", SERVER),
        ("server = \"https://a b\"", SERVER),
        ("channel = \"../stable\"", CHANNEL),
        ("channel = \"Stable\"", CHANNEL),
        ("channel = \"1\"", CHANNEL),
        ("auto = \"on\"", AUTO),
        (
            "windows = [\"Sat 02:00-05:00\", \"Sa 02:00-05:00\"]",
            window::FORM,
        ),
        ("time-zone = \"../../etc/passwd\"", zone::FORM),
        ("time-zone = \"\"", zone::FORM),
        ("skip-window = \"normal\"", SKIP),
        ("rate-limit = -1", RATE),
        ("rate-limit = 10000001", RATE),
        ("proxy = \"https://a:1\"", PROXY),
        ("proxy = \"http://a\"", PROXY),
        ("proxy = \"http://me@a:1\"", PROXY),
        ("proxy = \"http://me:pw@:1\"", PROXY),
        ("cafile = \"ca.pem\"", "an absolute path"),
        ("check-interval = 299", "300 to 2592000"),
        ("server = 1", SERVER),
        ("channel = [\"stable\"]", CHANNEL),
        ("auto = true", AUTO),
        ("windows = [1]", window::FORM),
        ("windows = 02:00:00", window::FORM),
        ("time-zone = 1", zone::FORM),
        ("skip-window = false", SKIP),
        ("rate-limit = \"fast\"", RATE),
        ("rate-limit = 0.5", RATE),
        ("proxy = [\"http://me:pw@a:1\"]", PROXY),
        ("cafile = {}", "an absolute path"),
        ("check-interval = \"6h\"", "300 to 2592000"),
        ("check-interval = 9223372036854775807", "300 to 2592000"),
    ] {
        let error = checked(line).unwrap_err();
        let key = line.split_once(' ').unwrap().0;
        let start = format!("/etc/selvage/agent.toml:4: update.{key} = ");
        assert!(error.starts_with(&start), "{line}: {error}");
        assert!(error.contains(expected), "{line}: {error}");
        assert!(!error.contains("pw@") || key == "server", "{error}");
    }
    let error = checked("check_interval = 300").unwrap_err();
    assert!(error.starts_with("/etc/selvage/agent.toml:4: "), "{error}");
    assert!(error.contains("check-interval"), "{error}");
}

#[test]
fn files_are_laid_over_each_other_and_the_agent_does_not_mind_a_mistake() {
    let root = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put(
        "usr/lib/selvage/agent.toml",
        "[update]\nserver = \"http://a/b\"\nauto = \"apply\"\n",
    );
    put("etc/selvage/agent.d/10.toml", "[update]\nauto = \"off\"\n");
    put("usr/share/zoneinfo/Mars/Base", "no time zone");
    let environment = Environment::default();
    let flags = SettingsFlags::default();
    let sources = Sources {
        root: root.path(),
        config: None,
        environment: &environment,
        flags: &flags,
    };
    let update = load(sources).unwrap();
    assert_eq!((update.auto, update.server.is_some()), (Auto::Off, true));

    for (zone, expected) in [
        ("Mars/Base", "is no time zone"),
        ("Mars/Moon", "failed to read"),
    ] {
        put(
            "etc/selvage/agent.toml",
            &format!("[update]\ntime-zone = \"{zone}\"\n"),
        );
        let error = load(sources).unwrap_err().to_string();
        assert!(
            error.contains("etc/selvage/agent.toml:2: update.time-zone"),
            "{error}"
        );
        assert!(error.contains(expected), "{error}");
        crate::settings::load(sources).unwrap();
    }
    let error = crate::settings::check_file("[update]\nauto = \"on\"", Path::new("a.toml"));
    assert!(error.is_err());
}

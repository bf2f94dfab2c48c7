//! The metrics of updates. The agent adds this file to its own `/metrics`; `docs/monitoring.md` lists them.

use super::state::State;
use crate::telemetry::metrics::text::{Kind, Text};

/// The metrics in Prometheus' text format.
pub(super) fn text(state: &State) -> String {
    let mut text = Text::default();
    let mut failed = text.family(
        "selvage_update_failed_timestamp_seconds",
        Kind::Gauge,
        "When this host had fallen back from a version that failed, in seconds since the Unix epoch.",
    );
    for failure in &state.failed {
        let labels = [
            ("version", failure.version.as_str()),
            ("code", failure.code.as_str()),
        ];
        failed.with(&labels, failure.at);
    }
    let mut pending = text.family(
        "selvage_update_pending_boots",
        Kind::Gauge,
        "Boots of an installed version that is not proven to work yet.",
    );
    if let Some(version) = &state.pending {
        pending.with(&[("version", &version.version)], version.boots);
    }
    let mut blessed = text.family(
        "selvage_update_blessed_timestamp_seconds",
        Kind::Gauge,
        "When the last version that passed its boot check did so, in seconds since the Unix epoch.",
    );
    if let Some(version) = &state.blessed {
        blessed.with(&[("version", &version.version)], version.at);
    }
    let mut checked = text.family(
        "selvage_update_check_timestamp_seconds",
        Kind::Gauge,
        "When this host last asked its release server, in seconds since the Unix epoch.",
    );
    if let Some(check) = &state.last_check {
        let result = match check.failed {
            true => "failed",
            false => "ok",
        };
        checked.with(&[("result", result)], check.at);
    }
    text.into_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::appliance::update::state::{Failed, FailureCode, Health, LastCheck};

    fn state() -> State {
        let mut state = State::default();
        state.bless("1", 10);
        state.fail(Failed {
            version: "2".to_owned(),
            at: 20,
            boots: 3,
            code: FailureCode::Docker,
            reason: "Docker does not answer".to_owned(),
        });
        state.begin("3", "1", Health::default(), 30);
        state.last_check = Some(LastCheck {
            at: 40,
            failed: true,
            result: "no route".to_owned(),
        });
        state
    }

    #[test]
    fn a_state_has_its_metrics() {
        assert_eq!(text(&State::default()), "");
        let text = text(&state());
        let series: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            series,
            [
                "selvage_update_failed_timestamp_seconds{version=\"2\",code=\"docker\"} 20",
                "selvage_update_pending_boots{version=\"3\"} 0",
                "selvage_update_blessed_timestamp_seconds{version=\"1\"} 10",
                "selvage_update_check_timestamp_seconds{result=\"failed\"} 40",
            ]
        );
    }

    #[test]
    fn every_metric_is_in_the_documentation() {
        let page = include_str!("../../../docs/monitoring.md");
        let text = text(&state());
        let helps = text.lines().filter_map(|line| line.strip_prefix("# HELP "));
        let mut count = 0;
        for (name, help) in helps.filter_map(|line| line.split_once(' ')) {
            let row = format!("| `{name}` | gauge | ");
            let row = page.lines().find(|line| line.starts_with(&row));
            let row = row.unwrap_or_else(|| panic!("{name} is missing"));
            assert!(row.ends_with(&format!(" | {help} |")), "{row}");
            count += 1;
        }
        assert_eq!(count, 4);
    }
}

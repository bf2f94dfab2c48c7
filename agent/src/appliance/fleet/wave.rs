//! Waves: when the machines of a fleet start a release, spread over the time that the release names.
//!
//! Pure. A machine's place depends on nothing but its ID and the version, so it needs no coordination and stays the same
//! over restarts; another version gives it another place, so that no machine is always the first.

use std::time::{Duration, SystemTime};

use ring::digest;

/// How long after the release's date a machine starts it: from zero to less than `over`, in whole seconds.
pub fn offset(machine_id: &str, version: &str, over: Duration) -> Duration {
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(version.as_bytes());
    // Neither text contains a zero, so no two pairs are hashed as the same bytes.
    hash.update(&[0]);
    hash.update(machine_id.as_bytes());
    let hash = hash.finish();
    let first = hash
        .as_ref()
        .first_chunk()
        .map_or(0, |eight| u64::from_be_bytes(*eight));
    // The hash as a fraction of its range; without the bias of a remainder.
    let seconds = (u128::from(first) * u128::from(over.as_secs())) >> 64;
    Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX))
}

/// When a machine starts a release of that date.
pub fn start(machine_id: &str, version: &str, date: SystemTime, over: Duration) -> SystemTime {
    // A date that no clock can show is as good as never; the index has checked it long before.
    date.checked_add(offset(machine_id, version, over))
        .unwrap_or(date)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;

    const DAYS: Duration = Duration::from_secs(3 * 86_400);

    /// IDs as machines have them: 32 hexadecimal digits. Half of them are in a row, as a site's own may be.
    fn ids(count: u128) -> impl Iterator<Item = String> {
        const ODD: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
        (1..=count).map(|n| {
            let id = if n % 2 == 0 { n } else { n.wrapping_mul(ODD) };
            format!("{id:032x}")
        })
    }

    #[test]
    fn ten_thousand_machines_are_spread_evenly() {
        const MACHINES: u128 = 10_000;
        for version in ["0.1.0.1500", "1.2.3", "2.0~rc1"] {
            let offsets: Vec<f64> = ids(MACHINES)
                .map(|id| offset(&id, version, DAYS).as_secs_f64() / DAYS.as_secs_f64())
                .collect();
            // Each quarter of the time has a quarter of the machines, within 5 %.
            for quarter in [0.0, 0.25, 0.5, 0.75] {
                let inside = |at: &&f64| (quarter..quarter + 0.25).contains(*at);
                let count = offsets.iter().filter(inside).count();
                assert!(
                    (2375..=2625).contains(&count),
                    "{version}: {count} at {quarter}"
                );
            }
            // And nowhere have more or fewer started than the time that has passed, within 2 % of all.
            for percent in 1..100 {
                let passed = f64::from(percent) / 100.0;
                let started = offsets.iter().filter(|at| **at < passed).count();
                let share = started as f64 / offsets.len() as f64;
                assert!(
                    (share - passed).abs() < 0.02,
                    "{version}: {share} at {passed}"
                );
            }
        }
    }

    #[test]
    fn places_never_change() {
        // Old and new versions of this program must agree on them, or a machine could lose its place by an update.
        // Computed by Python: int.from_bytes(sha256(version + b"\0" + id).digest()[:8], "big") * 259200 >> 64
        let id = "3a690a1a1cdb4707a65a9f3bf41bee3c";
        let at = |version| offset(id, version, DAYS).as_secs();
        assert_eq!([at("0.1.0.1500"), at("0.1.0.1501")], [181_031, 225_284]);
    }

    proptest! {
        #[test]
        fn a_place_is_in_the_time_and_stays_where_it_is(
            id in "[0-9a-f]{32}", version in "[0-9][0-9A-Za-z.~-]{0,16}", over in 0_u64..10_000_000,
        ) {
            let over = Duration::from_secs(over);
            let place = offset(&id, &version, over);
            prop_assert!(place < over || over.is_zero() && place.is_zero());
            prop_assert_eq!(place, offset(&id, &version, over));
        }

        #[test]
        fn who_has_started_has_started_for_good(
            id in "[0-9a-f]{32}", date in 0_u64..4_000_000_000, over in 0_u64..10_000_000,
            now in 0_u64..5_000_000_000, later in 0_u64..1_000_000,
        ) {
            let second = |at| UNIX_EPOCH + Duration::from_secs(at);
            let start = start(&id, "1.0", second(date), Duration::from_secs(over));
            prop_assert!(start >= second(date));
            if start <= second(now) {
                prop_assert!(start <= second(now + later));
            }
            prop_assert!(start <= second(date + over));
        }

        #[test]
        fn a_longer_roll_out_starts_nobody_earlier(id in "[0-9a-f]{32}", over in 0_u64..10_000_000, more in 0_u64..1_000_000) {
            let place = |over| offset(&id, "1.0", Duration::from_secs(over));
            prop_assert!(place(over) <= place(over + more));
        }

        #[test]
        fn any_text_and_any_time_have_a_place(id in ".*", version in ".*", over: u64) {
            let _ = start(&id, &version, UNIX_EPOCH, Duration::from_secs(over));
        }
    }
}

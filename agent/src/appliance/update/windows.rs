//! When a window is open: from its times by the clock on the wall to points in time, across changes of the clock.
//!
//! On each day on which a window begins it is open once. A time that the clock skips is the moment of the change, one that
//! comes twice is the first. So `02:30-04:00` is half an hour long in the night that loses the hour from 2 to 3. A window
//! that lies wholly in the lost hour opens at the change, for its usual length; otherwise a weekly one would be missed.

use tz::{DateTime, TimeZoneRef, UtcDateTime};

use crate::settings::update::{DAY_MINUTES, Window};

/// Seconds since the Unix epoch.
type Instant = i64;

/// A window is open from `.0` until just before `.1`.
type Opening = (Instant, Instant);

const DAY_SECS: i64 = 24 * 60 * 60;

/// A date, held as the number of days since the Unix epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Date(i64);

impl Date {
    /// The date on the wall at a point in time.
    fn at(now: Instant, zone: TimeZoneRef<'_>) -> Option<Self> {
        let local = DateTime::from_timespec(now, 0, zone).ok()?;
        let offset = i64::from(local.local_time_type().ut_offset());
        Some(Self((now + offset).div_euclid(DAY_SECS)))
    }

    /// Monday is 0, as 1970-01-01 was a Thursday.
    fn week_day(self) -> u8 {
        u8::try_from((self.0 + 3).rem_euclid(7)).unwrap_or(0)
    }

    /// The point in time at which the clock shows a minute of this day.
    fn minute(self, minute: u16, zone: TimeZoneRef<'_>) -> Option<Instant> {
        let (date, minute) = match minute {
            DAY_MINUTES => (Self(self.0 + 1), 0),
            minute => (self, minute),
        };
        let day = UtcDateTime::from_timespec(date.0 * DAY_SECS, 0).ok()?;
        let (hour, minute) = (
            u8::try_from(minute / 60).ok()?,
            u8::try_from(minute % 60).ok()?,
        );
        let found = DateTime::find(
            day.year(),
            day.month(),
            day.month_day(),
            hour,
            minute,
            0,
            0,
            zone,
        );
        Some(found.ok()?.earliest()?.unix_time())
    }

    /// When a window that begins on this day is open.
    fn opening(self, window: &Window, zone: TimeZoneRef<'_>) -> Option<Opening> {
        if !window.begins_on(self.week_day()) {
            return None;
        }
        let start = self.minute(window.start, zone)?;
        let (last_day, length) = if window.is_past_midnight() {
            (Self(self.0 + 1), DAY_MINUTES - window.start + window.end)
        } else {
            (self, window.end - window.start)
        };
        let end = last_day.minute(window.end, zone)?;
        Some(match end > start {
            true => (start, end),
            false => (start, start + i64::from(length) * 60),
        })
    }
}

/// Whether one of the windows is open; always if there are none.
pub fn is_open(windows: &[Window], zone: TimeZoneRef<'_>, now: Instant) -> bool {
    windows.is_empty() || closes(windows, zone, now).is_some()
}

/// When the window that is open now closes; `None` if none is. With several, the last.
pub fn closes(windows: &[Window], zone: TimeZoneRef<'_>, now: Instant) -> Option<Instant> {
    openings(windows, zone, now)
        .filter(|(start, end)| (*start..*end).contains(&now))
        .map(|(_, end)| end)
        .max()
}

/// When one of the windows opens next; `None` if there are none, or the calendar is at its end.
pub fn opens(windows: &[Window], zone: TimeZoneRef<'_>, now: Instant) -> Option<Instant> {
    openings(windows, zone, now)
        .map(|(start, _)| start)
        .filter(|start| *start > now)
        .min()
}

/// What opened yesterday may still be open; a week on, every window has opened again.
fn openings(
    windows: &[Window],
    zone: TimeZoneRef<'_>,
    now: Instant,
) -> impl Iterator<Item = Opening> {
    let today = Date::at(now, zone);
    let days = today
        .into_iter()
        .flat_map(|Date(today)| today - 1..=today + 8);
    days.flat_map(move |day| {
        windows
            .iter()
            .filter_map(move |window| Date(day).opening(window, zone))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tz::TimeZone;

    use super::*;
    use crate::base::time;

    fn zone(name: &str) -> TimeZone {
        let bytes = std::fs::read(format!("/usr/share/zoneinfo/{name}"));
        TimeZone::from_tz_data(&bytes.expect("tzdata")).unwrap()
    }

    fn windows(texts: &[&str]) -> Vec<Window> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn instant(text: &str) -> Instant {
        let time = time::parse_rfc3339(text).unwrap();
        let since = time.duration_since(std::time::UNIX_EPOCH).unwrap();
        i64::try_from(since.as_secs()).unwrap()
    }

    fn shown(instant: Instant) -> String {
        let since = std::time::Duration::from_secs(instant.try_into().unwrap());
        time::rfc3339(std::time::UNIX_EPOCH + since)
    }

    /// The windows, the zone, a time in UTC, and until when it is open then or else when it opens next.
    type Case = (
        &'static [&'static str],
        &'static str,
        &'static str,
        Result<&'static str, &'static str>,
    );

    const CASES: &[Case] = &[
        // 2026-11-28 is a Saturday.
        (
            &["Sat 02:00-05:00"],
            "UTC",
            "2026-11-28T02:00:00Z",
            Ok("2026-11-28T05:00:00Z"),
        ),
        (
            &["Sat 02:00-05:00"],
            "UTC",
            "2026-11-28T04:59:59Z",
            Ok("2026-11-28T05:00:00Z"),
        ),
        (
            &["Sat 02:00-05:00"],
            "UTC",
            "2026-11-28T05:00:00Z",
            Err("2026-12-05T02:00:00Z"),
        ),
        (
            &["Sat 02:00-05:00"],
            "UTC",
            "2026-11-28T01:59:59Z",
            Err("2026-11-28T02:00:00Z"),
        ),
        (
            &["Sat 02:00-05:00"],
            "UTC",
            "2026-11-29T02:30:00Z",
            Err("2026-12-05T02:00:00Z"),
        ),
        // Over midnight: it begins on Friday and still is open on Saturday, but does not begin then.
        (
            &["Mon..Fri 22:00-02:00"],
            "UTC",
            "2026-11-28T01:59:00Z",
            Ok("2026-11-28T02:00:00Z"),
        ),
        (
            &["Mon..Fri 22:00-02:00"],
            "UTC",
            "2026-11-28T22:30:00Z",
            Err("2026-11-30T22:00:00Z"),
        ),
        (
            &["Mon..Fri 22:00-02:00"],
            "UTC",
            "2026-11-30T01:00:00Z",
            Err("2026-11-30T22:00:00Z"),
        ),
        (
            &["Sun 23:30-00:00"],
            "UTC",
            "2026-11-29T23:45:00Z",
            Ok("2026-11-30T00:00:00Z"),
        ),
        (
            &["Sat,Sun 00:00-24:00"],
            "UTC",
            "2026-11-28T23:59:59Z",
            Ok("2026-11-29T00:00:00Z"),
        ),
        (
            &["Sat,Sun 00:00-24:00"],
            "UTC",
            "2026-11-29T00:00:00Z",
            Ok("2026-11-30T00:00:00Z"),
        ),
        // Two that overlap are open until the last closes.
        (
            &["02:00-04:00", "03:00-06:00"],
            "UTC",
            "2026-11-29T03:30:00Z",
            Ok("2026-11-29T06:00:00Z"),
        ),
        // The wall's day is not UTC's: 23:00 UTC on Friday is Saturday 08:00 in Tokyo, 01:00 on Sunday Saturday in Lima.
        (
            &["Sat 08:00-09:00"],
            "Asia/Tokyo",
            "2026-11-27T23:30:00Z",
            Ok("2026-11-28T00:00:00Z"),
        ),
        (
            &["Sat 20:00-21:00"],
            "America/Lima",
            "2026-11-29T01:30:00Z",
            Ok("2026-11-29T02:00:00Z"),
        ),
        (
            &["Sat 12:00-13:00"],
            "Asia/Kathmandu",
            "2026-11-28T06:15:00Z",
            Ok("2026-11-28T07:15:00Z"),
        ),
        // Berlin loses 02:00 to 03:00 on Sunday 2026-03-29, at 01:00 UTC.
        (
            &["Sun 01:00-04:00"],
            "Europe/Berlin",
            "2026-03-29T00:30:00Z",
            Ok("2026-03-29T02:00:00Z"),
        ),
        (
            &["Sun 01:30-02:30"],
            "Europe/Berlin",
            "2026-03-29T00:45:00Z",
            Ok("2026-03-29T01:00:00Z"),
        ),
        (
            &["Sun 02:30-04:00"],
            "Europe/Berlin",
            "2026-03-29T01:00:00Z",
            Ok("2026-03-29T02:00:00Z"),
        ),
        (
            &["Sun 02:00-03:00"],
            "Europe/Berlin",
            "2026-03-29T00:59:59Z",
            Err("2026-03-29T01:00:00Z"),
        ),
        (
            &["Sun 02:00-03:00"],
            "Europe/Berlin",
            "2026-03-29T01:00:00Z",
            Ok("2026-03-29T02:00:00Z"),
        ),
        (
            &["Sun 02:10-02:40"],
            "Europe/Berlin",
            "2026-03-29T01:29:00Z",
            Ok("2026-03-29T01:30:00Z"),
        ),
        (
            &["Sat 22:00-06:00"],
            "Europe/Berlin",
            "2026-03-29T03:59:00Z",
            Ok("2026-03-29T04:00:00Z"),
        ),
        // It shows 02:00 to 03:00 twice on Sunday 2026-10-25: from 00:00 and from 01:00 UTC.
        (
            &["Sun 02:00-03:00"],
            "Europe/Berlin",
            "2026-10-25T01:59:00Z",
            Ok("2026-10-25T02:00:00Z"),
        ),
        (
            &["Sun 02:15-02:45"],
            "Europe/Berlin",
            "2026-10-25T00:30:00Z",
            Ok("2026-10-25T00:45:00Z"),
        ),
        (
            &["Sun 02:15-02:45"],
            "Europe/Berlin",
            "2026-10-25T01:30:00Z",
            Err("2026-11-01T01:15:00Z"),
        ),
        (
            &["Sat 22:00-06:00"],
            "Europe/Berlin",
            "2026-10-25T04:59:00Z",
            Ok("2026-10-25T05:00:00Z"),
        ),
        // Lord Howe turns by half an hour: 02:00 becomes 02:30 on 2026-10-04, at 15:30 UTC of the day before.
        (
            &["Sun 02:00-02:30"],
            "Australia/Lord_Howe",
            "2026-10-03T15:30:00Z",
            Ok("2026-10-03T16:00:00Z"),
        ),
        // Apia had no Friday 2011-12-30 at all: the window opens when Saturday begins.
        (
            &["Fri 10:00-11:00"],
            "Pacific/Apia",
            "2011-12-30T09:59:59Z",
            Err("2011-12-30T10:00:00Z"),
        ),
        (
            &["Fri 10:00-11:00"],
            "Pacific/Apia",
            "2011-12-30T10:30:00Z",
            Ok("2011-12-30T11:00:00Z"),
        ),
    ];

    #[test]
    fn windows_open_and_close_by_the_clock_on_the_wall() {
        for (texts, name, now, expected) in CASES {
            let (windows, rules) = (windows(texts), zone(name));
            let now = instant(now);
            let zone = rules.as_ref();
            let found = match closes(&windows, zone, now) {
                Some(end) => Ok(shown(end)),
                None => Err(shown(opens(&windows, zone, now).unwrap())),
            };
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(found, expected, "{texts:?} {name} {}", shown(now));
            assert_eq!(is_open(&windows, zone, now), expected.is_ok());
        }
    }

    #[test]
    fn without_windows_it_is_always_open() {
        let rules = TimeZone::utc();
        assert!(is_open(&[], rules.as_ref(), 0));
        assert_eq!(opens(&[], rules.as_ref(), 0), None);
        // The ends of the calendar are no reason to panic.
        let daily = windows(&["03:00-04:00"]);
        for now in [i64::MIN / 2, i64::MAX / 2, -DAY_SECS, 0] {
            let _ = (
                is_open(&daily, rules.as_ref(), now),
                opens(&daily, rules.as_ref(), now),
            );
        }
    }

    proptest! {
        #[test]
        fn a_daily_window_opens_within_two_days_and_closes_after_it_opens(
            start in 0u16..1440,
            length in 1u16..1440,
            now in 0i64..4_000_000_000,
            name in prop::sample::select(vec!["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca"]),
        ) {
            let end = (start + length) % 1440;
            let text = format!("{:02}:{:02}-{:02}:{:02}", start / 60, start % 60, end / 60, end % 60);
            let windows = vec![text.parse::<Window>().unwrap()];
            let rules = zone(name);
            let zone = rules.as_ref();
            let next = opens(&windows, zone, now).unwrap();
            prop_assert!(next > now && next - now <= 26 * 3600, "{}", next - now);
            let close = closes(&windows, zone, next).unwrap();
            prop_assert!(close > next);
            prop_assert!(!is_open(&windows, zone, next - 1) || length > 1380);
        }
    }
}

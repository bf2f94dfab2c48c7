//! The syntax of a window: `Sat 02:00-05:00`, `Mon..Fri 22:00-02:00`, `Sat,Sun 00:00-24:00`, `03:00-04:00`.

use std::fmt;
use std::str::FromStr;

/// The minutes of a day whose clock is not changed.
pub const DAY_MINUTES: u16 = 24 * 60;

/// What [`Window::from_str`] takes, for messages.
pub(super) const FORM: &str = "windows such as \"Sat 02:00-05:00\", \"Mon..Fri 22:00-02:00\", \"Sat,Sun 00:00-24:00\" or \
     \"03:00-04:00\" for every day; one that ends before it begins goes on past midnight";

/// The days' names, from Monday.
const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// A time of the week, by the clock on the wall.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// On which days it begins: bit 0 is Monday.
    days: u8,
    /// The minute of the day at which it begins, below [`DAY_MINUTES`].
    pub start: u16,
    /// The minute at which it ends, up to [`DAY_MINUTES`]; not after `start`: on the next day.
    pub end: u16,
}

/// The text is no window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ParseWindowError;

impl Window {
    /// Whether it begins on a day; Monday is 0.
    pub fn begins_on(&self, day: u8) -> bool {
        day < 7 && self.days & (1 << day) != 0
    }

    /// Whether it ends on the day after the one on which it begins.
    pub fn is_past_midnight(&self) -> bool {
        self.end <= self.start
    }
}

impl FromStr for Window {
    type Err = ParseWindowError;

    fn from_str(text: &str) -> Result<Self, ParseWindowError> {
        let mut words = text.split_ascii_whitespace();
        let (first, second) = (words.next(), words.next());
        let (days, times) = match (first, second, words.next()) {
            (Some(times), None, None) => (0x7f, times),
            (Some(days), Some(times), None) => (parse_days(days).ok_or(ParseWindowError)?, times),
            _ => return Err(ParseWindowError),
        };
        let (start, end) = times.split_once('-').ok_or(ParseWindowError)?;
        let start = parse_time(start).filter(|start| *start < DAY_MINUTES);
        match (start, parse_time(end)) {
            // Whoever writes 02:00-02:00 may mean all day or no time.
            (Some(start), Some(end)) if start != end => Ok(Self { days, start, end }),
            _ => Err(ParseWindowError),
        }
    }
}

fn parse_days(text: &str) -> Option<u8> {
    text.split(',').try_fold(0, |days, part| {
        Some(
            days | match part.split_once("..") {
                None => 1 << day(part)?,
                Some((first, last)) => {
                    let (first, last) = (day(first)?, day(last)?);
                    // Fri..Mon is four days.
                    let length = (last + 7 - first) % 7;
                    (0..=length).fold(0, |days, next| days | 1 << ((first + next) % 7))
                }
            },
        )
    })
}

/// The three letters of systemd.time(7), or the whole English name.
fn day(text: &str) -> Option<u8> {
    const REST: [&str; 7] = ["day", "sday", "nesday", "rsday", "day", "urday", "day"];
    let found = DAYS.iter().zip(REST).position(|(short, rest)| {
        text.eq_ignore_ascii_case(short) || text.eq_ignore_ascii_case(&format!("{short}{rest}"))
    });
    found.and_then(|day| u8::try_from(day).ok())
}

/// `HH:MM` as the minute of the day; 24:00 is the last.
fn parse_time(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let number = |text: &str| {
        let digits = (1..=2).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u16>().ok()).flatten()
    };
    let (hour, minute) = (number(hour)?, number(minute).filter(|_| minute.len() == 2)?);
    let time = hour * 60 + minute;
    (minute < 60 && time <= DAY_MINUTES).then_some(time)
}

/// In the form that is read.
impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.days != 0x7f {
            let days: Vec<&str> = (0..7)
                .filter(|day| self.begins_on(*day))
                .map(|day| DAYS[usize::from(day)])
                .collect();
            write!(f, "{} ", days.join(","))?;
        }
        let (start, end) = (self.start, self.end);
        let time = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
        write!(f, "{}-{}", time(start), time(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_read_and_written() {
        for (text, written) in [
            ("Sat 02:00-05:00", "Sat 02:00-05:00"),
            ("Mon..Fri 22:00-02:00", "Mon,Tue,Wed,Thu,Fri 22:00-02:00"),
            ("fri..mon  2:00-3:00", "Mon,Fri,Sat,Sun 02:00-03:00"),
            ("Saturday,SUNDAY 00:00-24:00", "Sat,Sun 00:00-24:00"),
            ("Sun 23:30-00:00", "Sun 23:30-00:00"),
            ("03:00-04:00", "03:00-04:00"),
            ("Mon..Sun 03:00-04:00", "03:00-04:00"),
        ] {
            let window: Window = text.parse().unwrap();
            assert_eq!(window.to_string(), written);
            assert_eq!(written.parse(), Ok(window));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "Sat",
            "Sat 02:00",
            "Sat 02:00-02:00",
            "Sat 24:00-01:00",
            "Sat 02:00-24:01",
            "Sat 02:60-03:00",
            "Sat 2-3",
            "Sat 02:0-03:00",
            "Sat 02:00 - 03:00",
            "Sat 02:00-03:00 x",
            "Sat..  02:00-03:00",
            "Sa 02:00-03:00",
            "Sat,,Sun 02:00-03:00",
            "Mon..Tue..Wed 02:00-03:00",
            "Sat +2:00-03:00",
            "Sat 002:00-03:00",
            "Sät 02:00-03:00",
        ] {
            assert_eq!(text.parse::<Window>(), Err(ParseWindowError), "{text:?}");
        }
    }
}

//! `selvage status --watch`: repeats the same text.
//!
//! On a terminal it is drawn in place, on the alternate screen, so that the previous contents are restored at the end.
//! Elsewhere each text follows the last one. It continues if the agent restarts or does not answer.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use super::text;
use super::{Error, look, print};
use crate::base::logging::chain;
use crate::base::terminal::{self, Style};
use crate::base::words::{ago, duration, harmless};
use crate::settings::Settings;
use crate::telemetry::status::{Status, now};

/// To the alternate screen (xterm's 1049), without a cursor (VT220's 25), without wrapped lines (VT100's 7).
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

/// Shows the status periodically until a signal ends it. Returns the exit status, 0.
///
/// # Errors
/// Printing failed, or the signal handlers cannot be installed.
pub(super) async fn run(
    settings: &Settings,
    seconds: u64,
    style: Style,
    output: &mut impl Write,
) -> Result<u8, Error> {
    let mut stop = StopSignals::new()?;
    let mut resized = signal(SignalKind::window_change())?;
    let mut ticks = interval(Duration::from_secs(seconds));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut screen = Screen::enter(output, terminal::size().is_some())?;
    let mut view = View::default();
    loop {
        tokio::select! {
            () = stop.wait() => return Ok(0),
            _ = resized.recv() => {}
            _ = ticks.tick() => {
                tokio::select! {
                    () = stop.wait() => return Ok(0),
                    seen = look(settings) => view.take(seen),
                }
            }
        }
        if !screen.draw(&view, seconds, style)? {
            return Ok(0);
        }
    }
}

/// The signals that end it.
struct StopSignals([Signal; 3]);

impl StopSignals {
    fn new() -> io::Result<Self> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    async fn wait(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// The data to show.
#[derive(Debug, Default)]
struct View {
    last: Option<Status>,
    /// Why there is no newer status.
    trouble: Option<String>,
}

impl View {
    fn take(&mut self, seen: Result<Status, Error>) {
        match seen {
            Ok(status) => {
                *self = Self {
                    last: Some(status),
                    trouble: None,
                }
            }
            Err(error) => self.trouble = Some(chain(&error)),
        }
    }

    fn text(&self, now: u64, width: Option<usize>, style: Style) -> String {
        let mut text = String::new();
        if let Some(trouble) = &self.trouble {
            let trouble = format!("the agent does not answer: {}", harmless(trouble));
            for line in text::wrap(&trouble, width) {
                let _ = writeln!(text, "{}", style.bad(line));
            }
            if let Some(last) = &self.last {
                let _ = writeln!(text, "Its last status, {}:\n", ago(now, last.time));
            }
        }
        if let Some(last) = &self.last {
            text.push_str(&text::render(last, width, style));
        }
        text
    }
}

/// The output; restores the terminal on drop.
struct Screen<'a, W: Write> {
    output: &'a mut W,
    terminal: bool,
    drawn: bool,
}

impl<'a, W: Write> Screen<'a, W> {
    fn enter(output: &'a mut W, terminal: bool) -> io::Result<Self> {
        if terminal {
            output.write_all(ENTER.as_bytes())?;
        }
        Ok(Self {
            output,
            terminal,
            drawn: false,
        })
    }

    /// Returns whether the output is still open.
    fn draw(&mut self, view: &View, seconds: u64, style: Style) -> Result<bool, Error> {
        let size = terminal::size().filter(|_| self.terminal);
        let mut text = view.text(now(), size.map(|(columns, _)| columns), style);
        if let Some((_, lines)) = size {
            let footer = format!("every {}, Ctrl-C to quit", duration(seconds));
            text = frame(&text, lines, &style.dim(&footer).to_string());
        } else if self.drawn {
            text.insert(0, '\n');
        }
        self.drawn = true;
        match self
            .output
            .write_all(text.as_bytes())
            .and_then(|()| self.output.flush())
        {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            written => Ok(written.map(|()| true)?),
        }
    }
}

impl<W: Write> Drop for Screen<'_, W> {
    fn drop(&mut self) {
        if self.terminal {
            // If the terminal is gone there is nothing to restore.
            let _ = print(self.output, LEAVE);
        }
    }
}

/// A frame for a screen of `lines` lines: as much of the text as fits, and a footer.
fn frame(text: &str, lines: usize, footer: &str) -> String {
    let all = text.lines().count();
    let room = lines.saturating_sub(1);
    let kept = if all > room {
        room.saturating_sub(1)
    } else {
        all
    };
    let mut frame = String::with_capacity(text.len() + 256);
    frame.push_str(HOME);
    for line in text.lines().take(kept) {
        let _ = write!(frame, "{line}{CLEAR_LINE}\r\n");
    }
    if kept < all {
        let _ = write!(frame, "and {} more lines{CLEAR_LINE}\r\n", all - kept);
    }
    let _ = write!(frame, "{footer}{CLEAR_LINE}{CLEAR_BELOW}");
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_never_scrolls() {
        let text = "1\n2\n3\n4\n";
        let shown = |lines| {
            let frame = frame(text, lines, "f");
            let plain = frame.replace(CLEAR_LINE, "").replace(CLEAR_BELOW, "");
            plain
                .strip_prefix(HOME)
                .map(str::to_owned)
                .unwrap_or_default()
        };
        assert_eq!(shown(24), "1\r\n2\r\n3\r\n4\r\nf");
        assert_eq!(shown(5), "1\r\n2\r\n3\r\n4\r\nf");
        assert_eq!(shown(4), "1\r\n2\r\nand 2 more lines\r\nf");
        assert_eq!(shown(2), "and 4 more lines\r\nf");
    }

    #[test]
    fn an_agent_that_does_not_answer_leaves_what_it_said() {
        let mut view = View::default();
        let mut status = Status::joining(
            crate::telemetry::status::Agent::of_process("n", 0),
            Vec::new(),
        );
        status.time = 100;
        view.take(Ok(status));
        let refused = crate::telemetry::control::Error::Refused {
            status: 503,
            reason: "busy\x1b[2J".to_owned(),
        };
        view.take(Err(refused.into()));
        let style = Style::choose(crate::base::terminal::Colour::Never);
        let text = view.text(160, None, style);
        let mut lines = text.lines();
        assert_eq!(
            lines.next(),
            Some("the agent does not answer: the agent answered 503: busy\u{fffd}[2J")
        );
        assert_eq!(lines.next(), Some("Its last status, 60 s ago:"));
        assert!(text.contains("joining: "), "{text}");
    }
}

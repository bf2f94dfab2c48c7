//! The serial console of a machine: its file, its growth, and the messages it must not contain.

pub(crate) mod rules;

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// A reader of a console file that QEMU appends to.
#[derive(Debug)]
pub(crate) struct Console {
    path: PathBuf,
    /// Bytes already checked against the rules.
    checked: u64,
    /// Up to this byte, reports of a dead timer are no bad messages.
    dead_timers_until: u64,
}

impl Console {
    /// Watches the file at `path`, which need not exist yet.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            checked: 0,
            dead_timers_until: 0,
        }
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes written so far.
    pub(crate) fn len(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |metadata| metadata.len())
    }

    /// The whole text so far, control sequences removed.
    pub(crate) fn text(&self) -> String {
        self.text_from(0)
    }

    /// The text from byte `offset` on, control sequences removed; empty when it cannot be read.
    pub(crate) fn text_from(&self, offset: u64) -> String {
        read_from(&self.path, offset)
            .map(|bytes| plain(&bytes))
            .unwrap_or_default()
    }

    /// Passes over the reports of a dead timer so far: the machine is reset for it. Later ones count.
    pub(crate) fn pass_over_dead_timers(&mut self) {
        self.dead_timers_until = self.len();
    }

    /// Bad messages in what was written since the last call; an unfinished last line is left for the next one.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn check(&mut self) -> Result<Vec<rules::Hit>> {
        let bytes = read_from(&self.path, self.checked)
            .with_context(|| format!("failed to read the console {}", self.path.display()))?;
        let whole = bytes
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |end| end + 1);
        let passed_over = self.dead_timers_until.saturating_sub(self.checked);
        let passed_over = usize::try_from(passed_over).unwrap_or(whole).min(whole);
        self.checked += whole as u64;
        let before = rules::without_dead_timers(&plain(&bytes[..passed_over]));
        Ok(rules::find(&(before + &plain(&bytes[passed_over..whole]))))
    }
}

fn read_from(path: &Path, offset: u64) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Removes terminal control: CSI and OSC sequences, other escapes, and control characters but for the newline.
pub(crate) fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '\u{1b}' => match chars.next() {
                // CSI: parameters up to a final byte in @ to ~ (ECMA-48 §5.4).
                Some('[') => drop(chars.find(|c| ('@'..='~').contains(c))),
                // OSC: up to BEL or ST (ESC \).
                Some(']') => drop(chars.find(|&c| c == '\u{7}' || c == '\\')),
                _ => {}
            },
            '\n' => plain.push('\n'),
            '\t' => plain.push(' '),
            control if control.is_control() => {}
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(text: &[u8]) -> (tempfile::NamedTempFile, Console) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let console = Console::new(file.path().to_owned());
        (file, console)
    }

    #[test]
    fn colours_and_titles_are_removed() {
        assert_eq!(
            plain(b"\x1b[0;1;31mFAILED\x1b[0m x\r\n\x1b]0;title\x07y\x1b(Bz"),
            "FAILED x\ny".to_owned() + "Bz"
        );
    }

    #[test]
    fn a_cut_off_sequence_does_no_harm() {
        assert_eq!(plain(b"a\x1b[31"), "a");
        assert_eq!(plain(b"a\x1b"), "a");
        assert_eq!(plain(b"a\xff\xfeb"), "a\u{fffd}\u{fffd}b");
    }

    #[test]
    fn each_bad_line_is_reported_once_and_when_complete() {
        let (file, mut console) = console(b"fine\n[FAILED] Failed to start a.serv");
        assert!(console.check().unwrap().is_empty());
        std::fs::write(
            file.path(),
            b"fine\n[FAILED] Failed to start a.service - A.\n",
        )
        .unwrap();
        assert_eq!(console.check().unwrap().len(), 1);
        assert!(console.check().unwrap().is_empty());
    }

    #[test]
    fn a_dead_timer_is_passed_over_only_where_the_machine_was_reset_for_it() {
        const REPORT: &str = "[   22.5] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:\n\
                              [   22.5] rcu: rcu_preempt kthread timer wakeup didn't happen for 5253 jiffies!\n";
        let (file, mut console) = console(
            format!("{REPORT}[FAILED] Failed to start a.service - A.\n{REPORT}").as_bytes(),
        );
        console.pass_over_dead_timers();
        let meanings = |console: &mut Console| -> Vec<_> {
            let hits = console.check().unwrap();
            hits.into_iter().map(|hit| hit.meaning).collect()
        };
        let so_far = std::fs::read_to_string(file.path()).unwrap();
        std::fs::write(file.path(), format!("{so_far}{REPORT}")).unwrap();
        assert_eq!(meanings(&mut console), ["unit failed", "RCU stall"]);
        std::fs::write(file.path(), format!("{so_far}{REPORT}{REPORT}")).unwrap();
        assert_eq!(meanings(&mut console), ["RCU stall"]);
    }

    #[test]
    fn a_console_not_yet_there_is_empty() {
        let console = Console::new("/nonexistent/console".into());
        assert_eq!((console.len(), console.text()), (0, String::new()));
    }
}

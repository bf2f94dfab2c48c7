//! Tells a slow boot from a dead one, by what moves and not by the clock alone.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::console::rules;

/// A guest that neither prints nor touches its disk for so long is dead. Longer than any unit's own time-out.
const STALL: Duration = Duration::from_secs(150);
/// sshd is up well before the login prompt; with a prompt and no sshd for so long, it has failed.
const PROMPT_WITHOUT_SSHD: Duration = Duration::from_secs(90);
/// A fault of the emulated processor is told apart by its last line, which a kernel prints at once.
const FAULT_ENDS: Duration = Duration::from_secs(20);
/// No boot takes this long, whatever it prints.
const DEADLINE: Duration = Duration::from_secs(900);

/// What can be seen of a guest from outside.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sight<'a> {
    /// What the console said during this boot.
    pub console: &'a str,
    /// Disk operations so far.
    pub disk_operations: u64,
}

/// The judgement on one boot that has not come up yet.
#[derive(Debug)]
pub(crate) struct BootWatch {
    started: Instant,
    moved: Instant,
    seen: (usize, u64),
    prompt: Option<Instant>,
    fault: Option<Instant>,
}

impl BootWatch {
    /// Begins to watch a boot that starts now.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            started: now,
            moved: now,
            seen: (0, 0),
            prompt: None,
            fault: None,
        }
    }

    /// Takes a look.
    ///
    /// # Errors
    /// When there is no hope left; says why.
    pub(crate) fn look(&mut self, now: Instant, sight: Sight<'_>) -> Result<()> {
        self.fault = rules::without_emulation_faults(sight.console)
            .within_one
            .then(|| self.fault.unwrap_or(now));
        let within_fault = self
            .fault
            .is_some_and(|fault| now.duration_since(fault) <= FAULT_ENDS);
        if let Some(hit) = rules::find(sight.console).into_iter().find(|hit| hit.fatal)
            && !within_fault
        {
            bail!("{}: {}", hit.meaning, hit.line);
        }
        let seen = (sight.console.len(), sight.disk_operations);
        if seen != self.seen {
            (self.seen, self.moved) = (seen, now);
        }
        if self.prompt.is_none() && sight.console.trim_end().ends_with("login:") {
            self.prompt = Some(now);
        }
        let stalled = now.duration_since(self.moved) > STALL;
        ensure!(
            !stalled,
            "boot stalled: nothing new for {} s",
            STALL.as_secs()
        );
        let without_sshd = self
            .prompt
            .is_some_and(|prompt| now.duration_since(prompt) > PROMPT_WITHOUT_SSHD);
        ensure!(
            !without_sshd,
            "a login prompt, but no sshd for {} s",
            PROMPT_WITHOUT_SSHD.as_secs()
        );
        let late = now.duration_since(self.started) > DEADLINE;
        ensure!(!late, "no sshd after {} s", DEADLINE.as_secs());
        Ok(())
    }
}

/// How long several boots in a row may take, some of which fail and hang: on a busy host they take longer, and still move.
#[derive(Debug)]
pub(crate) struct Patience {
    started: Instant,
    deadline: Duration,
    moved: Instant,
    seen: (u64, u64),
}

/// Past its deadline a guest is waited for while it moves at least this often.
const QUIET: Duration = Duration::from_secs(60);
/// The wait ends after this many deadlines, whatever moves.
const MOST: u32 = 3;

impl Patience {
    /// `deadline` is what an idle host needs at most.
    pub(crate) fn new(now: Instant, deadline: Duration) -> Self {
        Self {
            started: now,
            deadline,
            moved: now,
            seen: (0, 0),
        }
    }

    /// Whether it has come to an end, the console being this long after this many disk operations.
    pub(crate) fn is_over(&mut self, now: Instant, console: u64, disk_operations: u64) -> bool {
        let seen = (console, disk_operations);
        if seen != self.seen {
            (self.seen, self.moved) = (seen, now);
        }
        let waited = now.duration_since(self.started);
        let still = now.duration_since(self.moved);
        waited > self.deadline && (still > QUIET || waited > self.deadline * MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks once a second at what `sight` shows, and gives the second and the reason of the end.
    fn end(sight: impl Fn(u64) -> (String, u64)) -> (u64, String) {
        let start = Instant::now();
        let mut watch = BootWatch::new(start);
        for second in 0.. {
            let (console, disk_operations) = sight(second);
            let sight = Sight {
                console: &console,
                disk_operations,
            };
            if let Err(error) = watch.look(start + Duration::from_secs(second), sight) {
                return (second, error.to_string());
            }
        }
        unreachable!()
    }

    #[test]
    fn a_silent_boot_lives_as_long_as_its_disk_is_used() {
        let (second, reason) = end(|second| (String::new(), second.min(400)));
        assert_eq!(second, 400 + STALL.as_secs() + 1, "{reason}");
        assert!(reason.contains("nothing new"), "{reason}");
    }

    #[test]
    fn an_endless_boot_ends() {
        let (second, reason) = end(|second| ("x".repeat(usize::try_from(second).unwrap()), 0));
        assert_eq!(second, DEADLINE.as_secs() + 1, "{reason}");
    }

    #[test]
    fn a_prompt_without_sshd_is_a_failure() {
        let (second, reason) = end(|second| ("node1 login: ".into(), second));
        assert_eq!(second, PROMPT_WITHOUT_SSHD.as_secs() + 1);
        assert!(reason.contains("no sshd"), "{reason}");
    }

    #[test]
    fn a_fatal_message_ends_at_once() {
        let (second, reason) = end(|second| match second {
            0..7 => (String::new(), second),
            _ => (
                "[    1.0] Kernel panic - not syncing: no init\n".into(),
                second,
            ),
        });
        assert_eq!((second, reason.starts_with("kernel panic")), (7, true));
    }

    #[test]
    fn a_fault_of_the_emulated_processor_is_judged_when_it_is_whole() {
        const FAULT: &str =
            "[    1.5] Oops: int3: 0000 [#1]\nKernel panic - not syncing: Fatal exception\n";
        let (second, reason) = end(|second| match second {
            0..7 => (String::new(), second),
            _ => (FAULT.into(), second),
        });
        assert_eq!(second, 7 + FAULT_ENDS.as_secs() + 1, "{reason}");
        assert!(reason.starts_with("kernel panic"), "{reason}");
        let (second, reason) = end(|second| match second {
            0..7 => (FAULT.into(), second),
            _ => (format!("{FAULT}Rebooting in 10 seconds..\n"), second.min(9)),
        });
        assert!(second > STALL.as_secs(), "{second}: {reason}");
    }

    /// The second in which it is over, of a guest whose disk is used until `still`.
    fn over(still: u64) -> u64 {
        let start = Instant::now();
        let mut patience = Patience::new(start, Duration::from_secs(300));
        (0..)
            .find(|second| {
                patience.is_over(
                    start + Duration::from_secs(*second),
                    0,
                    1 + still.min(*second),
                )
            })
            .unwrap()
    }

    #[test]
    fn a_slow_host_gets_more_time_than_a_dead_guest() {
        assert_eq!(over(0), 301, "hangs");
        assert_eq!(
            over(290),
            290 + QUIET.as_secs() + 1,
            "moved until the deadline"
        );
        assert_eq!(over(500), 500 + QUIET.as_secs() + 1, "moved after it");
        assert_eq!(over(u64::MAX), 901, "never ends to move");
    }
}

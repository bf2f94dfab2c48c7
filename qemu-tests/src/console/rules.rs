//! Messages that no healthy boot prints, after the lists of Flatcar's and Fedora's kola, and our own.

use std::sync::LazyLock;

use regex::Regex;

/// A bad message: what it means, and the pattern that finds it in one line.
struct Rule {
    meaning: &'static str,
    pattern: &'static str,
    fatal: bool,
}

const fn rule(meaning: &'static str, pattern: &'static str) -> Rule {
    Rule {
        meaning,
        pattern,
        fatal: false,
    }
}

/// A message after which this boot never comes up.
const fn fatal(meaning: &'static str, pattern: &'static str) -> Rule {
    Rule {
        meaning,
        pattern,
        fatal: true,
    }
}

const BAD: &[Rule] = &[
    // The kernel.
    fatal("kernel panic", r"Kernel panic - not syncing"),
    rule(
        "kernel oops",
        r"\bOops:|BUG: |general protection fault|Unable to handle kernel",
    ),
    rule("kernel warning", r"WARNING: (CPU|at )"),
    rule(
        "stuck task",
        r"blocked for more than \d+ seconds|soft lockup|hard LOCKUP",
    ),
    rule(
        "RCU stall",
        r"rcu.*(detected stalls|self-detected stall|kthread starved)",
    ),
    rule("out of memory", r"invoked oom-killer|Out of memory: Killed"),
    rule("bad page table", r"Bad page (map|state)|bad pmd|bad pte"),
    rule("segmentation fault", r"\bsegfault at\b"),
    rule("bond without link", r"bond.*failed to get link speed"),
    // Disks.
    rule(
        "I/O error",
        r"rejecting I/O to offline device|(Buffer )?I/O error, dev (v|s|x?v|nvme)",
    ),
    rule(
        "ext4 damage",
        r"EXT4-fs error|EXT4-fs.*delayed.*failed|Remounting filesystem read-only|unattached inode|needs? fsck|UNEXPECTED INCONSISTENCY",
    ),
    rule("erofs damage", r"erofs.*(corrupt|failed to)"),
    rule("verity mismatch", r"verity.*(corrupt|mismatch|failed)"),
    // systemd.
    fatal(
        "emergency shell",
        r"Entering emergency mode|You are in emergency mode|emergency shell|Press Enter for (emergency|maintenance)|Refusing to continue",
    ),
    fatal("no way in", r"Failed to start .*\bsshd?\.service"),
    rule(
        "unit failed",
        r"\bFailed to (start|listen on|mount|activate|set up)\b",
    ),
    rule("dependency failed", r"Dependency failed for"),
    rule("target not reached", r"[Ff]ailed to isolate"),
    fatal("manager frozen", r"Freezing execution"),
    rule("ordering cycle", r"ordering cycle"),
    rule(
        "generator failed",
        r"generators?[/ ].*(failed with|exited with|terminated by)|Failed to (run|execute) generator",
    ),
    rule("device missing", r"Timed out waiting for device"),
    rule(
        "slow job",
        r"(A (start|stop) job is running|Job [^ ]+ (start|stop) running) .*\((\d+min|[3-9]\ds|1\d\ds)",
    ),
    rule("partitioning failed", r"systemd-repart.*[Ff]ailed"),
    rule(
        "initrd clean-up killed",
        r"initrd-cleanup\.service.*(killed|signal)",
    ),
    rule(
        "core dump",
        r"(Process \d+ \(.*\) of user \d+ dumped core|systemd-coredump.*dumped core)",
    ),
    rule("modules failed", r"Failed to find module"),
    fatal("first-boot wizard", r"Press any key to proceed"),
    // Ignition and clouds.
    fatal(
        "Ignition failed",
        r"[Ii]gnition.*\b(failed|context canceled)|CRITICAL *:|Ignition has failed",
    ),
    rule("metadata failed", r"coreos-metadata.*failed"),
    // Programs.
    rule(
        "Go panic",
        r"^(.*: )?panic: |fatal error: .*goroutine|goroutine \d+ \[running\]",
    ),
    rule("Rust panic", r"panicked at"),
    rule(
        "access denied by policy",
        r#"avc: +denied|apparmor="DENIED""#,
    ),
    rule("login failed", r"Login incorrect"),
];

/// Lines that match a rule above and are nevertheless right, each with the reason.
const ALLOWED: &[Rule] = &[rule(
    "the disk overlay is larger than the image: systemd-repart moves the header on the first boot",
    r"GPT:.*Alternate GPT header not at the end",
)];

/// A bad message that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hit {
    /// What the message means.
    pub meaning: &'static str,
    /// The line itself.
    pub line: String,
    /// Whether the boot cannot go on after it.
    pub fatal: bool,
}

struct Compiled {
    rule: &'static Rule,
    regex: Regex,
}

fn compile(rules: &'static [Rule]) -> Vec<Compiled> {
    // A pattern that does not compile is left out here and caught by a unit test.
    rules
        .iter()
        .filter_map(|rule| {
            Some(Compiled {
                rule,
                regex: Regex::new(rule.pattern).ok()?,
            })
        })
        .collect()
}

static COMPILED: LazyLock<(Vec<Compiled>, Vec<Compiled>)> =
    LazyLock::new(|| (compile(BAD), compile(ALLOWED)));

/// How a fault of the emulated processor begins. The kernel changes its own code under a breakpoint, and QEMU's
/// `-accel tcg,thread=multi` now and then lets a processor meet one that is gone already, within the first seconds of a boot.
/// The kernel has no name for it (`poke_int3_handler`, arch/x86/kernel/alternative.c) and panics.
const EMULATION_FAULT: &str = "Oops: int3: 0000";
/// The panic that follows.
const EMULATION_PANIC: &str = "Kernel panic - not syncing: Fatal exception";
/// The last line of a panic: the first where `panic=` is set, as in the image, the second where it is not (`panic()`,
/// kernel/panic.c).
const PANIC_ENDS: [&str; 2] = ["Rebooting in ", "---[ end Kernel panic"];

/// The text without faults of the emulated processor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct WithoutEmulationFaults {
    /// What is left. The image restarts after a panic, so the boot goes on after each.
    pub text: String,
    /// How many faults were taken out.
    pub faults: usize,
    /// Whether the text breaks off within one more, which is still in `text`.
    pub within_one: bool,
}

/// How the kernel begins a report of threads or processors that do not get on, what every line of it has, and what it says
/// where a timer did not fire ([`crate::firmware`]).
const STALL_BEGINS: &str = "rcu: INFO: ";
const STALL: &str = "] rcu: ";
const DEAD_TIMER: &str = "timer wakeup didn't happen";

/// `text` in lines, and with each whether it is of a report of a dead timer.
fn dead_timers(text: &str) -> Vec<(&str, bool)> {
    let mut lines: Vec<(&str, bool)> = Vec::new();
    let mut begun = None;
    for line in text.split_inclusive('\n') {
        if line.contains(STALL_BEGINS) {
            begun = Some(lines.len());
        } else if !line.contains(STALL) {
            begun = None;
        }
        lines.push((line, false));
        let report = begun.map_or(&mut [][..], |begun| &mut lines[begun..]);
        if report.iter().any(|(line, _)| line.contains(DEAD_TIMER)) {
            report.iter_mut().for_each(|(_, is_dead)| *is_dead = true);
        }
    }
    lines
}

/// Whether the last that `text` says is such a report.
pub(crate) fn ends_by_dead_timer(text: &str) -> bool {
    let lines = dead_timers(text);
    let last = lines.iter().rfind(|(line, _)| !line.trim().is_empty());
    last.is_some_and(|(_, is_dead)| *is_dead)
}

/// The text without such reports.
pub(crate) fn without_dead_timers(text: &str) -> String {
    let lines = dead_timers(text).into_iter();
    lines
        .filter_map(|(line, is_dead)| (!is_dead).then_some(line))
        .collect()
}

/// Takes the faults of the emulated processor out of `text`.
pub(crate) fn without_emulation_faults(text: &str) -> WithoutEmulationFaults {
    let mut found = WithoutEmulationFaults {
        text: String::new(),
        faults: 0,
        within_one: false,
    };
    let mut rest = text;
    while let Some((before, fault)) = rest.split_once(EMULATION_FAULT) {
        let mut length = 0;
        let end = fault.split_inclusive('\n').find(|line| {
            length += line.len();
            PANIC_ENDS.iter().any(|end| line.contains(end))
        });
        let is_ours = fault[..length]
            .lines()
            .filter(|line| line.contains("Kernel panic"))
            .all(|line| line.contains(EMULATION_PANIC));
        if end.is_none() || !is_ours {
            found.within_one = is_ours;
            break;
        }
        found.text.push_str(before);
        found.text.push('\n');
        found.faults += 1;
        rest = &fault[length..];
    }
    found.text.push_str(rest);
    found
}

/// The bad lines of `text`, in order, each under the first rule that it breaks.
pub(crate) fn find(text: &str) -> Vec<Hit> {
    let (bad, allowed) = &*COMPILED;
    without_emulation_faults(text)
        .text
        .lines()
        .filter_map(|line| {
            let rule = bad.iter().find(|bad| bad.regex.is_match(line))?.rule;
            let excused = allowed.iter().any(|excuse| excuse.regex.is_match(line));
            (!excused).then(|| Hit {
                meaning: rule.meaning,
                line: line.trim().to_owned(),
                fatal: rule.fatal,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_compiles_and_says_what_it_means() {
        for rule in BAD.iter().chain(ALLOWED) {
            assert!(Regex::new(rule.pattern).is_ok(), "{}", rule.pattern);
            assert!(!rule.meaning.is_empty());
        }
    }

    #[test]
    fn faults_of_the_emulated_processor_are_passed_over_and_nothing_else() {
        let panics = "[    1.52] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI\n[    1.53] Kernel panic - not syncing: Fatal exception \
                      in interrupt\n";
        let restarts = format!("{panics}[    1.54] Rebooting in 10 seconds..\n");
        let stays = format!(
            "{panics}[    1.54] ---[ end Kernel panic - not syncing: Fatal exception in interrupt ]---\n"
        );
        for fault in [restarts, stays] {
            assert_eq!(find(&format!("{fault}fine\n{fault}")), []);
            let later = format!("{fault}[    9.1] Kernel panic - not syncing: no init\n");
            assert_eq!(find(&later).len(), 1, "a panic of the next boot");
            let other = fault.replace("int3", "0002");
            assert!(find(&other).iter().any(|hit| hit.fatal), "another oops");
            let former = "[FAILED] Failed to start ssh.service - x.\n";
            assert_eq!(find(&format!("{former}{fault}")).len(), 1, "before it");
            let killed = fault.replace("Fatal exception in interrupt", "Attempted to kill init!");
            assert!(find(&killed).iter().any(|hit| hit.fatal), "another panic");
            assert!(!without_emulation_faults(&killed).within_one);
            assert_eq!(without_emulation_faults(&fault).faults, 1);
        }
        let oops = panics.lines().next().unwrap();
        for so_far in [oops, panics] {
            assert_eq!(find(so_far)[0].meaning, "kernel oops", "no end yet");
            assert!(without_emulation_faults(so_far).within_one, "no end yet");
        }
        let fine = WithoutEmulationFaults {
            text: "fine\n".into(),
            faults: 0,
            within_one: false,
        };
        assert_eq!(without_emulation_faults("fine\n"), fine);
    }

    #[test]
    fn reports_of_a_dead_timer_are_told_from_other_stalls() {
        const REPORT: &str = "\
[   22.515900] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:
[   22.518950] rcu: \t(detected by 1, t=5254 jiffies, g=-1151, q=1364 ncpus=2)
[   22.519564] rcu: rcu_preempt kthread timer wakeup didn't happen for 5253 jiffies! g-1151 f0x0
[   22.519564] rcu: rcu_preempt kthread starved for 5254 jiffies! g-1151 f0x0 RCU_GP_WAIT_FQS(5) ->state=0x402 ->cpu=0
";
        let other = REPORT.replace(DEAD_TIMER, "is late");
        assert_eq!(find(REPORT).len(), 2);
        assert_eq!(
            without_dead_timers(&format!("{REPORT}fine\n{REPORT}")),
            "fine\n"
        );
        assert!(ends_by_dead_timer(&format!("fine\n{REPORT}\n")));
        assert!(!ends_by_dead_timer(&format!("{REPORT}fine\n")));
        assert!(!ends_by_dead_timer(&other) && !ends_by_dead_timer(""));
        for stalls in [format!("{REPORT}{other}"), format!("{other}{REPORT}")] {
            assert_eq!(without_dead_timers(&stalls), other);
        }
        let oops = "[   23.1] BUG: unable to handle page fault\n";
        assert_eq!(without_dead_timers(&format!("{REPORT}{oops}")), oops);
    }

    #[test]
    fn bad_lines_are_found() {
        let table = [
            (
                "[   12.3] Kernel panic - not syncing: VFS: Unable to mount root fs",
                "kernel panic",
            ),
            (
                "[FAILED] Failed to start ssh.service - OpenBSD Secure Shell server.",
                "no way in",
            ),
            (
                "[FAILED] Failed to listen on dbus.socket - D-Bus.",
                "unit failed",
            ),
            (
                "[FAILED] Failed to start docker.service - Docker.",
                "unit failed",
            ),
            (
                "[DEPEND] Dependency failed for docker.service - Docker.",
                "dependency failed",
            ),
            (
                "systemd[1]: Found ordering cycle on a.service/start",
                "ordering cycle",
            ),
            (
                "thread 'main' panicked at agent/src/agent.rs:1:1:",
                "Rust panic",
            ),
            ("panic: runtime error: index out of range", "Go panic"),
            (
                "watchdog: BUG: soft lockup - CPU#0 stuck for 22s!",
                "kernel oops",
            ),
            (
                "rcu: INFO: rcu_preempt self-detected stall on CPU",
                "RCU stall",
            ),
            (
                "You are in emergency mode. After logging in, type",
                "emergency shell",
            ),
            (
                "ignition[301]: CRITICAL : failed to fetch config",
                "Ignition failed",
            ),
            (
                "[  *** ] A start job is running for foo (45s / 1min 30s)",
                "slow job",
            ),
            (
                "[  *** ] A start job is running for foo (1min 5s / 1min 30s)",
                "slow job",
            ),
            (
                "audit: type=1400 apparmor=\"DENIED\" operation=\"mount\"",
                "access denied by policy",
            ),
            ("-- Press any key to proceed --", "first-boot wizard"),
            (
                "selvage[9]: segfault at 0 ip 0 sp 0 error 4",
                "segmentation fault",
            ),
        ];
        for (line, meaning) in table {
            let hits = find(line);
            assert_eq!(hits.first().map(|hit| hit.meaning), Some(meaning), "{line}");
        }
    }

    #[test]
    fn ordinary_boot_lines_pass() {
        let text = "[    0.000000] Linux version 6.12.117+deb13-cloud-amd64\n\
            [  OK  ] Started docker.service - Docker Application Container Engine.\n\
            [   18.2] EXT4-fs (vda3): mounted filesystem r/w with ordered data mode\n\
            ignition[301]: files: op(1): [finished] writing file \"/sysroot/etc/hostname\"\n\
            GPT:Primary header thinks Alt. header is not at the end of the disk.\n\
            [  *** ] A start job is running for selvage.service (9s / no limit)\n\
            [    0.1] random: crng init done\n\
            node1 login: ";
        assert_eq!(find(text), []);
    }
}

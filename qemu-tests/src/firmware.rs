//! Where the processors of a machine are that says nothing, and which of those that hang are the emulator's fault: such a
//! machine is reset, and the boot is not judged. Any other boot that hangs has failed, and its error says where.
//!
//! * With `-accel tcg,thread=multi` of QEMU 7.2 it happens, once in some hundred boots, that a guest resets and nothing comes
//!   after: its processors race for the map of the memory, which QEMU 8.2 mends (softmmu: tcg_commit by async_run_on_cpu).
//!   When they are in the firmware then, nothing of the image has run since the reset.
//! * The timer of the first processor may be dead from the first second of a boot on. The other one sees that nothing wakes
//!   the kernel's threads there, and says so (`rcu_check_gp_kthread_expired_fqs_timer`, kernel/rcu/tree_stall.h). Seen once
//!   with QEMU 10.0; others have seen it (abiosoft/colima#787).

use std::time::{Duration, Instant};

use crate::console::rules;

/// A firmware that neither prints nor reads its disk for so long hangs: it does so several times a second. Shorter than what
/// lies between some of a kernel's reports of a thread that does not wake up, which are 21 s and 63 s apart.
const QUIET: Duration = Duration::from_secs(50);

/// Where one processor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Processor {
    /// Its instruction pointer.
    pub at: u64,
    /// Its privilege level: 3 for programs, 0 for the kernel and the firmware.
    pub level: u8,
    /// Whether it waits for an interrupt.
    pub halted: bool,
}

impl Processor {
    /// Firmware runs below 4 GiB, where its flash and its memory are; Linux in the upper half of all addresses.
    fn is_in_firmware(self) -> bool {
        self.level == 0 && self.at < 1 << 32
    }
}

/// Reads what QEMU's monitor says to `info registers -a`; what it does not understand is left out.
pub(crate) fn processors(registers: &str) -> Vec<Processor> {
    let hex = |word: &str, key: &str| u64::from_str_radix(word.strip_prefix(key)?, 16).ok();
    let of_line = |line: &str| {
        let mut words = line.split_whitespace();
        // EIP, while the processor is not in 64-bit mode.
        let at = words.find_map(|word| hex(word, "RIP=").or_else(|| hex(word, "EIP=")))?;
        let level = words.find_map(|word| word.strip_prefix("CPL=")?.parse().ok())?;
        let halted = words.any(|word| word == "HLT=1");
        Some(Processor { at, level, halted })
    };
    registers.lines().filter_map(of_line).collect()
}

/// Says where the processors are, for a person who looks into it.
pub(crate) fn place(processors: &[Processor]) -> String {
    if processors.is_empty() {
        return "where its processors are is not known".into();
    }
    let one = |processor: &Processor| {
        let who = match (processor.is_in_firmware(), processor.level) {
            (true, _) => "firmware or boot loader",
            (false, 3) => "a program",
            (false, _) => "kernel",
        };
        let halted = if processor.halted { ", halted" } else { "" };
        format!("{:#x} ({who}{halted})", processor.at)
    };
    let all: Vec<_> = processors.iter().map(one).collect();
    format!("its processors are at {}", all.join(" and "))
}

/// Why a machine that is still hangs, whose console ends by `console`; `None` if that is not the emulator's fault.
pub(crate) fn hang(console: &str, processors: &[Processor]) -> Option<&'static str> {
    let last = console.lines().rfind(|line| !line.trim().is_empty());
    let is_end = |last: &str| {
        let ends = ["reboot: Restarting system", "Rebooting in "];
        ends.iter().any(|end| last.contains(end))
    };
    let all = |is: fn(&Processor) -> bool| !processors.is_empty() && processors.iter().all(is);
    if last.is_none_or(is_end) && all(|it| it.is_in_firmware()) {
        return Some("the firmware hangs after a reset, and nothing has started");
    }
    if rules::ends_by_dead_timer(console) && all(|it| it.halted && !it.is_in_firmware()) {
        return Some("the timer of an emulated processor is dead");
    }
    None
}

/// Tells when it is time to look.
#[derive(Debug)]
pub(crate) struct Stillness {
    moved: Instant,
    seen: (u64, u64),
}

impl Stillness {
    /// Begins to watch now.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            moved: now,
            seen: (0, 0),
        }
    }

    /// Whether nothing has moved for long, since the last time that it was so: the console is this long now, after this many
    /// disk operations.
    pub(crate) fn is_long(&mut self, now: Instant, console: u64, disk_operations: u64) -> bool {
        let seen = (console, disk_operations);
        let is_long = seen == self.seen && now.duration_since(self.moved) > QUIET;
        if seen != self.seen || is_long {
            (self.seen, self.moved) = (seen, now);
        }
        is_long
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What QEMU 7.2 prints, cut; the first is in the firmware, the second in Linux.
    const FIRMWARE: &str = "\
CPU#0
RAX=0000000000000000 RBX=000000003fdb2018 RCX=0000000000000000 RDX=0000000000000600
RIP=000000003eeb1f2c RFL=00000206 [-----P-] CPL=0 II=0 A20=1 SMM=0 HLT=0
ES =0030 0000000000000000 ffffffff 00cf9300 DPL=0 DS   [-WA]
CR0=80010033 CR2=0000000000000000 CR3=000000003fc01000 CR4=00000668
";
    const KERNEL: &str = "\
CPU#1
RAX=0000000000000001 RBX=ffff8880032d2e80 RCX=0000000000000000 RDX=0000000000000000
RIP=ffffffff81f0f6cf RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
";
    const EARLY: &str = "EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0\n";

    #[test]
    fn registers_say_where_processors_are() {
        let all = processors(&format!("{FIRMWARE}\n{KERNEL}\n{EARLY}"));
        assert_eq!(
            all.iter()
                .map(|one| one.is_in_firmware())
                .collect::<Vec<_>>(),
            [true, false, true]
        );
        assert_eq!(
            place(&all),
            "its processors are at 0x3eeb1f2c (firmware or boot loader) and 0xffffffff81f0f6cf (kernel, halted) and 0xfff0 \
             (firmware or boot loader)"
        );
        assert!(processors("RIP=no\nCPL=0\n").is_empty());
        assert!(place(&[]).contains("not known"));
    }

    #[test]
    fn only_a_firmware_that_has_started_nothing_hangs() {
        const ENDED: &str = "[   39.1] reboot: Restarting system\n";
        let firmware = processors(FIRMWARE);
        let hangs = |console: &str, processors: &[_]| hang(console, processors).is_some();
        assert!(hangs(ENDED, &firmware));
        assert!(hangs("", &firmware), "it was never seen");
        assert!(hangs("[ 9.0] Rebooting in 10 seconds..\n\n", &firmware));
        // Its last line, after which the boot loader and the image's kernel run at such addresses, too.
        assert!(!hangs(
            &format!("{ENDED}BdsDxe: starting Boot0001\n"),
            &firmware
        ));
        assert!(
            !hangs(ENDED, &processors(&format!("{FIRMWARE}{KERNEL}"))),
            "the kernel does not restart"
        );
        let program = FIRMWARE.replace("CPL=0", "CPL=3");
        assert!(!hangs(ENDED, &processors(&program)));
        assert!(!hangs(ENDED, &[]));
    }

    #[test]
    fn a_kernel_hangs_by_a_dead_timer_only_when_it_says_so_last_and_all_is_idle() {
        const REPORT: &str = "\
[   22.5] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:
[   22.5] rcu: \t0-...!: (0 ticks this GP) idle=6240/0/0x0 softirq=174/174 fqs=0 (false positive?)
[   22.5] rcu: rcu_preempt kthread timer wakeup didn't happen for 5253 jiffies! g-1151 f0x0 RCU_GP_WAIT_FQS(5) ->state=0x402
[   22.5] rcu: RCU grace-period kthread stack dump:
";
        let halted = processors(&format!("{KERNEL}{KERNEL}"));
        assert!(hang(REPORT, &halted).is_some());
        let later = format!("{REPORT}[  OK  ] Started ssh.service.\n");
        assert_eq!(hang(&later, &halted), None);
        let other = REPORT.replace("timer wakeup didn't happen", "starved");
        assert_eq!(hang(&other, &halted), None);
        let busy = processors(&format!("{KERNEL}{}", KERNEL.replace("HLT=1", "HLT=0")));
        assert_eq!(hang(REPORT, &busy), None);
        assert_eq!(hang(REPORT, &[]), None);
    }

    #[test]
    fn one_looks_again_and_again_at_what_is_still() {
        let start = Instant::now();
        let mut stillness = Stillness::new(start);
        let looks = (0..300)
            .filter(|second| {
                stillness.is_long(start + Duration::from_secs(*second), 7, *second.min(&100))
            })
            .collect::<Vec<_>>();
        assert_eq!(looks, [151, 202, 253]);
    }
}

//! The consoles of the machine: an operator may be looking at any of them.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::libc::{O_NOCTTY, O_NONBLOCK};
use tracing::warn;

/// Prints a line on every console that the kernel prints on. One that takes nothing now does without: nobody waits for a
/// serial line.
pub fn tell(root: &Path, line: &str) {
    let active = fs::read_to_string(root.join("sys/class/tty/console/active")).unwrap_or_default();
    for console in active.split_whitespace() {
        let written = File::options()
            .append(true)
            .custom_flags(O_NONBLOCK | O_NOCTTY)
            .open(root.join("dev").join(console))
            .and_then(|mut file| file.write_all(format!("\r\n{line}\r\n").as_bytes()));
        if let Err(error) = written {
            warn!("console {console} is not told: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_console_has_the_line_and_one_that_is_not_there_is_no_error() {
        let root = tempfile::tempdir().unwrap();
        tell(root.path(), "nowhere");
        for path in ["sys/class/tty/console", "dev"] {
            fs::create_dir_all(root.path().join(path)).unwrap();
        }
        let active = root.path().join("sys/class/tty/console/active");
        fs::write(active, "tty0 gone ttyS0\n").unwrap();
        for console in ["tty0", "ttyS0"] {
            fs::write(root.path().join("dev").join(console), "").unwrap();
        }
        tell(root.path(), "Network:");
        tell(root.path(), "none");
        for console in ["tty0", "ttyS0"] {
            let text = fs::read_to_string(root.path().join("dev").join(console)).unwrap();
            assert_eq!(text, "\r\nNetwork:\r\n\r\nnone\r\n");
        }
        assert!(!root.path().join("dev/gone").exists());
    }
}

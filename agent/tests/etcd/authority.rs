//! A certificate authority for one test, by openssl.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;

/// An address in 127.0.0.0/8 that is this process's alone: process ids have 22 bits.
pub(crate) fn loopback() -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + std::process::id())
}

/// The addresses that certificates are for, in openssl's words.
fn names() -> String {
    format!("subjectAltName = IP:{}, IP:10.77.0.1", loopback())
}

/// Certificates of one authority, made for one test.
pub(crate) struct Authority {
    dir: tempfile::TempDir,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let authority = Self {
            dir: tempfile::tempdir().expect("a directory"),
        };
        let config = format!(
            "[req]\ndistinguished_name = name\n[name]\n[ca]\nbasicConstraints = critical, CA:TRUE\n[leaf]\n{}\n",
            names()
        );
        std::fs::write(authority.path("openssl.cnf"), config).expect("a config for openssl");
        authority.certificate("ca", "ca", None);
        authority.certificate("server", "leaf", Some("ca"));
        authority.certificate("client", "leaf", Some("ca"));
        authority
    }

    /// Makes a key and a certificate for it.
    pub(crate) fn certificate(&self, name: &str, extensions: &str, issuer: Option<&str>) {
        let mut command = Command::new("openssl");
        command
            .current_dir(self.dir.path())
            .args([
                "req",
                "-x509",
                "-config",
                "openssl.cnf",
                "-days",
                "2",
                "-nodes",
            ])
            .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .args(["-subj", &format!("/CN={name}"), "-extensions", extensions])
            .args([
                "-keyout",
                &format!("{name}.key"),
                "-out",
                &format!("{name}.pem"),
            ]);
        if let Some(issuer) = issuer {
            command.args([
                "-CA",
                &format!("{issuer}.pem"),
                "-CAkey",
                &format!("{issuer}.key"),
            ]);
        }
        let output = command.output().expect("openssl 3 is needed for this test");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Puts a certificate in place of `name` that began a day ago and ends in so many seconds, or ended so many seconds ago
    /// if they are less than none; its key stays.
    pub(crate) fn shorten(&self, name: &str, seconds: i64) {
        self.date(name, -86_400, seconds);
    }

    /// Puts a certificate in place of `name` that is valid from and until so many seconds from now; its key stays.
    pub(crate) fn date(&self, name: &str, from: i64, until: i64) {
        let now = std::time::SystemTime::now();
        let since = now
            .duration_since(std::time::UNIX_EPOCH)
            .expect("a clock that is set");
        let since = i64::try_from(since.as_secs()).expect("a time of these days");
        // `openssl ca` alone takes times to the second, and only as dates of the calendar.
        let date = |at: i64| {
            let output = Command::new("date")
                .args(["-u", "-d", &format!("@{at}"), "+%Y%m%d%H%M%SZ"])
                .output()
                .expect("a program to run");
            String::from_utf8(output.stdout)
                .expect("text")
                .trim()
                .to_owned()
        };
        let config = format!(
            "[ca]\ndefault_ca = short\n[short]\ndatabase = index\nnew_certs_dir = .\nrand_serial = yes\n\
             default_md = sha256\npolicy = any\nunique_subject = no\n[any]\ncommonName = supplied\n\
             [leaf]\n{}\n[req]\ndistinguished_name = name\n[name]\n",
            names()
        );
        std::fs::write(self.path("short.cnf"), config).expect("a config for openssl");
        std::fs::write(self.path("index"), "").expect("an index");
        let (from, until) = (date(since + from), date(since + until));
        for line in [
            format!("req -new -config short.cnf -key {name}.key -subj /CN={name} -out {name}.csr"),
            format!(
                "ca -batch -notext -config short.cnf -extensions leaf -cert ca.pem -keyfile ca.key \
                 -startdate {from} -enddate {until} -in {name}.csr -out {name}.new"
            ),
        ] {
            let output = Command::new("openssl")
                .current_dir(self.dir.path())
                .args(line.split_whitespace())
                .output()
                .expect("a program to run");
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "openssl {line}: {stderr}");
        }
        let (new, old) = (format!("{name}.new"), format!("{name}.pem"));
        std::fs::rename(self.path(&new), self.path(&old)).expect("the new certificate");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn server_args(&self) -> Vec<String> {
        let arg = |name: &str, file| format!("--{name}={}", self.path(file).display());
        vec![
            arg("cert-file", "server.pem"),
            arg("key-file", "server.key"),
        ]
    }
}

//! Each case was put to Ignition 2.14 with the image's useradd, usermod, userdel, groupadd and groupdel.

use super::super::{Severity, check};

/// Sections of `passwd`, and what is said about which field; nothing where the tools do it.
const CASES: [(&str, &str, &str); 41] = [
    (
        r#""users":[{"name":"a","groups":["sudo","docker"]}]"#,
        "",
        "",
    ),
    (
        r#""users":[{"name":"a","primaryGroup":"102","groups":["27"]}]"#,
        "",
        "",
    ),
    (
        r#""users":[{"name":"a","primaryGroup":"1234"}]"#,
        "users[0].primaryGroup",
        "no group",
    ),
    (r#""users":[{"name":"docker"}]"#, "", ""),
    (r#""users":[{"name":"docker","noUserGroup":true}]"#, "", ""),
    (
        r#""users":[{"name":"docker","primaryGroup":"docker"}]"#,
        "",
        "",
    ),
    (
        r#""groups":[{"name":"a"}],"users":[{"name":"a"},{"name":"docker"}]"#,
        "",
        "",
    ),
    // Who asks for no id gets one more than the highest.
    (
        r#""users":[{"name":"a"},{"name":"b","uid":1001}]"#,
        "users[1].uid",
        "\"a\"",
    ),
    (
        r#""users":[{"name":"a","uid":5000},{"name":"b"},{"name":"c","uid":5001}]"#,
        "users[2].uid",
        "\"b\"",
    ),
    (
        r#""users":[{"name":"a","system":true},{"name":"b","uid":1001}]"#,
        "",
        "",
    ),
    (
        r#""groups":[{"name":"x"}],"users":[{"name":"a"},{"name":"b","uid":1002}]"#,
        "",
        "",
    ),
    (
        r#""groups":[{"name":"x"},{"name":"y","gid":1001}]"#,
        "groups[1].gid",
        "\"x\"",
    ),
    (
        r#""groups":[{"name":"x","gid":3000}],"users":[{"name":"a","uid":3000}]"#,
        "",
        "",
    ),
    (
        r#""groups":[{"name":"a","gid":700},{"name":"b","gid":700}]"#,
        "groups[1].gid",
        "\"a\"",
    ),
    (
        r#""groups":[{"name":"a","gid":102}]"#,
        "groups[0].gid",
        "\"docker\"",
    ),
    (r#""groups":[{"name":"docker"},{"name":"wheel"}]"#, "", ""),
    (
        r#""groups":[{"name":"core","shouldExist":false}]"#,
        "groups[0].shouldExist",
        "primary group",
    ),
    (
        r#""groups":[{"name":"docker","shouldExist":false}]"#,
        "",
        "",
    ),
    (
        r#""groups":[{"name":"docker","shouldExist":false}],"users":[{"name":"a","groups":["docker"]}]"#,
        "users[0].groups[0]",
        "no group",
    ),
    (
        r#""groups":[{"name":"a","passwordHash":"x:y"}]"#,
        "groups[0].passwordHash",
        "colon",
    ),
    (
        r#""users":[{"name":"a","groups":["b"]},{"name":"b"}]"#,
        "users[0].groups[0]",
        "no group",
    ),
    (
        r#""users":[{"name":"b"},{"name":"a","groups":["b"]}]"#,
        "",
        "",
    ),
    (
        r#""users":[{"name":"a","uid":0}]"#,
        "users[0].uid",
        "\"root\"",
    ),
    (
        r#""users":[{"name":"core","uid":0}]"#,
        "users[0].uid",
        "\"root\"",
    ),
    (r#""users":[{"name":"core","uid":1000}]"#, "", ""),
    (
        r#""users":[{"name":"core","uid":2000},{"name":"a","uid":1000}]"#,
        "",
        "",
    ),
    (
        r#""users":[{"name":"a","uid":-1}]"#,
        "users[0].uid",
        "4294967294",
    ),
    (
        r#""users":[{"name":"a","uid":4294967295}]"#,
        "users[0].uid",
        "4294967294",
    ),
    (r#""users":[{"name":"a","uid":4294967294}]"#, "", ""),
    (
        r#""users":[{"name":"core","shouldExist":false},{"name":"a","uid":1000}]"#,
        "",
        "",
    ),
    (
        r#""users":[{"name":"Foo.Bar_1-x$"},{"name":"1a"},{"name":".a"}]"#,
        "",
        "",
    ),
    (
        r#""users":[{"name":"100"}]"#,
        "users[0].name",
        "not a number",
    ),
    (r#""users":[{"name":"a@b"}]"#, "users[0].name", "useradd"),
    (r#""users":[{"name":"ä"}]"#, "users[0].name", "useradd"),
    (
        r#""groups":[{"name":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}]"#,
        "groups[0].name",
        "32",
    ),
    (
        r#""users":[{"name":"a","gecos":"x\ny"}]"#,
        "users[0].gecos",
        "line break",
    ),
    (
        r#""users":[{"name":"a","shell":"zsh"}]"#,
        "users[0].shell",
        "absolute",
    ),
    (
        r#""users":[{"name":"a","homeDir":"/usr/a"}]"#,
        "users[0].homeDir",
        "read-only",
    ),
    (
        r#""users":[{"name":"a","homeDir":"/usr/a","noCreateHome":true}]"#,
        "",
        "",
    ),
    (r#""users":[{"name":"a","homeDir":"/var/lib/x/a"}]"#, "", ""),
    (
        r#""users":[{"name":"etcd","sshAuthorizedKeys":["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"]}]"#,
        "users[0].sshAuthorizedKeys",
        "home directory",
    ),
];

#[test]
fn accounts_are_judged_as_the_tools_do() {
    for (passwd, path, part) in CASES {
        let config = format!(r#"{{"ignition":{{"version":"3.3.0"}},"passwd":{{{passwd}}}}}"#);
        let findings = check(&config).findings;
        if path.is_empty() {
            assert_eq!(findings, [], "{passwd}");
            continue;
        }
        let [finding] = &findings[..] else {
            panic!("{passwd}: {findings:?}");
        };
        assert_eq!(finding.severity, Severity::Error, "{passwd}");
        assert_eq!(finding.path, format!("passwd.{path}"), "{passwd}");
        assert!(finding.message.contains(part), "{passwd}: {finding}");
    }
}

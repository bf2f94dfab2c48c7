use super::*;

fn key(name: &str) -> SubnetKey {
    SubnetKey::parse_name(name).unwrap()
}

fn hook(set: &str, unset: &str) -> Hook {
    Hook {
        set: Some(set.into()),
        unset: Some(unset.into()),
        environment: vec![("SUBNET".into(), "10.5.1.0/24".into())],
        input: Some("data\n".into()),
        required: true,
    }
}

fn set(hook: Hook) -> Change {
    Change::Set {
        key: Key::Hook(key("10.5.1.0-24")),
        object: Object::Hook(Box::new(hook)),
        was: None,
    }
}

#[tokio::test]
async fn a_command_runs_in_a_shell_with_environment_and_input() {
    let environment = [("SUBNET".to_owned(), "10.5.1.0/24".to_owned())];
    let output = run(
        r#"read -r line; echo "$SUBNET: $line" | tr a-z A-Z; echo oops >&2"#,
        &environment,
        Some("data\n"),
    );
    assert_eq!(output.await.unwrap(), "10.5.1.0/24: DATA\noops\n");
    let error = run("echo no >&2; exit 3", &[], None).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "\"echo no >&2; exit 3\" ended with exit status: 3: no"
    );
    let input = "x".repeat(1 << 20);
    assert_eq!(run("exit 0", &[], Some(&input)).await.unwrap(), "");
}

#[tokio::test]
async fn an_earlier_lifes_hooks_are_run_again_or_undone() {
    let directory = tempfile::tempdir().unwrap();
    let (file, log) = (
        directory.path().join("memory"),
        directory.path().join("log"),
    );
    let hook = hook(
        &format!("echo add $SUBNET >> {}", log.display()),
        &format!("echo del $SUBNET >> {}", log.display()),
    );
    let mut hooks = Hooks::open(&file);
    assert_eq!(hooks.observe().count(), 0);
    assert_eq!(hooks.apply(&[set(hook.clone())]).await, [Ok(())]);
    assert_eq!(
        hooks.observe().collect::<Vec<_>>(),
        [(Key::Hook(key("10.5.1.0-24")), Object::Hook(Box::new(hook)))]
    );

    let mut hooks = Hooks::open(&file);
    let former = (Key::Hook(key("10.5.1.0-24")), Object::Odd);
    assert_eq!(hooks.observe().collect::<Vec<_>>(), [former]);
    let del = Change::Del {
        key: Key::Hook(key("10.5.1.0-24")),
        was: Object::Odd,
    };
    assert_eq!(hooks.apply(&[del]).await, [Ok(())]);
    assert_eq!(
        fs::read_to_string(&log).unwrap(),
        "add 10.5.1.0/24\ndel 10.5.1.0/24\n"
    );
    assert_eq!(Hooks::open(&file).observe().count(), 0);
}

#[tokio::test]
async fn a_failed_command_is_not_taken_for_done() {
    let directory = tempfile::tempdir().unwrap();
    let mut hooks = Hooks::open(&directory.path().join("memory"));
    let outcomes = hooks.apply(&[set(hook("exit 1", "exit 1"))]).await;
    assert!(matches!(&outcomes[..], [Err(CommandError::Failed { .. })]));
    assert_eq!(hooks.observe().count(), 0);
}

/// flannel's own sample is `ip route add`, which fails if the route exists.
#[tokio::test]
async fn a_failed_command_that_is_not_required_is_run_again_after_growing_pauses() {
    let directory = tempfile::tempdir().unwrap();
    let mut hooks = Hooks::open(&directory.path().join("memory"));
    let failing = Hook {
        required: false,
        ..hook("exit 2", "exit 2")
    };
    let is_due = |hooks: &Hooks| hooks.observe().any(|(_, object)| object == Object::Odd);
    for pause in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
        let (pause, before) = (Duration::from_secs(pause), Instant::now());
        assert_eq!(hooks.apply(&[set(failing.clone())]).await, [Ok(())]);
        let (due, now) = (hooks.next_try().unwrap(), Instant::now());
        assert!((before + pause..=now + pause).contains(&due), "{pause:?}");
        // Pretend that the backoff has elapsed.
        for failed in hooks.failed.values_mut() {
            failed.due = now;
        }
        assert!(is_due(&hooks));
    }
    let other = Hook {
        input: Some("other data".into()),
        ..failing
    };
    assert_eq!(hooks.apply(&[set(other.clone())]).await, [Ok(())]);
    let due = hooks.next_try().unwrap();
    assert!(due <= Instant::now() + Duration::from_secs(1));
    let works = Hook {
        set: Some("exit 0".into()),
        ..other
    };
    assert_eq!(hooks.apply(&[set(works)]).await, [Ok(())]);
    assert_eq!(hooks.next_try(), None);
}

/// A required hook may create the device that the others use.
#[tokio::test]
async fn what_is_required_succeeds_before_anything_else_begins() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let of = |name: &str, command: &str, required| Change::Set {
        key: Key::Hook(key(name)),
        object: Object::Hook(Box::new(Hook {
            required,
            ..hook(&format!("{command} >> {}", log.display()), "exit 0")
        })),
        was: None,
    };
    let mut hooks = Hooks::open(&directory.path().join("memory"));
    let add = of("10.5.1.0-24", "echo add", false);
    let fails = of("10.5.9.0-24", "echo post && exit 1", true);
    let outcomes = hooks.apply(&[add.clone(), fails]).await;
    assert!(
        matches!(
            &outcomes[..],
            [Err(CommandError::Behind), Err(CommandError::Failed { .. })]
        ),
        "{outcomes:?}"
    );
    assert_eq!(hooks.observe().count(), 0);
    assert!(!log.exists() || !fs::read_to_string(&log).unwrap().contains("add"));
    let works = of("10.5.9.0-24", "sleep 0.2 && echo post", true);
    assert_eq!(hooks.apply(&[add, works]).await, [Ok(()), Ok(())]);
    let logged = fs::read_to_string(&log).unwrap();
    assert!(logged.ends_with("post\nadd\n"), "{logged}");
}

#[tokio::test]
async fn a_failed_command_that_is_not_required_counts_as_there() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("memory");
    let hook = Hook {
        required: false,
        ..hook("exit 2", "exit 2")
    };
    let mut hooks = Hooks::open(&file);
    assert_eq!(hooks.apply(&[set(hook.clone())]).await, [Ok(())]);
    assert_eq!(hooks.observe().count(), 1);
    let del = Change::Del {
        key: Key::Hook(key("10.5.1.0-24")),
        was: Object::Odd,
    };
    let mut hooks = Hooks::open(&file);
    assert_eq!(hooks.apply(&[del]).await, [Ok(())]);
    assert_eq!(Hooks::open(&file).observe().count(), 0);
}

#[tokio::test]
async fn a_command_that_nobody_waits_for_ends_with_all_that_it_started() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    // The shell waits for a child that would survive it.
    let command = format!(
        "sleep 1000 & echo $! > {0}.new; mv {0}.new {0}; wait",
        file.display()
    );
    let running = tokio::spawn(async move { run(&command, &[], None).await });
    let child = loop {
        if let Ok(text) = fs::read_to_string(&file) {
            break Pid::from_raw(text.trim().parse().unwrap());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    running.abort();
    let ended = async {
        // A zombie counts as dead.
        let alive = || {
            fs::read_to_string(format!("/proc/{child}/stat"))
                .is_ok_and(|stat| !stat.contains(") Z "))
        };
        while alive() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(60), ended).await.unwrap();
}

#[tokio::test]
async fn what_waits_behind_a_failing_command_is_due_later() {
    let directory = tempfile::tempdir().unwrap();
    let mut hooks = Hooks::open(&directory.path().join("memory"));
    let optional = || Change::Set {
        key: Key::Hook(key("10.5.2.0-24")),
        object: Object::Hook(Box::new(Hook {
            required: false,
            ..hook("false", "")
        })),
        was: None,
    };
    assert_eq!(hooks.apply(&[optional()]).await, [Ok(())]);
    let first = hooks.next_try().unwrap();
    let outcomes = hooks.apply(&[set(hook("false", "")), optional()]).await;
    assert_eq!(outcomes[1], Err(CommandError::Behind));
    assert!(hooks.next_try().unwrap() > first);
}

#[tokio::test]
async fn commands_that_hang_do_not_stop_the_agent_for_long() {
    let directory = tempfile::tempdir().unwrap();
    let mut hooks = Hooks::open(&directory.path().join("memory"));
    let changes: Vec<_> = (0..3 * MAX_CONCURRENT)
        .map(|n| Change::Set {
            key: Key::Hook(key(&format!("10.5.{n}.0-24"))),
            object: Object::Hook(Box::new(hook("exec sleep 0.5", ""))),
            was: None,
        })
        .collect();
    let outcomes = hooks
        .apply_within(Duration::from_millis(200), &changes)
        .await;
    let waiting = outcomes
        .iter()
        .filter(|outcome| **outcome == Err(CommandError::Waiting));
    assert_eq!(waiting.count(), 2 * MAX_CONCURRENT);
}

//! charon's associations, as `list-sas` reports them, and what they mean for a connection.

use std::collections::BTreeSet;

use super::vici::Section;

/// An association of IKE with its tunnels.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Association {
    /// The name of its connection.
    pub(super) connection: String,
    /// charon's number for it.
    pub(super) id: String,
    /// Whether the peer has proved who it is.
    pub(super) established: bool,
    /// Whether something is being negotiated.
    pub(super) busy: bool,
    /// The connection's tunnels.
    tunnels: Vec<Child>,
}

impl Association {
    /// charon's numbers for the tunnels that cannot carry packets, since the kernel has not both of their states.
    pub(super) fn stateless(&self, spis: &BTreeSet<u32>) -> impl Iterator<Item = &str> {
        let tunnels = self.tunnels.iter().filter(|child| child.rests);
        let lacks = move |child: &&Child| !child.spis.iter().all(|spi| spis.contains(spi));
        tunnels
            .filter(lacks)
            .filter_map(|child| child.id.as_deref())
    }
}

/// A tunnel.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Child {
    /// charon's number for it.
    id: Option<String>,
    /// The states in the kernel, as far as charon names them.
    spis: Vec<u32>,
    /// Whether packets pass, and nothing is about to change.
    rests: bool,
    /// Whether packets pass.
    carries: bool,
    /// Whether it is being made, or made anew.
    begins: bool,
    received: u64,
    sent: u64,
    /// Its age in seconds.
    age: Option<u64>,
}

/// How a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum TunnelState {
    /// Packets pass.
    Up,
    /// charon negotiates.
    Begun,
    /// The peer has proved who it is, but there is no tunnel, and charon does nothing about it.
    Keyless,
    /// There is nothing.
    #[default]
    Down,
}

impl TunnelState {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Up, Self::Begun, Self::Keyless, Self::Down];

    /// Its name, a label of metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Begun => "negotiating",
            Self::Keyless => "refused",
            Self::Down => "down",
        }
    }

    /// Why there is no tunnel, as far as it shows from this end.
    pub(crate) fn lack(self) -> Option<&'static str> {
        match self {
            Self::Up => None,
            Self::Begun => Some("no IPsec tunnel: the peer does not answer IKE"),
            Self::Keyless => Some(
                "no IPsec tunnel: the nodes have proved to each other who they are, but one of them refuses the tunnel",
            ),
            Self::Down => Some("no IPsec tunnel: the nodes do not accept each other"),
        }
    }
}

/// Reads an event `list-sa`, which has one association; `None` if it has none.
pub(super) fn read(event: &Section) -> Option<Association> {
    let (connection, sa) = event.sections().next()?;
    let children = sa.section("child-sas");
    let children = children.into_iter().flat_map(Section::sections);
    Some(Association {
        connection: connection.to_owned(),
        id: sa.text("uniqueid")?.to_owned(),
        established: matches!(sa.text("state"), Some("ESTABLISHED" | "REKEYING")),
        busy: matches!(sa.text("state"), Some("CREATED" | "CONNECTING"))
            || ["tasks-queued", "tasks-active"]
                .iter()
                .any(|tasks| sa.texts(tasks).any(is_beginning)),
        tunnels: children.map(|(_, child)| read_child(child)).collect(),
    })
}

/// Whether a task makes a tunnel or an association: `task_type_names` of strongSwan's `task.c`. Others, such as a probe for
/// a dead peer, end in neither.
fn is_beginning(task: &str) -> bool {
    matches!(
        task,
        "IKE_INIT"
            | "IKE_AUTH"
            | "IKE_REAUTH"
            | "IKE_REAUTH_COMPLETE"
            | "CHILD_CREATE"
            | "CHILD_REKEY"
    )
}

fn read_child(child: &Section) -> Child {
    let number = |name| child.text(name).and_then(|text| text.parse().ok());
    // `child_sa_state_names` of strongSwan's `child_sa.c`.
    let state = child.text("state").unwrap_or_default();
    let spi = |name| u32::from_str_radix(child.text(name)?, 16).ok();
    Child {
        id: child.text("uniqueid").map(str::to_owned),
        spis: ["spi-in", "spi-out"].into_iter().filter_map(spi).collect(),
        rests: state == "INSTALLED",
        carries: matches!(state, "INSTALLED" | "UPDATING" | "REKEYING"),
        begins: matches!(state, "CREATED" | "INSTALLING" | "RETRYING"),
        received: number("bytes-in").unwrap_or_default(),
        sent: number("bytes-out").unwrap_or_default(),
        age: number("install-time"),
    }
}

/// What a connection's associations amount to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Tunnel {
    /// How it is.
    pub(crate) state: TunnelState,
    /// Bytes received in its present tunnels.
    pub(crate) received: u64,
    /// Bytes sent in them.
    pub(crate) sent: u64,
    /// The age in seconds of the latest key.
    pub(crate) age: Option<u64>,
}

impl Tunnel {
    /// Sums up the associations of one connection.
    pub(super) fn of<'a>(associations: impl Iterator<Item = &'a Association> + Clone) -> Self {
        let tunnels = associations.clone().flat_map(|sa| &sa.tunnels);
        let any = |which: fn(&Association) -> bool| associations.clone().any(which);
        let state = if tunnels.clone().any(|child| child.carries) {
            TunnelState::Up
        } else if any(|sa| sa.busy) || tunnels.clone().any(|child| child.begins) {
            TunnelState::Begun
        } else if any(|sa| sa.established) {
            TunnelState::Keyless
        } else {
            TunnelState::Down
        };
        let carrying = tunnels.filter(|child| child.carries);
        let sum = |of: fn(&Child) -> u64| carrying.clone().map(of).fold(0, u64::saturating_add);
        Self {
            state,
            received: sum(|child| child.received),
            sent: sum(|child| child.sent),
            age: carrying.clone().filter_map(|child| child.age).min(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One association of a connection, as `list-sa` in strongSwan's README.md of the vici plugin describes it.
    fn event(state: &str, tasks: Option<&str>, child: Option<&str>) -> Section {
        let mut sa = Section::default()
            .with("uniqueid", "5")
            .with("version", "2")
            .with("state", state)
            .with("local-host", "192.0.2.1")
            .with("remote-host", "192.0.2.7")
            .with("initiator", "yes")
            .with("established", "4");
        if let Some(task) = tasks {
            sa = sa.with_list("tasks-active", task);
        }
        let mut children = Section::default();
        if let Some(state) = child {
            let child = Section::default()
                .with("name", "10.5.1.0/24-10.5.2.0/24")
                .with("uniqueid", "7")
                .with("reqid", "11")
                .with("state", state)
                .with("mode", "TUNNEL")
                .with("protocol", "ESP")
                .with("bytes-in", "840")
                .with("bytes-out", "1680")
                .with("install-time", "4");
            children = children.with_section("10.5.1.0/24-10.5.2.0/24-7", child);
        }
        Section::default().with_section("a-b", sa.with_section("child-sas", children))
    }

    fn tunnel(events: &[Section]) -> Tunnel {
        let associations: Vec<_> = events.iter().filter_map(read).collect();
        assert_eq!(associations.len(), events.len());
        Tunnel::of(associations.iter())
    }

    #[test]
    fn the_state_follows_from_the_associations() {
        for (state, tasks, child, expected) in [
            ("ESTABLISHED", None, Some("INSTALLED"), TunnelState::Up),
            ("REKEYING", None, Some("INSTALLED"), TunnelState::Up),
            (
                "ESTABLISHED",
                Some("CHILD_REKEY"),
                Some("REKEYING"),
                TunnelState::Up,
            ),
            ("CONNECTING", Some("IKE_INIT"), None, TunnelState::Begun),
            (
                "ESTABLISHED",
                Some("CHILD_CREATE"),
                None,
                TunnelState::Begun,
            ),
            ("ESTABLISHED", None, Some("RETRYING"), TunnelState::Begun),
            ("ESTABLISHED", None, None, TunnelState::Keyless),
            // A probe for a dead peer makes no tunnel.
            ("ESTABLISHED", Some("IKE_DPD"), None, TunnelState::Keyless),
            ("ESTABLISHED", None, Some("ROUTED"), TunnelState::Keyless),
            ("ESTABLISHED", None, Some("DELETING"), TunnelState::Keyless),
            ("DELETING", Some("IKE_DELETE"), None, TunnelState::Down),
        ] {
            let found = tunnel(&[event(state, tasks, child)]);
            assert_eq!(found.state, expected, "{state} {tasks:?} {child:?}");
        }
        assert_eq!(tunnel(&[]), Tunnel::default());
    }

    /// What charon 5.9.8 answers on a kernel without ESP, by `swanctl --list-sas --raw`.
    #[test]
    fn an_answer_of_charons_is_read() {
        let values = [
            ("uniqueid", "1"),
            ("version", "2"),
            ("state", "ESTABLISHED"),
            ("local-host", "10.77.0.11"),
            ("local-port", "4500"),
            ("local-id", "10.77.0.11"),
            ("remote-host", "10.77.0.12"),
            ("remote-port", "4500"),
            ("remote-id", "10.77.0.12"),
            ("initiator", "yes"),
            ("initiator-spi", "c97ebd964c1dc34c"),
            ("responder-spi", "6e2900fe7c902565"),
            ("encr-alg", "AES_CBC"),
            ("encr-keysize", "256"),
            ("integ-alg", "HMAC_SHA2_256_128"),
            ("prf-alg", "PRF_HMAC_SHA2_256"),
            ("dh-group", "MODP_4096"),
            ("established", "0"),
            ("rekey-time", "13012"),
        ];
        let sa = values
            .into_iter()
            .fold(Section::default(), |sa, (key, value)| sa.with(key, value));
        let sa = sa.with_section("child-sas", Section::default());
        let name = "10.77.0.11-10.5.1.0/24-10.5.2.0/24-10.77.0.12";
        let event = Section::default().with_section(name, sa);
        let association = read(&event).unwrap();
        assert_eq!((&*association.connection, &*association.id), (name, "1"));
        assert_eq!(tunnel(&[event]).state, TunnelState::Keyless);
    }

    #[test]
    fn of_several_associations_the_best_counts_and_bytes_add_up() {
        let up = event("ESTABLISHED", None, Some("INSTALLED"));
        let broken = event("ESTABLISHED", None, None);
        let both = tunnel(&[broken, up.clone(), up]);
        let expected = Tunnel {
            state: TunnelState::Up,
            received: 1680,
            sent: 3360,
            age: Some(4),
        };
        assert_eq!(both, expected);
    }

    #[test]
    fn an_event_of_another_form_is_no_association() {
        let nameless = Section::default().with("uniqueid", "5");
        let numberless = Section::default().with_section("a-b", Section::default());
        for event in [Section::default(), nameless, numberless] {
            assert_eq!(read(&event), None);
        }
    }
}

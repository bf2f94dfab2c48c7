//! Why the overlay is not ready: a code for programs, the object, and a sentence for people.

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::device::kind;
use crate::base::codes::codes;
use crate::base::logging::chain;
use crate::cloud::error::CloudError;
use crate::cloud::pass::Problem;
use crate::cluster::lease::{Fault, StoreError, StoreErrorKind, StoreTrouble};
use crate::host::ike::ViciError;
use crate::host::netlink::{ChangeError, Failure, KernelError};
use crate::host::open::OpenError;
use crate::host::{firewall, privileges, subnet_file, underlay};
use crate::plan::backend::{BackendConfigError, Unfit};
use crate::plan::state::{Change, Key, Object};

codes! {
    /// What is wrong; the texts are part of the status.
    pub enum Code {
        /// The agent was started just now.
        Starting = "starting",
        /// Nobody wrote a network config.
        NoNetworkConfig = "no-network-config",
        /// The network config cannot be used.
        BadNetworkConfig = "bad-network-config",
        /// The network config changed while the agent joined.
        NetworkConfigChanged = "network-config-changed",
        /// The network config has no room for this node's subnet.
        SubnetOutsideNetwork = "subnet-outside-network",
        /// No server of the lease store answers.
        StoreUnreachable = "store-unreachable",
        /// A server's certificate, or ours, is not accepted.
        StoreTls = "store-tls",
        /// The store does not accept the user, or the user may not do what is needed.
        StoreLogin = "store-login",
        /// The store refuses a request for another reason.
        StoreRefused = "store-refused",
        /// Every subnet of the network is leased.
        OutOfSubnets = "out-of-subnets",
        /// Other nodes were faster, every time.
        LostRaces = "lost-races",
        /// The lease is gone, or another node's.
        LeaseLost = "lease-lost",
        /// The Kubernetes cluster does not know this node.
        NoNode = "no-node",
        /// Kubernetes has given this node no subnet.
        NoPodCidr = "no-pod-cidr",
        /// The lease cannot be written as JSON.
        LeaseNotEncoded = "lease-not-encoded",
        /// No interface or address to send from.
        NoUnderlay = "no-underlay",
        /// A capability is missing, or cannot be given up.
        Privileges = "privileges",
        /// Another agent on this host has the network or the device.
        OtherAgent = "other-agent",
        /// The backend does not work behind a NAT.
        BehindNat = "behind-nat",
        /// The underlay's MTU is too small for IPv6.
        UnderlayMtu = "underlay-mtu",
        /// A command of the extension backend failed.
        BackendCommand = "backend-command",
        /// The MAC address or private key cannot be read or kept.
        BackendIdentity = "backend-identity",
        /// The kernel cannot be asked.
        Netlink = "netlink",
        /// `subnet.env` cannot be written.
        SubnetFile = "subnet-file",
        /// The firewall's rules cannot be put in place.
        Firewall = "firewall",
        /// The cloud provider does not answer, or has a fault of its own.
        CloudUnreachable = "cloud-unreachable",
        /// The cloud provider asks to slow down.
        CloudThrottled = "cloud-throttled",
        /// The role of this instance lacks a permission.
        CloudDenied = "cloud-denied",
        /// There are no credentials for the cloud provider, or it does not accept them.
        CloudCredentials = "cloud-credentials",
        /// A route table is full.
        CloudQuota = "cloud-quota",
        /// Somebody else's route leads this node's subnet elsewhere.
        CloudRouteHeld = "cloud-route-held",
        /// The cloud provider drops packets that this instance forwards.
        CloudForwarding = "cloud-forwarding",
        /// The instance, its network or a route table is not as the backend needs it.
        CloudSetup = "cloud-setup",
        /// The cloud provider refuses for another reason.
        CloudRefused = "cloud-refused",
        /// Docker's containers are not on this node's subnet.
        DockerSubnet = "docker-subnet",
        /// Another program's route is in the way.
        KernelConflict = "kernel-conflict",
        /// Another object has the name, VNI or end points.
        KernelExists = "kernel-exists",
        /// The UDP port is in use.
        KernelPort = "kernel-port",
        /// A table of the kernel is full.
        KernelFull = "kernel-full",
        /// The kernel does not know such devices.
        KernelNoModule = "kernel-no-module",
        /// The agent may not change the host's network.
        KernelNoPrivileges = "kernel-no-privileges",
        /// There is no way to the gateway.
        KernelNoPath = "kernel-no-path",
        /// The device is gone.
        KernelNoDevice = "kernel-no-device",
        /// What the object depends on could not be made.
        KernelDependency = "kernel-dependency",
        /// Another agent on this host has the device.
        KernelOtherAgent = "kernel-other-agent",
        /// A command for a peer failed.
        KernelCommand = "kernel-command",
        /// Any other refusal.
        KernelRefused = "kernel-refused",
        /// The IKE daemon does not answer, or refuses what it is told.
        IkeDaemon = "ike-daemon",
        /// No agent answers.
        NoAgent = "no-agent",
        /// A process holds the agent's lock, but does not answer.
        AgentSilent = "agent-silent",
        /// An overlay device is gone.
        DeviceMissing = "device-missing",
        /// Something cannot be seen from here.
        NotVisible = "not-visible",
    }
}

impl Code {
    /// Whether it is a failed kernel change or command.
    pub fn is_kernel_change(self) -> bool {
        matches!(
            self,
            Self::KernelConflict
                | Self::KernelExists
                | Self::KernelPort
                | Self::KernelFull
                | Self::KernelNoModule
                | Self::KernelNoPrivileges
                | Self::KernelNoPath
                | Self::KernelNoDevice
                | Self::KernelDependency
                | Self::KernelOtherAgent
                | Self::KernelCommand
                | Self::KernelRefused
        )
    }
}

codes! {
    /// What the agent does over and over; the texts are labels of metrics, too.
    pub enum TaskName {
        /// To become one of the overlay's nodes.
        Joining = "joining",
        /// To follow the lease store.
        Store = "store",
        /// To program the kernel.
        Program = "program",
        /// To keep the firewall's rules.
        Firewall = "firewall",
        /// To keep the cloud provider's routes.
        CloudRoutes = "cloud-routes",
        /// To write `subnet.env`.
        SubnetFile = "subnet-file",
        /// To take a lease again.
        Lease = "lease",
        /// To extend the lease.
        Renewal = "renewal",
        /// To follow the underlay.
        Underlay = "underlay",
        /// To follow the network config.
        Config = "config",
        /// To publish the own address and identity.
        Publish = "publish",
        /// To make another MAC address or key.
        Identity = "identity",
        /// To have keys of IPsec negotiated.
        Ike = "ike",
        /// To have Docker on the own subnet.
        Docker = "docker",
    }
}

/// One fault, or one thing that is waited for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cause {
    /// The task that it blocks; `None` if no agent runs.
    pub task: Option<TaskName>,
    /// What is wrong.
    pub code: Code,
    /// Its object: a key, server, file, interface or kernel object; `None` if it concerns the node as a whole.
    pub object: Option<String>,
    /// More data to act on it: the conflicting route, the missing module.
    pub detail: Option<String>,
    /// The sentence.
    pub text: String,
}

impl Cause {
    /// A cause that concerns the node as a whole.
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self {
            task: None,
            code,
            object: None,
            detail: None,
            text: text.into(),
        }
    }

    /// Sets the object.
    pub(crate) fn about(self, object: impl ToString) -> Self {
        Self {
            object: Some(object.to_string()),
            ..self
        }
    }

    /// Sets the blocked task.
    pub(crate) fn of(self, task: TaskName) -> Self {
        Self {
            task: Some(task),
            ..self
        }
    }

    /// Changes the text.
    pub(crate) fn worded(self, text: impl FnOnce(String) -> String) -> Self {
        Self {
            text: text(self.text),
            ..self
        }
    }
}

/// An error that has a code.
pub(crate) trait Coded: std::error::Error + Sized + 'static {
    /// The code.
    fn code(&self) -> Code;

    /// What it is about.
    fn object(&self) -> Option<String> {
        None
    }

    /// What else a program needs to act on it.
    fn detail(&self) -> Option<String> {
        None
    }

    /// The cause, with the error's whole text.
    fn to_cause(&self) -> Cause {
        Cause {
            task: None,
            code: self.code(),
            object: self.object(),
            detail: self.detail(),
            text: chain(self),
        }
    }
}

fn store(kind: StoreErrorKind, fault: Fault) -> Code {
    match (kind, fault) {
        (StoreErrorKind::Unreachable | StoreErrorKind::Refused, Fault::Tls) => Code::StoreTls,
        (StoreErrorKind::Unreachable | StoreErrorKind::Refused, Fault::Login) => Code::StoreLogin,
        (StoreErrorKind::Unreachable, Fault::Other) => Code::StoreUnreachable,
        (StoreErrorKind::Refused, Fault::Other) => Code::StoreRefused,
        (StoreErrorKind::NoNetworkConfig, _) => Code::NoNetworkConfig,
        (StoreErrorKind::BadNetworkConfig, _) => Code::BadNetworkConfig,
        (StoreErrorKind::OutOfSubnets, _) => Code::OutOfSubnets,
        (StoreErrorKind::LostRaces, _) => Code::LostRaces,
        (StoreErrorKind::NoLease, _) => Code::LeaseLost,
        (StoreErrorKind::ConfigChanged, _) => Code::NetworkConfigChanged,
        (StoreErrorKind::Encode, _) => Code::LeaseNotEncoded,
        (StoreErrorKind::NoNode, _) => Code::NoNode,
        (StoreErrorKind::NoPodCidr, _) => Code::NoPodCidr,
        (StoreErrorKind::BadPodCidr, _) => Code::SubnetOutsideNetwork,
        (StoreErrorKind::Unknown, _) => Code::Unknown,
    }
}

impl Coded for StoreError {
    fn code(&self) -> Code {
        store(self.kind(), self.fault())
    }

    fn object(&self) -> Option<String> {
        self.object()
    }
}

impl Coded for StoreTrouble {
    fn code(&self) -> Code {
        store(self.kind, self.fault)
    }

    fn object(&self) -> Option<String> {
        self.object.clone()
    }
}

impl Coded for KernelError {
    fn code(&self) -> Code {
        Code::Netlink
    }
}

impl Coded for underlay::Error {
    fn code(&self) -> Code {
        match self {
            Self::Kernel(_) => Code::Netlink,
            Self::Incomplete | Self::NotFound { .. } => Code::NoUnderlay,
        }
    }
}

impl Coded for BackendConfigError {
    fn code(&self) -> Code {
        Code::BadNetworkConfig
    }
}

impl Coded for OpenError {
    fn code(&self) -> Code {
        match self {
            Self::Claim(_) => Code::OtherAgent,
            Self::Kernel(_) => Code::Netlink,
            Self::Unfit(Unfit::Nat { .. }) => Code::BehindNat,
            Self::Unfit(Unfit::Narrow { .. }) => Code::UnderlayMtu,
            Self::Command { .. } => Code::BackendCommand,
            Self::Identity(_) => Code::BackendIdentity,
        }
    }

    fn object(&self) -> Option<String> {
        match self {
            Self::Unfit(Unfit::Nat { address, .. }) => Some(address.to_string()),
            Self::Unfit(Unfit::Narrow { interface, .. }) => Some(interface.to_string()),
            Self::Command { key, .. } => Some((*key).to_owned()),
            _ => None,
        }
    }
}

impl Coded for privileges::Error {
    fn code(&self) -> Code {
        Code::Privileges
    }

    fn object(&self) -> Option<String> {
        match self {
            Self::Missing(capability) => Some(capability.to_string()),
            Self::Refused { .. } => None,
        }
    }
}

impl Coded for subnet_file::Error {
    fn code(&self) -> Code {
        Code::SubnetFile
    }

    fn object(&self) -> Option<String> {
        Some(self.path.display().to_string())
    }
}

impl Coded for Problem {
    fn code(&self) -> Code {
        match self {
            Self::Held { .. } => Code::CloudRouteHeld,
            Self::Forwarding { .. } => Code::CloudForwarding,
            Self::Call { error, .. } => match error {
                CloudError::Unreachable { .. } | CloudError::Unavailable { .. } => {
                    Code::CloudUnreachable
                }
                CloudError::Throttled { .. } => Code::CloudThrottled,
                CloudError::Denied { .. } => Code::CloudDenied,
                CloudError::Credentials { .. } => Code::CloudCredentials,
                CloudError::Quota { .. } => Code::CloudQuota,
                CloudError::NotFound { .. } | CloudError::Unfit(_) => Code::CloudSetup,
                CloudError::NotYet { .. }
                | CloudError::Exists { .. }
                | CloudError::Malformed { .. }
                | CloudError::Refused { .. } => Code::CloudRefused,
            },
        }
    }

    fn object(&self) -> Option<String> {
        match self {
            Self::Held { table, .. } => Some(table.clone()),
            Self::Call { table, .. } => table.clone(),
            Self::Forwarding { .. } => None,
        }
    }

    fn detail(&self) -> Option<String> {
        match self {
            Self::Held { command, .. } | Self::Forwarding { command, .. } => Some(command.clone()),
            Self::Call { error, .. } => match error {
                CloudError::Denied { permission, .. } => Some((*permission).to_owned()),
                CloudError::Quota { quota, .. } => Some((*quota).to_owned()),
                _ => None,
            },
        }
    }
}

impl Coded for firewall::Error {
    fn code(&self) -> Code {
        Code::Firewall
    }
}

impl Coded for ViciError {
    fn code(&self) -> Code {
        Code::IkeDaemon
    }

    fn object(&self) -> Option<String> {
        match self {
            Self::Connect { path, .. } => Some(path.display().to_string()),
            Self::Refused { connection, .. } => Some(connection.clone()),
            _ => None,
        }
    }
}

impl Coded for Failure {
    fn code(&self) -> Code {
        match &self.error {
            ChangeError::Conflict { .. } => Code::KernelConflict,
            ChangeError::NoDevice(_) => Code::KernelNoDevice,
            ChangeError::Dependency => Code::KernelDependency,
            ChangeError::Claimed(_) => Code::KernelOtherAgent,
            ChangeError::Command(_) => Code::KernelCommand,
            ChangeError::Refused(refused) => refusal(refused.errno, &self.change),
            ChangeError::DataPlane { errno, .. } => {
                errno.map_or(Code::KernelRefused, |errno| refusal(errno, &self.change))
            }
        }
    }

    fn object(&self) -> Option<String> {
        Some(self.change.key().to_string())
    }

    fn detail(&self) -> Option<String> {
        match &self.error {
            ChangeError::Conflict { existing } => Some(existing.clone()),
            ChangeError::NoDevice(device) | ChangeError::Claimed(device) => {
                Some(device.to_string())
            }
            _ if self.code() == Code::KernelNoModule => module(&self.change).map(str::to_owned),
            _ => None,
        }
    }
}

/// The code for an error number of a change.
fn refusal(errno: Errno, change: &Change) -> Code {
    match (errno, change.key()) {
        // rtnl_newlink() of net/core/rtnetlink.c returns EOPNOTSUPP for a link kind without a module.
        (Errno::EOPNOTSUPP | Errno::ENOPROTOOPT | Errno::ENOENT, Key::Link(_))
            if module(change).is_some() =>
        {
            Code::KernelNoModule
        }
        (Errno::EPROTONOSUPPORT, Key::Policy(..)) => Code::KernelNoModule,
        (Errno::EPERM | Errno::EACCES, _) => Code::KernelNoPrivileges,
        (Errno::EEXIST, _) => Code::KernelExists,
        (Errno::EADDRINUSE, _) => Code::KernelPort,
        (Errno::ENOBUFS | Errno::ENOMEM | Errno::ENOSPC, _) => Code::KernelFull,
        (
            Errno::EINVAL | Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::ENETDOWN,
            Key::NextHop(..) | Key::Route(_) | Key::Blackhole(_),
        ) => Code::KernelNoPath,
        (Errno::ENODEV | Errno::ENXIO, _) => Code::KernelNoDevice,
        _ => Code::KernelRefused,
    }
}

/// The kernel module of a device or policy.
fn module(change: &Change) -> Option<&'static str> {
    match change {
        Change::Set {
            object: Object::Link(link),
            ..
        } => Some(kind(&link.kind)),
        Change::Set {
            object: Object::Policy(_),
            ..
        } => Some("xfrm_user"),
        Change::Set { .. } | Change::Del { .. } => None,
    }
}

//! The QEMU command line of one machine. Pure; every unusual option has its reason beside it.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{accel::Accelerator, architecture::Architecture, serve};

/// What starts the kernel of a machine.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(crate) enum Boot {
    /// QEMU itself.
    Direct {
        /// The kernel.
        kernel: PathBuf,
        /// Its initrd.
        initrd: PathBuf,
        /// Its whole command line.
        append: String,
    },
    /// Firmware, and the boot loader on the disk.
    Firmware {
        /// The machine's own copy of the firmware's variables.
        variables: PathBuf,
        /// Added to the command line in the UKI.
        append: String,
        /// Whether the firmware can do Secure Boot. It then keeps its variables where only it can write.
        secure_boot: bool,
    },
}

/// UEFI firmware with Secure Boot, of the one architecture that it is tested on; the distribution's package `ovmf`.
const SECURE_FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd";

/// A user-mode network that has the address of metadata services in it: QEMU takes no other for `guestfwd`. The machine gets
/// the first of the DHCP server's addresses.
const CLOUD_NETWORK: &str = ",net=168.0.0.0/5,host=172.16.0.2,dns=172.16.0.3,dhcpstart=172.16.0.15";

/// What a machine is made of.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct Spec {
    /// Name shown by tools such as ps.
    pub name: String,
    /// What it is.
    pub architecture: Architecture,
    /// Disk overlay, qcow2.
    pub disk: PathBuf,
    /// File that gets every write to the disk, which must be there and empty; see [`crate::write_log`].
    pub write_log: Option<PathBuf>,
    /// What starts the kernel.
    pub boot: Boot,
    /// Ignition configuration, given by fw_cfg; none: the blob is absent.
    pub ignition: Option<PathBuf>,
    /// A network for the machine, given by fw_cfg; none: the blob is absent.
    #[serde(default)]
    pub network: Option<PathBuf>,
    /// File that receives the serial console, appended to.
    pub console: PathBuf,
    /// Monitor socket.
    pub qmp: PathBuf,
    /// Port of 127.0.0.1 that leads to the guest's port 22.
    pub ssh_port: u16,
    /// Whether there is a card on QEMU's user-mode network, without which nobody can log in.
    pub access: bool,
    /// Socket of the port on the virtual switch, and the address of the NIC on it.
    pub underlay: Option<(PathBuf, String)>,
    /// Command that answers a connection of the guest to [`serve::ADDRESS`]; none: nothing is there.
    pub served: Option<String>,
    /// What else answers the guest, each as an option of the user-mode network: see [`crate::relay::option`] and
    /// [`serve::option`].
    pub relays: Vec<String>,
    /// Further disks, raw and empty.
    pub spare_disks: Vec<PathBuf>,
    /// What is in the CD drive; none: there is no such drive.
    #[serde(default)]
    pub cd: Option<PathBuf>,
    /// Number of virtual processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Whether the guest may reach the world outside through the host.
    pub internet: bool,
    /// Whether a reset of the guest ends QEMU, rather than boot again.
    pub exit_on_reset: bool,
    /// Whether there is a hardware watchdog, which resets the machine.
    pub watchdog: bool,
    /// Whether the disk is a SATA one, as VirtualBox has it and many hosts.
    #[serde(default)]
    pub sata: bool,
    /// What SMBIOS says, each as for QEMU's `-smbios`.
    #[serde(default)]
    pub smbios: Vec<String>,
    /// Whether [`serve::METADATA_ADDRESS`] is on the user-mode network, in place of [`serve::ADDRESS`].
    #[serde(default)]
    pub cloud: bool,
    /// Control socket of the TPM that [`tpm`] starts; none: there is no TPM.
    pub tpm: Option<PathBuf>,
}

/// The part that depends on architecture and accelerator alone.
pub(crate) fn base(architecture: Architecture, accelerator: Accelerator) -> Command {
    let mut command = Command::new(architecture.program());
    command.args([
        "-no-user-config",
        "-nodefaults",
        "-display",
        "none",
        "-machine",
        architecture.machine(),
    ]);
    match accelerator {
        Accelerator::Kvm => command.args(["-accel", "kvm", "-cpu", "host"]),
        Accelerator::Tcg => command.args([
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            architecture.processor(),
        ]),
    };
    command
}

/// The whole command line of a machine.
pub(crate) fn command(spec: &Spec, accelerator: Accelerator) -> Command {
    let mut command = base(spec.architecture, accelerator);
    command
        .args(["-name", &spec.name])
        .args(["-smp", &spec.cpus.to_string()])
        .args(["-m", &spec.memory_mib.to_string()]);
    for smbios in &spec.smbios {
        command.args(["-smbios", smbios]);
    }
    boot(&mut command, spec.architecture, &spec.boot);
    boot_and_disk(&mut command, spec);
    network(&mut command, spec);
    command
        .args([
            "-chardev",
            &format!("file,id=console,append=on,path={}", escape(&spec.console)),
        ])
        .args(["-serial", "chardev:console"])
        .args([
            "-qmp",
            &format!("unix:{},server=on,wait=off", escape(&spec.qmp)),
        ])
        // Without a source of entropy the first boot waits for its host keys.
        .args([
            "-object",
            "rng-random,id=rng,filename=/dev/urandom",
            "-device",
            "virtio-rng-pci,rng=rng",
        ]);
    command
}

/// The program that is a machine's TPM 2.0, new each time; its state lies beside the machine's disk.
pub(crate) fn tpm(spec: &Spec, socket: &Path) -> Command {
    let mut command = Command::new("swtpm");
    command
        .args(["socket", "--tpm2", "--tpmstate"])
        .arg(format!("dir={}", spec.disk.with_file_name("").display()))
        .arg("--ctrl")
        .arg(format!("type=unixio,path={}", socket.display()));
    command
}

fn boot(command: &mut Command, architecture: Architecture, boot: &Boot) {
    match boot {
        Boot::Direct {
            kernel,
            initrd,
            append,
        } => command
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initrd)
            .args(["-append", append]),
        Boot::Firmware {
            variables,
            append,
            secure_boot,
        } => firmware(command, architecture, *secure_boot)
            .args([
                "-drive",
                &format!("if=pflash,unit=1,format=raw,file={}", escape(variables)),
            ])
            // systemd-stub(7).
            .args([
                "-smbios",
                &format!(
                    "type=11,value=io.systemd.stub.kernel-cmdline-extra={}",
                    append.replace(',', ",,")
                ),
            ]),
    };
}

fn firmware(command: &mut Command, architecture: Architecture, secure_boot: bool) -> &mut Command {
    let program = if secure_boot {
        // Only code in system management mode may write the variables (OvmfPkg/README, SMM support).
        command.args([
            "-machine",
            "smm=on",
            "-global",
            "driver=cfi.pflash01,property=secure,value=on",
            "-global",
            "ICH9-LPC.disable_s3=1",
        ]);
        SECURE_FIRMWARE
    } else {
        architecture.firmware()
    };
    command.args([
        "-drive",
        &format!("if=pflash,unit=0,format=raw,readonly=on,file={program}"),
    ])
}

fn boot_and_disk(command: &mut Command, spec: &Spec) {
    if spec.exit_on_reset {
        command.arg("-no-reboot");
    }
    if spec.watchdog {
        // A card, not the chipset's own: the kernel for clouds has its driver.
        command.args(["-device", "i6300esb", "-action", "watchdog=reset"]);
    }
    if let Some(socket) = &spec.tpm {
        command.args([
            "-chardev",
            &format!("socket,id=tpm,path={}", escape(socket)),
            "-tpmdev",
            "emulator,id=tpm,chardev=tpm",
            "-device",
            "tpm-crb,tpmdev=tpm",
        ]);
    }
    for (name, file) in [
        ("opt/com.coreos/config", &spec.ignition),
        ("opt/selvage/network", &spec.network),
    ] {
        if let Some(file) = file {
            command.args(["-fw_cfg", &format!("name={name},file={}", escape(file))]);
        }
    }
    let device = if spec.sata {
        "ide-hd,bus=ide.0,drive=disk,bootindex=1"
    } else {
        "virtio-blk-pci,drive=disk,bootindex=1"
    };
    command
        .args(disk(spec))
        // Firmware would look into the network first. Not 0: that is QEMU's own for a kernel that it loads itself.
        .args(["-device", device]);
    drives(command, spec);
}

/// What is there beside the disk.
fn drives(command: &mut Command, spec: &Spec) {
    for (index, spare) in spec.spare_disks.iter().enumerate() {
        // Found by its serial number, /dev/disk/by-id/virtio-spare and virtio-spare1 and so on, whatever the kernel calls it.
        let number = if index == 0 {
            String::new()
        } else {
            index.to_string()
        };
        command
            .args([
                "-drive",
                &format!(
                    "if=none,id=spare{number},format=raw,cache=unsafe,file={}",
                    escape(spare)
                ),
            ])
            .args([
                "-device",
                &format!("virtio-blk-pci,drive=spare{number},serial=spare{number}"),
            ]);
    }
    if let Some(cd) = &spec.cd {
        let file = escape(cd);
        let drive = format!("if=none,id=cd,format=raw,media=cdrom,readonly=on,file={file}");
        // On the chipset's SATA, which `q35` has, beside a disk there.
        command
            .args(["-drive", &drive])
            .args(["-device", "ide-cd,bus=ide.1,drive=cd"]);
    }
}

/// A machine's disk need not survive the host's power cut: flushes, dear on a slow host, are not passed on.
fn disk(spec: &Spec) -> [String; 2] {
    let file = escape(&spec.disk);
    let Some(log) = &spec.write_log else {
        let drive = format!("if=none,id=disk,format=qcow2,cache=unsafe,file={file}");
        return ["-drive".to_owned(), drive];
    };
    // Flushes are to get into the log, so it is below it that they end. Discards count as well.
    let node = format!(
        "driver=blklogwrites,node-name=disk,discard=unmap,file.driver=qcow2,file.discard=unmap,file.cache.no-flush=on,\
         file.file.driver=file,file.file.filename={file},log.driver=file,log.cache.no-flush=on,log.filename={}",
        escape(log)
    );
    ["-blockdev".to_owned(), node]
}

fn network(command: &mut Command, spec: &Spec) {
    let restrict = if spec.internet { "off" } else { "on" };
    let mut access = format!(
        "user,id=access,restrict={restrict},hostfwd=tcp:127.0.0.1:{}-:22",
        spec.ssh_port
    );
    if spec.cloud {
        access += CLOUD_NETWORK;
    }
    if let Some(answer) = &spec.served {
        let address = match spec.cloud {
            true => serve::METADATA_ADDRESS,
            false => serve::ADDRESS,
        };
        access += &format!(",{}", serve::option(address, answer));
    }
    for relay in &spec.relays {
        access += &format!(",{relay}");
    }
    if spec.access {
        command
            .args(["-netdev", &access])
            .args(["-device", "virtio-net-pci,netdev=access,romfile="]);
    }
    if let Some((socket, mac)) = &spec.underlay {
        command
            .args([
                "-netdev",
                &format!(
                    "stream,id=underlay,addr.type=unix,addr.path={}",
                    escape(socket)
                ),
            ])
            // romfile=: nothing boots over the network, so the firmware need not load a boot ROM.
            .args([
                "-device",
                &format!("virtio-net-pci,netdev=underlay,mac={mac},romfile="),
            ]);
    }
}

/// QEMU splits options at commas; a comma in a value is doubled.
fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn spec() -> Spec {
        Spec {
            name: "node1".into(),
            architecture: Architecture::X86_64,
            disk: "/d,1/disk.qcow2".into(),
            write_log: None,
            boot: Boot::Direct {
                kernel: "/i/k".into(),
                initrd: "/i/r".into(),
                append: "console=ttyS0 quiet".into(),
            },
            ignition: Some("/d/node1.ign".into()),
            network: None,
            console: "/d/console".into(),
            qmp: "/run/q".into(),
            ssh_port: 2201,
            access: true,
            underlay: Some(("/run/p0".into(), "52:54:00:77:00:0b".into())),
            served: None,
            relays: Vec::new(),
            spare_disks: Vec::new(),
            cd: None,
            cpus: 1,
            memory_mib: 1024,
            internet: false,
            exit_on_reset: false,
            watchdog: false,
            sata: false,
            smbios: Vec::new(),
            cloud: false,
            tpm: None,
        }
    }

    fn line(spec: &Spec) -> String {
        let command = command(spec, Accelerator::Tcg);
        command
            .get_args()
            .map(|arg| arg.to_str().unwrap())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn ssh_is_reachable_from_loopback_only() {
        assert!(line(&spec()).contains("hostfwd=tcp:127.0.0.1:2201-:22"));
    }

    #[test]
    fn access_nic_comes_before_the_underlay() {
        let line = line(&spec());
        assert!(
            line.find("netdev=access,romfile").unwrap() < line.find("netdev=underlay,mac").unwrap()
        );
    }

    #[test]
    fn commas_in_paths_do_not_become_options() {
        assert!(line(&spec()).contains("file=/d,,1/disk.qcow2"));
    }

    #[test]
    fn a_machine_without_config_or_underlay_has_neither() {
        let line = line(&Spec {
            ignition: None,
            underlay: None,
            ..spec()
        });
        assert!(!line.contains("fw_cfg") && !line.contains("stream"));
    }

    #[test]
    fn a_network_is_given_beside_the_config() {
        let line = line(&Spec {
            network: Some("/d,1/network".into()),
            ..spec()
        });
        assert!(line.contains("-fw_cfg name=opt/com.coreos/config,file=/d/node1.ign "));
        assert!(line.contains("-fw_cfg name=opt/selvage/network,file=/d,,1/network "));
    }

    #[test]
    fn what_is_served_and_spare_disks_are_there_only_when_asked_for() {
        let plain = line(&spec());
        assert!(!plain.contains("guestfwd") && !plain.contains("spare"));
        let line = line(&Spec {
            served: Some("'/b/h' serve '/d,1/served'".into()),
            relays: vec!["guestfwd=tcp:10.0.2.4:1-cmd:x".into()],
            spare_disks: vec!["/d/a.raw".into(), "/d/b.raw".into()],
            tpm: Some("/s/tpm".into()),
            ..spec()
        });
        assert!(line.contains(
            ",guestfwd=tcp:10.0.2.4:80-cmd:'/b/h' serve '/d,,1/served',guestfwd=tcp:10.0.2.4:1-cmd:x "
        ));
        assert!(line.contains("id=spare,format=raw,cache=unsafe,file=/d/a.raw"));
        assert!(line.contains("id=spare1,format=raw,cache=unsafe,file=/d/b.raw"));
        assert!(line.contains("drive=spare1,serial=spare1"));
        assert!(line.contains("socket,id=tpm,path=/s/tpm") && !plain.contains("tpm"));
    }

    #[test]
    fn a_cloud_has_its_service_at_the_usual_address() {
        let line = line(&Spec {
            served: Some("x".into()),
            smbios: vec!["type=1,manufacturer=Hetzner".into()],
            cloud: true,
            ..spec()
        });
        assert!(
            line.contains(" -smbios type=1,manufacturer=Hetzner "),
            "{line}"
        );
        assert!(
            line.contains(",dhcpstart=172.16.0.15,guestfwd=tcp:169.254.169.254:80-cmd:x "),
            "{line}"
        );
    }

    #[test]
    fn a_logged_disk_passes_flushes_to_the_log_alone() {
        let logged = line(&Spec {
            write_log: Some("/d,1/log".into()),
            ..spec()
        });
        assert!(logged.contains("-blockdev driver=blklogwrites,node-name=disk,"));
        assert!(logged.contains(",file.file.filename=/d,,1/disk.qcow2,"));
        assert!(logged.contains(",log.filename=/d,,1/log -device virtio-blk-pci,drive=disk,"));
        assert!(!logged.contains("id=disk,") && !line(&spec()).contains("blklogwrites"));
    }

    #[test]
    fn a_machine_without_access_has_the_underlay_alone() {
        let line = line(&Spec {
            access: false,
            ..spec()
        });
        assert!(!line.contains("user,") && line.contains("netdev=underlay,mac"));
    }

    #[test]
    fn firmware_finds_the_kernel_by_itself() {
        let line = line(&Spec {
            boot: Boot::Firmware {
                variables: "/d,1/vars".into(),
                append: "console=ttyS0 a,b".into(),
                secure_boot: false,
            },
            ..spec()
        });
        assert!(!line.contains("-kernel") && !line.contains("-append"));
        assert!(!line.contains("secure"));
        assert!(line.contains("unit=1,format=raw,file=/d,,1/vars"));
        assert!(line.contains("kernel-cmdline-extra=console=ttyS0 a,,b"));
    }

    #[test]
    fn a_disk_is_one_of_virtio_unless_it_is_to_be_one_of_sata() {
        assert!(line(&spec()).contains("virtio-blk-pci,drive=disk"));
        let sata = line(&Spec {
            sata: true,
            ..spec()
        });
        assert!(sata.contains("-device ide-hd,bus=ide.0,drive=disk,bootindex=1"));
        assert!(!sata.contains("virtio-blk-pci"));
    }

    #[test]
    fn a_cd_is_read_only_and_not_in_the_place_of_a_disk() {
        assert!(!line(&spec()).contains("cdrom"));
        let line = line(&Spec {
            sata: true,
            cd: Some("/d,1/drive.raw".into()),
            ..spec()
        });
        assert!(
            line.contains("media=cdrom,readonly=on,file=/d,,1/drive.raw -device ide-cd,bus=ide.1,")
        );
    }

    #[test]
    fn a_watchdog_is_there_only_when_asked_for() {
        assert!(!line(&spec()).contains("watchdog"));
        let line = line(&Spec {
            watchdog: true,
            ..spec()
        });
        assert!(line.contains("-device i6300esb -action watchdog=reset"));
    }

    #[test]
    fn variables_of_secure_boot_are_the_firmwares_alone() {
        let line = line(&Spec {
            boot: Boot::Firmware {
                variables: "/d/vars".into(),
                append: String::new(),
                secure_boot: true,
            },
            ..spec()
        });
        for option in ["smm=on", "property=secure,value=on", "CODE_4M.secboot.fd"] {
            assert!(line.contains(option), "{option}: {line}");
        }
    }

    #[test]
    fn only_machines_told_so_end_at_a_reset() {
        assert!(!line(&spec()).contains("-no-reboot"));
        assert!(
            line(&Spec {
                exit_on_reset: true,
                ..spec()
            })
            .contains("-no-reboot")
        );
    }
}

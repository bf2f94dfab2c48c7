//! `selvage`: the overlay network agent, and what it is called when it stands in for flannel's programs.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use selvage::agent;
use selvage::appliance::docker_networks;
use selvage::appliance::fleet::{Fleet, Member};
use selvage::appliance::ignition;
use selvage::appliance::image_file;
use selvage::appliance::sysroot;
use selvage::appliance::update::slots;
use selvage::appliance::update::state::{DIRECTORY, Health};
use selvage::appliance::update::version::Version;
use selvage::base::lock::Lock;
use selvage::base::logging;
use selvage::base::machine_id;
use selvage::base::network_name::NetworkName;
use selvage::base::service;
use selvage::cluster::lease::SettingsError;
use selvage::cluster::lease::etcd::EtcdStore;
use selvage::cluster::serve;
use selvage::command::boot_check;
use selvage::command::cleanup;
use selvage::command::cli::{
    Cli, Command, FleetCommand, IgnitionCommand, ImageCommand, NetworkCommand,
};
use selvage::command::cni;
use selvage::command::doctor;
use selvage::command::fleet;
use selvage::command::leave;
use selvage::command::manual;
use selvage::command::metadata;
use selvage::command::migrate;
use selvage::command::network::{self, NetworkCommandError};
use selvage::command::options::{self, OptionsCommand};
use selvage::command::peers;
use selvage::command::reset;
use selvage::command::status;
use selvage::command::sysext;
use selvage::command::update;
use selvage::flannel::cni as plugin;
use selvage::flannel::docker_opts;
use selvage::flannel::flanneld;
use selvage::flannel::install;
use selvage::host::claim::Claims;
use selvage::host::privileges::Privileges;
use selvage::settings::{self, Environment, Settings, SettingsFlags, Sources};

/// What we are is said by the name that we are called by.
fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let called = arguments.next().unwrap_or_default();
    let name = Path::new(&called)
        .file_name()
        .and_then(|name| name.to_str());
    let arguments: Vec<OsString> = arguments.collect();
    match name {
        Some("flannel") => plugin::main(),
        Some("flanneld") => flanneld(&called.to_string_lossy(), arguments),
        Some("mk-docker-opts.sh" | "mk-docker-opts") => {
            docker_opts::main(&called.to_string_lossy(), arguments)
        }
        _ => selvage(),
    }
}

/// The agent in flanneld's place: its flags, and 1 for whatever ends it.
fn flanneld(called: &str, arguments: Vec<OsString>) -> ExitCode {
    let run = |flags: &flanneld::Flags| {
        let several = flanneld::Several::default();
        let load = || {
            let several = |name: &NetworkName, directory: &Path| several.has(name, directory);
            flanneld::load_flanneld(flags, &Environment::of_process(), &several)
        };
        let settings = load()?;
        logging::init(&settings.agent.log)?;
        flags.log_advice();
        if settings.remote.listen.is_some() {
            return Ok(runtime()?.block_on(serve::run(&settings))?);
        }
        run_agent(settings, &[], several.settle(), Box::new(load))
    };
    match flanneld::flags(called, arguments) {
        Err(done) => done,
        Ok(flags) => match run(&flags) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                report("flanneld", &error);
                ExitCode::FAILURE
            }
        },
    }
}

fn selvage() -> ExitCode {
    let parsed = match Cli::of_run(std::env::args_os()) {
        Some(cli) => Ok(cli),
        None => Cli::try_parse(),
    };
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) if error.kind() == clap::error::ErrorKind::DisplayVersion => {
            println!("{}", update::version_text(Path::new("/")));
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            // Nowhere to report that the terminal is gone.
            let _ = error.print();
            let asked_for_help = !error.use_stderr();
            return ExitCode::from(if asked_for_help {
                0
            } else {
                settings::EXIT_USAGE
            });
        }
    };
    match run(cli.command) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            report("selvage", &error);
            ExitCode::from(exit_code(&error))
        }
    }
}

/// Exit status of `selvage ignition kernel-arguments` when the machine must restart: `EX_TEMPFAIL` of sysexits(3).
const EXIT_RESTART: u8 = 75;

/// Returns the exit status of what went well.
fn run(command: Command) -> anyhow::Result<u8> {
    let mut stdout = io::stdout();
    match command {
        Command::Run(flags) => {
            let files = settings::files(sources(&flags, &Environment::of_process()));
            let load = Box::new(|| load(&flags));
            run_agent(start(&flags)?, &files, Claims::default(), load)?;
        }
        Command::Serve(flags) => {
            let settings = start(&flags)?;
            runtime()?.block_on(serve::run(&settings))?;
        }
        Command::Cleanup(flags) => {
            let settings = start(&flags)?;
            // The commands that undo an extension's work may need all.
            let _ = Privileges::restrict(&settings, &[])?;
            runtime()?.block_on(cleanup::run(&settings, &mut stdout))?;
        }
        Command::Status(flags) => {
            let settings = start_to_look(&flags.settings)?;
            return Ok(runtime()?.block_on(status::run(&settings, &flags, &mut stdout))?);
        }
        Command::Peers(flags) => {
            let settings = start_to_look(&flags.settings)?;
            return Ok(runtime()?.block_on(peers::run(&settings, &flags, &mut stdout))?);
        }
        Command::Doctor(flags) => {
            let settings = start(&flags.settings)?;
            return Ok(runtime()?.block_on(doctor::run(&settings, &flags, &mut stdout))?);
        }
        Command::Network(command) => network(command)?,
        Command::Leave(flags) => {
            let settings = start(&flags)?;
            runtime()?.block_on(leave::run(&settings, &mut stdout))?;
        }
        Command::Options(command) => options(command, &mut stdout)?,
        Command::Cni(command) => return Ok(cni::run(&command, &mut stdout)?),
        Command::Migrate(command) => {
            let settings = start_to_look(command.settings())?;
            return Ok(runtime()?.block_on(migrate::run(&command, &settings, &mut stdout))?);
        }
        Command::Sysroot {
            root,
            first_boot_if,
            reset_if,
        } => {
            let boot = sysroot::Boot {
                first: first_boot_if.exists(),
                reset: reset_if.exists(),
            };
            sysroot::prepare(&root, boot, &mut stdout)?;
        }
        Command::DockerNetworks => {
            for id in docker_networks::mend(Path::new("/"))? {
                writeln!(
                    stdout,
                    "Docker's store had a bridge without a network, {id}: removed, so that Docker starts"
                )?;
            }
        }
        Command::Reset(flags) => {
            let mut answer = io::stdin().lock();
            let reset = reset::run(Path::new("/"), &flags, &mut answer, &mut stdout);
            runtime()?.block_on(reset)?;
        }
        Command::Update(command) => return update(&command, &mut stdout),
        Command::Sysext(command) => return sysext(&command, &mut stdout),
        Command::Fleet(command) => return fleet(&command, &mut stdout),
        Command::Ignition(command) => return ignition(command, &mut stdout),
        Command::Image(ImageCommand::Embed { disk, config }) => {
            image_file::embed(&disk, &config, &mut stdout)?;
        }
        Command::Metadata(flags) => {
            logging::init("info")?;
            return Ok(runtime()?.block_on(metadata::run(Path::new("/"), &flags, &mut stdout))?);
        }
        Command::BootCheck(flags) if flags.next_try || flags.deadline => {
            logging::init("info")?;
            return Ok(runtime()?.block_on(boot_check::go_on(&flags, &mut stdout))?);
        }
        Command::BootCheck(flags) => {
            let settings = start_whatever(&flags.settings)?;
            return Ok(runtime()?.block_on(boot_check::run(&settings, &flags, &mut stdout))?);
        }
        Command::Completions { shell } => manual::completions(shell, &mut stdout)?,
        Command::Man { directory } => manual::write(&directory)?,
    }
    Ok(0)
}

/// Runs the agent with its settings, which `load` reads again from `files` and elsewhere.
fn run_agent(
    settings: Settings,
    files: &[PathBuf],
    claims: Claims,
    load: agent::Load<'_>,
) -> anyhow::Result<()> {
    let lock = Lock::take(&settings.files.state_dir)?;
    // Before the privileges go that other users' directories may need.
    install::at_start(&settings);
    let privileges = Privileges::restrict(&settings, files)?;
    let is_first = lock.is_first();
    runtime()?.block_on(agent::run(settings, is_first, privileges, claims, load))?;
    Ok(())
}

fn options(command: OptionsCommand, stdout: &mut io::Stdout) -> anyhow::Result<()> {
    match command {
        OptionsCommand::Docker {
            json,
            nftables,
            settings,
        } => {
            let settings = start(&settings)?;
            options::docker(&settings.files.subnet_file, nftables, json, stdout)?;
        }
        OptionsCommand::Rkt => stdout.write_all(options::RKT.as_bytes())?,
        OptionsCommand::Cni => stdout.write_all(options::CNI.as_bytes())?,
    }
    Ok(())
}

fn ignition(command: IgnitionCommand, stdout: &mut io::Stdout) -> anyhow::Result<u8> {
    match command {
        IgnitionCommand::Render { cluster, out } => {
            ignition::render_command(&cluster, &out, stdout)?;
        }
        IgnitionCommand::Check { file } => {
            ignition::check_command(&file, stdout)?;
        }
        IgnitionCommand::Translate { file } => {
            ignition::translate_command(&file, stdout)?;
        }
        IgnitionCommand::Report { patience, faults } => {
            let patience = Duration::from_secs(patience);
            let faults = ignition::report_command(patience, faults, stdout)?;
            return Ok(u8::from(faults > 0));
        }
        IgnitionCommand::KernelArguments {
            should_exist: present,
            should_not_exist: absent,
            image,
            esp,
        } => {
            let places = ignition::Places {
                root: Path::new("/"),
                image: &image,
                esp: &esp,
            };
            let wanted = ignition::Wanted { present, absent };
            let restarts = ignition::kernel_arguments_command(places, &wanted)?;
            return Ok(if restarts { EXIT_RESTART } else { 0 });
        }
        IgnitionCommand::Record { platform, root } => {
            ignition::record_command(Path::new("/run"), &platform, &root)?;
        }
        IgnitionCommand::VerifyImage { root } => {
            for line in ignition::verify_image(&root)? {
                writeln!(stdout, "unknown to agent/data/image.toml:{line}")?;
            }
        }
    }
    Ok(0)
}

fn network(command: NetworkCommand) -> anyhow::Result<()> {
    let settings = start(command.settings())?;
    runtime()?.block_on(async {
        let mut store = EtcdStore::new(settings.etcd.clone(), String::new())?;
        network::run(command, &mut store, &settings, &mut io::stdout()).await?;
        Ok(())
    })
}

fn update(command: &update::UpdateCommand, stdout: &mut io::Stdout) -> anyhow::Result<u8> {
    let mut flags = SettingsFlags::default();
    flags.config = command.config().map(Path::to_owned);
    let environment = Environment::of_process();
    let settings = settings::update::load(sources(&flags, &environment))?;
    // What is done by hand asks nobody.
    let turns = match command {
        update::UpdateCommand::Auto { .. } => settings::fleet::load(sources(&flags, &environment))?,
        _ => settings::fleet::Fleet::default(),
    };
    let agent = start_whatever(&flags)?;
    let health = async || Health::take(&agent).await;
    let root = Path::new("/");
    let fleet = |running: &Version| {
        let slots = slots::slots(root);
        let slot = slots
            .iter()
            .position(|slot| slot.version.as_ref() == Some(running));
        let member = Member {
            node: Member::host_name(),
            id: machine_id::of_hardware(root, &agent.files.state_dir)?,
            version: running.to_string(),
            slot: slot.and_then(|at| Some(["a", "b"].get(at)?.to_string())),
        };
        Ok(Fleet::new(
            &turns,
            &agent.etcd,
            member,
            root,
            Path::new(DIRECTORY),
        )?)
    };
    Ok(runtime()?.block_on(update::run(command, settings, health, fleet, root, stdout))?)
}

fn sysext(command: &sysext::SysextCommand, stdout: &mut io::Stdout) -> anyhow::Result<u8> {
    let mut flags = SettingsFlags::default();
    flags.config = command.config().map(Path::to_owned);
    let settings = settings::update::load(sources(&flags, &Environment::of_process()))?;
    logging::init("info")?;
    Ok(runtime()?.block_on(sysext::run(command, settings, Path::new("/"), stdout))?)
}

fn fleet(command: &FleetCommand, stdout: &mut io::Stdout) -> anyhow::Result<u8> {
    let flags = command.flags();
    let environment = Environment::of_process();
    let settings = start_to_look(&flags.settings)?;
    let fleet = settings::fleet::load(sources(&flags.settings, &environment))?;
    Ok(runtime()?.block_on(fleet::run(command, &fleet, &settings.etcd, stdout))?)
}

/// 64 when the arguments are wrong, 78 when a configuration is, 1 for everything else.
fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(error) = error.downcast_ref::<settings::Error>() {
        return error.exit_code();
    }
    let configuration = [
        error.downcast_ref().map(agent::Error::is_bad_configuration),
        error.downcast_ref().map(NetworkCommandError::is_bad_config),
        error
            .downcast_ref()
            .map(ignition::Error::is_bad_configuration),
        error
            .downcast_ref()
            .map(image_file::Error::is_bad_configuration),
        error.downcast_ref().map(serve::Error::is_bad_configuration),
        error.downcast_ref().map(cni::Error::is_bad_configuration),
        error
            .downcast_ref()
            .map(update::Error::is_bad_configuration),
        error
            .downcast_ref()
            .map(sysext::Error::is_bad_configuration),
        error.downcast_ref().map(|_: &SettingsError| true),
        error
            .downcast_ref()
            .map(|error| matches!(error, leave::Error::Settings(_) | leave::Error::Remote(_))),
    ];
    if configuration.contains(&Some(true)) {
        settings::EXIT_CONFIG
    } else {
        1
    }
}

fn load(flags: &SettingsFlags) -> Result<Settings, settings::Error> {
    settings::load(sources(flags, &Environment::of_process()))
}

/// Loads the settings and starts the log that they ask for.
fn start(flags: &SettingsFlags) -> anyhow::Result<Settings> {
    let settings = load(flags)?;
    logging::init(&settings.agent.log)?;
    Ok(settings)
}

/// As [`start`], for commands that need few of the settings and no privileges.
fn start_to_look(flags: &SettingsFlags) -> anyhow::Result<Settings> {
    let environment = Environment::of_process();
    let (settings, skipped) = settings::load_readable(sources(flags, &environment))?;
    logging::init(&settings.agent.log)?;
    // A password that only the agent may read is as it should be.
    let files = |error: &&settings::Error| matches!(error, settings::Error::Read { .. });
    for error in skipped.iter().filter(files) {
        tracing::warn!("skipped: {}", logging::chain(error));
    }
    Ok(settings)
}

/// As [`start_to_look`], but with the defaults if the settings are wrong: whether this version works must be said anyway,
/// and an agent that does not start because of them is part of the answer.
fn start_whatever(flags: &SettingsFlags) -> anyhow::Result<Settings> {
    let (wrong, settings) = match start_to_look(flags) {
        Ok(settings) => return Ok(settings),
        Err(error) => (error, settings::defaults()?),
    };
    logging::init(&settings.agent.log)?;
    tracing::warn!("the defaults are used, as the settings are wrong: {wrong:#}");
    Ok(settings)
}

fn sources<'a>(flags: &'a SettingsFlags, environment: &'a Environment) -> Sources<'a> {
    Sources {
        root: Path::new("/"),
        config: flags.config.as_deref(),
        environment,
        flags,
    }
}

/// One thread does everything: little memory, and capabilities, which belong to threads, stay the same for all.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // A thread that looks up names keeps the capabilities that it was started with.
        .thread_keep_alive(Duration::from_secs(1))
        .build()
        .context("failed to start the runtime")
}

/// Says why we end: in the log, with the level that sd-daemon(3) defines, and in the service's status.
fn report(name: &str, error: &anyhow::Error) {
    let level = if logging::stderr_is_journal() {
        "<3>"
    } else {
        ""
    };
    eprintln!("{level}{name}: {error:#}");
    service::failed(&format!("{error:#}"));
}

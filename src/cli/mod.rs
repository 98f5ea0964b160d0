//! The command line: one program to start nodes, hand in work, and look at what becomes of it.
//!
//! Every command that concerns jobs or nodes is a client: it talks HTTP to a node, any node, and knows nothing
//! that a program in another language could not know. Only `node` opens the library's node itself; `up` and
//! `demo` start processes of this same program.
//!
//! What scripts rely on: results go to standard output and remarks to standard error; `-o` chooses the form of
//! every result; the exit code says whose fault a failure is ([`failure`]). A pipe gets neither colour nor
//! progress.
#![allow(clippy::disallowed_methods, reason = "the command line owns its clock, its tasks and its dice")]

mod answers;
mod client;
mod config;
mod cut;
mod demo;
mod facts;
mod failure;
mod folder;
mod help;
mod job_options;
mod jobs;
mod local_cluster;
mod logs;
mod merges;
mod node;
mod nodes;
mod pod;
mod process;
mod render;
mod serve;
mod show_config;
mod signals;
mod state;
mod submit;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use flockwork::model::id::{JobId, JobIdPrefix};

use self::client::{Client, Request};
use self::config::{Setting, Sources};
use self::failure::{Failure, Kind, Outcome, exit};
use self::render::{OutputForm, Printer, printable};
use self::state::StateFolder;

/// A leaderless job cluster: submit a command to any node, and it finishes although machines die.
#[derive(Debug, Parser)]
#[command(name = "flockwork", version, after_help = help::TOP, max_term_width = 110)]
struct Cli {
    /// Nodes to talk to: HOST:PORT, with commas between several; the next is tried when one is gone
    /// [default: 127.0.0.1:7070, then the nodes of a running `flockwork up`]
    #[arg(
        long,
        global = true,
        value_name = "ADDRS",
        env = "FLOCKWORK_ADDR",
        value_delimiter = ',',
        help_heading = "Everywhere"
    )]
    addr: Option<Vec<String>>,
    /// What is printed [default: table]
    #[arg(
        short,
        long,
        global = true,
        value_name = "FORM",
        value_enum,
        env = "FLOCKWORK_OUTPUT",
        hide_possible_values = false,
        help_heading = "Everywhere"
    )]
    output: Option<OutputForm>,
    /// The settings file [default: ~/.config/flockwork/config.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE", env = "FLOCKWORK_CONFIG", help_heading = "Everywhere")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Active(ActiveCommand),
    #[command(flatten)]
    Passive(PassiveCommand),
}

/// What talks to nodes, or starts them.
#[derive(Debug, Subcommand)]
enum ActiveCommand {
    /// Start a local cluster of real node processes, and keep it until Ctrl-C
    #[command(after_help = help::UP)]
    Up(local_cluster::UpArgs),
    /// See a cluster lose a node and no job, in under a minute
    #[command(after_help = help::DEMO)]
    Demo(demo::DemoArgs),
    /// Run a node
    #[command(after_help = help::NODE)]
    Node(Box<node::NodeArgs>),
    /// Submit a command, follow its output, and exit as it did
    #[command(after_help = help::RUN)]
    Run(Box<submit::RunArgs>),
    /// Submit a command, or very many, and print the ids
    #[command(after_help = help::SUBMIT)]
    Submit(Box<submit::SubmitArgs>),
    /// List jobs, newest first
    #[command(after_help = help::PS, visible_alias = "list")]
    Ps(jobs::PsArgs),
    /// Show a job: its state and why, and every attempt
    #[command(after_help = help::JOB)]
    Job(jobs::OneJob),
    /// Show a job's output
    #[command(after_help = help::LOGS)]
    Logs(logs::LogsArgs),
    /// Wait until jobs have ended
    #[command(after_help = help::WAIT)]
    Wait(jobs::WaitArgs),
    /// Cancel jobs
    #[command(after_help = help::CANCEL)]
    Cancel(jobs::CancelArgs),
    /// Submit a finished job once more, as a new job that names the old one
    #[command(after_help = help::RETRY)]
    Retry(jobs::OneJob),
    /// Show where a job lives: its partition, who looks after it, who holds it
    #[command(after_help = help::WHERE)]
    Where(jobs::OneJob),
    /// Say why a job is, or is not, running
    #[command(after_help = help::EXPLAIN)]
    Explain(jobs::OneJob),
    /// List the cluster's nodes, and how much of each its jobs have set aside
    #[command(after_help = help::NODES)]
    Nodes(nodes::NodesArgs),
    /// Show what would happen if a node went now
    #[command(after_help = help::IMPACT)]
    Impact(nodes::OneNode),
    /// Let a node finish what it runs and hand over what it keeps, and wait until it has
    #[command(after_help = help::DRAIN)]
    Drain(nodes::DrainArgs),
    /// Let a draining node take work again
    #[command(after_help = help::DRAIN)]
    Undrain(nodes::OneNode),
    /// Forget a node that is down and will not come back
    #[command(after_help = help::FORGET)]
    Forget(nodes::OneNode),
    /// Pretend that the network is cut between these nodes and all others, to see what a partition does
    #[command(after_help = help::CUT)]
    Cut(cut::CutArgs),
    /// End what `cut` began
    #[command(after_help = help::CUT)]
    Heal(cut::HealArgs),
    /// Show what became of a partition: who was away, and which jobs ran twice at once
    #[command(after_help = help::MERGES)]
    Merges(merges::MergesArgs),
    /// Show whether the nodes agree, as one of them sees it
    #[command(after_help = help::DEBUG)]
    Debug(nodes::DebugArgs),
}

/// What does neither.
#[derive(Debug, Subcommand)]
enum PassiveCommand {
    /// Inside a job: tell its node that it is alive, how far it has come, what it has saved, what it comes to
    #[command(subcommand, after_help = help::POD)]
    Pod(pod::PodCommand),
    /// Print the completion script of a shell
    #[command(after_help = help::COMPLETIONS)]
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Show settings, and where each comes from
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Watches over one pod of a node
    #[command(hide = true)]
    PodGuard {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print every setting, and whether a flag, the environment, the file or a default decided it
    #[command(after_help = help::CONFIG)]
    Show(Box<node::NodeFlags>),
}

/// What every command is given.
#[derive(Debug)]
struct Session {
    addresses: Setting<Vec<String>>,
    printer: Printer,
    state: StateFolder,
}

impl Session {
    /// A client of the nodes that were named.
    fn client(&self) -> Result<Client, Failure> {
        Client::new(&self.addresses.value)
    }

    /// A job as it may stand in a path: an id, the beginning of one, or what `last` stands for.
    fn name_in_path(&self, text: &str) -> Result<String, Failure> {
        if text == "last" {
            return self.state.last().map(|id| id.to_string());
        }
        let _: JobIdPrefix = text.parse().map_err(|error: flockwork::model::id::ParseIdError| {
            Failure::usage(error.to_string()).with_hint("`flockwork ps` lists the jobs, and `last` is the newest")
        })?;
        Ok(text.to_ascii_lowercase())
    }

    /// The whole id of a job.
    async fn resolve(&self, client: &Client, text: &str) -> Result<String, Failure> {
        let name = self.name_in_path(text)?;
        if name.parse::<JobId>().is_ok() {
            return Ok(name);
        }
        let job: answers::Job = client.read(&Request::get(format!("/v1/jobs/{name}"))).await?;
        Ok(job.id)
    }
}

/// The whole program.
pub(crate) fn main() -> ExitCode {
    match start() {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            if failure.kind != Kind::OutputClosed {
                tell(&failure);
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Says what is wrong, and what to do about it.
fn tell(failure: &Failure) {
    let mut text = format!("error: {}\n", printable(&failure.message));
    if let Some(hint) = &failure.hint {
        text.push_str(&format!("hint: {}\n", printable(hint)));
    }
    // Nobody to hear it is no reason to fail in another way.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn start() -> Outcome {
    let mut arguments = Vec::new();
    for (at, argument) in std::env::args_os().enumerate() {
        let text = argument.into_string().map_err(|raw| {
            Failure::usage(format!("argument {at} is not UTF-8: {}", raw.to_string_lossy().escape_debug()))
                .with_hint("rename the file, or pass such names through a file or the job's standard input")
        })?;
        arguments.push(text);
    }
    let matches = match Cli::command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => {
            let code = if error.use_stderr() { exit::USAGE } else { exit::SUCCESS };
            // Help that goes into a closed pipe is no error either.
            let _ = error.print();
            return Ok(code);
        }
    };
    let cli = Cli::from_arg_matches(&matches).map_err(|error| Failure::usage(error.to_string()))?;
    dispatch(cli, deepest(&matches))
}

/// The matches of the command at hand; they hold the global options as well.
fn deepest(matches: &ArgMatches) -> &ArgMatches {
    let mut matches = matches;
    while let Some((_, deeper)) = matches.subcommand() {
        matches = deeper;
    }
    matches
}

fn dispatch(cli: Cli, matches: &ArgMatches) -> Outcome {
    let state = StateFolder::of_user();
    let sources = || Sources::read(matches, cli.config.as_deref());
    let session = |sources: &Sources<'_>| {
        let form = sources.settle("output", cli.output, sources.file.output, OutputForm::default());
        let addresses = sources.addresses(cli.addr.clone(), &state);
        (Session { addresses, printer: Printer::new(form.value), state: state.clone() }, form)
    };
    match cli.command {
        Command::Active(command) => {
            let sources = sources()?;
            let (session, _) = session(&sources);
            let is_node = matches!(command, ActiveCommand::Node(_));
            let mut runtime = if is_node {
                tokio::runtime::Builder::new_multi_thread()
            } else {
                tokio::runtime::Builder::new_current_thread()
            };
            let cannot = |error| Failure::internal(format!("cannot start the runtime: {error}"));
            let runtime = runtime.enable_all().build().map_err(cannot)?;
            let outcome = runtime.block_on(perform(&session, command, matches, &sources));
            // A write that nobody takes must not keep the program.
            runtime.shutdown_background();
            outcome
        }
        Command::Passive(PassiveCommand::Config(ConfigCommand::Show(flags))) => {
            let sources = sources()?;
            let (session, form) = session(&sources);
            let plan = node::NodePlan::settle(&flags, matches, &sources)?;
            show_config::show(&session, &form, &plan, &sources)
        }
        // These read no settings, and work where those are broken.
        Command::Passive(PassiveCommand::Pod(command)) => pod::pod(command),
        Command::Passive(PassiveCommand::Completions { shell }) => completions(shell),
        Command::Passive(PassiveCommand::PodGuard { .. }) => flockwork::io::executor::guard_main(),
    }
}

async fn perform(session: &Session, command: ActiveCommand, matches: &ArgMatches, sources: &Sources<'_>) -> Outcome {
    match command {
        ActiveCommand::Up(args) => local_cluster::up(session, &args).await,
        ActiveCommand::Demo(args) => demo::demo(session, &args).await,
        ActiveCommand::Node(args) => {
            let plan = node::NodePlan::settle(&args.settings, matches, sources)?;
            serve::serve(session, &plan, &args).await
        }
        ActiveCommand::Run(args) => submit::run(session, &args).await,
        ActiveCommand::Submit(args) => submit::submit(session, &args).await,
        ActiveCommand::Ps(args) => jobs::ps(session, &args).await,
        ActiveCommand::Job(args) => jobs::job(session, &args).await,
        ActiveCommand::Logs(args) => logs::logs(session, &args).await,
        ActiveCommand::Wait(args) => jobs::wait(session, &args).await,
        ActiveCommand::Cancel(args) => jobs::cancel(session, &args).await,
        ActiveCommand::Retry(args) => jobs::retry(session, &args).await,
        ActiveCommand::Where(args) => jobs::locate(session, &args).await,
        ActiveCommand::Explain(args) => jobs::explain(session, &args).await,
        ActiveCommand::Nodes(args) => nodes::nodes(session, &args).await,
        ActiveCommand::Impact(args) => nodes::impact(session, &args).await,
        ActiveCommand::Drain(args) => nodes::drain(session, &args).await,
        ActiveCommand::Undrain(args) => nodes::undrain(session, &args).await,
        ActiveCommand::Forget(args) => nodes::forget(session, &args).await,
        ActiveCommand::Cut(args) => cut::cut(session, &args).await,
        ActiveCommand::Heal(args) => cut::heal(session, args).await,
        ActiveCommand::Merges(args) => merges::merges(session, args).await,
        ActiveCommand::Debug(args) => nodes::debug(session, &args).await,
    }
}

fn completions(shell: clap_complete::Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "flockwork", &mut script);
    let mut out = std::io::stdout().lock();
    out.write_all(&script)?;
    out.flush()?;
    Ok(exit::SUCCESS)
}

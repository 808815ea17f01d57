//! From the command line's arguments to what the commands take.

mod ledger;
mod log_proofs;

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::time::Duration;

use mainstay_client::RetentionChange;
use mainstay_client::report::WitnessChange;
use mainstay_types::{AckRule, Lsn, NodeId, VolumeKind};

use crate::cli::retain::{Bound, RetainArgs};
use crate::cli::witness::WitnessCommand;
use crate::cli::workload::{WorkloadArg, WorkloadArgs};
use crate::cli::{
    AckArg, AppendArgs, Command, CreateArgs, DeleteArgs, EventsArgs, ExplainArgs,
    Framing as FramingArg, KindArg, LogCommand, NbdArgs, PromoteArgs, ReadArgs, StatusArgs,
    TailArgs, TrimArgs, VolumeCommand,
};
use crate::commands::{self, log, unless_pipe_closed};
use crate::locate::ClusterArgs;

/// Runs a command that talks to a running cluster. `None` if `command` is not one.
///
/// # Errors
/// The command's own; each says what to do.
pub async fn run(command: Command) -> Option<anyhow::Result<()>> {
    let result = match command {
        Command::Volume(command) => volume(command).await,
        Command::Status(args) => status(args).await,
        Command::Promote(args) => promote(args).await,
        Command::Witness(command) => witness(command).await,
        Command::Events(args) => events(args).await,
        Command::Explain(args) => explain(args).await,
        Command::Log(command) => log_command(command).await,
        Command::Nbd(args) => nbd(args).await,
        Command::Ledger(command) => ledger::run(command).await,
        Command::Workload(args) => workload(args).await,
        Command::Node(_)
        | Command::Worker(_)
        | Command::Up(_)
        | Command::Down(_)
        | Command::Descriptors
        | Command::Demo(_) => {
            return None;
        }
    };
    Some(unless_pipe_closed(result))
}

fn endpoints(cluster: &ClusterArgs) -> anyhow::Result<Vec<String>> {
    Ok(cluster.locate()?.iter().map(ToString::to_string).collect())
}

async fn volume(command: VolumeCommand) -> anyhow::Result<()> {
    let out = &mut io::stdout();
    match command {
        VolumeCommand::Create(args) => create(args).await,
        VolumeCommand::List(args) => {
            commands::volume::list(args.json, endpoints(&args.cluster)?, out).await
        }
        VolumeCommand::Show(args) => {
            commands::volume::show(
                args.volume.as_str(),
                args.json,
                endpoints(&args.cluster)?,
                out,
            )
            .await
        }
        VolumeCommand::Delete(args) => delete(args).await,
        VolumeCommand::Attach(args) => {
            let attach = commands::attach::Attach {
                volume: args.volume.to_string(),
                name: args.name,
                takeover: args.takeover,
            };
            commands::attach::attach(&attach, endpoints(&args.cluster)?, out).await
        }
        VolumeCommand::Detach(args) => {
            commands::attach::detach(args.volume.as_str(), endpoints(&args.cluster)?, out).await
        }
    }
}

async fn create(args: CreateArgs) -> anyhow::Result<()> {
    let kind = match (args.kind, args.size) {
        (KindArg::Log, None) => VolumeKind::Log,
        (KindArg::Log, Some(_)) => {
            anyhow::bail!("a log has no size: leave out --size, or use --kind block")
        }
        (KindArg::Block, size) => commands::size::block_kind(size.unwrap_or(0))?,
    };
    let mut create = commands::volume::Create::new(args.volume.as_str(), kind);
    create.copies = args.copies.unwrap_or(0);
    create.ack = args.ack.map(|rule| match rule {
        AckArg::Majority => AckRule::Majority,
        AckArg::All => AckRule::All,
    });
    create.min_copies = args.min_copies.unwrap_or(0);
    create.json = args.json;
    create.placement = args.on.iter().copied().map(NodeId).collect();
    create.prefer = args.prefer.iter().copied().map(NodeId).collect();
    create.shared = args.shared;
    create.retention = RetentionChange {
        age: args.retain_age.map(Bound::get),
        bytes: args.retain_bytes.map(Bound::get),
    };
    commands::volume::create(&create, endpoints(&args.cluster)?, &mut io::stdout()).await
}

async fn delete(args: DeleteArgs) -> anyhow::Result<()> {
    let delete = commands::volume::Delete {
        volume: args.volume.to_string(),
        yes: args.yes,
        force: args.force,
        json: args.json,
    };
    let ask = |question: &str| {
        eprint!("{question}");
        io::stderr().flush()?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        Ok(answer)
    };
    let ask = io::stdin().is_terminal().then_some(ask);
    commands::volume::delete(&delete, endpoints(&args.cluster)?, ask, &mut io::stdout()).await
}

async fn status(args: StatusArgs) -> anyhow::Result<()> {
    let options = commands::status::Args {
        watch: args.watch.then_some(WATCH_EVERY),
        json: args.json,
        redraw: io::stdout().is_terminal(),
    };
    commands::status::run(options, endpoints(&args.cluster)?, &mut io::stdout()).await
}

const WATCH_EVERY: Duration = Duration::from_secs(1);

async fn promote(args: PromoteArgs) -> anyhow::Result<()> {
    let options = commands::promote::Args {
        volume: args.volume.to_string(),
        to: Some(NodeId(args.to)),
        force: args.force.then(|| commands::promote::Force {
            accept_data_loss: args.accept_data_loss,
            declared_off: args.declare_off.into_iter().map(NodeId).collect(),
            min_copies: args.min_copies.unwrap_or(0),
        }),
        reason: args.reason,
        json: args.json,
    };
    commands::promote::run(&options, endpoints(&args.cluster)?, &mut io::stdout()).await
}

async fn witness(command: WitnessCommand) -> anyhow::Result<()> {
    let out = &mut io::stdout();
    let (change, json, cluster) = match command {
        WitnessCommand::List(args) => {
            return commands::witness::list(args.json, endpoints(&args.cluster)?, out).await;
        }
        WitnessCommand::Add(args) => {
            let change = WitnessChange {
                add: Some(NodeId(args.node)),
                address: args.address.map(|address| address.to_string()),
                remove: None,
            };
            (change, args.json, args.cluster)
        }
        WitnessCommand::Remove(args) => {
            let change = WitnessChange {
                remove: Some(NodeId(args.node)),
                ..WitnessChange::default()
            };
            (change, args.json, args.cluster)
        }
        WitnessCommand::Replace(args) => {
            let change = WitnessChange {
                add: Some(NodeId(args.with)),
                address: args.address.map(|address| address.to_string()),
                remove: Some(NodeId(args.node)),
            };
            (change, args.json, args.cluster)
        }
    };
    commands::witness::change(change, json, endpoints(&cluster)?, out).await
}

async fn explain(args: ExplainArgs) -> anyhow::Result<()> {
    let options = commands::explain::Args {
        volume: args.volume.to_string(),
        epoch: args.epoch.map(mainstay_types::Epoch),
        all: args.all,
        json: args.json,
    };
    commands::explain::run(&options, endpoints(&args.cluster)?, &mut io::stdout()).await
}

async fn events(args: EventsArgs) -> anyhow::Result<()> {
    let options = commands::events::Args {
        follow: args.follow,
        volume: None,
        json: args.json,
    };
    commands::events::run(&options, endpoints(&args.cluster)?, &mut io::stdout()).await
}

async fn log_command(command: LogCommand) -> anyhow::Result<()> {
    match command {
        LogCommand::Append(args) => append(args).await,
        LogCommand::Read(args) => read(args).await,
        LogCommand::Tail(args) => tail(args).await,
        LogCommand::Trim(args) => trim(args).await,
        LogCommand::Retain(args) => retain(args).await,
        LogCommand::Root(args) => log_proofs::root(args).await,
        LogCommand::Prove(args) => log_proofs::prove(args).await,
        LogCommand::Verify(args) => log_proofs::verify(args).await,
    }
}

fn framing(framing: FramingArg) -> log::framing::Framing {
    match framing {
        FramingArg::Lines => log::framing::Framing::Lines,
        FramingArg::Binary => log::framing::Framing::Framed,
    }
}

async fn append(args: AppendArgs) -> anyhow::Result<()> {
    let options = log::append::Args {
        framing: framing(args.framing),
        batch: args.batch.map(|batch| batch as usize),
        token: args.token,
        in_flight: args.in_flight as usize,
        quiet: args.quiet,
        json: args.json,
        ..log::append::Args::new(args.volume.as_str())
    };
    log::append::run(
        &options,
        endpoints(&args.cluster)?,
        io::stdin(),
        &mut io::stdout(),
    )
    .await
}

async fn read(args: ReadArgs) -> anyhow::Result<()> {
    let options = log::read::Args {
        from: args.from.map(Lsn),
        to: args.to.map(Lsn),
        since_us: args.since,
        limit: args.limit,
        reverse: args.reverse,
        committed: args.committed,
        printed: log::Printed {
            framing: framing(args.framing),
            with_lsn: args.lsn,
            json: args.json,
        },
        ..log::read::Args::all(args.volume.as_str())
    };
    log::read::run(&options, endpoints(&args.cluster)?, &mut io::stdout()).await
}

async fn tail(args: TailArgs) -> anyhow::Result<()> {
    let options = log::tail::Args {
        from: args.from.map(Lsn),
        follow: args.follow,
        printed: log::Printed {
            framing: framing(args.framing),
            with_lsn: args.lsn,
            json: args.json,
        },
        ..log::tail::Args::newest(args.volume.as_str())
    };
    log::tail::run(&options, endpoints(&args.cluster)?, &mut io::stdout()).await
}

async fn trim(args: TrimArgs) -> anyhow::Result<()> {
    let below = match (args.below, args.before) {
        (Some(lsn), _) => log::trim::Below::Position(Lsn(lsn)),
        (None, time) => log::trim::Below::Time(time.unwrap_or(0)),
    };
    let (volume, endpoints) = (args.volume.as_str(), endpoints(&args.cluster)?);
    log::trim::run(volume, below, args.json, endpoints, &mut io::stdout()).await
}

async fn retain(args: RetainArgs) -> anyhow::Result<()> {
    let change = RetentionChange {
        age: args.age.map(Bound::get),
        bytes: args.bytes.map(Bound::get),
    };
    let (volume, endpoints) = (args.volume.as_str(), endpoints(&args.cluster)?);
    log::retain::run(volume, change, args.json, endpoints, &mut io::stdout()).await
}

async fn nbd(args: NbdArgs) -> anyhow::Result<()> {
    let options = commands::nbd::Args {
        tls: args.tls.section(),
        read_only: args.read_only,
        takeover: args.takeover,
        ..commands::nbd::Args::new(args.volume.as_str(), args.listen.0)
    };
    let stop = commands::nbd::until_ctrl_c();
    commands::nbd::run(options, endpoints(&args.cluster)?, &mut io::stdout(), stop).await
}

async fn workload(args: WorkloadArgs) -> anyhow::Result<()> {
    use commands::workload::{self, Workload};

    let workload = match args.workload {
        WorkloadArg::Registers => Workload::Registers,
        WorkloadArg::Log => Workload::Log,
        WorkloadArg::Bank => Workload::Bank,
    };
    let volume = args.volume.map(|volume| volume.to_string());
    let options = workload::Args {
        workload,
        volume: volume.unwrap_or_else(|| format!("workload-{}", workload.name())),
        history: args.history,
        time: Duration::from_secs(args.seconds),
        operations: args.operations,
        processes: args.processes,
        rate: args.rate,
        deadline: Duration::from_millis(args.deadline_ms),
        keys: args.keys,
        seed: args.seed.unwrap_or_else(rand::random),
        json: args.json,
    };
    let endpoints = endpoints(&args.cluster)?;
    // Where the history goes to standard output, the summary does not.
    if options.history.as_os_str() == "-" {
        return workload::run(&options, endpoints, &mut io::stderr()).await;
    }
    workload::run(&options, endpoints, &mut io::stdout()).await
}

//! The command line: every command and option, with the texts that `--help` prints. Nothing is carried out here.

pub mod ledger;
mod log;
pub mod log_proofs;
mod nbd;
pub mod retain;
mod volume;
pub mod witness;
pub mod workload;

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use mainstay_types::{Instance, VolumeName};

use crate::locate::{ClusterArgs, DEFAULT_DIR};
use ledger::LedgerCommand;
pub use log::{AppendArgs, Framing, LogCommand, ReadArgs, TailArgs, TrimArgs};
pub use nbd::{NbdArgs, NbdTlsArgs};
pub use volume::{
    AckArg, AttachArgs, CreateArgs, DeleteArgs, DetachArgs, KindArg, ListArgs, ShowArgs,
    VolumeCommand,
};
use witness::WitnessCommand;
use workload::WorkloadArgs;

/// Replicated storage that promotes a new primary by itself.
#[derive(Debug, Parser)]
#[command(
    name = "mainstay",
    version,
    propagate_version = true,
    subcommand_required = true
)]
#[command(long_about = "\
Replicated storage that promotes a new primary by itself.

A volume is a block device (served over NBD) or an append log. Each write is answered once it is durable on a \
majority of the volume's copies. When the primary is lost, the witnesses fence it and promote the copy that has \
everything: no acknowledged write is lost, and clients go on within a second.")]
#[command(after_long_help = "\
First steps:
  mainstay up --detach                          a cluster of six processes in ./.mainstay
  mainstay volume create ledger --kind log      an append log on three nodes
  seq 1000 | mainstay log append ledger         one record a line
  mainstay log read ledger | tail -1
  mainstay status                               who is primary, who lags
  mainstay down

See it survive failures:  mainstay demo
On real machines:         mainstay node --help")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Every command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one node, as on a real machine
    #[command(long_about = "\
Run one node, as on a real machine.

This process is a small supervisor. It starts the worker, which does everything else, starts it again when it \
crashes, and tells the witnesses about a crash at once, so that a new primary is there long before the lease of the \
old one has run out. SIGTERM and Ctrl-C stop the node cleanly: it hands its volumes over first.")]
    #[command(after_long_help = "\
Example:
  mainstay node --config /etc/mainstay/node.toml
  mainstay node --config /etc/mainstay/node.toml --check      # what is wrong with the file, and what to do
The page `docs/operations.md` walks through three machines and names every key, those of an external fence ([fence]: a command \
that must succeed before a lost primary is replaced) and of hooks ([hooks]: commands at a promotion and a demotion) among \
them; `docs/examples/` has files for a start.")]
    Node(NodeArgs),

    /// The process that a supervisor starts; not for people
    #[command(hide = true)]
    Worker(WorkerArgs),

    /// Run a development cluster of separate processes on this machine
    #[command(long_about = "\
Run a development cluster of separate processes on this machine.

Every node is a process of its own on loopback, kept under one directory with its data, its configuration file and \
its log. The file cluster.json in that directory says where each node listens and which processes it has. A node \
that you kill stays dead until you ask for it with --restart, unless --respawn is given. Stop with Ctrl-C or \
`mainstay down`; the next `mainstay up` on the same directory finds the same data on the same ports.")]
    #[command(after_long_help = "\
Examples:
  mainstay up                          in the foreground, 3 data nodes and 3 witnesses
  mainstay up --nodes 5 --dir /tmp/five --detach
  kill -9 $(jq '.nodes[0].worker_pid' .mainstay/cluster.json)
  mainstay up --restart 1              start node 1 of the running cluster again")]
    Up(UpArgs),

    /// Stop the cluster that `up` runs; its data is kept
    Down(DownArgs),

    /// Show in about a minute that no acknowledged write is lost
    #[command(long_about = "\
Show in about a minute that no acknowledged write is lost.

Starts a cluster in a temporary directory, moves money between accounts in a log and writes blocks over NBD at the \
same time, kills and freezes primaries under that load, and shows the gap that each client saw. At the end it reads \
everything back and proves that every acknowledged write is there exactly once, on every copy. The exit code is 0 \
only if all of it holds.")]
    Demo(DemoArgs),

    /// Print the gRPC services and messages, for programs in other languages
    #[command(long_about = "\
Print the gRPC services and messages as an encoded FileDescriptorSet, for programs in other languages and for tools that \
do not ask the server (every node answers reflection, too).")]
    #[command(after_long_help = "\
Examples:
  mainstay descriptors > mainstay.desc         then see docs/grpc.md for a client in Python
  grpcurl -protoset mainstay.desc -plaintext 127.0.0.1:7420 list")]
    Descriptors,

    /// Create, list, show and delete volumes
    #[command(subcommand)]
    Volume(VolumeCommand),

    /// Show members, roles, positions, lag and leases
    #[command(after_long_help = "\
Examples:
  mainstay status --watch
  mainstay status --json | jq '.volumes[].primary'")]
    Status(StatusArgs),

    /// Move the primary of a volume to another node
    #[command(long_about = "\
Move the primary of a volume to another node.

A planned switchover: the primary first finishes what it accepted, then hands over. Clients wait for a moment and go \
on; nothing fails. Refused, with the reason, if the other node does not hold everything.")]
    #[command(after_long_help = "\
Examples:
  mainstay promote ledger --to 2
  mainstay promote ledger --to 2 --force                      # says what would be lost, and changes nothing
  mainstay promote ledger --to 2 --force --accept-data-loss --declare-off 1,3

A forced promotion is for the day on which the copies that hold the newest writes are gone for good. The copy on the \
named node goes on in a new history; every acknowledged write that it lacks is given up. Each other member must promise \
to acknowledge nothing more, or you must make sure that its node is off and say so with --declare-off: a node that is up \
and merely cut off would go on by itself. Where the witnesses have an external fence ([fence]), it runs for each member \
that did not promise and is not declared off. Copies that come back later are set aside whole, never merged.")]
    Promote(PromoteArgs),

    /// Show and change the witnesses
    #[command(
        subcommand,
        long_about = "\
Show and change the witnesses of a running cluster.

Witnesses vote on who is primary. One at a time comes, goes, or takes the place of another; writes and reads go on \
meanwhile. From before such a change until its end both the old and the new witnesses must agree to everything, so \
that no two primaries can be made. It takes about as long as a lease.",
        after_long_help = "\
Examples:
  mainstay witness list
  mainstay witness replace 103 --with 104          # node 104 runs as \"standby-witness\"
  mainstay witness remove 103                      # its store is lost: then start it with an empty one, and
  mainstay witness add 103                         # as \"standby-witness\", and add it again"
    )]
    Witness(WitnessCommand),

    /// Print what happened: promotions, members that came and went, alarms
    Events(EventsArgs),

    /// Say how a volume came by its present primary: who was fenced, who answered what, what was chosen and why
    #[command(after_long_help = "\
Examples:
  mainstay explain ledger               # the newest promotion
  mainstay explain ledger --epoch 7
  mainstay explain ledger --all --json")]
    Explain(ExplainArgs),

    /// Append to, read and follow log volumes
    #[command(subcommand)]
    Log(LogCommand),

    /// Serve a block volume over NBD from this machine
    #[command(long_about = "\
Serve a block volume over NBD from this machine.

Every data node serves all block volumes already, on its NBD address; use this command to have an address on a \
machine without a node. Requests that a failover catches wait for the new primary and are not failed.")]
    #[command(after_long_help = "\
Examples:
  mainstay nbd disk --listen 127.0.0.1:10809
  nbdinfo nbd://127.0.0.1:10809/disk
  nbdcopy image.ext4 nbd://127.0.0.1:10809/disk
  mainstay nbd disk --read-only --listen 127.0.0.1:10810
  mainstay nbd disk --listen 0.0.0.0:10809 --tls-cert server-cert.pem --tls-key server-key.pem --tls-client-ca ca-cert.pem
  nbdinfo 'nbds://host:10809/disk?tls-certificates=/etc/pki/nbd'")]
    Nbd(NbdArgs),

    /// Keep a double-entry ledger in a log volume
    #[command(
        subcommand,
        long_about = "\
Keep a double-entry ledger in a log volume.

A transfer is one record of the log, and balances are sums over all of them. Every transfer has a key: however often it is posted or \
imported, it is made once. An answer means that it is committed, and will be there after any failover.",
        after_long_help = "\
Examples:
  mainstay volume create books --kind log
  mainstay ledger post books --from cash --to rent --amount 950.00 --key rent-2026-01
  mainstay ledger import books bank.csv --account account --amount amount --date date
  mainstay ledger balance books
  mainstay ledger statement books rent
  mainstay ledger verify books"
    )]
    Ledger(LedgerCommand),

    /// Put load on a cluster and write down everything that clients do and see
    #[command(long_about = "\
Put load on a cluster and write down everything that clients do and see.

The history is one JSON object a line: when each operation began, and when and how it ended. An operation without an \
answer is \"info\", never \"fail\": it may still take effect. Nothing is judged here; `cargo xtask check FILE` of the \
project does that, and docs/history.md describes the format for other checkers.")]
    #[command(after_long_help = "\
Examples:
  mainstay workload registers --history registers.jsonl --seconds 60
  mainstay workload bank --history bank.jsonl --operations 10000 --rate 0 --seed 7
  mainstay workload log --history - | jq -c 'select(.type == \"info\")'")]
    Workload(WorkloadArgs),
}

/// Of `node`.
#[derive(Debug, Clone, Args)]
pub struct NodeArgs {
    /// The node's configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,

    /// When the worker ends, end too, with its exit code
    #[arg(long)]
    pub no_restart: bool,

    /// Check the configuration file, print what is wrong with it, and end
    #[arg(long)]
    pub check: bool,
}

/// Of `worker`.
#[derive(Debug, Clone, Args)]
pub struct WorkerArgs {
    /// The node's configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,

    /// The instance that the supervisor chose for this process
    #[arg(long, value_name = "ID")]
    pub instance: Instance,
}

/// Of `up`.
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    /// Data nodes, with ids from 1 [default: 3, or as the directory has]
    #[arg(long, value_name = "N")]
    pub nodes: Option<u32>,

    /// Witnesses, an odd number, with ids from 101 [default: 3, or as the directory has]
    #[arg(long, value_name = "N")]
    pub witnesses: Option<u32>,

    /// Witnesses that wait for `mainstay witness add` [default: 0, or as the directory has]
    #[arg(long, value_name = "N")]
    pub standby_witnesses: Option<u32>,

    /// Loopback address that all nodes listen on [default: 127.0.0.1, or as the directory has]
    #[arg(long, value_name = "IP")]
    pub host: Option<Ipv4Addr>,

    /// Where everything is kept
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIR)]
    pub dir: PathBuf,

    /// Start a node again by itself when it ended unexpectedly
    #[arg(long)]
    pub respawn: bool,

    /// Return once the cluster is up and leave it running
    #[arg(long)]
    pub detach: bool,

    /// Start this node of the running cluster again, and return
    #[arg(
        long,
        value_name = "ID",
        conflicts_with_all = ["nodes", "witnesses", "standby_witnesses", "host", "respawn", "detach"]
    )]
    pub restart: Option<u32>,
}

impl UpArgs {
    /// The arguments of the same command without `--detach`.
    #[must_use]
    pub fn foreground(&self) -> Vec<OsString> {
        let mut out = vec!["up".into(), "--dir".into(), self.dir.clone().into()];
        let given = [
            ("--nodes", self.nodes.map(|count| count.to_string())),
            ("--witnesses", self.witnesses.map(|count| count.to_string())),
            (
                "--standby-witnesses",
                self.standby_witnesses.map(|count| count.to_string()),
            ),
            ("--host", self.host.map(|host| host.to_string())),
        ];
        for (option, value) in given {
            if let Some(value) = value {
                out.extend([option.into(), value.into()]);
            }
        }
        if self.respawn {
            out.push("--respawn".into());
        }
        out
    }
}

/// Of `down`.
#[derive(Debug, Clone, Args)]
pub struct DownArgs {
    /// Directory of the cluster
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIR)]
    pub dir: PathBuf,
}

/// Of `demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// How long the load runs, in seconds
    #[arg(long, value_name = "S", default_value_t = 40, value_parser = clap::value_parser!(u64).range(10..=3600))]
    pub seconds: u64,

    /// Seed of all that is written [default: random, and printed]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// Print one JSON object at the end, and what happens to standard error
    #[arg(long)]
    pub json: bool,

    /// Keep the cluster's directory, and say where it is
    #[arg(long)]
    pub keep: bool,
}

/// Of `status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Print again and again, in place
    #[arg(long)]
    pub watch: bool,

    /// Print JSON; with --watch, one line each time
    #[arg(long)]
    pub json: bool,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Of `promote`.
#[derive(Debug, Clone, Args)]
pub struct PromoteArgs {
    /// The volume
    pub volume: VolumeName,

    /// The node that shall be primary
    #[arg(long, value_name = "NODE")]
    pub to: u32,

    /// Without the answers that prove that no acknowledged write is lost; alone it says what would be
    #[arg(long)]
    pub force: bool,

    /// With --force: go on, and give up what the copy there does not hold
    #[arg(long, requires = "force")]
    pub accept_data_loss: bool,

    /// With --force: nodes that you have made sure are off, and stay off
    #[arg(
        long,
        value_name = "NODE,...",
        value_delimiter = ',',
        requires = "force"
    )]
    pub declare_off: Vec<u32>,

    /// With --force: take writes again with so few full copies; 1 if no other node is left
    #[arg(long, value_name = "N", requires = "force")]
    pub min_copies: Option<u32>,

    /// Why, for the event log
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Of `events`.
#[derive(Debug, Clone, Args)]
pub struct EventsArgs {
    /// Go on with events as they happen
    #[arg(long)]
    pub follow: bool,

    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Of `explain`.
#[derive(Debug, Clone, Args)]
pub struct ExplainArgs {
    /// The volume
    pub volume: VolumeName,

    /// The promotion to this epoch; without it, the newest one
    #[arg(long, value_name = "N", conflicts_with = "all")]
    pub epoch: Option<u64>,

    /// Every promotion that any node remembers, oldest first
    #[arg(long)]
    pub all: bool,

    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_commands_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_detached_cluster_runs_the_same_command_without_detach() {
        let line = [
            "mainstay",
            "up",
            "--nodes",
            "5",
            "--respawn",
            "--detach",
            "--dir",
            "d",
        ];
        let Command::Up(args) = Cli::try_parse_from(line).expect("parses").command else {
            panic!("not up");
        };
        let again: Vec<OsString> = std::iter::once("mainstay".into())
            .chain(args.foreground())
            .collect();
        let Command::Up(again) = Cli::try_parse_from(again).expect("parses").command else {
            panic!("not up");
        };
        assert_eq!((again.nodes, again.witnesses), (Some(5), None));
        assert!(again.respawn && !again.detach);
    }
}

//! The command line: every command and option, with the texts that `--help` prints. Nothing is carried out here.

pub mod ledger;
pub mod log_proofs;
pub mod retain;
pub mod witness;
pub mod workload;

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use mainstay_types::{Instance, VolumeName};

use crate::config::{ListenAddr, NbdTlsSection, TlsMode};
use crate::locate::{ClusterArgs, DEFAULT_DIR};
use ledger::LedgerCommand;
use log_proofs::{ProveArgs, RootArgs, VerifyArgs};
use retain::{Bound, RetainArgs, parse_age, parse_bytes};
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

/// What a volume holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KindArg {
    /// An append log.
    Log,
    /// A block device.
    Block,
}

/// `volume ...`
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Create a volume
    #[command(after_long_help = "\
Examples:
  mainstay volume create ledger --kind log
  mainstay volume create disk --kind block --size 10GiB
  mainstay volume create pair --kind log --on 1,2")]
    Create(CreateArgs),
    /// List all volumes
    List(ListArgs),
    /// Show one volume: its register, members and positions
    Show(ShowArgs),
    /// Delete a volume and everything in it
    Delete(DeleteArgs),
    /// Attach a block volume to a host, and keep it attached
    #[command(
        long_about = "\
Attach a block volume to a host, and keep it attached.

NBD clients attach by themselves when they connect, and let the volume go with their last connection. This command does it \
by hand: with --takeover, to end the attachment of a host that is lost or is to stop. Nothing of that host that is not \
committed yet takes effect from then on, whatever it sends.",
        after_long_help = "\
Examples:
  mainstay volume attach disk --takeover
  mainstay volume attach disk --name nbd:10.0.0.2 --takeover
  mainstay volume detach disk"
    )]
    Attach(AttachArgs),
    /// End the attachment of a block volume, whoever holds it
    Detach(DetachArgs),
}

/// Of `volume attach`.
#[derive(Debug, Clone, Args)]
pub struct AttachArgs {
    /// The block volume
    pub volume: VolumeName,

    /// Whom, as `mainstay status` names holders: nbd:ADDRESS for NBD clients [default: those on this machine]
    #[arg(long)]
    pub name: Option<String>,

    /// End the attachment of whoever holds it
    #[arg(long)]
    pub takeover: bool,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Of `volume detach`.
#[derive(Debug, Clone, Args)]
pub struct DetachArgs {
    /// The block volume
    pub volume: VolumeName,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Of `volume create`.
#[derive(Debug, Clone, Args)]
pub struct CreateArgs {
    /// Its name: 1 to 64 of a-z, 0-9, `-`, `_` and `.`
    pub volume: VolumeName,

    /// What it holds
    #[arg(long, value_enum)]
    pub kind: KindArg,

    /// Size of a block volume, a multiple of 4096: bytes, or with KiB, MiB, GiB or TiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size, required_if_eq("kind", "block"))]
    pub size: Option<u64>,

    /// Nodes that shall hold a copy; the first one is the first primary [default: all data nodes, at most three]
    #[arg(long, value_name = "ID,...", value_delimiter = ',')]
    pub on: Vec<u32>,

    /// Among equally good copies, the nodes that shall become primary first, in this order
    #[arg(long, value_name = "ID,...", value_delimiter = ',')]
    pub prefer: Vec<u32>,

    /// A block volume that several hosts may attach at a time: a cluster file system has to say who writes where
    #[arg(long)]
    pub shared: bool,

    /// What a log keeps by itself (`log retain` changes it): records younger than this, a number with ms, s, m, h, d or w
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    pub retain_age: Option<Bound<Duration>>,

    /// The same by bytes: the newest records with together so many, a number with KiB, MiB, GiB or TiB
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub retain_bytes: Option<Bound<u64>>,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Of `volume list`.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Of `volume show`.
#[derive(Debug, Clone, Args)]
pub struct ShowArgs {
    /// Its name
    pub volume: VolumeName,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Of `volume delete`.
#[derive(Debug, Clone, Args)]
pub struct DeleteArgs {
    /// Its name
    pub volume: VolumeName,

    /// Do not ask
    #[arg(long)]
    pub yes: bool,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
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

/// `log ...`
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Append records from standard input, each exactly once, also across failovers
    #[command(after_long_help = "\
Examples:
  mainstay log append ledger < transactions.csv
  zcat big.gz | mainstay log append ledger --in-flight 256
  mainstay log append ledger --batch 3 < transfers.txt      every three lines are appended together, or none of them")]
    Append(AppendArgs),
    /// Print records of a range of positions
    #[command(after_long_help = "\
Examples:
  mainstay log read ledger --since $(date -d '1 hour ago' +%s)
  mainstay log read ledger --reverse --limit 10      the newest ten, the newest first
  mainstay log read ledger --committed               from any copy, also while there is no primary")]
    Read(ReadArgs),
    /// Print records from a position on
    #[command(after_long_help = "\
Example:
  mainstay log tail ledger --follow      goes on across failovers, without a gap or a repeat")]
    Tail(TailArgs),
    /// Give up records that are no longer needed, for good
    #[command(after_long_help = "\
Examples:
  mainstay log trim ledger --below 1000
  mainstay log trim ledger --before $(date -d '30 days ago' +%s)

Readers are shown nothing below the trim point from then on. Members give the space back in whole segments, as soon as every registered
member holds what lies below.")]
    Trim(TrimArgs),
    /// Show or change what a log keeps by itself, by age and by bytes
    #[command(after_long_help = "\
Examples:
  mainstay log retain ledger                                  what it keeps now
  mainstay log retain ledger --age 30d --bytes 10GiB
  mainstay log retain ledger --age off                        the other bound stays

The policy is part of the log, so it survives failovers and restarts. A bound says what stays for certain; what neither bound keeps is \
trimmed by the primary, about once a second and in steps of a sixty-fourth of the bound. With both bounds, what either of them lets go \
is trimmed. Age goes by the records' timestamps and the primary's clock.")]
    Retain(RetainArgs),
    /// Print the root of a log's Merkle tree: a hash that stands for its whole history
    #[command(after_long_help = "\
Examples:
  mainstay log root ledger                   keep both lines where nobody who can alter the log can alter them
  mainstay log root ledger --size 1000       the root that the first 1000 positions have, then as now

Whoever has an old root can have it proved later that nothing before it was altered: see `mainstay log verify`. The page \
`docs/proofs.md` says what is proved, and what is not.")]
    Root(RootArgs),
    /// Write a proof of a record, or that a log only grew, which can be verified without the cluster
    #[command(after_long_help = "\
Examples:
  mainstay log prove ledger 4711 --out proof.json        the record at 4711, and that the log holds it
  mainstay log prove ledger --from 1000 --out grew.json  that the log still begins with its first 1000 positions

The proof is against the root that the log has now, or had at --size. Give the file to somebody who trusts that root; they run \
`mainstay log verify --proof FILE --root HASH --size N` on any machine.")]
    Prove(ProveArgs),
    /// Verify a proof, or audit a whole log, against a root that you kept
    #[command(after_long_help = "\
Examples:
  mainstay log verify --proof proof.json --root 5dc9... --size 8000
      without any cluster
  mainstay log verify ledger --root 5dc9... --size 8000
      reads the log, computes its root, and proves that your root is a part of it
  mainstay log verify ledger --root 5dc9... --size 8000 --roots-only
      the same without reading the records
  mainstay log verify ledger
      whether what is read is what the log's present root says

Exit codes: 0 verified; 3 not verified: the history, the proof or the root was altered; 1 nothing could be said, for instance \
because no node answers; 2 the command line is wrong.")]
    Verify(VerifyArgs),
}

/// How records are told apart in a stream of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Framing {
    /// A record a line; the newline is not part of it.
    Lines,
    /// Four bytes of length, great end first, before each record.
    Binary,
}

/// Of `log append`.
#[derive(Debug, Clone, Args)]
pub struct AppendArgs {
    /// The log
    pub volume: VolumeName,

    /// How records are told apart
    #[arg(long, value_enum, default_value = "lines")]
    pub framing: Framing,

    /// Append every N records together, all of them or none: nobody is ever shown a part. The last batch may be shorter
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub batch: Option<u32>,

    /// As the writer with this token: those with a smaller one, or with none, append nothing more from then on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub token: Option<u64>,

    /// Records, or batches, sent ahead of their answers
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub in_flight: u32,

    /// Print nothing but errors
    #[arg(long, short)]
    pub quiet: bool,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Of `log read`.
#[derive(Debug, Clone, Args)]
pub struct ReadArgs {
    /// The log
    pub volume: VolumeName,

    /// First position, inclusive [default: the first there is]
    #[arg(long, value_name = "LSN")]
    pub from: Option<u64>,

    /// Last position, inclusive [default: the last that is committed now]
    #[arg(long, value_name = "LSN")]
    pub to: Option<u64>,

    /// From the first record that is not older than this time, in seconds since 1970
    #[arg(long, value_name = "SECONDS", conflicts_with = "from", value_parser = parse_seconds)]
    pub since: Option<u64>,

    /// Print no more records than this
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,

    /// The newest record first
    #[arg(long)]
    pub reverse: bool,

    /// From any node with a copy, with what it knows to be committed: perhaps not the newest
    #[arg(long)]
    pub committed: bool,

    /// How records are told apart
    #[arg(long, value_enum, default_value = "lines")]
    pub framing: Framing,

    /// Print the position before each record
    #[arg(long)]
    pub lsn: bool,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Of `log tail`.
#[derive(Debug, Clone, Args)]
pub struct TailArgs {
    /// The log
    pub volume: VolumeName,

    /// First position, inclusive [default: the last ten records]
    #[arg(long, value_name = "LSN")]
    pub from: Option<u64>,

    /// Go on with records as they are committed
    #[arg(long, short)]
    pub follow: bool,

    /// How records are told apart
    #[arg(long, value_enum, default_value = "lines")]
    pub framing: Framing,

    /// Print the position before each record
    #[arg(long)]
    pub lsn: bool,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Of `log trim`.
#[derive(Debug, Clone, Args)]
#[command(group(clap::ArgGroup::new("upto").required(true).args(["below", "before"])))]
pub struct TrimArgs {
    /// The log
    pub volume: VolumeName,

    /// Give up everything below this position
    #[arg(long, value_name = "LSN")]
    pub below: Option<u64>,

    /// Give up every record older than this time, in seconds since 1970
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub before: Option<u64>,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Of `nbd`.
#[derive(Debug, Clone, Args)]
pub struct NbdArgs {
    /// The block volume
    pub volume: VolumeName,

    /// Where to listen
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:10809", value_parser = parse_listen)]
    pub listen: ListenAddr,

    /// For reading: whoever holds the volume keeps it, and what they write is seen here
    #[arg(long)]
    pub read_only: bool,

    /// The first client takes the volume over from the host that holds it: what that one has not been answered is void
    #[arg(long, conflicts_with = "read_only")]
    pub takeover: bool,

    /// TLS.
    #[command(flatten)]
    pub tls: NbdTlsArgs,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// TLS of `nbd`.
#[derive(Debug, Clone, Args)]
pub struct NbdTlsArgs {
    /// Whether clients may use TLS, or have to; they have to unless this says otherwise, if there is a certificate
    #[arg(long = "tls", value_name = "MODE", value_enum, requires_ifs = [("optional", "tls_cert"), ("required", "tls_cert")])]
    pub tls_mode: Option<TlsMode>,

    /// The server's certificate, followed by those between it and its authority (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// The private key of the certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// The authorities of clients' certificates (PEM); with it, a client must have one
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,
}

impl NbdTlsArgs {
    /// As the configuration file of a node has it.
    #[must_use]
    pub fn section(self) -> Option<NbdTlsSection> {
        Some(NbdTlsSection {
            mode: self.tls_mode.unwrap_or(TlsMode::Required),
            cert: self.tls_cert?,
            key: self.tls_key?,
            client_ca: self.tls_client_ca,
        })
    }
}

/// Seconds since 1970, with a fraction or without, as microseconds.
fn parse_seconds(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a time in seconds since 1970, such as 1700000000.5");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: u64 = whole.parse().map_err(|_| wrong())?;
    let digits = fraction.bytes().all(|byte| byte.is_ascii_digit());
    let micros = format!("{:0<6}", fraction.get(..6).unwrap_or(fraction));
    let micros: u64 = micros.parse().map_err(|_| wrong())?;
    if !digits {
        return Err(wrong());
    }
    let whole = seconds.checked_mul(1_000_000).ok_or_else(wrong)?;
    whole.checked_add(micros).ok_or_else(wrong)
}

fn parse_listen(text: &str) -> Result<ListenAddr, crate::config::AddressError> {
    ListenAddr::try_from(text.to_owned())
}

/// Bytes, or a number with a binary unit.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "B" => 1,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1_u64 << 40,
        other => return Err(format!("unit `{other}` is none of KiB, MiB, GiB and TiB")),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("`{text}` is not a size; write for example 10GiB"))?;
    number
        .checked_mul(unit)
        .ok_or_else(|| format!("`{text}` is too large"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn times_are_seconds_with_a_fraction_or_without() {
        for (text, micros) in [
            ("0", 0),
            ("1700000000", 1_700_000_000_000_000),
            ("1.5", 1_500_000),
            ("1.0000019", 1_000_001),
        ] {
            assert_eq!(parse_seconds(text), Ok(micros), "{text}");
        }
        for text in ["", "-1", "1,5", "1.x", "99999999999999999", "yesterday"] {
            let error = parse_seconds(text).expect_err(text);
            assert!(error.contains("seconds since 1970"), "{error}");
        }
    }

    #[test]
    fn the_commands_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_certificate_without_more_words_makes_tls_required() {
        let parse = |more: &[&str]| {
            let words = [&["mainstay", "nbd", "disk"], more].concat();
            match Cli::try_parse_from(words).ok()?.command {
                Command::Nbd(args) => Some(args.tls.section().map(|section| section.mode)),
                other => panic!("{other:?}"),
            }
        };
        let files = ["--tls-cert", "c", "--tls-key", "k"];
        assert_eq!(parse(&[]), Some(None));
        assert_eq!(parse(&files), Some(Some(TlsMode::Required)));
        let optional = [&files[..], &["--tls", "optional"]].concat();
        assert_eq!(parse(&optional), Some(Some(TlsMode::Optional)));
        assert_eq!(parse(&["--tls", "off"]), Some(None));
        for incomplete in [
            &["--tls", "required"][..],
            &["--tls-cert", "c"],
            &["--tls-key", "k"],
            &["--tls-client-ca", "a"],
        ] {
            assert_eq!(parse(incomplete), None, "{incomplete:?}");
        }
    }

    #[test]
    fn a_block_volume_needs_a_size_and_a_log_does_not() {
        let parse = |args: &[&str]| Cli::try_parse_from(args).map(|_| ());
        assert!(parse(&["mainstay", "volume", "create", "a", "--kind", "log"]).is_ok());
        assert!(parse(&["mainstay", "volume", "create", "a", "--kind", "block"]).is_err());
        assert!(
            parse(&[
                "mainstay", "volume", "create", "a", "--kind", "block", "--size", "1GiB"
            ])
            .is_ok()
        );
    }

    #[test]
    fn sizes_take_binary_units() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("3KiB"), Ok(3072));
        assert_eq!(parse_size("2G"), Ok(2 << 30));
        for bad in ["", "GiB", "1.5G", "-1", "1GB", "99999999999T"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
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

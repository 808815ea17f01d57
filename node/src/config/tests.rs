use std::path::Path;
use std::time::Duration;

use mainstay_replication::{LeaseConfig, MemberConfig};
use mainstay_types::{ClusterId, NodeId};

use super::{Config, ConfigError, Role};

const GOOD: &str = r#"cluster = "ledger"

[node]
id = 1
roles = ["data", "witness"]
data_dir = "/var/lib/mainstay"
grpc = "0.0.0.0:7400"
nbd = "0.0.0.0:10809"
http = "127.0.0.1:7480"

[[peers]]
id = 1
roles = ["data", "witness"]
grpc = "10.0.0.1:7400"

[[peers]]
id = 2
roles = ["data", "witness"]
grpc = "beta.example:7400"

[[peers]]
id = 3
roles = ["witness"]
grpc = "[fd00::3]:7400"
"#;

/// Expects exactly one complaint about `GOOD` with `from` replaced by `to`, and returns it.
fn complaint(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "the good file has no {from:?}");
    let text = GOOD.replacen(from, to, 1);
    let error = Config::parse(Path::new("n1.toml"), &text).expect_err("a mistake");
    error.to_string()
}

#[track_caller]
fn check(from: &str, to: &str, expected: &str) {
    assert_eq!(complaint(from, to), expected);
}

/// `section` is put in front of the peers, at line 11.
#[track_caller]
fn check_section(section: &str, expected: &str) {
    check(
        "\n[[peers]]\nid = 1",
        &format!("\n{section}\n\n[[peers]]\nid = 1"),
        expected,
    );
}

#[test]
fn a_good_file_is_taken_with_defaults_equal_to_those_of_the_core() {
    let config = Config::parse(Path::new("n1.toml"), GOOD).expect("good");
    assert_eq!(config.node_id(), NodeId(1));
    assert_eq!(config.lease_config(), LeaseConfig::default());
    assert_eq!(config.member_config(), MemberConfig::default());
    assert_eq!(config.witnesses().count(), 3);
    assert_eq!(config.data_nodes().count(), 2);
    assert_eq!(config.own_peer().roles, [Role::Data, Role::Witness]);
    assert_eq!(config.peers[2].grpc.host(), "fd00::3");
    assert_eq!(config.peers[2].grpc.to_string(), "[fd00::3]:7400");
    assert_eq!(config.advertised(9).to_string(), "10.0.0.1:9");
    assert_eq!(config.witness_dir(), Path::new("/var/lib/mainstay/witness"));
    assert_eq!(config.nbd.park_timeout(), Duration::from_secs(60));
    assert_eq!(config.nbd.limits().request_bytes_max, 32 << 20);
}

#[test]
fn a_cluster_is_named_by_name_or_by_id() {
    let by_name = Config::parse(Path::new("n1.toml"), GOOD).expect("good");
    let id = by_name.cluster_id();
    assert_ne!(id, ClusterId(0));
    let by_id = GOOD.replace("\"ledger\"", &format!("\"{id}\""));
    let by_id = Config::parse(Path::new("n1.toml"), &by_id).expect("good");
    assert_eq!(by_id.cluster_id(), id);
}

#[test]
fn a_lease_of_two_seconds_is_taken_with_a_warning() {
    let text = format!("{GOOD}\n[lease]\nlease_ms = 2000\n");
    let config = Config::parse(Path::new("n1.toml"), &text).expect("good");
    let warnings = config.warnings().join("\n");
    assert!(warnings.contains("lease.lease_ms = 2000"), "{warnings}");
    assert_eq!(config.lease_config().lease_longest, Duration::from_secs(2));
}

#[test]
fn unknown_keys_and_sections_are_named_with_their_line() {
    let error = complaint("data_dir =", "datadir =");
    assert!(
        error.starts_with("n1.toml:6: datadir: unknown field `datadir`, expected one of `id`"),
        "{error}"
    );
    let error = complaint("\n[[peers]]\nid = 1", "\n[leese]\n\n[[peers]]\nid = 1");
    assert!(
        error.starts_with("n1.toml:11: [leese]: unknown field `leese`"),
        "{error}"
    );
}

#[test]
fn missing_keys_and_wrong_types_are_named() {
    let error = complaint("data_dir = \"/var/lib/mainstay\"\n", "");
    assert!(error.contains("missing field `data_dir`"), "{error}");
    let error = complaint("id = 1", "id = \"one\"");
    assert!(
        error.starts_with("n1.toml:4: id: invalid type: string \"one\""),
        "{error}"
    );
    let error = complaint("cluster = \"ledger\"", "cluster = ");
    assert!(error.starts_with("n1.toml:1: cluster: "), "{error}");
    check(
        "\"0.0.0.0:7400\"",
        "\"7400\"",
        "n1.toml:7: grpc: `7400` is not an address to listen on; write an IP address and a port, such as \"10.0.0.1:7400\" or \"[::1]:7400\"",
    );
    let error = complaint(
        "roles = [\"data\", \"witness\"]",
        "roles = [\"data\", \"quorum\"]",
    );
    assert!(
        error.contains(
            "unknown variant `quorum`, expected one of `data`, `witness`, `standby-witness`"
        ),
        "{error}"
    );
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::load(Path::new("/nonexistent/n.toml")).expect_err("no file");
    assert!(matches!(error, ConfigError::Read { .. }));
    assert!(
        error
            .to_string()
            .starts_with("/nonexistent/n.toml: cannot be read")
    );
}

#[test]
fn every_id_is_used_once_and_from_one() {
    check(
        "id = 2",
        "id = 3",
        "n1.toml:22: peers[2].id: id 3 is peers[1] (line 17) too; give every node of the cluster its own id",
    );
    let error = complaint("id = 2", "id = 0");
    assert_eq!(
        error,
        "n1.toml:17: peers[1].id: 0 is not an id; number the nodes from 1"
    );
}

#[test]
fn witnesses_are_odd_in_number_and_there_are_some() {
    check(
        "roles = [\"witness\"]",
        "roles = [\"data\"]",
        "n1.toml:11: peers: 2 witnesses: an even number survives no more losses than 1; use 1 or 3 witnesses",
    );
    let none = GOOD
        .replace("\"data\", \"witness\"", "\"data\"")
        .replace("\"witness\"", "\"data\"");
    let error = Config::parse(Path::new("n1.toml"), &none)
        .expect_err("no witness")
        .to_string();
    assert!(
        error.starts_with("n1.toml:11: peers: no witness; give the role"),
        "{error}"
    );
}

#[test]
fn a_node_is_among_its_peers_with_the_same_roles_and_port() {
    check(
        "id = 1",
        "id = 7",
        "n1.toml:4: node.id: node 7 is not among the peers (1, 2, 3); add a [[peers]] entry for this node too: the list is the whole cluster, the same on every node",
    );
    check(
        "roles = [\"data\", \"witness\"]",
        "roles = [\"data\"]",
        "n1.toml:5: node.roles: [Data], but peers[0] says [Data, Witness]; give this node the same roles in both places",
    );
    let error = complaint("10.0.0.1:7400", "10.0.0.1:7401");
    assert!(
        error.contains("node.grpc: port 7400, but peers[0].grpc is 10.0.0.1:7401"),
        "{error}"
    );
}

#[test]
fn no_address_and_no_path_is_used_twice() {
    check(
        "nbd = \"0.0.0.0:10809\"",
        "nbd = \"10.0.0.1:7400\"",
        "n1.toml:8: node.nbd: 10.0.0.1:7400 is the address of node.grpc too; give each listener its own port, or 0 to let the system choose",
    );
    check(
        "beta.example:7400",
        "10.0.0.1:7400",
        "n1.toml:19: peers[1].grpc: 10.0.0.1:7400 is the address of peers[0].grpc too; give every listener of the cluster its own address",
    );
    check(
        "grpc = \"0.0.0.0:7400\"",
        "witness_dir = \"/var/lib/./mainstay/\"\ngrpc = \"0.0.0.0:7400\"",
        "n1.toml:7: node.witness_dir: /var/lib/./mainstay/ is node.data_dir too; give the witness a directory of its own, or leave the key out",
    );
}

#[test]
fn a_lease_outlasts_three_beats() {
    check_section(
        "[lease]\nbeat_ms = 300",
        "n1.toml:11: lease.lease_ms: 800 is too short for a beat every 300 ms; use at least 900 (3 beats), so that one lost beat costs no lease, or lower lease.beat_ms",
    );
    check_section(
        "[lease]\nlease_ms = 900\nlease_longest_ms = 800",
        "n1.toml:13: lease.lease_longest_ms: 800 is shorter than lease_ms = 900; write the longest lease this cluster ever ran with, or leave the key out",
    );
}

#[test]
fn zero_is_not_a_size() {
    check_section(
        "[storage]\nsegment_mib = 0",
        "n1.toml:12: storage.segment_mib: is zero; zero is not \"no limit\"; leave the key out for its default",
    );
    let error = complaint(
        "\n[[peers]]\nid = 1",
        "\n[limits]\nrecord_bytes_max = 0\n\n[nbd]\nserver_mib_max = 0\n\n[[peers]]\nid = 1",
    );
    assert_eq!(
        error.lines().count(),
        2,
        "both mistakes are told at once: {error}"
    );
}

#[test]
fn sizes_fit_the_format_and_each_other() {
    check_section(
        "[limits]\nrecord_bytes_max = 33554432",
        "n1.toml:12: limits.record_bytes_max: 33554432 is too large; use at most 16777216",
    );
    check_section(
        "[limits]\nclient_bytes_max = 4096",
        "n1.toml:12: limits.client_bytes_max: 4096 has no room for one record of limits.record_bytes_max = 16777216; use at least 16777216",
    );
}

#[test]
fn a_log_level_is_one() {
    let error = complaint(
        "\n[[peers]]\nid = 1",
        "\n[log]\nlevel = \"info,=\"\n\n[[peers]]\nid = 1",
    );
    assert!(
        error.contains("log.level: `info,=` is not a level"),
        "{error}"
    );
}

#[test]
fn the_examples_for_three_machines_are_good_and_belong_together() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples");
    let names = ["alpha", "beta", "gamma"];
    let configs = names.map(|name| {
        let path = dir.join(format!("{name}.toml"));
        Config::load(&path).unwrap_or_else(|error| panic!("{error}"))
    });
    for (at, config) in configs.iter().enumerate() {
        assert_eq!(config.warnings(), Vec::<String>::new());
        assert_eq!(config.node.name.as_deref(), Some(names[at]));
        assert_eq!(config.peers[at].id, config.node_id());
        assert_eq!(config.peers, configs[0].peers);
        assert_eq!(config.cluster_id(), configs[0].cluster_id());
        assert_eq!(config.lease_config(), LeaseConfig::default());
    }
}

/// A file of `[nbd.tls]` that is of no use is told with its own key.
#[test]
fn files_of_tls_are_looked_at() {
    let dir = tempfile::tempdir().expect("a directory");
    let missing = dir.path().join("missing.pem");
    let missing = missing.to_str().expect("text");
    let section = |mode| {
        format!("[nbd.tls]\nmode = \"{mode}\"\ncert = \"{missing}\"\nkey = \"{missing}.key\"")
    };
    check_section(
        &section("required"),
        &format!(
            "n1.toml:13: nbd.tls.cert: `{missing}` cannot be read: No such file or directory (os error 2); put the file there, or let this user read it"
        ),
    );
    let off = format!("\n{}\n\n[[peers]]\nid = 1", section("off"));
    let text = GOOD.replacen("\n[[peers]]\nid = 1", &off, 1);
    let config = Config::parse(Path::new("n1.toml"), &text).expect("files that are not used");
    assert!(config.nbd.tls.is_some());
    check_section(
        "[nbd.tls]\ncert = \"c\"\nkey = \"k\"",
        "n1.toml:11: [nbd.tls]: missing field `mode`",
    );
}

#[test]
fn certificates_out_of_their_time_keep_no_node_from_starting() {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    let dir = tempfile::tempdir().expect("a directory");
    let [cert, key] = ["cert", "key"].map(|name| dir.path().join(name));
    let own = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.not_after = date_time_ymd(2001, 1, 1);
    let signed = params.self_signed(&own).expect("signed");
    std::fs::write(&cert, signed.pem()).expect("written");
    std::fs::write(&key, own.serialize_pem()).expect("written");
    let section = format!(
        "\n[nbd.tls]\nmode = \"required\"\ncert = {cert:?}\nkey = {key:?}\n\n[[peers]]\nid = 1"
    );
    let text = GOOD.replacen("\n[[peers]]\nid = 1", &section, 1);
    let config = Config::parse(Path::new("n1.toml"), &text).expect("well formed");
    let warnings = config.warnings();
    let told = warnings.iter().find(|told| told.contains("has expired"));
    let told = told.expect("a warning");
    assert!(told.starts_with("[nbd.tls] the certificate in `"), "{told}");
    assert!(told.ends_with("clients refuse this one"), "{told}");
}

/// The page and the code must not drift apart: every key stands in the page, with its default where it has one.
#[test]
fn the_operations_page_names_every_key_with_its_default() {
    let page = include_str!("../../../docs/operations.md");
    let config = Config::parse(Path::new("n1.toml"), GOOD).expect("good");
    let shown = format!(
        "{:?} {:?} {:?} {:?} {:?} {:?}",
        config.hooks, config.lease, config.replication, config.storage, config.limits, config.nbd
    );
    let fields = shown.split([' ', '{', '}', ',']).collect::<Vec<_>>();
    for pair in fields.windows(2) {
        let Some(key) = pair[0].strip_suffix(':') else {
            continue;
        };
        // A key may stand in two sections, each with its own default.
        let mut rows = page.lines();
        let start = match pair[1].parse::<u64>() {
            Ok(default) => format!("| `{key}` | {default} |"),
            Err(_) => format!("| `{key}` |"),
        };
        assert!(
            rows.any(|row| row.starts_with(&start)),
            "docs/operations.md has no row {start}"
        );
    }
}

#[test]
fn a_zone_is_a_short_plain_word() {
    let nbd = "nbd = \"0.0.0.0:10809\"";
    let with = |zone: &str| format!("{nbd}\nzone = \"{zone}\"");
    let config = GOOD.replacen(nbd, &with("room-1.b"), 1);
    let config = Config::parse(Path::new("n1.toml"), &config).expect("good");
    assert_eq!(
        config.node.zone.map(|zone| zone.to_string()).as_deref(),
        Some("room-1.b")
    );
    let complaint = complaint(nbd, &with("room 1"));
    assert!(complaint.starts_with("n1.toml:9:"), "{complaint}");
    assert!(
        complaint.contains("zone \"room 1\" is not 1 to 64 of letters"),
        "{complaint}"
    );
}

#[test]
fn a_command_is_a_program_that_can_be_run() {
    check_section(
        "[fence]\ncommand = []",
        "n1.toml:12: fence.command: an empty command; write [\"/path/of/a/program\", \"argument\", ...], or leave the key out",
    );
    check_section(
        "[fence]\ncommand = [\"fence.sh\"]",
        "n1.toml:12: fence.command: `fence.sh` is not an absolute path; write the whole path of the program: it is not \
         searched for",
    );
    check_section(
        "[fence]\ncommand = [\"/\"]",
        "n1.toml:12: fence.command: `/` is not a file; name the program itself",
    );
    check_section(
        "[fence]\ncommand = [\"/nonexistent/fence\"]",
        "n1.toml:12: fence.command: `/nonexistent/fence` cannot be used: No such file or directory (os error 2); put the \
         program there, or correct the path",
    );
    check_section(
        "[hooks]\ntimeout_ms = 700000\npromoted = [\"\"]",
        "n1.toml:13: hooks.promoted: an empty command; write [\"/path/of/a/program\", \"argument\", ...], or leave the key \
         out\nn1.toml:12: hooks.timeout_ms: 700000 is too large; use at most 600000",
    );
    let plain = tempfile::NamedTempFile::new().expect("a file");
    let path = plain.path().display().to_string();
    check_section(
        &format!("[fence]\ncommand = [\"{path}\"]"),
        &format!("n1.toml:12: fence.command: `{path}` is not executable; `chmod +x {path}`"),
    );
    check_section(
        "[fence]\ncommand = [\"/bin/sh\"]\ntimeout_ms = 0",
        "n1.toml:13: fence.timeout_ms: is zero; a command needs time to run; leave the key out for its default",
    );
}

#[test]
fn a_volume_waits_for_the_hook_of_a_promotion_alone() {
    let with = |line: &str| {
        let text = format!("{GOOD}\n[hooks]\n{line} = [\"/bin/sh\"]\n");
        Config::parse(Path::new("n1.toml"), &text).expect("good")
    };
    let config = with("demoted");
    assert!(!config.member_config().await_ready);
    assert_eq!(config.hook_commands().promoted, None);
    let config = with("promoted");
    assert!(config.member_config().await_ready);
    let command = config.hook_commands().promoted.expect("a command");
    assert_eq!(command.timeout, Duration::from_secs(5));
}

#[test]
fn the_external_fence_is_taken_as_it_is_written() {
    let text = format!("{GOOD}\n[fence]\ncommand = [\"/bin/sh\", \"-c\", \"true\"]\n");
    let config = Config::parse(Path::new("n1.toml"), &text).expect("good");
    let ten_seconds = Duration::from_secs(10);
    assert_eq!(config.lease_config().external_fence, Some(ten_seconds));
    let command = config.fence_command().expect("a command");
    assert_eq!(command.program, Path::new("/bin/sh"));
    assert_eq!(command.arguments, ["-c", "true"]);
    assert_eq!(command.timeout, ten_seconds);
}

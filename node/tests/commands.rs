//! The user's commands for volumes and logs against a real cluster in this process.

mod command_rig;
mod support;

use std::io::{self, Cursor, Write as _};
use std::time::Duration;

use command_rig::{NOBODY, Shared, create, json, promote_until};
use mainstay_node::commands::log::framing::Framing;
use mainstay_node::commands::log::{Printed, append, read, tail};
use mainstay_node::commands::{events, promote, size, status, volume};
use mainstay_types::{Lsn, NodeId, VolumeKind};
use serde_json::Value;
use support::Cluster;
use tokio::sync::oneshot;

async fn append_to(
    cluster: &Cluster,
    args: &append::Args,
    input: &[u8],
) -> (Value, anyhow::Result<()>) {
    let mut out = Vec::new();
    let args = append::Args {
        json: true,
        quiet: true,
        ..args.clone()
    };
    let input = Cursor::new(input.to_vec());
    let result = append::run(&args, cluster.endpoints(), input, &mut out).await;
    (json(&out), result)
}

async fn read_from(cluster: &Cluster, args: &read::Args) -> Vec<u8> {
    let mut out = Vec::new();
    read::run(args, cluster.endpoints(), &mut out)
        .await
        .expect("read");
    out
}

/// `count` lines that differ in length and content.
fn lines(count: usize) -> String {
    (0..count)
        .map(|n| format!("{n},{}\n", "x".repeat(n % 97)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_created_listed_shown_and_deleted() {
    let cluster = Cluster::start().await;
    let ends = || cluster.endpoints();
    create(&cluster, "ledger", VolumeKind::Log).await;
    create(&cluster, "disk", size::block_kind(1 << 20).expect("a size")).await;

    let mut out = Vec::new();
    volume::list(true, ends(), &mut out).await.expect("listed");
    let listed = json(&out);
    let names: Vec<&str> = (0..2)
        .filter_map(|at| listed[at]["name"].as_str())
        .collect();
    assert_eq!(names, ["disk", "ledger"]);

    let mut out = Vec::new();
    volume::show("disk", true, ends(), &mut out)
        .await
        .expect("shown");
    let shown = json(&out);
    assert_eq!(shown["kind"]["size_bytes"], 1 << 20);
    assert_eq!(shown["members"].as_array().map(Vec::len), Some(3));
    let error = volume::show("nothing", false, ends(), &mut out).await;
    let error = error.expect_err("no such volume").to_string();
    assert!(error.contains("mainstay volume list"), "{error}");

    // Creating it again changes nothing; another kind under the name is refused.
    let mut again = volume::Create::new("ledger", VolumeKind::Log);
    again.json = true;
    let mut out = Vec::new();
    volume::create(&again, ends(), &mut out)
        .await
        .expect("the same");
    assert_eq!(json(&out)["existed"], true);
    again.kind = size::block_kind(4096).expect("a size");
    let error = volume::create(&again, ends(), &mut out)
        .await
        .expect_err("another kind");
    assert!(error.to_string().contains("exists"), "{error}");

    let mut delete = volume::Delete {
        volume: "ledger".to_owned(),
        yes: false,
        force: false,
        json: false,
    };
    let error = volume::delete(&delete, ends(), NOBODY, &mut out).await;
    assert!(
        error
            .expect_err("nobody agreed")
            .to_string()
            .contains("--yes")
    );
    delete.yes = true;
    let mut out = Vec::new();
    volume::delete(&delete, ends(), NOBODY, &mut out)
        .await
        .expect("deleted");
    assert_eq!(out, b"deleted `ledger`\n");
    let gone = volume::delete(&delete, ends(), NOBODY, &mut out).await;
    assert!(gone.is_err(), "deleted twice");
    cluster.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn placement_and_copies_are_as_asked() {
    let cluster = Cluster::start().await;
    let mut args = volume::Create::new("pair", VolumeKind::Log);
    args.placement = vec![NodeId(3), NodeId(1)];
    args.json = true;
    let mut out = Vec::new();
    volume::create(&args, cluster.endpoints(), &mut out)
        .await
        .expect("created");
    let created = json(&out);
    assert_eq!(created["volume"]["placement"], serde_json::json!([3, 1]));
    assert_eq!(created["volume"]["primary"], 3);
    assert_eq!(
        created["volume"]["members"].as_array().map(Vec::len),
        Some(2)
    );
    args.volume = "seven".to_owned();
    args.placement = vec![NodeId(7)];
    let error = volume::create(&args, cluster.endpoints(), &mut out).await;
    let error = error.expect_err("no node 7").to_string();
    assert!(error.contains('7'), "{error}");
    cluster.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn preferred_nodes_are_shown_and_checked() {
    let cluster = Cluster::start().await;
    let mut args = volume::Create::new("ledger", VolumeKind::Log);
    args.prefer = vec![NodeId(2), NodeId(3)];
    args.json = true;
    let mut out = Vec::new();
    volume::create(&args, cluster.endpoints(), &mut out)
        .await
        .expect("created");
    let created = json(&out);
    assert_eq!(created["volume"]["prefer"], serde_json::json!([2, 3]));
    assert_eq!(
        created["volume"]["primary"], 2,
        "the first of them makes it"
    );
    let mut out = Vec::new();
    volume::show("ledger", false, cluster.endpoints(), &mut out)
        .await
        .expect("shown");
    let shown = String::from_utf8(out).expect("text");
    assert!(shown.contains("preferred      2, 3"), "{shown}");
    args.volume = "pair".to_owned();
    args.placement = vec![NodeId(1), NodeId(2)];
    let error = volume::create(&args, cluster.endpoints(), &mut Vec::new()).await;
    let error = error.expect_err("no copy on node 3").to_string();
    assert!(error.contains("node 3 cannot be preferred"), "{error}");
    cluster.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_appended_is_read_byte_for_byte() {
    let cluster = Cluster::start().await;
    create(&cluster, "ledger", VolumeKind::Log).await;
    let text = lines(3000);
    let args = append::Args::new("ledger");
    let (summary, result) = append_to(&cluster, &args, text.as_bytes()).await;
    result.expect("appended");
    assert_eq!(summary["records"], 3000);
    assert!(summary["first_lsn"].as_u64() < summary["last_lsn"].as_u64());

    let all = read::Args::all("ledger");
    assert_eq!(read_from(&cluster, &all).await, text.as_bytes());
    let limited = read::Args {
        limit: Some(2),
        ..all.clone()
    };
    assert_eq!(read_from(&cluster, &limited).await, b"0,\n1,x\n");
    let last = Lsn(summary["last_lsn"].as_u64().expect("a position"));
    let one = read::Args {
        from: Some(last),
        to: Some(last),
        printed: Printed {
            with_lsn: true,
            ..Printed::default()
        },
        ..all.clone()
    };
    let line = text.lines().next_back().expect("a line");
    assert_eq!(
        read_from(&cluster, &one).await,
        format!("{last}\t{line}\n").as_bytes()
    );

    let mut out = Vec::new();
    let newest = tail::Args {
        last: 2,
        ..tail::Args::newest("ledger")
    };
    tail::run(&newest, cluster.endpoints(), &mut out)
        .await
        .expect("the tail");
    let expected: Vec<&str> = text.lines().skip(2998).collect();
    assert_eq!(
        String::from_utf8(out).expect("text"),
        expected.join("\n") + "\n"
    );
    cluster.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn framed_records_hold_any_bytes() {
    let cluster = Cluster::start().await;
    create(&cluster, "bytes", VolumeKind::Log).await;
    let mut input = Vec::new();
    for len in [0_usize, 1, 255, 70_000, 1 << 20] {
        let record: Vec<u8> = (0..=255).cycle().take(len).collect();
        Framing::Framed.write(&record, &mut input).expect("written");
    }
    let args = append::Args {
        framing: Framing::Framed,
        ..append::Args::new("bytes")
    };
    let (summary, result) = append_to(&cluster, &args, &input).await;
    result.expect("appended");
    assert_eq!(summary["records"], 5);
    let all = read::Args {
        printed: Printed {
            framing: Framing::Framed,
            ..Printed::default()
        },
        ..read::Args::all("bytes")
    };
    assert!(read_from(&cluster, &all).await == input);
    let printed = Printed {
        json: true,
        ..Printed::default()
    };
    let all = read::Args { printed, ..all };
    let shown = read_from(&cluster, &all).await;
    let shown: Vec<Value> = shown
        .split_inclusive(|byte| *byte == b'\n')
        .map(json)
        .collect();
    assert_eq!(
        (&shown[0]["text"], &shown[1]["text"]),
        (&"".into(), &"\0".into())
    );
    let hex = shown[2]["data_hex"].as_str().expect("no text");
    assert_eq!((hex.len(), &hex[508..]), (510, "fe"));
    assert_eq!(shown.len(), 5);
    assert!(shown[4]["lsn"].as_u64() > shown[3]["lsn"].as_u64());
    assert!(shown[0]["timestamp_us"].as_u64() > Some(0));
    let newest = tail::Args {
        last: 1,
        printed,
        ..tail::Args::newest("bytes")
    };
    let mut out = Vec::new();
    let tailed = tail::run(&newest, cluster.endpoints(), &mut out).await;
    tailed.expect("the tail");
    assert_eq!(json(&out), shown[4]);
    cluster.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_too_long_is_named_and_the_lines_before_it_are_appended() {
    let cluster = Cluster::start().await;
    create(&cluster, "ledger", VolumeKind::Log).await;
    let mut input = b"one\ntwo\n".to_vec();
    input.resize(input.len() + (16 << 20) + 1, b'x');
    input.extend(b"\nfour\n");
    let (summary, result) = append_to(&cluster, &append::Args::new("ledger"), &input).await;
    let error = result.expect_err("line 3 is too long").to_string();
    assert!(error.starts_with("line 3 is longer"), "{error}");
    assert_eq!(summary["records"], 2);
    let all = read::Args::all("ledger");
    assert_eq!(read_from(&cluster, &all).await, b"one\ntwo\n");
    cluster.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_and_tails_go_on_across_promotions_exactly_once() {
    let cluster = Cluster::start().await;
    create(&cluster, "ledger", VolumeKind::Log).await;
    let text = lines(20_000);

    let followed = Shared::default();
    let follow = tail::Args {
        from: Some(Lsn(1)),
        follow: true,
        ..tail::Args::newest("ledger")
    };
    let (endpoints, mut out) = (cluster.endpoints(), followed.clone());
    let tailing = tokio::spawn(async move { tail::run(&follow, endpoints, &mut out).await });

    let (stop, stopped) = oneshot::channel();
    let endpoints = cluster.endpoints();
    let promoting = tokio::spawn(async move { promote_until(endpoints, "ledger", stopped).await });
    // A slow input, so that several promotions fall into it.
    let (reader, mut writer) = io::pipe().expect("a pipe");
    let input = text.clone();
    std::thread::spawn(move || {
        for part in input.as_bytes().chunks(20_000) {
            writer.write_all(part).expect("written");
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let mut out = Vec::new();
    let args = append::Args {
        json: true,
        quiet: true,
        ..append::Args::new("ledger")
    };
    append::run(&args, cluster.endpoints(), reader, &mut out)
        .await
        .expect("appended");
    let _running = stop.send(());
    let moved = promoting.await.expect("no panic");
    let summary = json(&out);
    assert!(moved >= 3, "{moved} promotions, {summary}");
    assert_eq!(summary["records"], 20_000);

    let all = read_from(&cluster, &read::Args::all("ledger")).await;
    assert!(
        all == text.as_bytes(),
        "{} bytes read, {} appended",
        all.len(),
        text.len()
    );
    let seen = followed
        .wait_for("the tail", |bytes| bytes.len() >= text.len())
        .await;
    assert!(seen == text.as_bytes(), "the tail has a gap or a repeat");
    tailing.abort();
    cluster.shut_down().await;
}

/// Batches of three while primaries change: each lies side by side, and none is lost, doubled or torn.
#[tokio::test(flavor = "multi_thread")]
async fn batches_go_on_across_promotions_each_of_them_whole() {
    let cluster = Cluster::start().await;
    create(&cluster, "ledger", VolumeKind::Log).await;
    let text = lines(6_001);
    let (stop, stopped) = oneshot::channel();
    let endpoints = cluster.endpoints();
    let promoting = tokio::spawn(async move { promote_until(endpoints, "ledger", stopped).await });
    let (reader, mut writer) = io::pipe().expect("a pipe");
    let input = text.clone();
    std::thread::spawn(move || {
        for part in input.as_bytes().chunks(5_000) {
            writer.write_all(part).expect("written");
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let mut out = Vec::new();
    let args = append::Args {
        json: true,
        quiet: true,
        batch: Some(3),
        ..append::Args::new("ledger")
    };
    append::run(&args, cluster.endpoints(), reader, &mut out)
        .await
        .expect("appended");
    let _running = stop.send(());
    let moved = promoting.await.expect("no panic");
    let summary = json(&out);
    assert!(moved >= 2, "{moved} promotions, {summary}");
    assert_eq!(summary["records"], 6_001);

    let all = read::Args {
        printed: Printed {
            with_lsn: true,
            ..Printed::default()
        },
        ..read::Args::all("ledger")
    };
    let all = String::from_utf8(read_from(&cluster, &all).await).expect("text");
    let records = all
        .lines()
        .map(|line| line.split_once('\t').expect("a position"));
    let (positions, read): (Vec<&str>, Vec<&str>) = records.unzip();
    assert!(
        read.iter().copied().eq(text.lines()),
        "{} records",
        read.len()
    );
    let positions: Vec<u64> = positions
        .iter()
        .map(|lsn| lsn.parse().expect("a number"))
        .collect();
    for batch in positions.chunks(3) {
        assert!(
            batch.windows(2).all(|pair| pair[1] == pair[0] + 1),
            "{batch:?}"
        );
    }
    assert_eq!(summary["last_lsn"].as_u64(), positions.last().copied());
    cluster.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_events_tell_what_is_and_what_happened() {
    let mut cluster = Cluster::start().await;
    create(&cluster, "ledger", VolumeKind::Log).await;
    let once = status::Args {
        watch: None,
        json: true,
        redraw: false,
    };
    let mut out = Vec::new();
    status::run(once, cluster.endpoints(), &mut out)
        .await
        .expect("status");
    let page = json(&out);
    assert_eq!(page["nodes"].as_array().map(Vec::len), Some(6));
    assert_eq!(page["volumes"][0]["name"], "ledger");
    assert_eq!(page["volumes"][0]["health"], "ok", "{page}");
    assert_eq!(page["volumes"][0]["lease_held"], true);
    let primary = page["volumes"][0]["primary"].as_u64().expect("a node");
    let primary = u32::try_from(primary).expect("a node");
    let mut out = Vec::new();
    let text = status::Args {
        json: false,
        ..once
    };
    status::run(text, cluster.endpoints(), &mut out)
        .await
        .expect("status");
    let page = String::from_utf8(out).expect("text");
    assert!(page.ends_with("no problems\n"), "{page}");

    let watched = Shared::default();
    let (endpoints, mut out) = (cluster.endpoints(), watched.clone());
    let watch = status::Args {
        watch: Some(Duration::from_millis(100)),
        ..once
    };
    let watching = tokio::spawn(async move { status::run(watch, endpoints, &mut out).await });
    let two_lines = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count() >= 2;
    watched.wait_for("two lines of status", two_lines).await;
    watching.abort();

    let followed = Shared::default();
    let (endpoints, mut out) = (cluster.endpoints(), followed.clone());
    let follow = events::Args {
        follow: true,
        volume: Some("ledger".to_owned()),
        json: false,
    };
    let following = tokio::spawn(async move { events::run(&follow, endpoints, &mut out).await });
    let says =
        |what: &'static str| move |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(what);
    followed
        .wait_for("epoch 1", says("primary of epoch 1"))
        .await;
    let other = NodeId(primary % 3 + 1);
    let to_other = promote::Args {
        volume: "ledger".to_owned(),
        to: Some(other),
        force: None,
        reason: String::new(),
        json: false,
    };
    let mut out = Vec::new();
    promote::run(&to_other, cluster.endpoints(), &mut out)
        .await
        .expect("promoted");
    let said = String::from_utf8(out).expect("text");
    // Where a machine is slow, a second witness begins, too, and a move takes more than one epoch.
    let begin = format!("node {other} is primary of `ledger` in epoch ");
    let rest = said
        .strip_prefix(&begin)
        .unwrap_or_else(|| panic!("{said}"));
    let epoch = rest.split(',').next().expect("a number");
    assert!(epoch.parse::<u64>().is_ok_and(|epoch| epoch >= 2), "{said}");
    let told = format!("primary of epoch {epoch}");
    let tells = move |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(&told);
    followed.wait_for("the new epoch", tells).await;
    following.abort();

    cluster.stop(NodeId(103)).await;
    let mut out = Vec::new();
    status::run(text, cluster.endpoints(), &mut out)
        .await
        .expect("status");
    let page = String::from_utf8(out).expect("text");
    assert!(page.contains("2 of 3 witnesses answer"), "{page}");
    cluster.shut_down().await;
}

//! `mainstay ledger` on a cluster: nothing is lost or doubled, however the import and the primaries end.

mod support;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mainstay_client::report::{Promote, VolumeStatus};
use mainstay_client::{Admin, Client, ClientConfig, ReadLimits};
use mainstay_node::commands::ledger::rows::{Direction, Mapping};
use mainstay_node::commands::ledger::transfer::Transfer;
use mainstay_node::commands::ledger::{Import, Ledger, balance, import, post, statement, verify};
use mainstay_node::commands::volume;
use mainstay_types::{Epoch, Lsn, NodeId, VolumeKind};
use support::{Cluster, PATIENCE, healed};

const ROWS: u32 = 6000;

const HEADER: &str = "\"id\";\"account_id\";\"type\";\"amount\"\n";

/// Rows such as banks make, some equal to others but for their ids; and the balances that they lead to.
fn rows() -> (Vec<String>, BTreeMap<String, i64>) {
    let mut balances: BTreeMap<String, i64> = BTreeMap::new();
    let mut rows = Vec::new();
    for row in 0..ROWS {
        let (account, kind) = (row % 97, ["PRIJEM", "VYDAJ", "VYBER"][row as usize % 3]);
        // Rows come in equal pairs, which are two transfers each.
        let hundredths = i64::from(row / 2 * 7919 % 100_000 + 1);
        let (whole, part) = (hundredths / 100, hundredths % 100);
        rows.push(format!("{row};{account};\"{kind}\";{whole}.{part:02}\n"));
        let change = if kind == "PRIJEM" {
            hundredths
        } else {
            -hundredths
        };
        *balances.entry(account.to_string()).or_default() += change;
    }
    (rows, balances)
}

/// The rows in a packed file.
fn file(dir: &Path) -> (PathBuf, BTreeMap<String, i64>) {
    let (rows, balances) = rows();
    let path = dir.join("bank.csv.gz");
    let packed = std::fs::File::create(&path).expect("a file");
    let mut packed = flate2::write::GzEncoder::new(packed, flate2::Compression::fast());
    let text = HEADER.to_owned() + &rows.concat();
    packed.write_all(text.as_bytes()).expect("packed");
    packed.finish().expect("packed");
    (path, balances)
}

/// A file that is written while it is imported. It can be opened for writing once the import has read the book.
fn pipe(dir: &Path) -> PathBuf {
    let path = dir.join("bank.pipe");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(made.expect("mkfifo runs").success());
    path
}

fn of_file(file: PathBuf) -> Import {
    Import {
        file,
        mapping: mapping(),
        in_flight: 64,
        quiet: true,
    }
}

fn mapping() -> Mapping {
    Mapping {
        account: "account_id".to_owned(),
        amount: "amount".to_owned(),
        direction: Some(Direction {
            column: "type".to_owned(),
            credit: vec!["PRIJEM".to_owned()],
            debit: vec!["VYDAJ".to_owned(), "VYBER".to_owned()],
        }),
        date: None,
        key: Some("id".to_owned()),
        counter: "world".to_owned(),
        source: "bank".to_owned(),
        delimiter: b';',
        decimals: 2,
    }
}

fn ledger(snapshot: Option<PathBuf>) -> Ledger {
    Ledger {
        volume: "books".to_owned(),
        snapshot,
        decimals: 2,
        json: true,
    }
}

async fn connect(cluster: &Cluster) -> Client {
    let config = ClientConfig::new(cluster.endpoints());
    Client::connect(config).await.expect("connected")
}

async fn with_books() -> Cluster {
    let cluster = Cluster::start().await;
    let create = volume::Create::new("books", VolumeKind::Log);
    let created = volume::create(&create, cluster.endpoints(), &mut Vec::new()).await;
    created.expect("created");
    healed(&connect(&cluster).await.admin(), "books", 3).await;
    cluster
}

async fn balances(ledger: &Ledger, cluster: &Cluster) -> BTreeMap<String, i64> {
    let mut said = Vec::new();
    balance(ledger, &[], cluster.endpoints(), &mut said)
        .await
        .expect("read");
    let lines = String::from_utf8(said).expect("text");
    let of = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let units = line["balance"].as_str().expect("text").replace('.', "");
        let account = line["account"].as_str().expect("text").to_owned();
        (account, units.parse().expect("a number"))
    };
    lines.lines().map(of).collect()
}

/// The import loses its primary again and again, is cut off itself, and is started again while requests of the first may still be on
/// their way; then once more, when all is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_that_is_cut_off_and_started_again_makes_each_transfer_once() {
    let mut cluster = with_books().await;
    let (file, expected) = file(&cluster.scratch());
    let snapshot = cluster.scratch().join("books.snapshot");
    let wanted = of_file(file);
    let start = |cluster: &Cluster| {
        let (wanted, endpoints) = (wanted.clone(), cluster.endpoints());
        let ledger = ledger(Some(snapshot.clone()));
        tokio::spawn(async move {
            let mut said = Vec::new();
            import(&ledger, &wanted, endpoints, &mut said).await?;
            anyhow::Ok(serde_json::from_slice::<serde_json::Value>(&said)?)
        })
    };
    for node in [NodeId(1), NodeId(2), NodeId(3)] {
        let cut_off = start(&cluster);
        cluster.stop(node).await;
        cut_off.abort();
        let _cut = cut_off.await;
        cluster.restart(node).await;
    }
    let whole = start(&cluster).await.expect("no panic").expect("imported");
    assert_eq!(whole["rows"], ROWS);
    let made =
        whole["made"].as_u64().expect("a number") + whole["existed"].as_u64().expect("a number");
    assert_eq!(made, u64::from(ROWS));
    let again = start(&cluster).await.expect("no panic").expect("imported");
    assert_eq!(
        (&again["made"], &again["existed"]),
        (&0.into(), &ROWS.into())
    );
    for ledger in [ledger(None), ledger(Some(snapshot.clone()))] {
        let mut found = balances(&ledger, &cluster).await;
        let world = found.remove("world").expect("the other side");
        assert_eq!(world, -expected.values().sum::<i64>());
        assert_eq!(found, expected);
        let mut said = Vec::new();
        verify(&ledger, cluster.endpoints(), &mut said)
            .await
            .expect("holds");
    }
    // A snapshot that is whole and wrong: a balance, its checksum computed anew.
    let text = std::fs::read_to_string(&snapshot).expect("a snapshot");
    let body = text
        .lines()
        .next()
        .expect("a line")
        .replacen("\"96\":\"-", "\"96\":\"", 1);
    assert_ne!(
        text.lines().next(),
        Some(body.as_str()),
        "account 96 owes something"
    );
    let sum = crc32fast::hash(body.as_bytes());
    std::fs::write(&snapshot, format!("{body}\n{sum:08x}\n")).expect("written");
    let mut said = Vec::new();
    let wrong = verify(&ledger(Some(snapshot)), cluster.endpoints(), &mut said).await;
    assert!(wrong.is_err(), "verify passed over a wrong snapshot");
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(said.contains("the snapshot does not say"), "{said}");
    cluster.shut_down().await;
}

/// Writes the rows in three parts, of which one after the other is done. Until then it is written slowly, and the next one not at all.
fn write_rows(path: &Path, rows: &[String], done: &AtomicUsize) {
    let mut pipe = std::fs::File::create(path).expect("the import reads");
    pipe.write_all(HEADER.as_bytes()).expect("written");
    let pause = || std::thread::sleep(Duration::from_millis(20));
    for (part, rows) in rows.chunks(rows.len().div_ceil(3)).enumerate() {
        let is_done = || done.load(Ordering::Relaxed) > part;
        for few in rows.chunks(10) {
            pipe.write_all(few.concat().as_bytes()).expect("written");
            if !is_done() {
                pause();
            }
        }
        while !is_done() {
            pause();
        }
    }
}

/// Waits until a primary commits in an epoch above `epoch`, and tells of it.
async fn goes_on(admin: &Admin, epoch: Epoch) -> VolumeStatus {
    let waited = tokio::time::timeout(PATIENCE, async {
        let mut before = None;
        loop {
            let now = admin.show_volume("books").await.expect("shown");
            if now.authoritative && now.epoch > epoch {
                let before = *before.get_or_insert(now.commit_lsn);
                if now.commit_lsn >= Lsn(before.0 + 50) {
                    return now;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.expect("the import goes on")
}

/// Primaries die in the middle of an import, which goes on to its end by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_whose_primaries_die_makes_each_transfer_in_one_record() {
    let mut cluster = with_books().await;
    let admin = connect(&cluster).await.admin();
    let (rows, expected) = rows();
    let path = pipe(&cluster.scratch());
    let wanted = of_file(path.clone());
    let endpoints = cluster.endpoints();
    let importing = tokio::spawn(async move {
        let mut said = Vec::new();
        import(&ledger(None), &wanted, endpoints, &mut said).await?;
        anyhow::Ok(serde_json::from_slice::<serde_json::Value>(&said)?)
    });
    let done = Arc::new(AtomicUsize::new(0));
    let until = Arc::clone(&done);
    let writing = tokio::task::spawn_blocking(move || write_rows(&path, &rows, &until));

    for died in 1..=2 {
        let served = goes_on(&admin, Epoch::ZERO).await;
        cluster.kill(served.primary).await;
        let now = goes_on(&admin, served.epoch).await;
        assert_ne!(now.primary, served.primary);
        assert!(!importing.is_finished(), "it was not cut short");
        cluster.restart(served.primary).await;
        healed(&admin, "books", 3).await;
        done.store(died, Ordering::Relaxed);
    }
    done.store(3, Ordering::Relaxed);
    writing.await.expect("written");
    let whole = importing.await.expect("no panic").expect("imported");
    assert_eq!(
        (&whole["rows"], &whole["made"], &whole["existed"]),
        (&ROWS.into(), &ROWS.into(), &0.into())
    );

    assert_eq!(records(&cluster).await, ROWS);
    let mut said = Vec::new();
    let verified = verify(&ledger(None), cluster.endpoints(), &mut said).await;
    verified.expect("holds");
    let said: serde_json::Value = serde_json::from_slice(&said).expect("JSON");
    assert_eq!(
        (&said["repeats"], &said["sum"]),
        (&0.into(), &"0.00".into())
    );
    let mut found = balances(&ledger(None), &cluster).await;
    let world = found.remove("world").expect("the other side");
    assert_eq!(world, -expected.values().sum::<i64>());
    assert_eq!(found, expected);
    cluster.shut_down().await;
}

/// Records in the log, whatever they are.
async fn records(cluster: &Cluster) -> u32 {
    let log = connect(cluster).await.log("books").read_only().open().await;
    let (log, mut next, mut count) = (log.expect("opened"), Lsn(1), 0);
    loop {
        let page = log.read(next, ReadLimits::default()).await.expect("read");
        count += u32::try_from(page.records.len()).expect("a few");
        if page.end {
            return count;
        }
        next = page.next;
    }
}

/// A row whose key somebody else takes, after the import has read the book and before it sends the row, moves nothing and is not called made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_that_comes_second_with_a_key_says_so() {
    let cluster = with_books().await;
    let path = pipe(&cluster.scratch());
    let (wanted, endpoints) = (of_file(path.clone()), cluster.endpoints());
    let importing =
        tokio::spawn(
            async move { import(&ledger(None), &wanted, endpoints, &mut Vec::new()).await },
        );
    let opened = tokio::task::spawn_blocking(move || std::fs::File::create(path));
    let mut pipe = opened.await.expect("no panic").expect("the import reads");
    let first = Transfer {
        key: "bank/7".to_owned(),
        from: "world".to_owned(),
        to: "somebody".to_owned(),
        amount: 1,
        date: None,
        memo: None,
    };
    let posted = post(&ledger(None), &first, cluster.endpoints(), &mut Vec::new()).await;
    posted.expect("posted");
    let rows = HEADER.to_owned() + "6;1;\"PRIJEM\";5.00\n7;1;\"PRIJEM\";9.00\n";
    pipe.write_all(rows.as_bytes()).expect("written");
    drop(pipe);

    let imported = importing.await.expect("no panic");
    let why = format!("{:#}", imported.expect_err("a key was taken"));
    assert!(why.starts_with("1 transfer made, 0 there before"), "{why}");
    assert!(
        why.contains("\"bank/7\" is that of another transfer"),
        "{why}"
    );
    let found = balances(&ledger(None), &cluster).await;
    assert_eq!(found["1"], 500);
    cluster.shut_down().await;
}

/// An import is killed with rows on its way; another one reads the book before they land, and sends them again. It has made none of those.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_a_killed_import_that_land_late_are_not_called_made() {
    let cluster = with_books().await;
    let path = pipe(&cluster.scratch());
    let (wanted, endpoints) = (of_file(path.clone()), cluster.endpoints());
    let importing = tokio::spawn(async move {
        let mut said = Vec::new();
        import(&ledger(None), &wanted, endpoints, &mut said)
            .await
            .expect("imported");
        serde_json::from_slice::<serde_json::Value>(&said).expect("JSON")
    });
    let opened = tokio::task::spawn_blocking(move || std::fs::File::create(path));
    let mut pipe = opened.await.expect("no panic").expect("the import reads");
    let late = cluster.scratch().join("late.csv");
    std::fs::write(&late, HEADER.to_owned() + "7;1;\"PRIJEM\";9.00\n").expect("written");
    let (books, late) = (ledger(None), of_file(late));
    let landed = import(&books, &late, cluster.endpoints(), &mut Vec::new()).await;
    landed.expect("imported");
    let rows = HEADER.to_owned() + "6;1;\"PRIJEM\";5.00\n7;1;\"PRIJEM\";9.00\n";
    pipe.write_all(rows.as_bytes()).expect("written");
    drop(pipe);

    let said = importing.await.expect("no panic");
    let counts = ["rows", "made", "existed"].map(|name| said[name].as_u64());
    assert_eq!(counts, [Some(2), Some(1), Some(1)], "{said}");
    let found = balances(&ledger(None), &cluster).await;
    assert_eq!(found["1"], 1400);
    cluster.shut_down().await;
}

/// What a forced promotion gave up is in the snapshot and in the book of an import that is under way: neither is used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_of_the_history_that_is_read() {
    let mut cluster = with_books().await;
    let path = cluster.scratch().join("books.snapshot");
    let kept = ledger(Some(path.clone()));
    let transfer = |key: &str| Transfer {
        key: key.to_owned(),
        from: "cash".to_owned(),
        to: "rent".to_owned(),
        amount: 100,
        date: None,
        memo: None,
    };
    let endpoints = cluster.endpoints();
    let posted = async |key: &str| {
        let made = post(&kept, &transfer(key), endpoints.clone(), &mut Vec::new()).await;
        made.expect("posted");
    };
    posted("kept").await;
    let rows = pipe(&cluster.scratch());
    let (wanted, books, ends) = (of_file(rows.clone()), kept.clone(), endpoints.clone());
    let importing =
        tokio::spawn(async move { import(&books, &wanted, ends, &mut Vec::new()).await });
    let opened = tokio::task::spawn_blocking(move || std::fs::File::create(rows));
    let mut rows = opened.await.expect("no panic").expect("the import reads");
    cluster.stop(NodeId(3)).await;
    posted("given-up").await;
    let snapshot = std::fs::read(&path).expect("a snapshot");

    cluster.stop_together(&[NodeId(1), NodeId(2)]).await;
    cluster.restart(NodeId(3)).await;
    let forced = Promote {
        to: Some(NodeId(3)),
        force: true,
        accept_data_loss: true,
        declared_off: vec![NodeId(1), NodeId(2)],
        min_copies: 1,
        ..Promote::planned("books")
    };
    let admin = connect(&cluster).await.admin();
    admin.promote(forced).await.expect("forced");
    let text = HEADER.to_owned() + "1;1;\"PRIJEM\";5.00\n";
    rows.write_all(text.as_bytes()).expect("written");
    drop(rows);
    let imported = importing.await.expect("no panic");
    let why = format!("{:#}", imported.expect_err("of another history"));
    assert!(why.contains("history was replaced"), "{why}");
    assert_eq!(std::fs::read(&path).expect("a snapshot"), snapshot);

    let used = balance(&kept, &[], endpoints.clone(), &mut Vec::new()).await;
    let why = format!("{:#}", used.expect_err("of another history"));
    assert!(why.contains("remove the file"), "{why}");
    let found = balances(&ledger(None), &cluster).await;
    assert_eq!((found["rent"], found.get("1")), (100, None));
    cluster.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_of_one_transfer_and_a_statement_shows_each() {
    let cluster = with_books().await;
    let ledger = ledger(None);
    let rent = Transfer {
        key: "rent-1".to_owned(),
        from: "cash".to_owned(),
        to: "rent".to_owned(),
        amount: 95_000,
        date: Some("2026-01-01".to_owned()),
        memo: None,
    };
    let more = Transfer {
        key: "rent-2".to_owned(),
        amount: 5,
        ..rent.clone()
    };
    for transfer in [&rent, &rent, &more] {
        let posted = post(&ledger, transfer, cluster.endpoints(), &mut Vec::new()).await;
        posted.expect("posted");
    }
    let other = Transfer {
        amount: 1,
        ..rent.clone()
    };
    let refused = post(&ledger, &other, cluster.endpoints(), &mut Vec::new()).await;
    assert!(format!("{:#}", refused.expect_err("refused")).contains("needs a new key"));
    let found = balances(&ledger, &cluster).await;
    assert_eq!(
        found,
        BTreeMap::from([("cash".to_owned(), -95_005), ("rent".to_owned(), 95_005)])
    );
    let mut said = Vec::new();
    statement(&ledger, "rent", cluster.endpoints(), &mut said)
        .await
        .expect("read");
    let said = String::from_utf8(said).expect("text");
    assert_eq!(said.lines().count(), 2);
    assert!(
        said.lines()
            .nth(1)
            .expect("two")
            .contains(r#""balance":"950.05""#),
        "{said}"
    );
    // A record of somebody else is no transfer, and is not passed over in silence.
    let client = connect(&cluster).await;
    let log = client.log("books").open().await.expect("opened");
    log.append("a stray line").await.expect("committed");
    let broken = verify(&ledger, cluster.endpoints(), &mut Vec::new()).await;
    assert!(broken.is_err(), "verify passed over a stray record");
    cluster.shut_down().await;
}

//! A log on the real engines, in real files.

use super::*;

/// The order of events: a reader has a sealed segment mapped and hands parts of it to a peer's connection, the log gives the segment
/// back, and the bytes are sent. A file that is cut short under its mapping ends the process at the first look.
#[test]
fn what_a_reader_has_mapped_outlives_its_segment() {
    use crate::engine::{Engine, run_on};
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("wal");
    let files = path.clone();
    run_on(Engine::Threads, |disk| async move {
        let mut wal = Wal::create(disk, &path, config(), LogEnd::ZERO)
            .await
            .expect("create");
        for _ in 0..40 {
            let mut end = wal.durable().end();
            let entries = batch(&mut end, 1, &[9000]);
            let appended = wal.append(&entries, Lsn(0)).await;
            appended.map(drop).expect("append");
        }
        let reader = WalReader::new(disk, wal.index(), ReadPath::Map);
        let read = reader.read(Lsn(1), 20_000).await.expect("read");
        let before = std::fs::read_dir(&path).expect("listed").count();
        let plan = wal.plan_recycle(wal.durable().point().lsn);
        let gone = plan.run_gently(&disk, || true).await.expect("recycled");
        assert!(gone > 0);
        let after = std::fs::read_dir(&path).expect("listed").count();
        assert_eq!(before - after, gone);
        let mut end = LogEnd::ZERO;
        for chunk in &read.chunks {
            let entries = verify_batch(LINEAGE, chunk, end).expect("as it was read");
            end = entries.last().expect("some").header.end();
        }
        assert_eq!(end, read.end);
    })
    .expect("runs");
    assert!(files.exists());
}

/// The same log on each real engine: by one written, by the other read, also through mmap.
#[test]
fn real_engines_share_one_format() {
    use crate::engine::{Engine, probe_uring, run_on};
    let dir = tempfile::tempdir().expect("temporary directory");
    let engines = if probe_uring() {
        vec![Engine::Uring, Engine::Threads]
    } else {
        vec![Engine::Threads]
    };
    let mut expected = 0;
    for engine in engines.iter().cycle().take(4) {
        let path = dir.path().join("wal");
        let last = run_on(*engine, |disk| async move {
            let mut wal = if disk.exists(&path).await.expect("exists") {
                let (wal, log) = Wal::open(disk, &path, config()).await.expect("open");
                assert_eq!((log.doubt, log.damage), (None, None));
                wal
            } else {
                Wal::create(disk, &path, config(), LogEnd::ZERO)
                    .await
                    .expect("create")
            };
            for round in 0..20 {
                let mut end = wal.durable().end();
                let entries = batch(&mut end, 1, &[round * 100, 9000]);
                wal.append(&entries, Lsn(0))
                    .await
                    .map(drop)
                    .expect("append");
                wal.mark(Lsn(0)).await.expect("mark");
            }
            for way in [ReadPath::Pread, ReadPath::Map] {
                let reader = WalReader::new(disk, wal.index(), way);
                let mut end = LogEnd::ZERO;
                while end != wal.durable().end() {
                    let read = reader
                        .read(end.point.lsn.next(), 50_000)
                        .await
                        .expect("read");
                    for chunk in &read.chunks {
                        end = verify_batch(LINEAGE, chunk, end)
                            .expect("chain")
                            .last()
                            .expect("some")
                            .header
                            .end();
                    }
                }
            }
            wal.durable().point().lsn.0
        });
        expected += 40;
        assert_eq!(last.expect("runtime"), expected);
    }
}

/// Cost of one durable append; run it alone, with `--ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn measure_durable_append() {
    use crate::engine::{Engine, probe_uring, run_on};
    let base =
        std::env::var_os("MAINSTAY_MEASURE_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let engines = if probe_uring() {
        vec![Engine::Uring, Engine::Threads]
    } else {
        vec![Engine::Threads]
    };
    for engine in engines.iter().cycle().take(4) {
        let dir = tempfile::tempdir_in(&base).expect("temporary directory");
        let path = dir.path().join("wal");
        let mut micros = run_on(*engine, |disk| async move {
            let config = WalConfig::new(LINEAGE, Incarnation(3));
            let mut wal = Wal::create(disk, &path, config, LogEnd::ZERO)
                .await
                .expect("create");
            let mut micros = Vec::new();
            for _ in 0..2000 {
                let mut end = wal.durable().end();
                let entries = batch(&mut end, 1, &[4096 - 128]);
                let start = std::time::Instant::now();
                wal.append(&entries, Lsn(0))
                    .await
                    .map(drop)
                    .expect("append");
                micros.push(start.elapsed().as_micros());
            }
            micros
        })
        .expect("runtime");
        micros.sort_unstable();
        println!(
            "{engine:?}: p50 {} us, p99 {} us",
            micros[1000], micros[1980]
        );
    }
}

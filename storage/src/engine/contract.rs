//! One suite for every engine: what generic code relies on.

use std::io;
use std::path::Path;

use super::{
    AlignedBuf, Caching, Disk, DiskFile, Engine, OpenMode, PAGE, SimDisk, probe_uring, run_on,
};

async fn suite<D: Disk>(disk: D, dir: &Path) -> io::Result<()> {
    let dir = dir.join("a/b");
    disk.create_dir_all(&dir).await?;
    disk.create_dir_all(&dir).await?;
    for caching in [Caching::Buffered, Caching::Direct] {
        bytes_come_back(&disk, &dir, caching).await?;
        modes_mean_what_they_say(&disk, &dir, caching).await?;
        holes_and_lengths(&disk, &dir, caching).await?;
    }
    names(&disk, &dir).await
}

fn pattern(len: usize, salt: u8) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(len);
    for (at, byte) in buf.iter_mut().enumerate() {
        *byte = u8::try_from(at / 7 % 251).expect("below 251") ^ salt;
    }
    buf
}

async fn bytes_come_back<D: Disk>(disk: &D, dir: &Path, caching: Caching) -> io::Result<()> {
    let path = dir.join("bytes");
    let file = disk.open(&path, OpenMode::CreateNew, caching).await?;
    let (result, buf) = file.write_at(pattern(3 * 4096, 1), PAGE).await;
    result?;
    assert_eq!(
        &buf[..],
        &pattern(3 * 4096, 1)[..],
        "the buffer comes back as it was"
    );
    file.write_durable(pattern(4096, 2), 2 * PAGE).await.0?;
    file.sync().await?;
    file.write_out(PAGE, 2 * PAGE).await?;
    file.write_out(64 * PAGE, PAGE).await?;
    file.sync_beside().await?;
    file.forget_cached(0, 64 * PAGE).await?;
    assert_eq!(file.len().await?, 4 * PAGE);

    let again = disk.open(&path, OpenMode::Read, caching).await?;
    let (result, buf) = again.read_at(AlignedBuf::zeroed(8 * 4096), 0).await;
    assert_eq!(
        result?,
        4 * 4096,
        "a read is short at the end of the file only"
    );
    assert!(buf[..4096].iter().all(|b| *b == 0), "a gap reads as zeroes");
    assert_eq!(&buf[4096..2 * 4096], &pattern(3 * 4096, 1)[..4096]);
    assert_eq!(&buf[2 * 4096..3 * 4096], &pattern(4096, 2)[..]);
    let (result, _) = again.read_at(AlignedBuf::zeroed(4096), 4 * PAGE).await;
    assert_eq!(result?, 0);

    // An open handle outlives the name.
    disk.remove(&path).await?;
    let (result, _) = again.read_at(AlignedBuf::zeroed(4096), 0).await;
    assert_eq!(result?, 4096);
    Ok(())
}

async fn modes_mean_what_they_say<D: Disk>(
    disk: &D,
    dir: &Path,
    caching: Caching,
) -> io::Result<()> {
    let path = dir.join("modes");
    for mode in [OpenMode::Read, OpenMode::Write] {
        let error = disk
            .open(&path, mode, caching)
            .await
            .err()
            .map(|e| e.kind());
        assert_eq!(error, Some(io::ErrorKind::NotFound));
    }
    disk.open(&path, OpenMode::CreateNew, caching).await?;
    let error = disk
        .open(&path, OpenMode::CreateNew, caching)
        .await
        .err()
        .map(|e| e.kind());
    assert_eq!(error, Some(io::ErrorKind::AlreadyExists));
    disk.open(&path, OpenMode::Write, caching)
        .await?
        .write_at(pattern(4096, 3), 0)
        .await
        .0?;
    disk.remove(&path).await
}

async fn holes_and_lengths<D: Disk>(disk: &D, dir: &Path, caching: Caching) -> io::Result<()> {
    let path = dir.join("holes");
    let file = disk.open(&path, OpenMode::CreateNew, caching).await?;
    file.allocate_zeroed((2 << 20) + PAGE).await?;
    assert_eq!(file.len().await?, (2 << 20) + PAGE);
    file.write_at(pattern(4 * 4096, 4), 0).await.0?;
    file.punch_hole(PAGE, 2 * PAGE).await?;
    let (result, buf) = file.read_at(AlignedBuf::zeroed(5 * 4096), 0).await;
    assert_eq!(result?, 5 * 4096);
    assert_eq!(&buf[..4096], &pattern(4096, 4)[..]);
    assert!(buf[4096..3 * 4096].iter().all(|b| *b == 0));
    assert_eq!(&buf[3 * 4096..4 * 4096], &pattern(4 * 4096, 4)[3 * 4096..]);
    file.set_len(PAGE).await?;
    if file.reserve(PAGE, 2 * PAGE).await? {
        assert_eq!(file.len().await?, 3 * PAGE);
        file.sync().await?;
        let (result, buf) = file.read_at(AlignedBuf::zeroed(4 * 4096), 0).await;
        assert_eq!(result?, 3 * 4096);
        assert!(buf[4096..3 * 4096].iter().all(|b| *b == 0));
    }
    file.set_len(PAGE).await?;
    file.set_len(2 * PAGE).await?;
    let (result, buf) = file.read_at(AlignedBuf::zeroed(3 * 4096), 0).await;
    assert_eq!(result?, 2 * 4096);
    assert!(buf[4096..2 * 4096].iter().all(|b| *b == 0));
    disk.remove(&path).await
}

async fn names<D: Disk>(disk: &D, dir: &Path) -> io::Result<()> {
    for name in ["one", "two"] {
        disk.open(&dir.join(name), OpenMode::CreateNew, Caching::Buffered)
            .await?;
    }
    assert_eq!(disk.list(dir).await?, ["one", "two"]);
    disk.rename(&dir.join("one"), &dir.join("two")).await?;
    assert_eq!(disk.list(dir).await?, ["two"]);
    assert!(!disk.exists(&dir.join("one")).await?);
    assert!(disk.exists(&dir.join("two")).await?);
    disk.sync_dir(dir).await?;
    let error = disk.remove(&dir.join("one")).await.err().map(|e| e.kind());
    assert_eq!(error, Some(io::ErrorKind::NotFound));
    Ok(())
}

#[test]
fn simulated_disk_keeps_the_contract() {
    crate::testing::block_on(suite(SimDisk::immediate(1), Path::new("/sim")))
        .expect("no fault is injected");
}

#[test]
fn plain_system_calls_keep_the_contract() {
    let dir = tempfile::tempdir().expect("temporary directory");
    run_on(Engine::Threads, |disk| async move {
        suite(disk, dir.path()).await
    })
    .expect("runtime")
    .expect("suite");
}

#[test]
fn the_ring_keeps_the_contract_where_it_is_allowed() {
    if !probe_uring() {
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    run_on(Engine::Uring, |disk| async move {
        suite(disk, dir.path()).await
    })
    .expect("runtime")
    .expect("suite");
}

//! Zeroes: holes and those that keep their space, of which memory holds only the stretch.

use super::*;

/// Whoever makes a file system on a volume sets all of it to zeroes first.
#[test]
fn zeroes_over_a_large_volume_take_no_memory_for_each_block() {
    let config = ImageConfig {
        size_bytes: 1 << 40,
        ..config()
    };
    let disk = SimDisk::immediate(24);
    let made = Image::create(disk, Path::new(DIR), config, LogEnd::ZERO, Bytes::new());
    let image = block_on(made).expect("create");
    let count = (8 << 30) / RANGE_BYTES_MAX;
    let zero = |n| Op::Zero {
        offset: n * RANGE_BYTES_MAX,
        len: RANGE_BYTES_MAX,
    };
    let ops: Vec<_> = (0..count).map(zero).collect();
    replay(&image, &entries(&ops));
    let blocks = count * RANGE_BYTES_MAX / PAGE;
    // The checksums' place, and next to nothing more.
    assert!(image.dirty_bytes() < blocks * 17, "{}", image.dirty_bytes());
    block_on(image.checkpoint(Bytes::new())).expect("checkpoint");
    assert_eq!(image.dirty_bytes(), 0);
    let since = Some(Lsn(count - 1));
    let runs = block_on(image.extents((4 << 30)..(8 << 30), 9, since)).expect("extents");
    let found: Vec<_> = runs.iter().map(|run| (run.len, run.changed)).collect();
    let unchanged = (4 << 30) - RANGE_BYTES_MAX;
    assert_eq!(found, [(unchanged, false), (RANGE_BYTES_MAX, true)]);
}

#[test]
fn zeroes_that_keep_their_space_are_no_hole_before_and_after_a_checkpoint() {
    let disk = SimDisk::immediate(25);
    let image = create(&disk);
    let (offset, len) = (7 * PAGE, 20 * PAGE);
    replay(
        &image,
        &entries(&[Op::Zero { offset, len }, Op::Allocate { offset, len }]),
    );
    let stored = |image: &Image<SimDisk>| {
        let runs = block_on(image.extents(0..BLOCKS * PAGE, 9, None)).expect("extents");
        let kept = runs.into_iter().filter(|run| run.allocated);
        kept.map(|run| (run.offset, run.len)).collect::<Vec<_>>()
    };
    assert_eq!(stored(&image), [(offset, len)]);
    let before = disk.used_bytes();
    block_on(image.checkpoint(Bytes::new())).expect("checkpoint");
    assert!(disk.used_bytes() >= before + len, "room for later writes");
    assert_eq!(stored(&open(&disk).0), [(offset, len)]);
}

#[test]
fn zeroes_that_keep_their_space_count_as_what_is_to_be_written_and_are_held_by_the_stretch() {
    let config = ImageConfig {
        size_bytes: 1 << 40,
        ..config()
    };
    let disk = SimDisk::immediate(26);
    let made = Image::create(disk, Path::new(DIR), config, LogEnd::ZERO, Bytes::new());
    let image = block_on(made).expect("create");
    let len = RANGE_BYTES_MAX;
    let ops: Vec<_> = (0..64)
        .map(|n| Op::Allocate {
            offset: n * len,
            len,
        })
        .collect();
    replay(&image, &entries(&ops));
    assert_eq!(image.dirty_bytes(), 64 * range_held(len, true));
    assert!(image.dirty_bytes() >= 64 * len);
    assert_eq!(image.overlay.borrow().active.stretches().len(), 64);
    let over = [
        Op::Zero { offset: 0, len },
        Op::Write {
            offset: len + PAGE,
            len: 4096,
            fill: 7,
        },
    ];
    let disk = SimDisk::immediate(27);
    let made = Image::create(disk, Path::new(DIR), config, LogEnd::ZERO, Bytes::new());
    let image = block_on(made).expect("create");
    replay(&image, &entries(&[&ops[..2], &over].concat()));
    assert_eq!(image.overlay.borrow().active.stretches().len(), 4);
    block_on(image.checkpoint(Bytes::new())).expect("checkpoint");
    assert_eq!(image.dirty_bytes(), 0);
    let runs = block_on(image.extents(0..3 * len, 9, None)).expect("extents");
    let found: Vec<_> = runs.iter().map(|run| (run.offset, run.allocated)).collect();
    assert_eq!(found, [(0, false), (len, true), (2 * len, false)]);
    let read = block_on(image.read(len, 3 * 4096)).expect("read");
    let (before, rest) = read.split_at(4096);
    let (written, behind) = rest.split_at(4096);
    assert!(before.iter().chain(behind).all(|byte| *byte == 0));
    assert!(written.iter().all(|byte| *byte == 7));
}

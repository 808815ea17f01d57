mod properties;
mod repairs;
mod zeroes;

use std::rc::Rc;

use mainstay_types::{Epoch, SessionId};

use super::*;
use crate::engine::sim::{Fault, OpKind};
use crate::engine::{PAGE_BYTES, SimDisk};
use crate::format::{encode_range, encode_unstamped, set_flags, stamp, verify_batch};
use crate::testing::{block_on, crash_points};

const DIR: &str = "/v";
const LINEAGE: Lineage = Lineage(0xabcd);
const BLOCKS: u64 = 300;

fn config() -> ImageConfig {
    ImageConfig {
        lineage: LINEAGE,
        size_bytes: BLOCKS * PAGE,
        sums_pages: 1,
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write { offset: u64, len: usize, fill: u8 },
    Zero { offset: u64, len: u64 },
    Allocate { offset: u64, len: u64 },
    Other,
}

/// The entries of a log, as a volume would have them.
fn entries(ops: &[Op]) -> Vec<EntryRef> {
    let mut end = LogEnd::ZERO;
    let make = ops.iter().map(|op| {
        let (kind, arg, payload) = match op {
            Op::Write { offset, len, fill } => (EntryKind::Write, *offset, vec![*fill; *len]),
            Op::Zero { offset, len } => (EntryKind::Trim, *offset, encode_range(*len).to_vec()),
            Op::Allocate { offset, len } => {
                (EntryKind::Zeroes, *offset, encode_range(*len).to_vec())
            }
            Op::Other => (EntryKind::SessionOpen, 0, Vec::new()),
        };
        let lsn = end.point.lsn.next();
        let mut entry = encode_unstamped(kind, SessionId(1), 1, lsn.0, arg, &payload);
        if matches!(op, Op::Allocate { .. }) {
            set_flags(&mut entry, FLAG_ALLOCATED);
        }
        stamp(&mut entry, LINEAGE, Epoch(1), lsn, end.crc);
        let entry = verify_batch(LINEAGE, &entry.freeze(), end)
            .expect("own entry")
            .remove(0);
        end = entry.header.end();
        entry
    });
    make.collect()
}

/// What the volume holds after `ops`.
fn model(ops: &[Op]) -> Vec<u8> {
    let mut out = vec![0; usize::try_from(BLOCKS * PAGE).expect("small")];
    let at = |offset: u64| usize::try_from(offset).expect("small");
    for op in ops {
        match op {
            Op::Write { offset, len, fill } => out[at(*offset)..at(*offset) + len].fill(*fill),
            Op::Zero { offset, len } | Op::Allocate { offset, len } => {
                out[at(*offset)..at(*offset + len)].fill(0);
            }
            Op::Other => {}
        }
    }
    out
}

fn create(disk: &SimDisk) -> Image<SimDisk> {
    let made = Image::create(
        disk.clone(),
        Path::new(DIR),
        config(),
        LogEnd::ZERO,
        Bytes::from_static(b"0"),
    );
    block_on(made).expect("create")
}

fn open(disk: &SimDisk) -> (Image<SimDisk>, Checkpoint) {
    block_on(Image::open(disk.clone(), Path::new(DIR), config())).expect("open")
}

/// All of it, and a look at what is said to be stored: a hole that holds something would be lost by whoever copies by the map.
fn whole(image: &Image<SimDisk>) -> Vec<u8> {
    let len = usize::try_from(BLOCKS * PAGE).expect("small");
    let content = block_on(image.read(0, len)).expect("readable").to_vec();
    let extents = block_on(image.extents(0..BLOCKS * PAGE, usize::MAX, None)).expect("extents");
    let mut end = 0;
    for extent in extents {
        assert_eq!(extent.offset, end, "without a gap");
        end += extent.len;
        let place = |at: u64| usize::try_from(at).expect("small");
        let range = place(extent.offset)..place(end);
        assert!(extent.allocated || content[range].iter().all(|byte| *byte == 0));
    }
    assert_eq!(end, BLOCKS * PAGE);
    content
}

fn replay(image: &Image<SimDisk>, log: &[EntryRef]) {
    for entry in log
        .iter()
        .filter(|entry| entry.header.point.lsn > image.applied().point.lsn)
    {
        image.apply(entry).expect("in order");
    }
}

fn sample_ops() -> Vec<Op> {
    vec![
        Op::Write {
            offset: 0,
            len: 8192,
            fill: 1,
        },
        Op::Write {
            offset: 4096 + 100,
            len: 50,
            fill: 2,
        },
        Op::Write {
            offset: 255 * PAGE - 10,
            len: 20,
            fill: 3,
        },
        Op::Other,
        Op::Write {
            offset: 10 * PAGE,
            len: 40_960,
            fill: 4,
        },
        Op::Zero {
            offset: 11 * PAGE + 5,
            len: 2 * PAGE,
        },
    ]
}

#[test]
fn content_survives_checkpoints_and_restarts() {
    let disk = SimDisk::immediate(1);
    let image = create(&disk);
    let (ops, log) = (sample_ops(), entries(&sample_ops()));
    for (count, entry) in log.iter().enumerate() {
        image.apply(entry).expect("in order");
        assert_eq!(whole(&image), model(&ops[..=count]));
        if count % 2 == 0 {
            let blob = Bytes::from(vec![u8::try_from(count).expect("small")]);
            block_on(image.checkpoint(blob)).expect("checkpoint");
            assert_eq!(image.dirty_bytes(), 0);
            assert_eq!(whole(&image), model(&ops[..=count]));
        }
    }
    disk.crash();
    let (image, checkpoint) = open(&disk);
    assert_eq!(
        (checkpoint.applied.point.lsn, &checkpoint.blob[..]),
        (Lsn(5), &[4][..])
    );
    replay(&image, &log);
    assert_eq!(whole(&image), model(&ops));
    let extents = block_on(image.extents(0..3 * PAGE, 9, None)).expect("extents");
    let first = block_on(image.extents(0..3 * PAGE, 1, None)).expect("extents");
    assert_eq!(first, extents[..1]);
    let all = Extent {
        offset: 0,
        len: 2 * PAGE,
        allocated: true,
        changed: true,
    };
    assert_eq!(
        extents,
        [
            all,
            Extent {
                offset: 2 * PAGE,
                len: PAGE,
                allocated: false,
                changed: true,
            }
        ]
    );
    assert_eq!(
        block_on(image.scrub(0, BLOCKS)).expect("scrub"),
        Vec::<u64>::new()
    );
}

/// Block 0 as entry 1 of the samples makes it.
fn block_of_ones() -> ExportedBlock {
    let data = Bytes::from_static(&[1; PAGE_BYTES]);
    ExportedBlock {
        block: 0,
        crc: crate::codec::crc(&data),
        data: Some(data),
        lsn: Lsn(1),
    }
}

#[test]
fn a_rotten_block_is_told_and_repaired() {
    let disk = SimDisk::immediate(2);
    let image = create(&disk);
    replay(&image, &entries(&sample_ops()));
    block_on(image.checkpoint(Bytes::new())).expect("checkpoint");
    disk.rot(&Path::new(DIR).join("image"), 5, 1);
    assert!(matches!(
        block_on(image.read(0, 10)),
        Err(ImageReadError::Corrupt { block: 0 })
    ));
    assert_eq!(block_on(image.scrub(0, BLOCKS)).expect("scrub"), [0]);
    block_on(image.repair(&block_of_ones(), Lsn(6))).expect("a block");
    assert_eq!(whole(&image), model(&sample_ops()));
    block_on(image.checkpoint(Bytes::new())).expect("checkpoint");
    let (image, _) = open(&disk);
    assert_eq!(whole(&image), model(&sample_ops()));
    let longer = [sample_ops(), vec![Op::Other]].concat();
    replay(&image, &entries(&longer));
    block_on(image.checkpoint(Bytes::new())).expect("checkpoint");
    // A lost page of checksums takes its blocks with it, not the others.
    disk.rot(&Path::new(DIR).join("image.sums"), 40, 1);
    let (image, _) = open(&disk);
    assert!(matches!(
        block_on(image.read(0, 10)),
        Err(ImageReadError::Corrupt { .. })
    ));
    assert!(block_on(image.read(255 * PAGE, 4096)).is_ok());
}

#[test]
fn a_partial_write_over_a_rotten_base_waits_for_repair() {
    let disk = SimDisk::immediate(3);
    let image = create(&disk);
    let ops = [
        Op::Write {
            offset: 0,
            len: 4096,
            fill: 1,
        },
        Op::Write {
            offset: 10,
            len: 5,
            fill: 2,
        },
    ];
    let log = entries(&ops);
    image.apply(&log[0]).expect("in order");
    block_on(image.checkpoint(Bytes::new())).expect("checkpoint");
    disk.rot(&Path::new(DIR).join("image"), 100, 1);
    image.apply(&log[1]).expect("no base is looked at");
    assert!(matches!(
        block_on(image.checkpoint(Bytes::new())),
        Err(CheckpointError::Corrupt { block: 0 })
    ));
    block_on(image.repair(&block_of_ones(), Lsn(1))).expect("a block");
    block_on(image.checkpoint(Bytes::new())).expect("checkpoint");
    assert_eq!(whole(&open(&disk).0), model(&ops));
}

#[test]
fn a_full_disk_loses_nothing_and_a_failed_sync_ends_the_image() {
    let disk = SimDisk::immediate(4);
    let image = create(&disk);
    replay(&image, &entries(&sample_ops()));
    for allowed in (0..30).map(|pages| pages * PAGE) {
        disk.set_capacity(Some(disk.used_bytes().max(allowed)));
        match block_on(image.checkpoint(Bytes::new())) {
            Ok(_) => break,
            Err(error) => assert!(matches!(error, CheckpointError::NoSpace(_)), "{error:?}"),
        }
        assert_eq!(whole(&image), model(&sample_ops()));
    }
    disk.set_capacity(None);
    block_on(image.checkpoint(Bytes::new())).expect("room");
    assert_eq!(whole(&image), model(&sample_ops()));
    for kind in [OpKind::Sync, OpKind::WriteOut] {
        let disk = SimDisk::immediate(4);
        let image = create(&disk);
        let scattered = |block: u64| Op::Write {
            offset: block * 3 * PAGE,
            len: PAGE_BYTES,
            fill: 1,
        };
        replay(
            &image,
            &entries(&(0..40).map(scattered).collect::<Vec<_>>()),
        );
        disk.fail_nth(kind, 1, Fault::Eio);
        for _ in 0..2 {
            assert!(matches!(
                block_on(image.checkpoint(Bytes::new())),
                Err(CheckpointError::Poisoned { .. })
            ));
        }
    }
}

/// A checkpoint was written in a moment without descriptors: its record could not be begun, and the image was finished for its process. One
/// whose record may be in place is: the next one's intent would begin at the record before it, and a start would not take it for its own.
#[test]
fn a_checkpoint_without_a_descriptor_for_its_record_is_repeated() {
    let disk = SimDisk::immediate(4);
    let image = create(&disk);
    replay(&image, &entries(&sample_ops()));
    disk.fail_nth(OpKind::Open, 1, Fault::NoDescriptor);
    let refused = block_on(image.checkpoint(Bytes::new()));
    assert!(
        matches!(refused, Err(CheckpointError::NoSpace(_))),
        "{refused:?}"
    );
    assert_eq!(whole(&image), model(&sample_ops()));
    let at = block_on(image.checkpoint(Bytes::new())).expect("a descriptor");
    disk.crash();
    let (image, checkpoint) = open(&disk);
    assert_eq!(checkpoint.applied, at);
    assert_eq!(whole(&image), model(&sample_ops()));

    disk.fail_nth(OpKind::SyncDir, 1, Fault::NoDescriptor);
    let finished = block_on(image.checkpoint(Bytes::new()));
    assert!(
        matches!(finished, Err(CheckpointError::Poisoned { .. })),
        "{finished:?}"
    );
}

#[test]
fn a_full_copy_is_equal_and_an_interrupted_one_is_refused() {
    let donor_disk = SimDisk::immediate(5);
    let donor = create(&donor_disk);
    replay(&donor, &entries(&sample_ops()));
    block_on(donor.checkpoint(Bytes::new())).expect("checkpoint");
    let blocks = block_on(donor.export_block_range(0, BLOCKS)).expect("export");
    assert!(blocks.len() < 20, "never-written blocks are skipped");

    let disk = SimDisk::immediate(6);
    let image = create(&disk);
    replay(
        &image,
        &entries(&[Op::Write {
            offset: 90 * PAGE,
            len: 5000,
            fill: 9,
        }]),
    );
    block_on(image.checkpoint(Bytes::new())).expect("checkpoint");
    block_on(image.begin_rebuild()).expect("begin");
    block_on(image.import_blocks(&blocks[..3])).expect("import");
    drop(image);
    disk.crash();
    let (image, checkpoint) = open(&disk);
    assert!(checkpoint.rebuilding && image.is_rebuilding());
    assert!(matches!(
        block_on(image.read(0, 1)),
        Err(ImageReadError::Rebuilding)
    ));
    block_on(image.begin_rebuild()).expect("begin again");
    let mut bad = blocks[0].clone();
    bad.crc ^= 1;
    assert!(matches!(
        block_on(image.import_blocks(&[bad])),
        Err(CheckpointError::Import { .. })
    ));
    block_on(image.import_blocks(&blocks)).expect("import");
    block_on(image.finish_rebuild(donor.applied(), Bytes::from_static(b"s"))).expect("finish");
    disk.crash();
    let (image, checkpoint) = open(&disk);
    assert_eq!(
        (checkpoint.applied, &checkpoint.blob[..]),
        (donor.applied(), &b"s"[..])
    );
    assert_eq!(whole(&image), model(&sample_ops()));
}

/// Last entry that changed each block, as `entries` say; zero for none.
fn last_changes(log: &[EntryRef]) -> Vec<u64> {
    let mut last = vec![0; usize::try_from(BLOCKS).expect("small")];
    for entry in log {
        let len = match entry.header.kind {
            EntryKind::Write => entry.payload().len() as u64,
            EntryKind::Trim | EntryKind::Zeroes => range_of(&entry.payload()).expect("a range"),
            _ => continue,
        };
        let offset = entry.header.arg;
        for block in offset / PAGE..(offset + len).div_ceil(PAGE) {
            last[usize::try_from(block).expect("small")] = entry.header.point.lsn.0;
        }
    }
    last
}

/// For every LSN: exactly the blocks with a later change are told as changed. And what nobody knows is changed.
fn check_changes(image: &Image<SimDisk>, log: &[EntryRef]) {
    let changed = |since| {
        let found = block_on(image.extents(0..BLOCKS * PAGE, usize::MAX, since));
        let each = found.expect("extents").into_iter();
        each.flat_map(|run| (0..run.len / PAGE).map(move |_| run.changed))
            .collect::<Vec<bool>>()
    };
    let applied = usize::try_from(image.applied().point.lsn.0).expect("small");
    let last = last_changes(&log[..applied]);
    for since in 0..=image.applied().point.lsn.0 {
        let expected: Vec<_> = last.iter().map(|lsn| *lsn > since).collect();
        assert_eq!(changed(Some(Lsn(since))), expected, "since {since}");
    }
    let future = image.applied().point.lsn.next();
    for unknown in [None, Some(future), Some(Lsn(u64::MAX))] {
        assert!(changed(unknown).into_iter().all(|changed| changed));
    }
}

#[test]
fn blocks_changed_since_an_entry_are_told_through_checkpoints_restarts_and_copies() {
    let disk = SimDisk::immediate(21);
    let image = create(&disk);
    let mut ops = sample_ops();
    // Zeroes where there are some already, and the same bytes again, are changes.
    ops.push(Op::Zero {
        offset: 60 * PAGE,
        len: PAGE,
    });
    ops.push(Op::Write {
        offset: 10 * PAGE,
        len: 4096,
        fill: 4,
    });
    let log = entries(&ops);
    check_changes(&image, &log);
    for (count, entry) in log.iter().enumerate() {
        image.apply(entry).expect("in order");
        check_changes(&image, &log);
        if count % 3 == 0 {
            block_on(image.checkpoint(Bytes::new())).expect("checkpoint");
            check_changes(&image, &log);
        }
    }
    drop(image);
    disk.crash();
    let (image, checkpoint) = open(&disk);
    let through = usize::try_from(checkpoint.applied.point.lsn.0).expect("small");
    assert!(through < log.len(), "some are replayed");
    check_changes(&image, &log);
    replay(&image, &log);
    check_changes(&image, &log);

    // A full copy that is taken while the donor goes on: it begins at a base, holds blocks of later entries, and gets all entries
    // behind the base once more.
    let donor = create(&SimDisk::immediate(22));
    let base = 4;
    replay(&donor, &log[..base]);
    let at = donor.applied();
    let mut blocks = block_on(donor.export_block_range(0, BLOCKS / 2)).expect("export");
    replay(&donor, &log);
    blocks.extend(block_on(donor.export_block_range(BLOCKS / 2, BLOCKS / 2)).expect("export"));
    let copy_disk = SimDisk::immediate(23);
    let copy = create(&copy_disk);
    block_on(copy.begin_rebuild()).expect("begin");
    block_on(copy.import_blocks(&blocks)).expect("import");
    block_on(copy.finish_rebuild(at, Bytes::new())).expect("finish");
    replay(&copy, &log);
    check_changes(&copy, &log);
    block_on(copy.checkpoint(Bytes::new())).expect("checkpoint");
    drop(copy);
    copy_disk.crash();
    check_changes(&open(&copy_disk).0, &log);
}

#[test]
fn sizes_and_ranges_that_do_not_fit_are_refused() {
    let disk = SimDisk::immediate(7);
    for size_bytes in [0, 1, 4095, 4097, u64::MAX] {
        let made = Image::create(
            disk.clone(),
            Path::new(DIR),
            ImageConfig {
                size_bytes,
                ..config()
            },
            LogEnd::ZERO,
            Bytes::new(),
        );
        assert!(
            matches!(block_on(made), Err(ImageOpenError::Size { .. })),
            "{size_bytes}"
        );
    }
    let image = create(&disk);
    let end = BLOCKS * PAGE;
    for op in [
        Op::Write {
            offset: end - 1,
            len: 2,
            fill: 1,
        },
        Op::Write {
            offset: u64::MAX,
            len: 2,
            fill: 1,
        },
        Op::Zero {
            offset: 0,
            len: end + 1,
        },
        Op::Zero {
            offset: 0,
            len: RANGE_BYTES_MAX + 1,
        },
    ] {
        let log = entries(std::slice::from_ref(&op));
        assert!(image.apply(&log[0]).is_err(), "{op:?}");
    }
    assert!(block_on(image.read(end, 1)).is_err());
    assert_eq!(image.applied(), LogEnd::ZERO);
}

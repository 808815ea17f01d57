//! Repair from another member's image, at every position of the two.

use proptest::prelude::*;

use super::*;

/// A member at `applied` with everything up to `checkpointed` in its files.
fn member(
    seed: u64,
    log: &[EntryRef],
    checkpointed: usize,
    applied: usize,
) -> (SimDisk, Image<SimDisk>) {
    let disk = SimDisk::immediate(seed);
    let image = create(&disk);
    replay(&image, &log[..checkpointed]);
    block_on(image.checkpoint(Bytes::new())).expect("checkpoint");
    replay(&image, &log[..applied]);
    (disk, image)
}

fn rot(disk: &SimDisk, block: u64) {
    disk.rot(&Path::new(DIR).join(IMAGE), block * PAGE + 7, 1);
}

/// A block of `image` does not read back: what `donor` has of it is taken, if it may be.
fn repaired(image: &Image<SimDisk>, donor: &Image<SimDisk>, block: u64) -> Result<(), RepairError> {
    let given = block_on(donor.donate(&[block])).expect("a block of the volume");
    block_on(image.repair(&given.blocks[0], given.at))
}

fn write(block: u64, at: u64, len: usize, fill: u8) -> Op {
    let offset = block * PAGE + at;
    Op::Write { offset, len, fill }
}

/// The donor knows an entry that was not applied here: its block would show it, and the one before would go over it.
#[test]
fn a_block_that_is_ahead_is_taken_once_its_entry_is_applied() {
    let ops = [
        write(0, 0, PAGE_BYTES, 1),
        write(0, 0, 100, 2),
        write(0, 50, 100, 3),
    ];
    let log = entries(&ops);
    let (_, donor) = member(1, &log, 3, 3);
    let (disk, image) = member(2, &log, 1, 1);
    rot(&disk, 0);
    let ahead = RepairError::Ahead {
        block: 0,
        lsn: Lsn(3),
    };
    assert_eq!(repaired(&image, &donor, 0), Err(ahead));
    replay(&image, &log[..2]);
    assert_eq!(repaired(&image, &donor, 0), Err(ahead));
    replay(&image, &log);
    assert_eq!(repaired(&image, &donor, 0), Ok(()));
    assert!(whole(&image) == model(&ops));
}

/// The donor lacks an entry that is in the files here and nowhere in memory.
#[test]
fn a_block_that_is_behind_is_not_taken() {
    let ops = [
        write(0, 0, PAGE_BYTES, 1),
        write(0, 0, 100, 2),
        write(9, 0, 1, 3),
    ];
    let log = entries(&ops);
    let (_, donor) = member(1, &log, 1, 1);
    let (disk, image) = member(2, &log, 2, 3);
    rot(&disk, 0);
    assert_eq!(
        repaired(&image, &donor, 0),
        Err(RepairError::Behind { at: Lsn(1) })
    );
    replay(&donor, &log[..2]);
    assert_eq!(repaired(&image, &donor, 0), Ok(()));
    assert!(whole(&image) == model(&ops));
}

/// A checkpoint needs a block below a part-write, and memory is full until it has been: only such a block may be taken then.
#[test]
fn a_block_that_memory_holds_in_part_takes_no_more_of_it_when_it_is_repaired() {
    let ops = [
        write(0, 0, 2 * PAGE_BYTES, 1),
        write(0, 9, 5, 2),
        write(2, 0, PAGE_BYTES, 3),
    ];
    let log = entries(&ops);
    let (_, donor) = member(1, &log, 1, 1);
    let (disk, image) = member(2, &log, 1, 3);
    rot(&disk, 0);
    rot(&disk, 1);
    let held: Vec<Holding> = (0..3).map(|block| image.holding(block)).collect();
    assert_eq!(held, [Holding::Part, Holding::Nothing, Holding::Whole]);
    let before = image.dirty_bytes();
    assert_eq!(repaired(&image, &donor, 0), Ok(()));
    assert!(image.dirty_bytes() <= before);
    assert_eq!(image.holding(0), Holding::Whole);
    assert_eq!(repaired(&image, &donor, 1), Ok(()));
    assert!(image.dirty_bytes() > before);
}

/// By the checksum, which is whole, the donor has other bytes by the same entry, or lacks the entry though it is further.
#[test]
fn a_donor_that_differs_is_not_believed() {
    let ours = [write(0, 0, PAGE_BYTES, 1), write(1, 0, 1, 1)];
    let (disk, image) = member(1, &entries(&ours), 2, 2);
    rot(&disk, 0);
    let differs = Err(RepairError::Differs { block: 0 });
    let (_, other) = member(2, &entries(&[write(0, 0, PAGE_BYTES, 9)]), 1, 1);
    assert_eq!(repaired(&image, &other, 0), differs);
    let (_, without) = member(3, &entries(&[Op::Other, Op::Other]), 2, 2);
    assert_eq!(repaired(&image, &without, 0), differs);
    let mut torn = block_of_ones();
    torn.crc ^= 1;
    let malformed = Err(RepairError::Malformed { block: 0 });
    assert_eq!(block_on(image.repair(&torn, Lsn(2))), malformed);
    assert_eq!(block_on(image.repair(&block_of_ones(), Lsn(2))), Ok(()));
    assert!(whole(&image) == model(&ours));
}

/// Data that no entry made would be stored as what is lost: it never read back, and nothing repaired it.
#[test]
fn data_of_no_entry_is_not_taken() {
    let (disk, image) = member(1, &entries(&[Op::Other]), 1, 1);
    rot(&disk, 0);
    let given = ExportedBlock {
        lsn: Lsn::ZERO,
        ..block_of_ones()
    };
    let malformed = Err(RepairError::Malformed { block: 0 });
    assert_eq!(block_on(image.repair(&given, Lsn(1))), malformed);
}

/// The order of events: a full copy brings a block as entry 3 left it, entry 2 is applied over that, and a checkpoint stores the result
/// under entry 2. A member at 2 has other bytes by that entry, and is right.
#[test]
fn a_copy_that_is_not_caught_up_has_nothing_to_compare_with() {
    let ops = [
        write(0, 0, PAGE_BYTES, 1),
        write(0, 0, 100, 2),
        write(0, 50, 100, 3),
    ];
    let log = entries(&ops);
    let (_, ahead) = member(1, &log, 3, 3);
    let (_, donor) = member(2, &log, 1, 2);
    let (disk, image) = member(3, &log, 1, 1);
    let blocks = block_on(ahead.export_block_range(0, BLOCKS)).expect("whole");
    block_on(async {
        let at = image.applied();
        image.begin_rebuild().await?;
        image.import_blocks(&blocks).await?;
        image.finish_rebuild(at, Bytes::new()).await
    })
    .expect("copied");
    image.set_consistent_from(Lsn(3));
    replay(&image, &log[..2]);
    block_on(image.checkpoint(Bytes::new())).expect("checkpoint");
    rot(&disk, 0);
    assert_eq!(repaired(&image, &donor, 0), Ok(()));
    replay(&image, &log);
    assert!(whole(&image) == model(&ops));
    block_on(image.checkpoint(Bytes::new())).expect("checkpoint");
    rot(&disk, 0);
    let (_, other) = member(
        4,
        &entries(&[Op::Other, Op::Other, write(0, 0, 1, 9)]),
        3,
        3,
    );
    let differs = Err(RepairError::Differs { block: 0 });
    assert_eq!(repaired(&image, &other, 0), differs, "from here on it has");
}

/// The order of events: a block that was never written is repaired and so is a hole in memory, a part-write goes over it, and power is lost
/// while the checkpoint overwrites it. The log has the part-write only, so the rest must be in the intent.
#[test]
fn a_part_write_over_a_repaired_hole_survives_a_crash_in_its_checkpoint() {
    let ops = [write(0, 100, 3000, 1)];
    let log = entries(&ops);
    let hole = ExportedBlock {
        block: 0,
        data: None,
        crc: 0,
        lsn: Lsn::ZERO,
    };
    let hole = &hole;
    for (seed, thawed) in (0..20).flat_map(|seed| [(seed, false), (seed, true)]) {
        crash_points(
            seed,
            |disk| {
                create(disk);
                rot(disk, 0);
            },
            |disk, _: Rc<Cell<()>>| {
                let log = log.clone();
                async move {
                    let opened = Image::open(disk.clone(), Path::new(DIR), config()).await;
                    let (image, _) = opened.expect("open");
                    image.repair(hole, Lsn::ZERO).await.expect("taken");
                    if thawed {
                        disk.set_capacity(Some(disk.used_bytes()));
                        let full = image.checkpoint(Bytes::new()).await;
                        assert!(matches!(full, Err(CheckpointError::NoSpace(_))), "{full:?}");
                        disk.set_capacity(None);
                    }
                    replay(&image, &log);
                    image.checkpoint(Bytes::new()).await.expect("checkpoint");
                }
            },
            |disk, ()| {
                disk.set_capacity(None);
                let (image, checkpoint) = open(&disk);
                let begun = image.fuzzy_until().is_some();
                replay(&image, &log);
                if begun || checkpoint.applied.point.lsn == Lsn(1) {
                    assert!(whole(&image) == model(&ops));
                }
            },
        );
    }
}

/// A page of checksums comes back as zeroes, from a thin volume that lost the mapping or from a file that was cut: it says that nothing was
/// ever written. Whoever believes that reads zeroes, gives them to others, and stores them under a part-write.
#[test]
fn a_page_of_checksums_that_reads_as_zeroes_is_not_believed() {
    let ops = [write(0, 0, 3 * PAGE_BYTES, 1), write(1, 5, 9, 2)];
    let log = entries(&ops);
    let (_, donor) = member(1, &log, 1, 2);
    let (disk, image) = member(2, &log, 1, 2);
    drop(image);
    block_on(async {
        let path = Path::new(DIR).join(SUMS);
        let sums = disk.open(&path, OpenMode::Write, Caching::Buffered).await?;
        let len = sums.len().await?;
        sums.set_len(0).await?;
        sums.set_len(len).await
    })
    .expect("emptied");
    let (image, _) = open(&disk);
    replay(&image, &log);
    for block in 0..3 {
        let read = block_on(image.read(block * PAGE, PAGE_BYTES));
        let corrupt = |error: &ImageReadError| matches!(error, ImageReadError::Corrupt { block: found } if *found == block);
        assert!(read.as_ref().is_err_and(corrupt), "{read:?}");
    }
    let given = block_on(image.donate(&[0, 1, 3])).expect("blocks of the volume");
    let given: Vec<u64> = given.blocks.iter().map(|given| given.block).collect();
    assert_eq!(given, [3], "what was never written is");
    let checkpointed = block_on(image.checkpoint(Bytes::new()));
    assert!(
        matches!(checkpointed, Err(CheckpointError::Corrupt { block: 1 })),
        "{checkpointed:?}"
    );
    // What is left of the page after others were repaired is no more to be believed than before.
    for block in [1, 0, 2] {
        assert_eq!(repaired(&image, &donor, block), Ok(()));
        block_on(image.checkpoint(Bytes::new())).expect("checkpoint");
        assert_eq!(block_on(image.read(2 * PAGE, 1)).is_ok(), block == 2);
    }
    assert!(whole(&image) == model(&ops));
}

/// The medium loses a page of checksums that memory has: everything reads back, until the next start.
#[test]
fn checksums_that_only_memory_has_are_written_again() {
    let ops = sample_ops();
    let log = entries(&ops);
    let (disk, image) = member(1, &log, 6, 6);
    let has_them = block_on(image.read(0, 1)).expect("readable");
    assert_eq!(has_them[..], [1]);
    assert_eq!(block_on(image.scrub_sums(0, 64)).ok(), Some(false));
    disk.rot(&Path::new(DIR).join(SUMS), 40, 1);
    assert_eq!(block_on(image.scrub_sums(64, 64)).ok(), Some(true));
    block_on(image.checkpoint(Bytes::new())).expect("checkpoint");
    let (image, _) = open(&disk);
    assert!(whole(&image) == model(&ops));
    assert_eq!(block_on(image.scrub_sums(0, BLOCKS)).ok(), Some(false));
}

/// A page of checksums is lost, with everything that it says: of blocks with data, with holes, and never written.
#[test]
fn blocks_without_checksums_are_repaired_also_where_nothing_is_stored() {
    let ops = sample_ops();
    let log = entries(&ops);
    let (_, donor) = member(1, &log, 6, 6);
    let (disk, image) = member(2, &log, 6, 6);
    drop(image);
    disk.rot(&Path::new(DIR).join(SUMS), 40, 1);
    let (image, _) = open(&disk);
    let bad = block_on(image.scrub_medium(0, BLOCKS)).expect("readable");
    assert_eq!(bad.len(), 255);
    for block in bad {
        assert_eq!(repaired(&image, &donor, block), Ok(()));
    }
    assert!(whole(&image) == model(&ops));
    block_on(image.checkpoint(Bytes::new())).expect("checkpoint");
    disk.crash();
    let (image, _) = open(&disk);
    assert!(whole(&image) == model(&ops));
    assert_eq!(
        block_on(image.scrub_medium(0, BLOCKS)).expect("readable"),
        Vec::<u64>::new()
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Two members anywhere in one log, and a rotten block of one of them. A repair that is not refused gives the content at its own
    /// position, at every later one, and after a checkpoint and a loss of power. One is refused only for the reason it gives.
    #[test]
    fn a_repair_is_exact_or_refused(
        ops in super::properties::ops(),
        positions in any::<[prop::sample::Index; 4]>(),
        block in 0_u64..8,
    ) {
        let log = entries(&ops);
        let sorted = |a: usize, b: usize| {
            let of = |index: usize| positions[index].index(log.len() + 1);
            (of(a).min(of(b)), of(a).max(of(b)))
        };
        let ((kept, ours), (theirs_kept, theirs)) = (sorted(0, 1), sorted(2, 3));
        let (_, donor) = member(1, &log, theirs_kept, theirs);
        let (disk, image) = member(2, &log, kept, ours);
        rot(&disk, block);
        match repaired(&image, &donor, block) {
            Ok(()) => {
                for end in ours..=log.len() {
                    replay(&image, &log[..end]);
                    assert!(whole(&image) == model(&ops[..end]), "content differs at {end}");
                }
                block_on(image.checkpoint(Bytes::new())).expect("checkpoint");
                disk.crash();
                assert!(whole(&open(&disk).0) == model(&ops), "content differs on disk");
            }
            Err(RepairError::Ahead { lsn, .. }) => assert!(lsn.0 > ours as u64),
            Err(RepairError::Behind { at }) => assert!(at.0 < kept as u64),
            Err(error) => panic!("{error}"),
        }
    }
}

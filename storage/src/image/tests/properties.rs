//! Any operations, checkpoints and crashes against a model.

use proptest::prelude::*;

use super::*;

/// Entries that are applied in the middle of a checkpoint.
struct Meanwhile<'a> {
    image: &'a Image<SimDisk>,
    log: &'a [EntryRef],
}

impl Pace for Meanwhile<'_> {
    async fn next(&self, _: usize, _: usize) {}

    async fn rest(&self) {
        replay(self.image, self.log);
    }
}

pub(super) fn ops() -> impl Strategy<Value = Vec<Op>> {
    let offset = prop_oneof![0..8 * PAGE, 253 * PAGE..257 * PAGE];
    let op = prop_oneof![
        4 => (offset.clone(), 1_usize..10_000, 1_u8..).prop_map(|(offset, len, fill)| Op::Write { offset, len, fill }),
        2 => (0_u64..8, 1_usize..3, 1_u8..).prop_map(|(block, count, fill)| Op::Write {
            offset: block * PAGE,
            len: count * PAGE_BYTES,
            fill
        }),
        2 => (offset, 1_u64..10_000).prop_map(|(offset, len)| Op::Zero { offset, len }),
        1 => (0..BLOCKS * PAGE, 1..BLOCKS * PAGE).prop_map(|(offset, len)| Op::Allocate {
            offset,
            len: len.min(BLOCKS * PAGE - offset)
        }),
        2 => (0..BLOCKS * PAGE, 1..BLOCKS * PAGE).prop_map(|(offset, len)| Op::Zero {
            offset,
            len: len.min(BLOCKS * PAGE - offset)
        }),
        1 => Just(Op::Other),
    ];
    prop::collection::vec(op, 2..10)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// What is in memory, in one layer, in two, and in one again after a checkpoint that found no room and beside which more was
    /// applied, is what the entries say: every byte and every block's last change.
    #[test]
    fn memory_knows_what_the_entries_say(
        ops in prop::collection::vec(ops(), 3),
        room in 0_u64..12,
    ) {
        let ops = ops.concat();
        let log = entries(&ops);
        let disk = SimDisk::immediate(31);
        let image = create(&disk);
        let parts = [log.len() / 3, log.len() * 2 / 3, log.len()];
        for (part, &end) in parts.iter().enumerate() {
            for count in image.applied().point.lsn.0..end as u64 {
                let count = usize::try_from(count).expect("small");
                image.apply(&log[count]).expect("in order");
                assert!(whole(&image) == model(&ops[..=count]), "content differs");
            }
            check_changes(&image, &log);
            if part == 1 {
                disk.set_capacity(Some(disk.used_bytes() + room * PAGE));
                let (image, log) = (&image, &log[..]);
                let _room_or_not =
                    block_on(image.checkpoint_at_pace(Bytes::new(), &Meanwhile { image, log }));
                disk.set_capacity(None);
                check_changes(image, log);
            }
        }
        assert!(whole(&image) == model(&ops), "content differs");
        block_on(image.checkpoint(Bytes::new())).expect("checkpoint");
        assert_eq!(image.dirty_bytes(), 0);
        check_changes(&image, &log);
        assert!(whole(&open(&disk).0) == model(&ops), "content differs on disk");
    }

    /// A loss of power at every await of two checkpoints, each of which found no room at first: replay from the recorded position
    /// gives the same content. What the first attempt merged with its base is in the second one's intent, too.
    #[test]
    fn a_crash_in_a_checkpoint_leaves_what_replay_needs(
        seed in 0_u64..1_000_000,
        ops in ops(),
        cut in any::<prop::sample::Index>(),
        room in 0_u64..9,
    ) {
        let log = entries(&ops);
        let expected = model(&ops);
        let cut = cut.index(log.len());
        crash_points(
            seed,
            |disk| {
                let image = create(disk);
                replay(&image, &log[..cut]);
                block_on(image.checkpoint(Bytes::new())).expect("checkpoint");
            },
            |disk, recorded: Rc<Cell<u64>>| {
                let log = log.clone();
                async move {
                    let (image, _) = Image::open(disk.clone(), Path::new(DIR), config()).await.expect("open");
                    let middle = usize::midpoint(cut, log.len());
                    for stop in [middle, log.len()] {
                        replay(&image, &log[..stop.saturating_sub(2)]);
                        disk.set_capacity(Some(disk.used_bytes() + room * PAGE));
                        let _room_or_not = image.checkpoint(Bytes::new()).await;
                        disk.set_capacity(None);
                        replay(&image, &log[..stop]);
                        let end = image.checkpoint(Bytes::new()).await.expect("checkpoint");
                        recorded.set(end.point.lsn.0);
                    }
                }
            },
            |disk, recorded| {
                disk.set_capacity(None);
                let (image, checkpoint) = open(&disk);
                assert!(checkpoint.applied.point.lsn.0 >= recorded);
                replay(&image, &log);
                assert_eq!(image.fuzzy_until(), None);
                assert!(whole(&image) == expected, "content differs");
                let bad = block_on(image.scrub(0, BLOCKS)).expect("readable");
                assert_eq!(bad, [], "they would be repaired for nothing");
                // Once more, with the checkpoint that was cut short now made whole.
                block_on(image.checkpoint(Bytes::new())).expect("checkpoint");
                disk.crash();
                let (image, _) = open(&disk);
                assert!(whole(&image) == expected, "content differs after a checkpoint");
            },
        );
    }
}

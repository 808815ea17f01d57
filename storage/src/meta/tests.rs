use super::*;
use crate::engine::SimDisk;
use crate::engine::sim::{Fault, OpKind};
use crate::testing::{block_on, crash_points};

const DIR: &str = "/v";

fn facts() -> MetaFacts {
    MetaFacts {
        cluster: ClusterId(1),
        node: NodeId(2),
        volume: VolumeId(3),
        spec: VolumeSpec {
            name: "ledger".parse().expect("a name"),
            kind: VolumeKind::Block {
                size_bytes: 1 << 20,
            },
        },
        incarnation: Incarnation(4),
        log_lineage: Lineage(5),
        lineage: Lineage(6),
        boot_counter: 0,
        sealed: Epoch(7),
        rebuilding: false,
        damaged: None,
        commit: Lsn(8),
    }
}

fn open(disk: &SimDisk) -> Result<MetaFacts, MetaError> {
    let meta = block_on(Meta::open(
        disk.clone(),
        Path::new(DIR),
        ClusterId(1),
        NodeId(2),
    ))?;
    Ok(meta.facts().clone())
}

#[test]
fn slot_bytes_are_golden() {
    let mut page = vec![0; PAGE_BYTES];
    let mut facts = facts();
    facts.damaged = Some("why".to_owned());
    facts.rebuilding = true;
    encode(&facts, 9, &mut page);
    crate::testing::golden("meta-slot", &page);
    let decoded = decode(&page).ok().expect("own bytes");
    assert_eq!(decoded, (9, facts));
}

#[test]
fn updates_survive_a_crash_at_every_point_and_seals_never_fall() {
    for seed in 0..4 {
        crash_points(
            seed,
            |disk| {
                block_on(Meta::create(disk.clone(), Path::new(DIR), facts())).expect("create");
            },
            |disk, done| async move {
                let mut meta = Meta::open(disk, Path::new(DIR), ClusterId(1), NodeId(2))
                    .await
                    .expect("open");
                for epoch in 8..11 {
                    meta.update(|facts| facts.sealed = Epoch(epoch))
                        .await
                        .expect("update");
                    done.set(epoch);
                }
            },
            |disk, done: u64| {
                let facts = open(&disk).expect("one slot is whole at every moment");
                assert!(
                    facts.sealed.0 >= done.max(7),
                    "sealed {} after {done} was durable",
                    facts.sealed
                );
                assert!(facts.sealed.0 <= done.max(7) + 1);
                assert!(facts.boot_counter >= 1);
            },
        );
    }
}

#[test]
fn rot_in_one_slot_takes_nothing_back_and_rot_in_both_is_damage() {
    let disk = SimDisk::immediate(1);
    let path = Path::new(DIR).join("meta");
    let mut meta = block_on(Meta::create(disk.clone(), Path::new(DIR), facts())).expect("create");
    block_on(meta.update(|facts| facts.sealed = Epoch(20))).expect("update");
    for slot in 0..2 {
        disk.rot(&path, slot * PAGE + 70, 1);
        assert_eq!(open(&disk).expect("the other slot").sealed, Epoch(20));
    }
    disk.rot(&path, 70, 1);
    disk.rot(&path, PAGE + 70, 1);
    assert!(matches!(open(&disk), Err(MetaError::Damaged { .. })));
}

/// The refusal comes at the first write of an update or at the second; either way the facts are what they were, one slot
/// is whole at every moment, and the same update succeeds later.
#[test]
fn a_full_disk_is_an_answer_and_the_same_update_succeeds_later() {
    for nth in [1, 2] {
        let disk = SimDisk::immediate(nth);
        let mut meta =
            block_on(Meta::create(disk.clone(), Path::new(DIR), facts())).expect("create");
        let before = meta.facts().clone();
        disk.fail_nth(OpKind::Write, nth, Fault::NoSpace);
        let refused = block_on(meta.update(|facts| facts.sealed = Epoch(90)));
        assert!(
            matches!(refused, Err(MetaError::NoSpace { .. })),
            "{refused:?}"
        );
        assert_eq!(*meta.facts(), before);
        // The try that follows tears the slot that it writes first: the other one must be the whole one.
        disk.fail_nth(OpKind::Write, 1, Fault::Eio);
        let torn = block_on(meta.update(|facts| facts.sealed = Epoch(90)));
        assert!(torn.is_err());
        let found = open(&disk).expect("one slot is whole");
        assert!(found.sealed >= before.sealed);

        let again = Meta::open(disk.clone(), Path::new(DIR), ClusterId(1), NodeId(2));
        let mut meta = block_on(again).expect("opens");
        disk.fail_nth(OpKind::Write, nth, Fault::NoSpace);
        assert!(block_on(meta.update(|facts| facts.sealed = Epoch(91))).is_err());
        block_on(meta.update(|facts| facts.sealed = Epoch(91))).expect("room again");
        assert_eq!(open(&disk).expect("opens").sealed, Epoch(91));
    }
}

#[test]
fn another_node_is_refused_and_a_failed_write_ends_the_object() {
    let disk = SimDisk::immediate(1);
    let mut meta = block_on(Meta::create(disk.clone(), Path::new(DIR), facts())).expect("create");
    let other = block_on(Meta::open(
        disk.clone(),
        Path::new(DIR),
        ClusterId(1),
        NodeId(9),
    ));
    assert!(matches!(
        other,
        Err(MetaError::OtherNode {
            found_node: NodeId(2),
            ..
        })
    ));
    disk.fail_nth(OpKind::Sync, 1, Fault::Eio);
    assert!(block_on(meta.update(|facts| facts.commit = Lsn(9))).is_err());
    assert!(matches!(
        block_on(meta.update(|_| {})),
        Err(MetaError::Poisoned { .. })
    ));
}

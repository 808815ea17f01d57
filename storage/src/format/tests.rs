use bytes::Bytes;
use mainstay_types::{Epoch, Incarnation, Lineage, LogPoint, Lsn, SessionId};
use proptest::prelude::*;

use super::entry::*;
use super::*;
use crate::engine::PAGE_BYTES;
use crate::testing::golden;

const LINEAGE: Lineage = Lineage(0x1122_3344_5566_7788);

fn sample(kind: EntryKind, lsn: u64, prev: u32, payload: &[u8]) -> Vec<u8> {
    let mut entry = encode_unstamped(kind, SessionId(0xa1), 7, 8, 4096, payload);
    stamp(&mut entry, LINEAGE, Epoch(2), Lsn(lsn), prev);
    entry.to_vec()
}

fn sample_batch() -> (LogEnd, Vec<u8>) {
    let start = LogEnd {
        point: LogPoint {
            epoch: Epoch(1),
            lsn: Lsn(9),
        },
        crc: 0x55,
    };
    let mut out = sample(EntryKind::EpochStart, 10, start.crc, &[]);
    let second = sample(EntryKind::Write, 11, crc_of(&out), b"hello");
    out.extend_from_slice(&second);
    (start, out)
}

#[test]
fn entry_and_frame_and_segment_bytes_are_golden() {
    let entry = sample(EntryKind::Write, 10, 0x0bad_cafe, b"payload");
    golden("entry", &entry);
    let header = decode_header(LINEAGE, &entry).expect("own bytes");
    assert_eq!(
        (header.point.lsn, header.seq, header.arg, header.payload_len),
        (Lsn(10), 8, 4096, 7)
    );

    let (start, body) = sample_batch();
    let frame = FrameHeader {
        entry_count: 2,
        frame_len: 4096,
        body_len: u32::try_from(body.len()).expect("small"),
        first_lsn: Lsn(10),
        lineage: LINEAGE,
        segment_seq: 3,
        commit: Lsn(8),
        prev_crc: start.crc,
    };
    let mut page = vec![0; PAGE_BYTES];
    frame.encode(&mut page);
    page[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + body.len()].copy_from_slice(&body);
    golden("frame", &page);
    assert_eq!(FrameHeader::decode(&page), Ok(frame));

    let segment = SegmentHeader {
        lineage: LINEAGE,
        incarnation: Incarnation(4),
        seq: 3,
        prev: start,
        file_bytes: 16 << 20,
    };
    let mut page = vec![0; PAGE_BYTES];
    segment.encode(&mut page);
    golden("segment-header", &page);
    assert_eq!(SegmentHeader::decode(&page), Ok(segment));
}

#[test]
fn an_entry_verifies_only_in_its_own_lineage_and_place() {
    let (start, batch) = sample_batch();
    let batch = Bytes::from(batch);
    assert_eq!(
        verify_batch(LINEAGE, &batch, start)
            .expect("own bytes")
            .len(),
        2
    );
    assert!(verify_batch(Lineage(1), &batch, start).is_err());
    let elsewhere = LogEnd { crc: 1, ..start };
    assert!(matches!(
        verify_batch(LINEAGE, &batch, elsewhere),
        Err(BatchError::Chain { .. })
    ));
    let later = LogEnd {
        point: LogPoint {
            epoch: Epoch(3),
            lsn: Lsn(9),
        },
        ..start
    };
    assert!(matches!(
        verify_batch(LINEAGE, &batch, later),
        Err(BatchError::EpochFell { .. })
    ));
    assert!(matches!(
        verify_batch(LINEAGE, &batch, LogEnd::ZERO),
        Err(BatchError::Gap { .. })
    ));
    let cut = batch.slice(..batch.len() - 8);
    assert!(matches!(
        verify_batch(LINEAGE, &cut, start),
        Err(BatchError::Entry { .. })
    ));
    assert_eq!(
        verify_batch(LINEAGE, &Bytes::new(), start),
        Err(BatchError::Empty)
    );
}

#[test]
fn an_unknown_kind_names_the_format_version() {
    let mut entry = sample(EntryKind::Write, 1, 0, b"x");
    entry[32] = 200;
    stamp(&mut entry, LINEAGE, Epoch(1), Lsn(1), 0);
    let error = decode_header(LINEAGE, &entry).expect_err("unknown");
    assert_eq!(
        error,
        EntryError::UnknownKind {
            kind: 200,
            version: FORMAT_VERSION
        }
    );
    assert!(error.to_string().contains("format version 1"));
}

#[test]
fn every_flipped_bit_of_a_batch_is_seen() {
    let (start, batch) = sample_batch();
    for bit in 0..batch.len() * 8 {
        let mut bad = batch.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(
            verify_batch(LINEAGE, &Bytes::from(bad), start).is_err(),
            "bit {bit}"
        );
    }
}

/// Compares the offsets in `docs/disk-format.md` with the constants of the code.
#[test]
fn documented_offsets_are_the_real_ones() {
    let text = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/disk-format.md"
    ))
    .expect("read");
    let check = |section: &str, fields: &[(&str, usize)]| {
        let heading = format!("## {section}\n");
        let body = text.split_once(&heading).expect(section).1;
        let body = body
            .split("\n## ")
            .next()
            .expect("a split has a first part");
        let rows: Vec<(String, usize)> = body
            .lines()
            .filter_map(|line| {
                let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
                let offset = cells.next()?.parse().ok()?;
                let name = cells.nth(1)?.trim_matches('`').to_owned();
                Some((name, offset))
            })
            .collect();
        let code: Vec<(String, usize)> = fields
            .iter()
            .map(|(name, at)| ((*name).to_owned(), *at))
            .collect();
        assert_eq!(rows, code, "{section}");
    };
    check(
        "Entry",
        &[
            ("header_crc", HEADER_CRC),
            ("payload_crc", PAYLOAD_CRC),
            ("prev_crc", PREV_CRC),
            ("payload_len", PAYLOAD_LEN),
            ("epoch", EPOCH),
            ("lsn", LSN),
            ("kind", KIND),
            ("flags", FLAGS),
            ("reserved", RESERVED),
            ("generation", GENERATION),
            ("session", SESSION),
            ("seq", SEQ),
            ("arg", ARG),
        ],
    );
    check("Frame", &frame::LAYOUT);
    check("Segment", &segment::LAYOUT);
    check("Meta slot", &crate::meta::LAYOUT);
    check("Checkpoint record", &crate::checkpoint::LAYOUT);
    check("Tree mark", &crate::tree::LAYOUT);
    check("Checksum page", &crate::image::SUMS_LAYOUT);
    check("Checkpoint intent", &crate::image::INTENT_LAYOUT);
}

proptest! {
    #[test]
    fn decoders_take_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let bytes = Bytes::from(bytes);
        let _ = decode_header(LINEAGE, &bytes);
        let _ = verify_batch(LINEAGE, &bytes, LogEnd::ZERO);
        let _ = FrameHeader::decode(&bytes);
        let _ = SegmentHeader::decode(&bytes);
        let _ = crate::checkpoint::decode(LINEAGE, &bytes);
    }

    #[test]
    fn entries_come_back(payload in prop::collection::vec(any::<u8>(), 0..3000), lsn in 1_u64.., prev: u32) {
        let entry = Bytes::from(sample(EntryKind::Record, lsn, prev, &payload));
        let start = LogEnd { point: LogPoint { epoch: Epoch(2), lsn: Lsn(lsn - 1) }, crc: prev };
        let entries = verify_batch(LINEAGE, &entry, start).expect("own bytes");
        prop_assert_eq!(&entries[0].payload()[..], &payload[..]);
        prop_assert_eq!(entries[0].header.entry_len(), entry.len());
    }

    #[test]
    fn mutated_batches_are_errors(flips in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..4)) {
        let (start, batch) = sample_batch();
        let mut bad = batch.clone();
        for (at, mask) in flips {
            let at = at.index(bad.len());
            bad[at] ^= mask;
        }
        prop_assume!(bad != batch);
        prop_assert!(verify_batch(LINEAGE, &Bytes::from(bad), start).is_err());
    }
}

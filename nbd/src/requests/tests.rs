//! The table of the module, line by line, and arbitrary requests against its promises.

use proptest::prelude::*;

use super::*;
use crate::meta::MetaContext;

const MIN: u32 = 512;
const MAX: u32 = 1 << 20;
const MAX_LEN: u64 = MAX as u64;
const SIZE: u64 = 4 << 20;
const ALLOCATION: Selected = Selected {
    id: 1,
    context: MetaContext::Allocation,
};

fn terms(access: Access, replies: ReplyStyle) -> Terms {
    Terms {
        info: ExportInfo {
            name: "a".to_owned(),
            description: String::new(),
            size_bytes: SIZE,
            access,
            block_bytes_min: MIN,
            block_bytes_preferred: 4096,
            block_bytes_max: MAX,
            multi_conn: MultiConn::Coherent,
        },
        replies,
        contexts: vec![],
    }
}

fn judge(
    terms: &Terms,
    command: u16,
    flags: u16,
    offset: u64,
    length: u64,
) -> Result<Operation, Errno> {
    let request = Request {
        flags,
        command,
        cookie: 1,
        offset,
        length,
    };
    terms.judge(&request).map_err(|refusal| refusal.errno)
}

#[test]
fn table_of_errors_for_a_writable_export() {
    use command::{BLOCK_STATUS, CACHE, FLUSH, READ, TRIM, WRITE, WRITE_ZEROES};
    let terms = terms(Access::ReadWrite, ReplyStyle::Structured);
    let end = SIZE;
    let cases = [
        (READ, 0, end - 512, 512, None),
        (READ, 0, end - 512, 1024, Some(Errno::Inval)),
        (READ, 0, end, 512, Some(Errno::Inval)),
        (READ, 0, u64::MAX - 511, 512, Some(Errno::Inval)),
        (READ, 0, u64::MAX, u64::from(u32::MAX), Some(Errno::Inval)),
        (READ, 0, 0, 0, Some(Errno::Inval)),
        (READ, 0, 1, 512, Some(Errno::Inval)),
        (READ, 0, 0, 511, Some(Errno::Inval)),
        (READ, 0, 0, MAX_LEN, None),
        (READ, 0, 0, MAX_LEN + 512, Some(Errno::Inval)),
        (
            READ,
            command_flag::DF,
            0,
            MAX_LEN + 512,
            Some(Errno::Overflow),
        ),
        (READ, command_flag::DF | command_flag::FUA, 0, 65_536, None),
        (READ, command_flag::NO_HOLE, 0, 512, Some(Errno::Inval)),
        (READ, 1 << 15, 0, 512, Some(Errno::Inval)),
        (WRITE, command_flag::FUA, end - 512, 512, None),
        (WRITE, 0, end, 512, Some(Errno::NoSpc)),
        (WRITE, 0, u64::MAX, 512, Some(Errno::NoSpc)),
        (WRITE, 0, 0, 0, Some(Errno::Inval)),
        (WRITE, 0, 0, MAX_LEN + 512, Some(Errno::Inval)),
        (WRITE, command_flag::DF, 0, 512, Some(Errno::Inval)),
        (TRIM, command_flag::FUA, 0, 4 << 20, None),
        (TRIM, 0, end, 512, Some(Errno::Inval)),
        (WRITE_ZEROES, command_flag::NO_HOLE, 0, 4 << 20, None),
        (WRITE_ZEROES, 0, end, 512, Some(Errno::NoSpc)),
        (WRITE_ZEROES, command_flag::FAST_ZERO, 0, 512, None),
        (FLUSH, command_flag::FUA, 0, 0, None),
        (FLUSH, 0, 1, 0, Some(Errno::Inval)),
        (FLUSH, 0, 0, 512, Some(Errno::Inval)),
        (CACHE, command_flag::FUA, 0, 4 << 20, None),
        (CACHE, command_flag::DF, 0, 512, Some(Errno::Inval)),
        (CACHE, 0, end, 512, Some(Errno::Inval)),
        (CACHE, 0, 0, 0, Some(Errno::Inval)),
        (CACHE, 0, 1, 512, Some(Errno::Inval)),
        (BLOCK_STATUS, 0, 0, 512, Some(Errno::Inval)),
        (0xffff, 0, 0, 512, Some(Errno::Inval)),
    ];
    for (command, flags, offset, length, error) in cases {
        assert_eq!(
            judge(&terms, command, flags, offset, length).err(),
            error,
            "command {command} flags {flags:#x} offset {offset} length {length}"
        );
    }
}

/// Every command that has a range, and its error beyond the end.
const RANGED: [(u16, Errno); 6] = [
    (command::READ, Errno::Inval),
    (command::WRITE, Errno::NoSpc),
    (command::TRIM, Errno::Inval),
    (command::CACHE, Errno::Inval),
    (command::WRITE_ZEROES, Errno::NoSpc),
    (command::BLOCK_STATUS, Errno::Inval),
];

#[test]
fn every_range_is_checked_for_every_command_in_every_style() {
    for style in [
        ReplyStyle::Simple,
        ReplyStyle::Structured,
        ReplyStyle::Extended,
    ] {
        let mut terms = terms(Access::ReadWrite, style);
        terms.contexts = vec![ALLOCATION];
        for (command, beyond) in RANGED {
            let errno = |offset, len| judge(&terms, command, 0, offset, len).err();
            assert_eq!(errno(SIZE - 512, 512), None, "{command}");
            assert_eq!(errno(0, 0), Some(Errno::Inval), "{command}");
            assert_eq!(errno(SIZE - 512, 1024), Some(beyond), "{command}");
            assert_eq!(errno(SIZE, 512), Some(beyond), "{command}");
            assert_eq!(errno(u64::MAX - 511, 512), Some(beyond), "{command}");
            assert_eq!(errno(512, u64::MAX - 511), Some(beyond), "{command}");
            assert_eq!(errno(256, 512), Some(Errno::Inval), "{command}");
            assert_eq!(errno(512, 256), Some(Errno::Inval), "{command}");
        }
    }
}

#[test]
fn every_flag_that_a_command_does_not_have_is_refused() {
    use command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, PAYLOAD_LEN, REQ_ONE};
    let flags_of = |command, extended| match command {
        command::READ => FUA | DF,
        command::WRITE if extended => FUA | PAYLOAD_LEN,
        command::WRITE_ZEROES => FUA | NO_HOLE | FAST_ZERO,
        command::BLOCK_STATUS if extended => FUA | REQ_ONE | PAYLOAD_LEN,
        command::BLOCK_STATUS => FUA | REQ_ONE,
        _ => FUA,
    };
    for style in [ReplyStyle::Structured, ReplyStyle::Extended] {
        let mut terms = terms(Access::ReadWrite, style);
        terms.contexts = vec![ALLOCATION];
        for (command, _) in RANGED {
            for bit in 0..16 {
                let flag = 1 << bit;
                // A payload of this length names no context.
                let len = if flag == PAYLOAD_LEN && command == command::BLOCK_STATUS {
                    8
                } else {
                    512
                };
                let allowed = flags_of(command, style == ReplyStyle::Extended) & flag != 0;
                let judged = judge(&terms, command, flag, 0, len);
                let expected = if allowed { None } else { Some(Errno::Inval) };
                assert_eq!(judged.err(), expected, "{style:?} {command} {flag:#x}");
            }
        }
    }
}

#[test]
fn a_read_only_export_refuses_every_change() {
    let terms = terms(Access::ReadOnly, ReplyStyle::Simple);
    for command in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
        assert_eq!(judge(&terms, command, 0, 0, 512), Err(Errno::Perm));
        assert_eq!(judge(&terms, command, 0, SIZE, 512), Err(Errno::Perm));
    }
    assert!(judge(&terms, command::READ, 0, 0, 512).is_ok());
    assert!(judge(&terms, command::FLUSH, 0, 0, 0).is_ok());
}

#[test]
fn df_needs_structured_replies() {
    let simple = terms(Access::ReadWrite, ReplyStyle::Simple);
    assert_eq!(
        judge(&simple, command::READ, command_flag::DF, 0, 512),
        Err(Errno::Inval)
    );
    assert_eq!(simple.transmission_flags() & transmission::SEND_DF, 0);
    let structured = terms(Access::ReadWrite, ReplyStyle::Structured);
    assert_ne!(structured.transmission_flags() & transmission::SEND_DF, 0);
}

#[test]
fn with_extended_headers_a_flag_tells_payload_from_effect() {
    let extended = terms(Access::ReadWrite, ReplyStyle::Extended);
    let structured = terms(Access::ReadWrite, ReplyStyle::Structured);
    let payload = command_flag::PAYLOAD_LEN;
    let request = |command, flags| Request {
        flags,
        command,
        cookie: 1,
        offset: 0,
        length: 512,
    };
    for (command, flags, of_structured, of_extended) in [
        (command::WRITE, 0, 512, 512),
        (command::WRITE, payload, 512, 512),
        (command::TRIM, 0, 0, 0),
        (command::TRIM, payload, 0, 512),
        (4711, payload, 0, 512),
    ] {
        let request = request(command, flags);
        let told = (
            structured.payload_bytes(&request),
            extended.payload_bytes(&request),
        );
        assert_eq!(told, (of_structured, of_extended), "{request:?}");
    }
    let judged = |terms, command, flags| judge(terms, command, flags, 0, 512).err();
    assert_eq!(judged(&extended, command::WRITE, payload), None);
    assert_eq!(judged(&extended, command::WRITE, 0), None);
    assert_eq!(judged(&extended, command::READ, 0), None);
    assert_eq!(
        judged(&extended, command::READ, payload),
        Some(Errno::Inval)
    );
    assert_eq!(
        judged(&structured, command::WRITE, payload),
        Some(Errno::Inval)
    );
}

#[test]
fn effects_beyond_4_gib_reach_the_device_and_reads_do_not() {
    let mut terms = terms(Access::ReadWrite, ReplyStyle::Extended);
    terms.info.size_bytes = 1 << 40;
    let len = 5 << 30;
    assert_eq!(
        judge(&terms, command::TRIM, 0, 512, len),
        Ok(Operation::Trim { offset: 512, len })
    );
    assert_eq!(
        judge(&terms, command::WRITE_ZEROES, 0, 0, 1_u64 << 40),
        Ok(Operation::WriteZeroes {
            offset: 0,
            len: 1 << 40,
            holes: Holes::Allowed,
            speed: Speed::Any,
        })
    );
    // What is left of this length in 32 bits would be in range.
    let deceptive = (1_u64 << 32) + 512;
    assert_eq!(
        judge(&terms, command::READ, 0, 0, deceptive),
        Err(Errno::Inval)
    );
    let flags = command_flag::PAYLOAD_LEN;
    assert_eq!(
        judge(&terms, command::WRITE, flags, 0, deceptive),
        Err(Errno::Inval)
    );
    assert_eq!(
        judge(&terms, command::TRIM, 0, 512, u64::MAX - 511),
        Err(Errno::Inval)
    );
}

#[test]
fn flags_are_honest() {
    let mut terms = terms(Access::ReadOnly, ReplyStyle::Simple);
    terms.info.multi_conn = MultiConn::Unsupported;
    assert_eq!(
        terms.transmission_flags(),
        transmission::HAS_FLAGS
            | transmission::READ_ONLY
            | transmission::SEND_FLUSH
            | transmission::SEND_FUA
            | transmission::SEND_CACHE
    );
}

#[test]
fn a_status_needs_a_context_and_a_filter_needs_extended_headers() {
    let (one, payload) = (command_flag::REQ_ONE, command_flag::PAYLOAD_LEN);
    let judged = |style, contexts: &[Selected], flags, len| {
        let mut terms = terms(Access::ReadOnly, style);
        terms.contexts = contexts.to_vec();
        let offered = terms.transmission_flags() & transmission::BLOCK_STATUS_PAYLOAD != 0;
        (judge(&terms, command::BLOCK_STATUS, flags, 0, len), offered)
    };
    let all = [ALLOCATION];
    let query = |extents_max| {
        Ok(Operation::BlockStatus(StatusQuery {
            offset: 0,
            len: 512,
            extents_max,
            contexts: all.to_vec(),
        }))
    };
    let (structured, extended) = (ReplyStyle::Structured, ReplyStyle::Extended);
    let inval = || Err(Errno::Inval);
    let filtered = |payload_bytes| Ok(Operation::FilteredStatus { payload_bytes });
    for (style, contexts, flags, len, expected) in [
        (structured, &all[..], 0, 512, (query(EXTENTS_MAX), false)),
        (structured, &all, one, 512, (query(1), false)),
        (structured, &all, payload, 12, (inval(), false)),
        (structured, &[], 0, 512, (inval(), false)),
        (structured, &all, 0, 511, (inval(), false)),
        (structured, &all, 0, SIZE + 512, (inval(), false)),
        (structured, &all, command_flag::DF, 512, (inval(), false)),
        (extended, &all, 0, 512, (query(EXTENTS_MAX), true)),
        (extended, &all, one | payload, 12, (filtered(12), true)),
        (extended, &all, payload, 8, (filtered(8), true)),
        (extended, &all, payload, 16, (inval(), true)),
        (extended, &all, payload, u64::MAX, (inval(), true)),
        (extended, &[], payload, 12, (inval(), false)),
    ] {
        let found = judged(style, contexts, flags, len);
        assert_eq!(found, expected, "{style:?} {contexts:?} {flags:#x} {len}");
    }
}

#[test]
fn a_filter_names_selected_contexts_once() {
    let mut terms = terms(Access::ReadOnly, ReplyStyle::Extended);
    terms.contexts = vec![ALLOCATION];
    let known = ALLOCATION.id;
    let check = |length: u64, contexts: &[u32]| {
        let mut payload = bytes::BytesMut::new();
        let contexts = contexts.to_vec();
        StatusFilter { length, contexts }.encode(&mut payload);
        let request = Request {
            flags: command_flag::PAYLOAD_LEN | command_flag::REQ_ONE,
            command: command::BLOCK_STATUS,
            cookie: 1,
            offset: 512,
            length: payload.len() as u64,
        };
        let query = terms.judge_filter(&request, &payload);
        query.map_err(|refusal| refusal.errno)
    };
    let query = check(1024, &[known]).expect("a query");
    assert_eq!((query.offset, query.len, query.extents_max), (512, 1024, 1));
    assert_eq!(query.contexts, [ALLOCATION]);
    assert_eq!(check(1024, &[]).map(|query| query.contexts), Ok(vec![]));
    for (length, contexts) in [
        (1024, &[known + 1][..]),
        (1024, &[known, known]),
        (0, &[known]),
        (SIZE, &[known]),
        (u64::MAX, &[known]),
        (1000, &[known]),
    ] {
        assert_eq!(
            check(length, contexts),
            Err(Errno::Inval),
            "{length} {contexts:?}"
        );
    }
    let request = Request {
        flags: command_flag::PAYLOAD_LEN,
        command: command::BLOCK_STATUS,
        cookie: 1,
        offset: 0,
        length: 11,
    };
    assert!(terms.judge_filter(&request, &[0; 11]).is_err());
    assert!(terms.judge_filter(&request, &[0; 7]).is_err());
}

#[test]
fn every_device_error_has_its_number() {
    for (error, errno) in [
        (BlockError::Io, 5),
        (BlockError::Invalid, 22),
        (BlockError::NoSpace, 28),
        (BlockError::NotPermitted, 1),
        (BlockError::ShuttingDown, 108),
        (BlockError::TooLarge, 75),
        (BlockError::NotSupported, 22),
        (BlockError::OutOfMemory, 12),
    ] {
        assert_eq!(Refusal::from(error).errno.code(), errno);
    }
}

#[test]
fn exports_that_cannot_be_advertised_are_named() {
    use crate::export::InvalidExport;
    let good = terms(Access::ReadWrite, ReplyStyle::Simple).info;
    assert_eq!(good.clone().bounded(u32::MAX), Ok(good.clone()));
    assert_eq!(
        good.clone()
            .bounded(10_000)
            .map(|info| info.block_bytes_max),
        Ok(9728)
    );
    let check = |change: fn(&mut ExportInfo), error| {
        let mut info = good.clone();
        change(&mut info);
        assert_eq!(info.bounded(u32::MAX), Err(error));
    };
    check(
        |info| info.block_bytes_min = 0,
        InvalidExport::MinimumBlock(0),
    );
    check(
        |info| info.block_bytes_min = 3,
        InvalidExport::MinimumBlock(3),
    );
    check(
        |info| info.block_bytes_preferred = 256,
        InvalidExport::PreferredBlock(256),
    );
    check(
        |info| info.block_bytes_max = 4095,
        InvalidExport::MaximumBlock(3584),
    );
    check(|info| info.size_bytes += 1, InvalidExport::Size(SIZE + 1));
    check(
        |info| info.name = "n".repeat(4097),
        InvalidExport::Text(4097),
    );
}

proptest! {
    #[test]
    fn what_reaches_the_device_is_in_range_and_aligned(
        command in 0_u16..9, flags in 0_u16..64,
        offset in prop_oneof![any::<u64>(), (0_u64..20_000).prop_map(|n| n * 256)],
        length in prop_oneof![any::<u64>(), (0_u64..20_000).prop_map(|n| n * 256)],
        style in prop_oneof![
            Just(ReplyStyle::Simple), Just(ReplyStyle::Structured), Just(ReplyStyle::Extended),
        ],
    ) {
        let operation = judge(&terms(Access::ReadWrite, style), command, flags, offset, length);
        match operation {
            Ok(Operation::Read { offset, len, .. } | Operation::Write { offset, len }) => {
                prop_assert!(len > 0 && len <= MAX && offset + u64::from(len) <= SIZE);
                prop_assert!(offset % 512 == 0 && len % 512 == 0);
            }
            Ok(Operation::Trim { offset, len } | Operation::WriteZeroes { offset, len, .. }) => {
                prop_assert!(len > 0 && offset + len <= SIZE);
                prop_assert!(offset % 512 == 0 && len % 512 == 0);
            }
            Ok(Operation::BlockStatus(_) | Operation::FilteredStatus { .. }) => {
                prop_assert!(false, "without a context");
            }
            Ok(Operation::Cache | Operation::Flush | Operation::Disconnect) | Err(_) => {}
        }
    }
}

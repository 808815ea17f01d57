//! Golden bytes, round trips and arbitrary bytes for every decoder.

use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use crate::protocol::{Errno, chunk, command, command_flag, info, option, reply};

#[test]
fn greeting_is_the_text_of_the_specification() {
    assert_eq!(&Greeting::ours().encode(), b"NBDMAGICIHAVEOPT\x00\x03");
}

#[test]
fn request_has_the_documented_offsets() {
    let request = Request {
        flags: 0x0102,
        command: command::WRITE,
        cookie: 0x1112_1314_1516_1718,
        offset: 0x2122_2324_2526_2728,
        length: 0x3132_3334,
    };
    let golden = b"\x25\x60\x95\x13\x01\x02\x00\x01\x11\x12\x13\x14\x15\x16\x17\x18\
                   \x21\x22\x23\x24\x25\x26\x27\x28\x31\x32\x33\x34";
    assert_eq!(&request.encode(), golden);
    assert_eq!(Request::decode(golden), Ok(request));
}

#[test]
fn extended_request_has_the_documented_offsets() {
    let request = Request {
        flags: command_flag::PAYLOAD_LEN,
        command: command::WRITE,
        cookie: 0x1112_1314_1516_1718,
        offset: 0x2122_2324_2526_2728,
        length: 0x3132_3334_3536_3738,
    };
    let golden = b"\x21\xe4\x1c\x71\x00\x20\x00\x01\x11\x12\x13\x14\x15\x16\x17\x18\
                   \x21\x22\x23\x24\x25\x26\x27\x28\x31\x32\x33\x34\x35\x36\x37\x38";
    assert_eq!(&request.encode_extended(), golden);
    assert_eq!(Request::decode_extended(golden), Ok(request));
    let mut compact = *golden;
    compact[..4].copy_from_slice(b"\x25\x60\x95\x13");
    assert!(Request::decode_extended(&compact).is_err());
}

fn to(style: ReplyStyle, cookie: u64, offset: u64) -> ReplyTo {
    ReplyTo {
        style,
        cookie,
        offset,
    }
}

#[test]
fn extended_heads_repeat_the_offset_of_the_request() {
    let to = to(ReplyStyle::Extended, 1, 0x0203);
    assert_eq!(
        to.done().as_bytes(),
        b"\x6e\x8a\x27\x8c\x00\x01\x00\x00\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\x02\x03\0\0\0\0\0\0\0\0"
    );
    assert_eq!(
        to.data(Last::No, 0x0204, 3).as_bytes(),
        b"\x6e\x8a\x27\x8c\x00\x00\x00\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\x02\x03\0\0\0\0\0\0\0\x0b\
          \0\0\0\0\0\0\x02\x04"
    );
    let error = to.error(Errno::Perm, 3);
    let header: &[u8; EXTENDED_CHUNK_HEADER_BYTES] =
        error.as_bytes().first_chunk().expect("header");
    let header = ExtendedChunkHeader::decode(header).expect("magic");
    assert_eq!((header.offset, header.chunk.cookie), (0x0203, 1));
    assert_eq!((header.chunk.kind, header.chunk.length), (chunk::ERROR, 9));
}

#[test]
fn reply_heads_have_the_documented_bytes() {
    let last = Last::Yes;
    assert_eq!(
        to(ReplyStyle::Simple, 0x0102_0304_0506_0708, 9)
            .failed(Errno::Inval)
            .as_bytes(),
        b"\x67\x44\x66\x98\x00\x00\x00\x16\x01\x02\x03\x04\x05\x06\x07\x08"
    );
    assert_eq!(
        to(ReplyStyle::Structured, 1, 9).data(last, 2, 3).as_bytes(),
        b"\x66\x8e\x33\xef\x00\x01\x00\x01\0\0\0\0\0\0\0\x01\0\0\0\x0b\0\0\0\0\0\0\0\x02"
    );
    assert_eq!(
        to(ReplyStyle::Structured, 1, 9).hole(last, 2, 3).as_bytes(),
        b"\x66\x8e\x33\xef\x00\x01\x00\x02\0\0\0\0\0\0\0\x01\0\0\0\x0c\0\0\0\0\0\0\0\x02\0\0\0\x03"
    );
    assert_eq!(
        to(ReplyStyle::Structured, 1, 9)
            .error(Errno::Perm, 3)
            .as_bytes(),
        b"\x66\x8e\x33\xef\x00\x01\x80\x01\0\0\0\0\0\0\0\x01\0\0\0\x09\0\0\0\x01\0\x03"
    );
}

#[test]
fn option_reply_has_the_documented_bytes() {
    let mut out = BytesMut::new();
    put_rep_server(&mut out, option::LIST, "ab");
    assert_eq!(
        &out[..],
        b"\x00\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x03\0\0\0\x02\0\0\0\x06\0\0\0\x02ab"
    );
}

#[test]
fn export_facts_tell_texts_only_when_asked() {
    let facts = ExportFacts {
        size_bytes: 1 << 20,
        flags: 0x01,
        blocks: [1, 4096, 32 << 20],
        name: "a",
        description: "text",
    };
    let kinds = |wanted: &[u16]| {
        let mut out = BytesMut::new();
        facts.encode(&mut out, option::GO, wanted);
        let mut rest = &out[..];
        let mut kinds = Vec::new();
        while !rest.is_empty() {
            let header =
                OptionReplyHeader::decode(&take(&mut rest).expect("header")).expect("magic");
            assert_eq!((header.option, header.reply), (option::GO, reply::INFO));
            let (data, after) = rest.split_at(header.length as usize);
            kinds.push(u16::from_be_bytes([data[0], data[1]]));
            rest = after;
        }
        kinds
    };
    assert_eq!(kinds(&[]), [info::EXPORT, info::BLOCK_SIZE]);
    assert_eq!(
        kinds(&[info::DESCRIPTION, info::NAME, 77]),
        [
            info::EXPORT,
            info::BLOCK_SIZE,
            info::NAME,
            info::DESCRIPTION
        ]
    );
}

#[test]
fn client_flags_that_were_not_offered_are_refused() {
    for bit in 0..32 {
        let flags = 1_u32 << bit;
        assert_eq!(
            ClientFlags::decode(flags.to_be_bytes()).is_ok(),
            bit < 2,
            "bit {bit}"
        );
    }
}

#[test]
fn names_are_utf8_without_nul_of_at_most_4096_bytes() {
    assert_eq!(parse_name(b""), Ok(""));
    assert_eq!(parse_name("ü/..".as_bytes()), Ok("ü/.."));
    assert!(parse_name(&[b'a'; 4096]).is_ok());
    for bad in [&b"a\0"[..], b"\xff", &[b'a'; 4097]] {
        assert_eq!(parse_name(bad), Err(CodecError::Name));
    }
}

#[test]
fn export_query_lengths_must_add_up() {
    let query = ExportQuery {
        name: "vol".to_owned(),
        infos: vec![3, 1],
    };
    let mut bytes = BytesMut::new();
    query.encode(&mut bytes);
    assert_eq!(ExportQuery::decode(&bytes), Ok(query));
    for cut in 0..bytes.len() {
        assert!(ExportQuery::decode(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    bytes.extend_from_slice(b"x");
    assert_eq!(ExportQuery::decode(&bytes), Err(CodecError::Length));
    assert_eq!(
        ExportQuery::decode(b"\xff\xff\xff\xffaa"),
        Err(CodecError::Length)
    );
}

#[test]
fn status_heads_and_payloads_have_the_documented_bytes() {
    assert_eq!(
        to(ReplyStyle::Structured, 1, 9)
            .status(Last::Yes, 5, 2)
            .as_bytes(),
        b"\x66\x8e\x33\xef\x00\x01\x00\x05\0\0\0\0\0\0\0\x01\0\0\0\x14\0\0\0\x05"
    );
    let extended = to(ReplyStyle::Extended, 1, 9).status(Last::No, 5, 2);
    let (header, payload) = extended.as_bytes().split_at(EXTENDED_CHUNK_HEADER_BYTES);
    assert_eq!(&header[4..8], b"\0\0\0\x06");
    assert_eq!(&header[24..], b"\0\0\0\0\0\0\0\x28");
    assert_eq!(payload, b"\0\0\0\x05\0\0\0\x02");
    let mut payload = payload.to_vec();
    payload.extend_from_slice(b"\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\x03");
    payload.extend_from_slice(b"\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\0");
    let told = Chunk::Status {
        context: 5,
        extents: vec![(1 << 32, 3), (7, 0)],
    };
    assert_eq!(Chunk::decode(chunk::BLOCK_STATUS_EXT, &payload), Ok(told));
}

#[test]
fn meta_queries_must_add_up() {
    let query = MetaQuery {
        export: "vol".to_owned(),
        queries: vec!["base:allocation".to_owned(), String::new()],
    };
    let mut bytes = BytesMut::new();
    query.encode(&mut bytes);
    let golden = b"\0\0\0\x03vol\0\0\0\x02\0\0\0\x0fbase:allocation\0\0\0\0";
    assert_eq!(&bytes[..], golden);
    assert_eq!(MetaQuery::decode(&bytes), Ok(query));
    for cut in 0..bytes.len() {
        assert!(MetaQuery::decode(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    bytes.extend_from_slice(b"x");
    assert_eq!(MetaQuery::decode(&bytes), Err(CodecError::Length));
    // A number of queries that no memory could hold, and a string that begins before the end and reaches beyond it.
    for bad in [
        &b"\0\0\0\0\xff\xff\xff\xff"[..],
        b"\0\0\0\0\0\0\0\x01\xff\xff\xff\xffab",
    ] {
        assert_eq!(MetaQuery::decode(bad), Err(CodecError::Length));
    }
    let long = [&b"\0\0\0\0\0\0\0\x01\0\0\x10\x01"[..], &[b'x'; 4097]].concat();
    assert_eq!(MetaQuery::decode(&long), Err(CodecError::Name));
    assert_eq!(
        MetaQuery::decode(b"\0\0\0\x01\0\0\0\0\0"),
        Err(CodecError::Name)
    );
}

#[test]
fn every_chunk_survives_a_round_trip() {
    for kind in [
        Chunk::None,
        Chunk::Data {
            offset: 7,
            data: vec![1, 2, 3],
        },
        Chunk::Hole {
            offset: u64::MAX,
            length: 1,
        },
        Chunk::Status {
            context: 3,
            extents: vec![(512, 0), (4096, 3)],
        },
        Chunk::Error {
            error: 22,
            message: b"no".to_vec(),
        },
    ] {
        let mut out = BytesMut::new();
        kind.encode(9, &mut out);
        let header = ChunkHeader::decode(out[..CHUNK_HEADER_BYTES].try_into().expect("header"))
            .expect("magic");
        assert_eq!((header.cookie, header.flags), (9, chunk::FLAG_DONE));
        assert_eq!(header.length as usize, out.len() - CHUNK_HEADER_BYTES);
        assert_eq!(
            Chunk::decode(header.kind, &out[CHUNK_HEADER_BYTES..]),
            Ok(kind)
        );
    }
}

#[test]
fn contradictory_chunks_are_refused() {
    for (kind, payload) in [
        (chunk::NONE, &b"x"[..]),
        (chunk::OFFSET_DATA, &[0; 8]),
        (chunk::OFFSET_HOLE, &[0; 12]),
        (chunk::OFFSET_HOLE, &[0; 13]),
        (chunk::ERROR, b"\0\0\0\0\0\0"),
        (chunk::ERROR, b"\0\0\0\x01\0\x01"),
        (chunk::BLOCK_STATUS, b"\0\0\0\x01"),
        (chunk::BLOCK_STATUS, &[0; 12]),
        (chunk::BLOCK_STATUS, &[1; 13]),
        (chunk::BLOCK_STATUS_EXT, b"\0\0\0\x01\0\0\0\0"),
        (chunk::BLOCK_STATUS_EXT, &[1; 24]),
        (77, b""),
    ] {
        assert!(Chunk::decode(kind, payload).is_err(), "{kind} {payload:?}");
    }
}

proptest! {
    #[test]
    fn requests_survive_a_round_trip(
        flags: u16, command: u16, cookie: u64, offset: u64, length: u32, extended: u64,
    ) {
        let request = Request { flags, command, cookie, offset, length: u64::from(length) };
        prop_assert_eq!(Request::decode(&request.encode()), Ok(request));
        let request = Request { length: extended, ..request };
        prop_assert_eq!(Request::decode_extended(&request.encode_extended()), Ok(request));
    }

    #[test]
    fn one_changed_byte_of_a_magic_is_noticed(place in 0_usize..4, change in 1_u8..) {
        let request = Request { flags: 0, command: 0, cookie: 0, offset: 0, length: 0 };
        let mut bytes = request.encode();
        bytes[place] ^= change;
        prop_assert!(Request::decode(&bytes).is_err());
    }

    #[test]
    fn decoders_are_total(bytes in proptest::collection::vec(any::<u8>(), 0..64), kind: u16) {
        let mut padded = bytes.clone();
        padded.resize(64, 0);
        let _ = Greeting::decode(padded[..GREETING_BYTES].try_into().expect("size"));
        let _ = OptionHeader::decode(padded[..OPTION_HEADER_BYTES].try_into().expect("size"));
        let _ = OptionReplyHeader::decode(padded[..OPTION_REPLY_HEADER_BYTES].try_into().expect("size"));
        let _ = Request::decode(padded[..REQUEST_BYTES].try_into().expect("size"));
        let _ = Request::decode_extended(padded[..EXTENDED_REQUEST_BYTES].try_into().expect("size"));
        let extended = padded[..EXTENDED_CHUNK_HEADER_BYTES].try_into().expect("size");
        let _ = ExtendedChunkHeader::decode(extended);
        let _ = SimpleReply::decode(padded[..SIMPLE_REPLY_BYTES].try_into().expect("size"));
        let _ = ChunkHeader::decode(padded[..CHUNK_HEADER_BYTES].try_into().expect("size"));
        let _ = ClientFlags::decode(padded[..4].try_into().expect("size"));
        let _ = parse_name(&bytes);
        let _ = ExportQuery::decode(&bytes);
        let _ = MetaQuery::decode(&bytes);
        let _ = StatusFilter::decode(&bytes);
        for kind in [
            kind, chunk::NONE, chunk::OFFSET_DATA, chunk::OFFSET_HOLE, chunk::BLOCK_STATUS,
            chunk::BLOCK_STATUS_EXT, chunk::ERROR,
        ] {
            let _ = Chunk::decode(kind, &bytes);
        }
    }

    #[test]
    fn export_queries_that_decode_encode_to_the_same_bytes(
        name in "[a-zäß/.]{0,40}", infos in proptest::collection::vec(any::<u16>(), 0..9),
        place in any::<proptest::sample::Index>(), change: u8,
    ) {
        let mut bytes = BytesMut::new();
        ExportQuery { name, infos }.encode(&mut bytes);
        let place = place.index(bytes.len());
        bytes[place] ^= change;
        if let Ok(query) = ExportQuery::decode(&bytes) {
            let mut again = BytesMut::new();
            query.encode(&mut again);
            prop_assert_eq!(again, bytes);
        }
    }

    #[test]
    fn client_flags_survive_a_round_trip(fixed_newstyle: bool, no_zeroes: bool) {
        let flags = ClientFlags { fixed_newstyle, no_zeroes };
        prop_assert_eq!(ClientFlags::decode(flags.encode()), Ok(flags));
    }
}

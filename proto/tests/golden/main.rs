//! Wire compatibility: the bytes of every kind of message, as first released, are kept in `messages.txt`.
//!
//! A difference is a change of the protocol. `MAINSTAY_BLESS=1 cargo test -p mainstay-proto` rewrites the file; its diff is what
//! a reviewer must accept, together with the version of the protocol.

mod clients;
mod links;

use std::fmt::Write as _;
use std::path::Path;

use bytes::Bytes;
use mainstay_proto::v1 as pb;
use proptest::prelude::*;
use prost::Message;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

/// One line a message, and a check that its bytes decode to it.
#[derive(Default)]
struct Golden(String);

impl Golden {
    fn add<M: Message + Default + PartialEq>(&mut self, name: &str, message: &M) {
        let bytes = message.encode_to_vec();
        let back = M::decode(Bytes::from(bytes.clone())).expect("what was encoded");
        assert!(back == *message, "{name} does not survive");
        let _infallible = writeln!(self.0, "{name} {}", hex(&bytes));
    }
}

fn block() -> pb::VolumeKind {
    let kind = pb::volume_kind::Kind::Block(pb::BlockKind {
        size_bytes: 1 << 30,
    });
    pb::VolumeKind { kind: Some(kind) }
}

#[test]
fn bytes_of_every_message_are_those_of_the_first_release() {
    let mut golden = Golden::default();
    links::add(&mut golden);
    clients::add(&mut golden);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/messages.txt");
    if std::env::var_os("MAINSTAY_BLESS").is_some() {
        std::fs::write(&path, &golden.0).expect("writable source tree");
    }
    let kept = std::fs::read_to_string(&path).expect("the golden file");
    for (now, then) in golden.0.lines().zip(kept.lines()) {
        assert_eq!(now, then);
    }
    assert_eq!(golden.0.lines().count(), kept.lines().count());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn payload_and_numbers_survive(
        tag: u64, seq: u64, offset: u64, data: Vec<u8>, epoch: u64, instance: u64, to: Option<u64>, lsn: u64,
    ) {
        let data = Bytes::from(data);
        let write = pb::client_request::Body::Write(pb::Write { seq, offset, data: data.clone() });
        let request = pb::ClientRequest { tag, body: Some(write) };
        let bytes = Bytes::from(request.encode_to_vec());
        prop_assert_eq!(pb::ClientRequest::decode(bytes), Ok(request));

        let sealed = pb::Sealed { epoch, doubt: Some(pb::Doubt { from: lsn, to }), ..pb::Sealed::default() };
        let frame = pb::MemberFrame {
            volume: instance,
            from: Some(pb::ProcessId { node: 1, incarnation: seq, instance }),
            body: Some(pb::member_frame::Body::Sealed(sealed)),
            batch: data,
            ..pb::MemberFrame::default()
        };
        let frame = pb::Frame { body: Some(pb::frame::Body::Member(frame)) };
        let bytes = Bytes::from(frame.encode_to_vec());
        prop_assert_eq!(pb::Frame::decode(bytes), Ok(frame));
    }

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        let bytes = Bytes::from(bytes);
        let _either = pb::Frame::decode(bytes.clone());
        let _either = pb::ClientRequest::decode(bytes.clone());
        let _either = pb::ClientReply::decode(bytes.clone());
        let _either = pb::StatusReply::decode(bytes);
    }
}

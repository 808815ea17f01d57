//! Bytes on the wire: protobuf services, the framed WAL stream, and their codecs.

#![forbid(unsafe_code)]

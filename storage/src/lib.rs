//! Makes bytes durable: record format, segments, recovery, the I/O engines.

//! What applications link: open a volume, read, write, flush, follow the primary.

#![forbid(unsafe_code)]

//! NBD codec and export over a small block-device trait.

#![forbid(unsafe_code)]

//! Measures; nothing depends on it.

#![forbid(unsafe_code)]

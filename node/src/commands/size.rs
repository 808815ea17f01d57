//! Sizes as people write and read them: binary units, never rounded when they are read.

use mainstay_types::{BLOCK_BYTES, VolumeKind};

/// A text that is not a size, or a size that no volume can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a number with a unit.
    #[error("`{0}` is not a size; write for example 4096, 512MiB or 10GiB")]
    NotASize(String),
    /// A unit that is none, or one of powers of ten, whose sizes are rarely multiples of a block.
    #[error("unit `{0}` is none of KiB, MiB, GiB and TiB")]
    Unit(String),
    /// Beyond 64 bits.
    #[error("`{0}` is too large")]
    TooLarge(String),
    /// Zero, or no multiple of a block.
    #[error(
        "a block volume of {bytes} bytes is not possible: its size is a positive multiple of {BLOCK_BYTES} bytes, \
         such as {below} or {above}"
    )]
    NotBlocks {
        /// As asked.
        bytes: u64,
        /// The greatest possible size below, or the smallest there is.
        below: u64,
        /// The next one above.
        above: u64,
    },
}

/// Bytes, or a number with one of the units KiB, MiB, GiB and TiB (or their first letter).
///
/// # Errors
/// It is no size, or needs more than 64 bits.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let (number, unit) = (digits.trim_end(), &text[digits.len()..]);
    let shift = match unit {
        "" | "B" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        other if !number.is_empty() => return Err(SizeError::Unit(other.to_owned())),
        _ => return Err(SizeError::NotASize(text.to_owned())),
    };
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(SizeError::NotASize(text.to_owned()));
    }
    let number: Option<u64> = number.parse().ok();
    number
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| SizeError::TooLarge(text.to_owned()))
}

/// The kind of a block volume of `size_bytes`.
///
/// # Errors
/// The size is zero or no multiple of a block; the error names the nearest that are.
pub fn block_kind(size_bytes: u64) -> Result<VolumeKind, SizeError> {
    let block = u64::from(BLOCK_BYTES);
    if size_bytes > 0 && size_bytes.is_multiple_of(block) {
        return Ok(VolumeKind::Block { size_bytes });
    }
    let below = (size_bytes / block * block).max(block);
    Err(SizeError::NotBlocks {
        bytes: size_bytes,
        below,
        above: below.saturating_add(block),
    })
}

/// A size for people: exact where a unit divides it, else with one digit after the point.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let Some((shift, unit)) = units.into_iter().find(|(shift, _)| bytes >> shift > 0) else {
        return format!("{bytes} B");
    };
    let whole = bytes >> shift;
    if whole << shift == bytes {
        return format!("{whole} {unit}");
    }
    let tenths = ((bytes - (whole << shift)) * 10) >> shift;
    format!("{whole}.{tenths} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_binary_units() {
        for (text, bytes) in [
            ("4096", 4096),
            ("4096B", 4096),
            ("3KiB", 3072),
            ("2G", 2 << 30),
            ("10 GiB", 10 << 30),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_the_reason() {
        assert_eq!(parse_size("1GB"), Err(SizeError::Unit("GB".to_owned())));
        for text in ["", "GiB", "1.5G", "-1", "+1", "one"] {
            let error = parse_size(text).expect_err(text);
            assert!(matches!(error, SizeError::NotASize(_)), "{text}: {error}");
        }
        for text in ["99999999999T", "99999999999999999999999"] {
            let error = parse_size(text).expect_err(text);
            assert!(matches!(error, SizeError::TooLarge(_)), "{text}: {error}");
        }
    }

    #[test]
    fn a_size_that_is_no_multiple_of_a_block_names_its_neighbours() {
        assert_eq!(block_kind(8192), Ok(VolumeKind::Block { size_bytes: 8192 }));
        let error = block_kind(10_000).expect_err("no multiple");
        assert_eq!(
            error.to_string(),
            "a block volume of 10000 bytes is not possible: its size is a positive multiple of 4096 bytes, such as \
             8192 or 12288"
        );
        assert!(block_kind(0).is_err());
        assert!(block_kind(u64::MAX).is_err());
    }

    #[test]
    fn sizes_are_shown_short() {
        assert_eq!(show_size(0), "0 B");
        assert_eq!(show_size(1 << 30), "1 GiB");
        assert_eq!(show_size((1 << 30) + (1 << 29)), "1.5 GiB");
        assert_eq!(show_size(u64::MAX), "16777215.9 TiB");
    }
}

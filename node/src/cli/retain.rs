//! The command line of `mainstay log retain`.

use std::time::Duration;

use clap::Args;
use mainstay_types::VolumeName;

use crate::commands::size::parse_size;
use crate::locate::ClusterArgs;

/// Of `log retain`.
#[derive(Debug, Clone, Args)]
pub struct RetainArgs {
    /// The log
    pub volume: VolumeName,

    /// Records younger than this stay: a number with ms, s, m, h, d or w, or `off`
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    pub age: Option<Bound<Duration>>,

    /// The newest records with together so many bytes stay: a number with KiB, MiB, GiB or TiB, or `off`
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub bytes: Option<Bound<u64>>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// What an option says of one bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound<T> {
    /// There shall be none.
    Off,
    /// This one.
    At(T),
}

impl<T> Bound<T> {
    /// The bound, if there shall be one.
    pub fn get(self) -> Option<T> {
        match self {
            Self::Off => None,
            Self::At(bound) => Some(bound),
        }
    }
}

pub(super) fn parse_age(text: &str) -> Result<Bound<Duration>, String> {
    if text == "off" {
        return Ok(Bound::Off);
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit_ms = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "w" => 7 * 86_400_000_u64,
        _ => {
            return Err(format!(
                "`{text}` is not an age; write for example 30d, 12h or off"
            ));
        }
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("`{text}` is not an age; write for example 30d, 12h or off"))?;
    let ms = number
        .checked_mul(unit_ms)
        .ok_or_else(|| format!("`{text}` is too long"))?;
    if ms == 0 {
        return Err("an age of zero keeps nothing; write off for no bound".to_owned());
    }
    Ok(Bound::At(Duration::from_millis(ms)))
}

pub(super) fn parse_bytes(text: &str) -> Result<Bound<u64>, String> {
    match text {
        "off" => Ok(Bound::Off),
        _ => match parse_size(text).map_err(|error| error.to_string())? {
            0 => Err("a size of zero keeps nothing; write off for no bound".to_owned()),
            bytes => Ok(Bound::At(bytes)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_units_and_sizes_too() {
        for (text, ms) in [
            ("1ms", 1),
            ("90s", 90_000),
            ("15m", 900_000),
            ("12h", 43_200_000),
            ("30d", 2_592_000_000),
            ("2w", 1_209_600_000),
        ] {
            assert_eq!(
                parse_age(text),
                Ok(Bound::At(Duration::from_millis(ms))),
                "{text}"
            );
        }
        assert_eq!(parse_age("off"), Ok(Bound::Off));
        for text in [
            "",
            "30",
            "d",
            "-1d",
            "1.5h",
            "30 d",
            "1y",
            "99999999999999999w",
        ] {
            assert!(parse_age(text).is_err(), "{text}");
        }
        assert!(parse_age("0s").expect_err("nothing").contains("write off"));
        assert_eq!(parse_bytes("10GiB"), Ok(Bound::At(10 << 30)));
        assert_eq!(parse_bytes("off"), Ok(Bound::Off));
        assert!(parse_bytes("0").expect_err("nothing").contains("write off"));
        assert!(parse_bytes("many").is_err());
    }
}

//! One transfer: one record of the log, as JSON. Amounts are whole numbers of the smallest unit.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Money that goes from one account to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Names the transfer for ever: however often it is in the log, it is made once.
    pub key: String,
    /// The account that pays.
    pub from: String,
    /// The account that receives.
    pub to: String,
    /// In the smallest unit; above zero.
    pub amount: i64,
    /// As the source says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memo: Option<String>,
}

impl Transfer {
    /// Why it cannot be made, if so.
    ///
    /// # Errors
    /// In words.
    pub fn check(&self) -> Result<(), String> {
        if self.amount <= 0 {
            return Err(
                "the amount of a transfer is above zero; exchange the two accounts instead"
                    .to_owned(),
            );
        }
        if self.key.is_empty() || self.from.is_empty() || self.to.is_empty() {
            return Err("key and accounts must not be empty".to_owned());
        }
        if self.from == self.to {
            return Err(format!("account {:?} pays itself", self.from));
        }
        Ok(())
    }

    /// As it is appended.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        serde_json::to_vec(self)
            .expect("text and numbers are JSON")
            .into()
    }

    /// Out of a record.
    ///
    /// # Errors
    /// In words, if it is none.
    pub fn decode(record: &[u8]) -> Result<Self, String> {
        let transfer: Self = serde_json::from_slice(record).map_err(|error| error.to_string())?;
        transfer.check()?;
        Ok(transfer)
    }
}

/// Reads an amount such as `-12.5` into the smallest unit, of which `decimals` digits make one whole.
///
/// # Errors
/// In words, if it is none, has more digits than that, or is too great.
pub fn parse_amount(text: &str, decimals: u32) -> Result<i64, String> {
    let wrong = || format!("{text:?} is not an amount such as 12.50");
    let (negative, digits) = match text.trim().strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.trim()),
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !all_digits(part) {
        return Err(wrong());
    }
    let part = part.trim_end_matches('0');
    if part.len() > decimals as usize {
        return Err(format!(
            "{text:?} has more than {decimals} decimals (--decimals)"
        ));
    }
    let text = format!("{whole}{part:0<width$}", width = decimals as usize);
    let units: i64 = text
        .parse()
        .map_err(|_| format!("{text} is too great an amount"))?;
    Ok(if negative { -units } else { units })
}

/// The other way.
#[must_use]
pub fn show_amount(units: i128, decimals: u32) -> String {
    let sign = if units < 0 { "-" } else { "" };
    let digits = units.unsigned_abs().to_string();
    let width = decimals as usize;
    if width == 0 {
        return format!("{sign}{digits}");
    }
    let digits = format!("{digits:0>width$}", width = width + 1);
    let (whole, part) = digits.split_at(digits.len() - width);
    format!("{sign}{whole}.{part}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_exact_in_both_directions() {
        for (text, units) in [
            ("700.00", 70_000),
            ("0.05", 5),
            ("-12.5", -1250),
            ("3", 300),
            ("1.500", 150),
        ] {
            assert_eq!(parse_amount(text, 2), Ok(units), "{text}");
        }
        for bad in [
            "",
            "-",
            ".5",
            "1.234",
            "1e3",
            "1,5",
            "+1",
            "--1",
            "1.2.3",
            "99999999999999999999",
        ] {
            assert!(parse_amount(bad, 2).is_err(), "{bad}");
        }
        assert_eq!(parse_amount("12", 0), Ok(12));
        for (units, text) in [
            (0, "0.00"),
            (5, "0.05"),
            (-5, "-0.05"),
            (-70_000, "-700.00"),
        ] {
            assert_eq!(show_amount(units, 2), text);
        }
        assert_eq!(show_amount(-12, 0), "-12");
    }

    #[test]
    fn what_is_no_transfer_is_not_read_as_one() {
        let good = Transfer {
            key: "k".to_owned(),
            from: "a".to_owned(),
            to: "b".to_owned(),
            amount: 1,
            date: None,
            memo: None,
        };
        assert_eq!(Transfer::decode(&good.encode()), Ok(good.clone()));
        for bad in [
            Transfer {
                amount: 0,
                ..good.clone()
            },
            Transfer {
                amount: -1,
                ..good.clone()
            },
            Transfer {
                to: "a".to_owned(),
                ..good.clone()
            },
            Transfer {
                key: String::new(),
                ..good
            },
        ] {
            assert!(Transfer::decode(&bad.encode()).is_err(), "{bad:?}");
        }
        assert!(Transfer::decode(b"a line of text").is_err());
    }
}

//! Sizes on the command line: `300M`, `1G`, `1GiB`, `7GB`.
//!
//! A single letter and the `iB` form count in powers of 1024, the `B` form in powers of 1000, as in GNU coreutils. Page sizes use their own
//! type, because not every number of bytes is a page size.

use std::{fmt, str::FromStr};

/// A number of bytes.
///
/// ```
/// use hugepages::size::ByteSize;
///
/// assert_eq!("1.5G".parse(), Ok(ByteSize::new(1_610_612_736)));
/// assert_eq!("7GB".parse(), Ok(ByteSize::new(7_000_000_000)));
/// assert_eq!(ByteSize::new(300 << 20).to_string(), "300 MiB");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

/// Why a text is not a size. The messages contain the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages are the documentation")]
pub enum ParseSizeError {
    #[error("`{0}` is not a size: it must start with a number, as in 300M, 1G, 1GiB or 7GB")]
    NoNumber(String),
    #[error("`{0}` is not a size: it cannot be negative")]
    Negative(String),
    #[error(
        "`{text}` is not a size: unknown unit `{unit}`, use K, M, G, T (or KiB …) for powers of 1024, kB, MB, GB, TB for powers of 1000"
    )]
    UnknownUnit { text: String, unit: String },
    #[error("`{0}` is too large: the limit is 16 EiB")]
    TooLarge(String),
    #[error("`{0}` is not a whole number of bytes")]
    NotWhole(String),
}

impl ByteSize {
    /// From a number of bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = ParseSizeError;

    fn from_str(text: &str) -> Result<Self, ParseSizeError> {
        let trimmed = text.trim();
        if trimmed.starts_with('-') {
            return Err(ParseSizeError::Negative(text.into()));
        }
        let end = trimmed
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(end);
        let unit = unit.trim_start();
        let scale = unit_bytes(unit).ok_or_else(|| ParseSizeError::UnknownUnit {
            text: text.into(),
            unit: unit.into(),
        });

        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty()
            || fraction.contains('.')
            || (number.contains('.') && fraction.is_empty())
        {
            return Err(ParseSizeError::NoNumber(text.into()));
        }
        let scale = scale?;
        let too_large = || ParseSizeError::TooLarge(text.into());
        // More than 18 digits change no byte even with T, and would overflow u128.
        if fraction.len() > 18 {
            return Err(ParseSizeError::NotWhole(text.into()));
        }
        let whole: u64 = whole.parse().map_err(|_| too_large())?;
        let mut bytes = u128::from(whole) * u128::from(scale);
        if !fraction.is_empty() {
            let digits: u64 = fraction.parse().map_err(|_| too_large())?;
            let part = u128::from(digits) * u128::from(scale);
            // "1.1G" means the nearest number of bytes, but "1.5" bytes is an error.
            if scale == 1 && part % 10u128.pow(fraction.len() as u32) != 0 {
                return Err(ParseSizeError::NotWhole(text.into()));
            }
            bytes += part / 10u128.pow(fraction.len() as u32);
        }
        u64::try_from(bytes).map(Self).map_err(|_| too_large())
    }
}

/// Bytes per unit. Case does not matter, so `g`, `gb` and `gib` work too.
fn unit_bytes(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    let (prefix, base) = match unit.strip_suffix("ib") {
        Some(prefix) if !prefix.is_empty() => (prefix, 1024u64),
        _ => match unit.strip_suffix('b') {
            Some(prefix) => (prefix, 1000),
            None => (unit.as_str(), 1024),
        },
    };
    let power = match prefix {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return None,
    };
    Some(base.pow(power))
}

/// Prints the largest binary unit that gives at least 1, with two decimals unless the number is whole.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, scale) = [
            ("TiB", 1u64 << 40),
            ("GiB", 1 << 30),
            ("MiB", 1 << 20),
            ("KiB", 1 << 10),
        ]
        .into_iter()
        .find(|(_, scale)| self.0 >= *scale)
        .unwrap_or(("B", 1));
        let text = if self.0.is_multiple_of(scale) {
            format!("{} {unit}", self.0 / scale)
        } else {
            format!("{:.2} {unit}", self.0 as f64 / scale as f64)
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn letters_and_ib_are_binary_and_b_is_decimal() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("17B", 17),
            ("300M", 300 << 20),
            ("300m", 300 << 20),
            ("1G", 1 << 30),
            ("1GiB", 1 << 30),
            ("1 GiB", 1 << 30),
            ("7GB", 7_000_000_000),
            ("7gb", 7_000_000_000),
            ("64kB", 64_000),
            ("64K", 65_536),
            ("1.5G", 3 << 29),
            ("0.5T", 1 << 39),
            ("2TB", 2_000_000_000_000),
            (" 1M ", 1 << 20),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_its_own_reason() {
        use ParseSizeError::*;
        for text in ["", "G", "nonsense", ".5G", "1.G", "1.2.3G", "+1"] {
            assert!(
                matches!(
                    text.parse::<ByteSize>(),
                    Err(NoNumber(_) | UnknownUnit { .. })
                ),
                "{text}"
            );
        }
        assert!(matches!("-1".parse::<ByteSize>(), Err(Negative(_))));
        assert!(matches!("-1G".parse::<ByteSize>(), Err(Negative(_))));
        for text in ["1e99", "1X", "1GG", "1iB", "1 000", "1G 2", "1,5G", "1Gi"] {
            assert!(
                matches!(text.parse::<ByteSize>(), Err(UnknownUnit { .. })),
                "{text}"
            );
        }
        for text in ["99999999999999999999", "16777216T", "99999999T"] {
            assert!(
                matches!(text.parse::<ByteSize>(), Err(TooLarge(_))),
                "{text}"
            );
        }
        assert!(matches!("1.5".parse::<ByteSize>(), Err(NotWhole(_))));
    }

    proptest! {
        #[test]
        fn any_text_parses_or_fails_but_never_panics(text in "\\PC*") {
            let _ = text.parse::<ByteSize>();
        }

        #[test]
        fn number_and_unit_multiply(number in 0u64..1 << 20, (unit, scale) in prop::sample::select(vec![
            ("", 1u64), ("B", 1), ("K", 1 << 10), ("MiB", 1 << 20), ("G", 1 << 30), ("kB", 1_000), ("MB", 1_000_000), ("TB", 1_000_000_000_000),
        ])) {
            prop_assert_eq!(format!("{number}{unit}").parse(), Ok(ByteSize(number * scale)));
        }

        #[test]
        fn what_is_printed_reads_back_within_half_a_percent(bytes in any::<u64>().prop_filter("16 EiB prints as 16777216 TiB", |b| *b < 1 << 63)) {
            let back: ByteSize = ByteSize(bytes).to_string().parse().unwrap();
            let difference = back.0.abs_diff(bytes) as f64;
            prop_assert!(difference <= bytes as f64 * 0.005, "{} → {}", bytes, back.0);
        }
    }
}

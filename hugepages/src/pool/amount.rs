//! An amount of huge pages on the command line.

use std::str::FromStr;

use crate::kernel::HugePageSize;
use crate::size::{ByteSize, ParseSizeError};

/// A number of pages (`4096`, `15360 pages`), or of bytes (`30G`, `30GB`, `512MiB`).
///
/// ```
/// use hugepages::kernel::{HugePageSize};
/// use hugepages::pool::{Amount};
///
/// let size: HugePageSize = "2M".parse().unwrap();
/// assert_eq!("30G".parse::<Amount>().unwrap().pages(size), 15360);
/// assert_eq!("15360 pages".parse::<Amount>().unwrap().pages(size), 15360);
/// assert_eq!("3M".parse::<Amount>().unwrap().pages(size), 2);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Amount {
    /// A number of pages.
    Pages(u64),
    /// Bytes, rounded up to whole pages.
    Bytes(ByteSize),
}

impl Amount {
    /// The amount in pages of a size.
    pub fn pages(self, size: HugePageSize) -> u64 {
        match self {
            Self::Pages(pages) => pages,
            Self::Bytes(bytes) => size.pages_for(bytes.bytes()),
        }
    }

    /// Bytes that rounding up to whole pages adds.
    pub fn rounded_up(self, size: HugePageSize) -> u64 {
        match self {
            Self::Pages(_) => 0,
            Self::Bytes(bytes) => {
                let whole = self.pages(size).saturating_mul(size.bytes());
                whole.saturating_sub(bytes.bytes())
            }
        }
    }
}

/// The text is not an amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages are the documentation")]
#[non_exhaustive]
pub enum ParseAmountError {
    #[error("amount is zero: expected at least one page")]
    Nothing,
    #[error("`{0}` is not a number of pages")]
    Pages(String),
    #[error(transparent)]
    Size(#[from] ParseSizeError),
}

impl FromStr for Amount {
    type Err = ParseAmountError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let trimmed = text.trim();
        let counted = trimmed
            .strip_suffix("pages")
            .or(trimmed.strip_suffix("page"));
        let digits = counted.unwrap_or(trimmed).trim_end();
        let only_digits = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let amount = if only_digits {
            let pages = digits.parse();
            Self::Pages(pages.map_err(|_| ParseSizeError::TooLarge(text.into()))?)
        } else if counted.is_some() {
            return Err(ParseAmountError::Pages(text.into()));
        } else {
            Self::Bytes(text.parse()?)
        };
        match amount {
            Self::Pages(0) => Err(ParseAmountError::Nothing),
            Self::Bytes(bytes) if bytes.bytes() == 0 => Err(ParseAmountError::Nothing),
            amount => Ok(amount),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_way_to_say_it_is_the_number_it_says() {
        let size = HugePageSize::new(2 << 20).unwrap();
        for (text, pages) in [
            ("4096", 4096),
            ("15360 pages", 15360),
            ("1 page", 1),
            ("30G", 15360),
            ("30GB", 14306),
            ("512MiB", 256),
            ("1B", 1),
        ] {
            assert_eq!(text.parse::<Amount>().unwrap().pages(size), pages, "{text}");
        }
    }

    #[test]
    fn what_is_no_amount_is_refused_with_its_own_reason() {
        for (text, reason) in [
            ("-1", "cannot be negative"),
            ("1e99", "unknown unit `e99`"),
            ("0", "at least one page"),
            ("0G", "at least one page"),
            ("99999999999999999999", "too large"),
            ("1.5 pages", "not a number of pages"),
            ("pages", "not a number of pages"),
            ("", "start with a number"),
        ] {
            let error = text.parse::<Amount>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_fails_but_never_panics(text in "\\PC*") {
            let _ = text.parse::<Amount>();
        }

        #[test]
        fn pages_hold_the_bytes_and_not_a_page_more(bytes in 1u64..1 << 50, shift in 16u32..35) {
            let size = HugePageSize::new(1 << shift).unwrap();
            let amount = Amount::Bytes(ByteSize::new(bytes));
            let held = amount.pages(size) * size.bytes();
            prop_assert!(held >= bytes && held - bytes < size.bytes());
            prop_assert_eq!(amount.rounded_up(size), held - bytes);
        }
    }
}

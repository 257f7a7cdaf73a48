//! The size of a huge page.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

/// Page size of one pool: a power of two of at least 4 KiB. The kernel decides which sizes exist: 2 MiB and 1 GiB on `x86_64`;
/// 64 KiB, 2 MiB, 32 MiB, 512 MiB, 1 GiB, 16 GiB on arm64, depending on its base page.
///
/// ```
/// use llama_hugepages::HugePageSize;
///
/// let size: HugePageSize = "2M".parse()?;
/// assert_eq!(size.bytes(), 2 * 1024 * 1024);
/// assert_eq!(size.sysfs_name(), "hugepages-2048kB");
/// assert_eq!(size.to_string(), "2 MiB");
/// # Ok::<(), llama_hugepages::ParseHugePageSizeError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HugePageSize(NonZeroU64);

const KIB: u64 = 1 << 10;
const UNITS: [(&str, u64); 3] = [("G", 1 << 30), ("M", 1 << 20), ("K", KIB)];

impl HugePageSize {
    /// From bytes. `None` for sizes that no kernel supports.
    pub fn new(bytes: u64) -> Option<Self> {
        let size = NonZeroU64::new(bytes)?;
        (bytes.is_power_of_two() && bytes >= 4 * KIB).then_some(Self(size))
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0.get()
    }

    /// Name of its directory in `/sys/kernel/mm/hugepages/`.
    pub fn sysfs_name(self) -> String {
        format!("hugepages-{}kB", self.bytes() / KIB)
    }

    /// The form for options: `2M`, `1G`.
    ///
    /// ```
    /// # use llama_hugepages::HugePageSize;
    /// assert_eq!(HugePageSize::new(2 << 20).unwrap().short_name(), "2M");
    /// ```
    pub fn short_name(self) -> String {
        let (unit, scale) = self.unit();
        format!("{}{unit}", self.bytes() / scale)
    }

    /// The largest unit that is not larger than this size.
    fn unit(self) -> (&'static str, u64) {
        let fits = |(_, scale): &&(&str, u64)| self.bytes() >= *scale;
        *UNITS.iter().find(fits).unwrap_or(&UNITS[2])
    }

    /// Number of pages for a number of bytes.
    ///
    /// ```
    /// # use llama_hugepages::HugePageSize;
    /// assert_eq!("2M".parse::<HugePageSize>().unwrap().pages_for(3_000_000), 2);
    /// ```
    pub fn pages_for(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.bytes())
    }
}

impl fmt::Display for HugePageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, scale) = self.unit();
        write!(f, "{} {unit}iB", self.bytes() / scale)
    }
}

/// The text is not the size of a huge page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a huge page size such as 2M or 1G")]
pub struct ParseHugePageSizeError {
    text: String,
}

impl FromStr for HugePageSize {
    type Err = ParseHugePageSizeError;

    /// `2M`, `2MB`, `2 MiB` and the kernel's `2048kB` are the same, because units are powers of 1024, as in the kernel.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseHugePageSizeError {
            text: text.to_owned(),
        };
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim_start().to_ascii_uppercase();
        let unit = unit
            .strip_suffix("IB")
            .or(unit.strip_suffix('B'))
            .unwrap_or(&unit);
        let scale = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(error)?
            .1;
        let number: u64 = number.parse().map_err(|_| error())?;
        number
            .checked_mul(scale)
            .and_then(Self::new)
            .ok_or_else(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_size_has_many_spellings() {
        let spellings = ["2M", "2m", "2MB", "2MiB", "2 MiB", "2048K", "2048kB"];
        for text in spellings {
            assert_eq!(
                text.parse(),
                Ok(HugePageSize::new(2 << 20).unwrap()),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_printed_can_be_read_back() {
        for shift in 12..=34 {
            let size = HugePageSize::new(1 << shift).unwrap();
            assert_eq!(size.to_string().parse(), Ok(size));
        }
    }

    #[test]
    fn what_no_kernel_has_is_an_error() {
        for text in [
            "",
            "2",
            "M",
            "3M",
            "-2M",
            "2.5M",
            "1e9",
            "2T",
            "2MM",
            "2 M iB",
            "1K",
            "99999999999G",
            "0M",
            "２M",
        ] {
            assert!(text.parse::<HugePageSize>().is_err(), "{text}");
        }
    }
}

//! Values of options, as people write them.

use std::num::NonZeroU64;

use jiff::{SignedDuration, SpanRelativeTo};

/// Bytes a second: `10MB`, `512KiB/s`.
pub fn rate(text: &str) -> Result<NonZeroU64, String> {
    let bytes = text.trim_end_matches("/s").parse::<bytesize::ByteSize>()?;
    NonZeroU64::new(bytes.as_u64()).ok_or_else(|| "a limit of nothing lets nothing through".to_owned())
}

/// A length of time: `0s`, `30m`, `23h`, `7d`.
pub fn duration(text: &str) -> Result<SignedDuration, String> {
    let wrong = || format!("{text:?} is no length of time: write it as 30m, 23h or 7d");
    let span: jiff::Span = text.parse().map_err(|_| wrong())?;
    let time = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
    if time.is_negative() { Err(wrong()) } else { Ok(time) }
}

/// A share: `5%` is 0.05.
pub fn share(text: &str) -> Result<f64, String> {
    let wrong = || format!("{text:?} is not a share from 0% to 100%");
    let percent: f64 = text.strip_suffix('%').and_then(|number| number.parse().ok()).ok_or_else(wrong)?;
    if (0.0..=100.0).contains(&percent) { Ok(percent / 100.0) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_shares_are_read_as_people_write_them() {
        for (text, seconds) in [("0s", 0), ("30m", 1800), ("23h", 82_800), ("7d", 604_800), ("1h 30m", 5400)] {
            assert_eq!(duration(text), Ok(SignedDuration::from_secs(seconds)), "{text}");
        }
        for text in ["", "abc", "-1h", "7", "1 month"] {
            assert!(duration(text).is_err(), "{text:?} is no length of time");
        }
        assert_eq!((share("5%"), share("0%"), share("12.5%")), (Ok(0.05), Ok(0.0), Ok(0.125)));
        for text in ["", "5", "%", "-1%", "101%", "NaN%"] {
            assert!(share(text).is_err(), "{text:?} is no share");
        }
        assert_eq!(rate("10MB"), Ok(NonZeroU64::new(10_000_000).expect("it is not 0")));
        assert!(rate("0").is_err() && rate("fast").is_err());
    }
}

//! Times on the command line: a whole number with its unit.

use std::time::Duration;

/// As [`parse`], or `0s`.
pub fn parse_or_zero(text: &str) -> Result<Duration, String> {
    if text == "0s" { Ok(Duration::ZERO) } else { parse(text) }
}

/// `90s`, `15m`, `24h`, `7d`.
pub fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a time such as 90s, 15m, 24h or 7d");
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number
        .checked_mul(seconds)
        .filter(|s| (1..=100 * 365 * 86_400).contains(s))
        .map(Duration::from_secs)
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let read = |text| parse(text).map(|d| d.as_secs()).ok();
        assert_eq!(["5s", "2m", "24h", "7d"].map(read), [Some(5), Some(120), Some(86_400), Some(604_800)]);
        assert_eq!(["", "5", "0s", "h", "-1s", "5é", "99999999999d"].map(read), [None; 7]);
    }
}

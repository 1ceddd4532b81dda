//! Wall-clock time as text, in UTC: RFC 3339 and the `strftime` subset that log formats use.

use std::{
    fmt::{self, Write},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// A parsed `strftime` format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeFormat(Vec<Item>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Item {
    Literal(String),
    Year,
    ShortYear,
    Month,
    MonthName,
    Day,
    DaySpace,
    DayOfYear,
    Weekday,
    Hour,
    Minute,
    Second,
    Epoch,
    /// Digits of the second's fraction, 1 to 9.
    Fraction(usize),
    Offset,
    Zone,
}

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];

/// A moment, in seconds since 1970, in UTC: `2023-11-14T22:13:20Z` (RFC 3339).
pub fn rfc3339(seconds: u64) -> String {
    // The last that has four digits of a year.
    let date = Civil::from(Duration::from_secs(seconds.min(253_402_300_799)));
    let Civil { year, month, day, .. } = date;
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

impl TimeFormat {
    /// Empty stands for RFC 3339 with milliseconds.
    pub fn parse(format: &str) -> Result<Self, String> {
        let format = if format.is_empty() { "%Y-%m-%dT%H:%M:%S.%3fZ" } else { format };
        let mut items = Vec::new();
        let mut literal = String::new();
        let mut chars = format.chars().peekable();
        while let Some(c) = chars.next() {
            if c != '%' {
                literal.push(c);
                continue;
            }
            let Some(spec) = chars.next() else {
                return Err("a time format ends with a lone `%`".to_owned());
            };
            let found: &[Item] = match spec {
                '%' => {
                    literal.push('%');
                    continue;
                }
                'Y' => &[Item::Year],
                'y' => &[Item::ShortYear],
                'm' => &[Item::Month],
                'b' | 'h' => &[Item::MonthName],
                'd' => &[Item::Day],
                'e' => &[Item::DaySpace],
                'j' => &[Item::DayOfYear],
                'a' => &[Item::Weekday],
                'H' => &[Item::Hour],
                'M' => &[Item::Minute],
                'S' => &[Item::Second],
                's' => &[Item::Epoch],
                'f' => &[Item::Fraction(9)],
                'z' => &[Item::Offset],
                'Z' => &[Item::Zone],
                digit @ '1'..='9' if chars.next_if_eq(&'f').is_some() => {
                    &[Item::Fraction(digit as usize - '0' as usize)]
                }
                'T' => {
                    flush(&mut literal, &mut items);
                    items.extend(time_of_day());
                    continue;
                }
                'F' => {
                    flush(&mut literal, &mut items);
                    let dash = || Item::Literal("-".to_owned());
                    items.extend([Item::Year, dash(), Item::Month, dash(), Item::Day]);
                    continue;
                }
                other => {
                    return Err(format!(
                        "`%{other}` in a time format is not known: use %Y %y %m %b %d %e %j %a %H %M %S %s %f %1f … %9f %z %Z %T %F %%"
                    ));
                }
            };
            flush(&mut literal, &mut items);
            items.extend_from_slice(found);
        }
        flush(&mut literal, &mut items);
        Ok(Self(items))
    }

    /// Writes `time`; what lies before 1970 is written as 1970.
    pub fn write(&self, time: SystemTime, out: &mut impl Write) -> fmt::Result {
        let at = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let date = Civil::from(at);
        for item in &self.0 {
            match item {
                Item::Literal(text) => out.write_str(text),
                Item::Year => write!(out, "{:04}", date.year),
                Item::ShortYear => write!(out, "{:02}", date.year % 100),
                Item::Month => write!(out, "{:02}", date.month),
                Item::MonthName => out.write_str(MONTHS[date.month as usize - 1]),
                Item::Day => write!(out, "{:02}", date.day),
                Item::DaySpace => write!(out, "{:2}", date.day),
                Item::DayOfYear => write!(out, "{:03}", date.day_of_year),
                Item::Weekday => out.write_str(WEEKDAYS[(date.days % 7) as usize]),
                Item::Hour => write!(out, "{:02}", date.second / 3600),
                Item::Minute => write!(out, "{:02}", date.second / 60 % 60),
                Item::Second => write!(out, "{:02}", date.second % 60),
                Item::Epoch => write!(out, "{}", at.as_secs()),
                Item::Fraction(digits) => {
                    let shown = at.subsec_nanos() / 10u32.pow(9 - *digits as u32);
                    write!(out, "{shown:0digits$}")
                }
                Item::Offset => out.write_str("+0000"),
                Item::Zone => out.write_str("UTC"),
            }?;
        }
        Ok(())
    }
}

fn time_of_day() -> [Item; 5] {
    let colon = || Item::Literal(":".to_owned());
    [Item::Hour, colon(), Item::Minute, colon(), Item::Second]
}

fn flush(literal: &mut String, items: &mut Vec<Item>) {
    if !literal.is_empty() {
        items.push(Item::Literal(std::mem::take(literal)));
    }
}

struct Civil {
    year: u64,
    month: u64,
    day: u64,
    /// From 1.
    day_of_year: u64,
    /// Since 1970-01-01, a Thursday.
    days: u64,
    /// Of the day.
    second: u64,
}

impl From<Duration> for Civil {
    /// Howard Hinnant's `civil_from_days`: years that begin in March, in eras of 400.
    fn from(since_epoch: Duration) -> Self {
        let days = since_epoch.as_secs() / 86_400;
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let leap = u64::from(year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)));
        let day_of_year = if month > 2 { day + 60 + leap } else { day - 305 };
        Self {
            year,
            month,
            day: day - (153 * month_from_march + 2) / 5 + 1,
            day_of_year,
            days,
            second: since_epoch.as_secs() % 86_400,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64, nanos: u32, format: &str) -> String {
        let mut out = String::new();
        TimeFormat::parse(format).unwrap().write(UNIX_EPOCH + Duration::new(seconds, nanos), &mut out).unwrap();
        out
    }

    #[test]
    fn dates_are_right() {
        assert_eq!(at(0, 0, ""), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_400, 1_999_999, ""), "2000-02-29T00:00:00.001Z");
        assert_eq!(at(1_795_404_896, 0, "%F %T %a %j %b %e %y"), "2026-11-23 03:34:56 Mon 327 Nov 23 26");
        assert_eq!(at(4_107_542_399, 0, "%F %T %j"), "2100-02-28 23:59:59 059");
        assert_eq!(at(4_107_542_400, 0, "%F %j"), "2100-03-01 060");
        assert_eq!(at(1_735_603_200, 0, "%F %j"), "2024-12-31 366");
        assert_eq!(at(1, 123_456_789, "%s|%f|%3f|%6f|%1f|%z|%Z|%%"), "1|123456789|123|123456|1|+0000|UTC|%");
    }

    #[test]
    fn unknown_items_are_refused() {
        assert!(TimeFormat::parse("%Q").unwrap_err().contains("%Q"));
        assert!(TimeFormat::parse("%").unwrap_err().contains("lone"));
        assert!(TimeFormat::parse("%3x").is_err());
    }

    #[test]
    fn every_day_of_four_centuries_follows_the_one_before() {
        let mut last = Civil::from(Duration::ZERO);
        for days in 1..400 * 366 {
            let now = Civil::from(Duration::from_secs(days * 86_400));
            let next_day = now.day == last.day + 1 && now.month == last.month && now.year == last.year;
            let next_month = now.day == 1 && now.month == last.month + 1 && now.year == last.year;
            let next_year = now.day == 1 && now.month == 1 && now.day_of_year == 1 && now.year == last.year + 1;
            assert!(next_day || next_month || next_year, "{days}");
            assert!(next_year || now.day_of_year == last.day_of_year + 1, "{days}");
            last = now;
        }
    }
}

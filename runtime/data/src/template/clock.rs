//! `strftime_now`: some templates write the day into the system message. Universal time, so that a run does not depend
//! on where its machine stands.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Error, ErrorKind};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The day, as 2026-03-01.
pub fn today() -> String {
    let (year, month, day) = civil(now() / 86_400);
    format!("{year:04}-{month:02}-{day:02}")
}

/// The moment at which a day begins that is written as [`today`] does; none where it is written otherwise or there is none.
pub(super) fn beginning(date: &str) -> Option<u64> {
    let mut parts = date.split('-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    if parts.next().is_some() || !(1970..=9999).contains(&year) {
        return None;
    }
    let first = days_before_year(year);
    let days = (first..first + 366).find(|&days| civil(days) == (year, month, day))?;
    Some(days * 86_400)
}

/// Python's `strftime` for a moment, in English and universal time.
pub(super) fn format(format: &str, seconds: u64) -> Result<String, Error> {
    let days = seconds / 86_400;
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let (year, month, day) = civil(days);
    let weekday = ((days + 4) % 7) as usize;
    let day_of_year = days - days_before_year(year) + 1;
    let mut output = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            output.push(character);
            continue;
        }
        let mut directive = characters.next();
        let padded = directive != Some('-');
        if !padded {
            directive = characters.next();
        }
        let number = |value: u64, width: usize| {
            if padded { format!("{value:0width$}") } else { value.to_string() }
        };
        let twelve = (hour + 11) % 12 + 1;
        output.push_str(&match directive {
            Some('Y') => year.to_string(),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('e') => format!("{day:2}"),
            Some('B') => MONTHS[month as usize - 1].to_string(),
            Some('b' | 'h') => MONTHS[month as usize - 1][..3].to_string(),
            Some('A') => DAYS[weekday].to_string(),
            Some('a') => DAYS[weekday][..3].to_string(),
            Some('w') => weekday.to_string(),
            Some('j') => number(day_of_year, 3),
            Some('H') => number(hour, 2),
            Some('I') => number(twelve, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_string(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".to_string(),
            Some('z') => "+0000".to_string(),
            Some('%') => "%".to_string(),
            other => {
                let name = other.map_or(String::new(), |other| other.to_string());
                let message = format!("strftime_now: `%{name}` in \"{format}\" is not supported");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        });
    }
    Ok(output)
}

fn leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

/// Days from 1970 to the first of January of `year`.
fn days_before_year(year: u64) -> u64 {
    let leaps = |year: u64| year / 4 - year / 100 + year / 400;
    (year - 1970) * 365 + leaps(year - 1) - leaps(1969)
}

/// Year, month and day, the latter two from 1, of a day counted from 1970.
fn civil(days: u64) -> (u64, u64, u64) {
    let mut year = 1970 + days / 366;
    while days_before_year(year + 1) <= days {
        year += 1;
    }
    let mut left = days - days_before_year(year);
    let february = if leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    (year, month, left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // Seconds from `date --utc --date=… +%s`.
        for (seconds, expected) in [
            (0, "Thursday 01 January 1970 001"),
            (951_782_400, "Tuesday 29 February 2000 060"),
            (1_735_603_200, "Tuesday 31 December 2024 366"),
            (1_735_689_600, "Wednesday 01 January 2025 001"),
            (4_107_542_400, "Monday 01 March 2100 060"),
        ] {
            assert_eq!(format("%A %d %B %Y %j", seconds).unwrap(), expected);
        }
        assert_eq!(format("%-d %b %y, %H:%M:%S %-I %p 100%%", 951_822_245).unwrap(), "29 Feb 00, 11:04:05 11 AM 100%");
    }

    #[test]
    fn a_day_is_read_as_it_is_written() {
        // Seconds from `date --utc --date=… +%s`.
        for (date, expected) in [
            ("1970-01-01", Some(0)),
            ("2000-02-29", Some(951_782_400)),
            ("2024-12-31", Some(1_735_603_200)),
            ("2100-03-01", Some(4_107_542_400)),
            ("2100-02-29", None),
            ("2024-00-10", None),
            ("1969-12-31", None),
            ("2024-12", None),
            ("2024-12-31-01", None),
            ("today", None),
        ] {
            assert_eq!(beginning(date), expected, "{date}");
        }
        assert!((now() - beginning(&today()).unwrap()) < 2 * 86_400);
    }

    #[test]
    fn an_unknown_directive_is_an_error() {
        assert!(format("%Q", 0).unwrap_err().to_string().contains("`%Q` in \"%Q\" is not supported"));
        assert!(format("100%", 0).is_err());
    }
}

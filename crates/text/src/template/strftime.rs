//! `strftime_now`: dates in templates, in UTC.

/// Seconds since 1970 by the system's clock.
pub(super) fn now_unix_s() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
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

struct Time {
    year: i64,
    month: usize,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
    weekday: usize,
    day_of_year: i64,
}

impl Time {
    /// The proleptic Gregorian date, after Howard Hinnant's `civil_from_days`.
    fn new(unix_s: i64) -> Self {
        let days = unix_s.div_euclid(86_400);
        let seconds = unix_s.rem_euclid(86_400);
        let shifted = days.saturating_add(719_468);
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * from_march + 2) / 153;
        let day = from_march - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        let day_of_year = if month > 2 { from_march + 60 + i64::from(leap) } else { from_march - 305 };
        Self {
            year,
            month: month as usize,
            day,
            hour: seconds / 3600,
            minute: seconds / 60 % 60,
            second: seconds % 60,
            weekday: (days.rem_euclid(7) + 4) as usize % 7,
            day_of_year,
        }
    }
}

/// Formats a time as C's `strftime` does in the C locale. Unknown conversions stay as they are.
pub(super) fn format(pattern: &str, unix_s: i64) -> String {
    let time = Time::new(unix_s);
    let mut text = String::with_capacity(pattern.len() + 16);
    let mut characters = pattern.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let Some(mut conversion) = characters.next() else {
            text.push('%');
            break;
        };
        let unpadded = conversion == '-';
        if unpadded {
            let Some(next) = characters.next() else {
                text.push_str("%-");
                break;
            };
            conversion = next;
        }
        match one(&time, unix_s, conversion, unpadded) {
            Some(part) => text.push_str(&part),
            None => {
                text.push('%');
                if unpadded {
                    text.push('-');
                }
                text.push(conversion);
            }
        }
    }
    text
}

fn one(time: &Time, unix_s: i64, conversion: char, unpadded: bool) -> Option<String> {
    let padded = |value: i64, width: usize| match unpadded {
        true => value.to_string(),
        false => format!("{value:0width$}"),
    };
    let month = MONTHS[(time.month - 1).min(11)];
    let hour12 = (time.hour + 11) % 12 + 1;
    Some(match conversion {
        '%' => "%".to_owned(),
        'n' => "\n".to_owned(),
        't' => "\t".to_owned(),
        'Y' => time.year.to_string(),
        'y' => padded(time.year.rem_euclid(100), 2),
        'C' => padded(time.year.div_euclid(100), 2),
        'm' => padded(time.month as i64, 2),
        'B' => month.to_owned(),
        'b' | 'h' => month[..3].to_owned(),
        'd' => padded(time.day, 2),
        'e' if unpadded => time.day.to_string(),
        'e' => format!("{:2}", time.day),
        'j' => padded(time.day_of_year, 3),
        'A' => DAYS[time.weekday].to_owned(),
        'a' => DAYS[time.weekday][..3].to_owned(),
        'w' => time.weekday.to_string(),
        'u' => if time.weekday == 0 { 7 } else { time.weekday }.to_string(),
        'H' => padded(time.hour, 2),
        'I' => padded(hour12, 2),
        'M' => padded(time.minute, 2),
        'S' => padded(time.second, 2),
        'f' => "000000".to_owned(),
        'p' => if time.hour < 12 { "AM" } else { "PM" }.to_owned(),
        's' => unix_s.to_string(),
        'z' => "+0000".to_owned(),
        'Z' => "UTC".to_owned(),
        'F' => format("%Y-%m-%d", unix_s),
        'T' | 'X' => format("%H:%M:%S", unix_s),
        'R' => format("%H:%M", unix_s),
        'D' | 'x' => format("%m/%d/%y", unix_s),
        'c' => format("%a %b %e %H:%M:%S %Y", unix_s),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::format;

    // Expected texts are Python's, datetime.fromtimestamp(t, timezone.utc).strftime(...).
    #[test]
    fn dates() {
        let pattern = "%a %A %d %-d %e %b %B %m %y %Y %H %I %M %S %p %j %w %%";
        assert_eq!(
            format(pattern, 1_732_233_600),
            "Fri Friday 22 22 22 Nov November 11 24 2024 00 12 00 00 AM 327 5 %"
        );
        assert_eq!(
            format(pattern, 951_827_696),
            "Tue Tuesday 29 29 29 Feb February 02 00 2000 12 12 34 56 PM 060 2 %"
        );
        assert_eq!(
            format(pattern, -1),
            "Wed Wednesday 31 31 31 Dec December 12 69 1969 23 11 59 59 PM 365 3 %"
        );
        assert_eq!(format("%F %T|%-e|%e", 1_709_251_199), "2024-02-29 23:59:59|29|29");
        assert_eq!(format("%c|%x|%X", 1_704_412_800), "Fri Jan  5 00:00:00 2024|01/05/24|00:00:00");
    }

    #[test]
    fn odd_patterns_and_times() {
        assert_eq!(format("%Q %-Q % %", 0), "%Q %-Q % %");
        assert_eq!(format("100%-", 0), "100%-");
        for time in [i64::MIN, i64::MAX, 253_402_300_800] {
            assert!(!format("%Y %j %A %B", time).is_empty());
        }
    }
}

//! The proleptic Gregorian calendar, after Howard Hinnant's
//! <https://howardhinnant.github.io/date_algorithms.html>.

/// Eras of 400 years that a year is moved by, so that none is negative.
const ERAS: i64 = 2_500_000;

/// Days since 1970-01-01 of a date; year 0 is 1 BC. Of a billion years on each side.
#[inline]
pub fn days_from_civil(year: i64, month: u32, day: u32) -> i64 {
    // Years begin in March, so that a leap day is a year's last.
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let year = (year + ERAS * 400) as u64;
    let century = year / 100;
    let days = year * 365 + year / 4 - century + century / 4 + u64::from((153 * month + 2) / 5 + day);
    days as i64 - (ERAS * 146_097 + 719_469)
}

/// Year, month and day of days since 1970-01-01; year 0 is 1 BC.
pub fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_of_year = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * month_of_year + 2) / 5 + 1) as u32;
    let month = if month_of_year < 10 { month_of_year + 3 } else { month_of_year - 9 } as u32;
    let year = year_of_era + era * 400;
    (if month <= 2 { year + 1 } else { year }, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_days() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (19_782, (2024, 2, 29)),
            (-719_528, (0, 1, 1)),
            (-2_440_588, (-4713, 11, 24)),
            (2_145_042_905, (5_874_897, 12, 31)),
            (-365_243_219_162, (-1_000_000_000 + 1, 1, 1)),
        ] {
            assert_eq!(civil_from_days(days), date);
            assert_eq!(days_from_civil(date.0, date.1, date.2), days);
        }
        // Every day of an era.
        for days in -719_528..-719_528 + 146_097 {
            let (year, month, day) = civil_from_days(days);
            assert_eq!(days_from_civil(year, month, day), days);
        }
    }
}

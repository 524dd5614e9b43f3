//! Numbers, times and units for people, written as the dashboard writes them.

/// What is not known.
pub(super) const NONE: &str = "–";

/// 1,234,567
pub(in crate::cli) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count that the server may leave out.
pub(super) fn count_or_none(value: Option<u64>) -> String {
    value.map_or_else(|| NONE.to_owned(), count)
}

/// Per second: 0, <0.1, 3.4, 1,200.
pub(super) fn rate(value: f64) -> String {
    match value {
        value if !value.is_finite() || value < 0.0 => NONE.to_owned(),
        0.0 => "0".to_owned(),
        value if value < 0.05 => "<0.1".to_owned(),
        value if value < 99.95 => format!("{value:.1}"),
        value => count(whole(value)),
    }
}

/// A duration in microseconds: 950 µs, 1.24 ms, 12.4 s, 3 min.
pub(super) fn micros(value: u64) -> String {
    if value >= 60_000_000 {
        return span(value / 1_000_000);
    }
    scaled(value as f64, &["µs", "ms", "s"], 1000.0)
}

/// Bytes: 512 B, 1.50 KiB, 96.0 MiB.
pub(in crate::cli) fn bytes(value: u64) -> String {
    scaled(value as f64, &["B", "KiB", "MiB", "GiB", "TiB"], 1024.0)
}

/// A duration in seconds, in its two largest units: 45 s, 12 min, 3 h 20 min, 4 d 2 h.
pub(in crate::cli) fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    let two = |large: String, small: u64, unit| match small {
        0 => large,
        small => format!("{large} {small} {unit}"),
    };
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => two(format!("{hours} h"), minutes, "min"),
        (days, hours, _) => two(format!("{days} d"), hours, "h"),
    }
}

/// `processes_created` → `processes created`
pub(super) fn words(name: &str) -> String {
    name.replace('_', " ")
}

fn scaled(mut value: f64, units: &[&str], step: f64) -> String {
    let mut unit = 0;
    while unit + 1 < units.len() && value >= step * 0.9995 {
        value /= step;
        unit += 1;
    }
    let number = match value {
        value if unit == 0 || value >= 99.95 => count(whole(value)),
        value if value >= 9.995 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    };
    format!("{number} {}", units.get(unit).copied().unwrap_or_default())
}

/// The nearest whole number.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast from f64 saturates, and figures are not negative"
)]
pub(super) fn whole(value: f64) -> u64 {
    value.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_separators_and_rates_a_digit_where_it_matters() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(count),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(
            [0.0, 0.01, 0.05, 3.44, 99.94, 99.96, 1234.5].map(rate),
            ["0", "<0.1", "0.1", "3.4", "99.9", "100", "1,235"]
        );
        assert_eq!([f64::NAN, f64::INFINITY, -1.0].map(rate), [NONE; 3]);
        assert_eq!(count_or_none(None), NONE);
    }

    #[test]
    fn units_grow_with_the_value() {
        assert_eq!(
            [0, 950, 1000, 12_345, 999_999, 12_400_000, 180_000_000].map(micros),
            [
                "0 µs", "950 µs", "1.00 ms", "12.3 ms", "1.00 s", "12.4 s", "3 min"
            ]
        );
        assert_eq!(
            [512, 1536, 96 << 20, u64::MAX].map(bytes),
            ["512 B", "1.50 KiB", "96.0 MiB", "16,777,216 TiB"]
        );
        assert_eq!(
            [0, 59, 60, 12_000, 3600, 90_000, 172_800].map(span),
            [
                "0 s",
                "59 s",
                "1 min",
                "3 h 20 min",
                "1 h",
                "1 d 1 h",
                "2 d"
            ]
        );
    }
}

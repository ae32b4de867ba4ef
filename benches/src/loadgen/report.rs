//! Reports as tables for people and JSON for programs.

use comfy_table::{Table, presets};
use serde::Serialize;

/// The report of a generator.
pub trait Report: Serialize {
    /// The rows of the table: label and value.
    fn rows(&self) -> Vec<(String, String)>;

    /// Whether the generator saw no failure.
    fn is_clean(&self) -> bool;

    /// The report as a table.
    fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_BORDERS_ONLY);
        for (what, value) in self.rows() {
            table.add_row([what, value]);
        }
        table.to_string()
    }

    /// The report as one line of JSON.
    fn json(&self) -> String {
        serde_json::to_string(self).expect("reports have string keys and finite numbers")
    }
}

/// A count with commas between thousands.
pub(crate) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `count` per second over `seconds`.
#[expect(clippy::cast_precision_loss, reason = "a rate is an approximation")]
pub(crate) fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

/// A rate with a unit prefix.
pub(crate) fn human_rate(rate: f64) -> String {
    if rate >= 1e6 {
        format!("{:.3} M/s", rate / 1e6)
    } else if rate >= 1e4 {
        format!("{:.1} k/s", rate / 1e3)
    } else {
        format!("{rate:.1} /s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_grouped_by_thousands() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}

//! The report of the comparison.

use comfy_table::{Table, presets};
use serde::Serialize;

use super::test_bed::Sample;

/// The samples of one round.
pub(super) struct Round {
    pub(super) bare: Sample,
    pub(super) few: Sample,
    pub(super) many: Sample,
}

/// One value per number of flows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PerFlows {
    /// 1,000 flows.
    #[serde(rename = "1k")]
    pub few: f64,
    /// 100,000 flows.
    #[serde(rename = "100k")]
    pub many: f64,
}

/// The outcome: medians over the rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BenchReport {
    /// Packets per microsecond that arrived through the bare forwarder.
    pub bare_afxdp_mpps: f64,
    /// The same through the gateway.
    pub flowgate_mpps: PerFlows,
    /// The medians of the rounds' ratios of gateway to bare forwarder.
    pub ratio: PerFlows,
    /// Spread of the rounds' ratios, (max - min) / median; the larger one of both numbers of flows.
    pub spread: f64,
}

impl BenchReport {
    pub(super) fn of(rounds: &[Round]) -> Self {
        let over = |figure: fn(&Round) -> f64| rounds.iter().map(figure).collect::<Vec<_>>();
        let few_ratios = over(|round| ratio(round.few, round.bare));
        let many_ratios = over(|round| ratio(round.many, round.bare));
        Self {
            bare_afxdp_mpps: rounded(median(&over(|round| round.bare.mpps))),
            flowgate_mpps: PerFlows {
                few: rounded(median(&over(|round| round.few.mpps))),
                many: rounded(median(&over(|round| round.many.mpps))),
            },
            ratio: PerFlows { few: rounded(median(&few_ratios)), many: rounded(median(&many_ratios)) },
            spread: rounded(spread(&few_ratios).max(spread(&many_ratios))),
        }
    }

    /// One line of JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("the report holds plain numbers")
    }
}

/// A round as a table.
pub(super) fn round_table(number: usize, round: &Round) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    table.set_header([
        format!("round {number}"),
        "delivered Mpps".into(),
        "offered Mpps".into(),
        "ratio".into(),
    ]);
    for (name, sample) in [
        ("bare AF_XDP forward", round.bare),
        ("flowgate, 1k flows", round.few),
        ("flowgate, 100k flows", round.many),
    ] {
        table.add_row([
            name.to_owned(),
            format!("{:.3}", sample.mpps),
            format!("{:.3}", sample.offered_mpps),
            format!("{:.3}", ratio(sample, round.bare)),
        ]);
    }
    table.to_string()
}

fn ratio(sample: Sample, bare: Sample) -> f64 {
    if bare.mpps > 0.0 { sample.mpps / bare.mpps } else { 0.0 }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        len if len % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

fn spread(values: &[f64]) -> f64 {
    let (low, high) =
        values.iter().fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(*value), high.max(*value)));
    let median = median(values);
    if median > 0.0 { (high - low) / median } else { 0.0 }
}

/// Rounds to four decimals, more than these measurements are worth.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_holds_medians_of_ratios_and_has_the_agreed_keys() {
        let sample = |mpps| Sample { mpps, offered_mpps: 5.0 };
        let round = |bare, few, many| Round { bare: sample(bare), few: sample(few), many: sample(many) };
        // In the second round the machine is slower: the ratios are unaffected.
        let report = BenchReport::of(&[round(2.0, 1.9, 1.8), round(1.0, 0.97, 0.9), round(2.0, 2.0, 1.6)]);
        assert_eq!(
            report.json(),
            r#"{"bare_afxdp_mpps":2.0,"flowgate_mpps":{"1k":1.9,"100k":1.6},"ratio":{"1k":0.97,"100k":0.9},"spread":0.1111}"#
        );
        assert!((median(&[4.0, 1.0, 3.0, 2.0]) - 2.5).abs() < 1e-9);
    }
}

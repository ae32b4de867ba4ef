//! The report of the measurement.

use std::time::Duration;

use serde::Serialize;

/// Delays from event to forwarding.
#[derive(Debug, Default)]
pub(super) struct Samples {
    sorted: Vec<Duration>,
}

/// The measurements of one forwarder: delays of changes, cold start, resident memory in megabytes.
pub(super) type Outcome = (Samples, Duration, f64);

impl Samples {
    pub(super) fn add(&mut self, sample: Duration) {
        let place = self.sorted.partition_point(|other| *other <= sample);
        self.sorted.insert(place, sample);
    }

    /// The nearest-rank percentile, in milliseconds.
    fn percentile_ms(&self, percent: usize) -> f64 {
        let rank = (self.sorted.len() * percent).div_ceil(100).max(1);
        self.sorted.get(rank - 1).map_or(f64::NAN, |sample| rounded(sample.as_secs_f64() * 1e3))
    }

    pub(super) fn line(&self) -> String {
        let [p50, p90, p99, max] = [50, 90, 99, 100].map(|percent| self.percentile_ms(percent));
        format!("from event to forwarding: p50 {p50} ms, p90 {p90} ms, p99 {p99} ms, max {max} ms")
    }
}

/// Percentiles in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// The 99th percentile.
    pub p99: f64,
}

/// The report.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ControlBenchReport {
    /// From the watch event to the first answer of a new endpoint, through Flowgate.
    pub change_to_forwarding_ms: Percentiles,
    /// The same delay through kube-proxy.
    pub kube_proxy_ms: Percentiles,
    /// From process start until every measured Service answers, Flowgate.
    pub cold_start_s: f64,
    /// The cold start of kube-proxy.
    pub kube_proxy_cold_start_s: f64,
    /// Resident memory of the whole Flowgate process.
    pub control_rss_mb: f64,
}

impl ControlBenchReport {
    pub(super) fn of(ours: &Outcome, theirs: &Outcome) -> Self {
        let percentiles = |samples: &Samples| Percentiles {
            p50: samples.percentile_ms(50),
            p99: samples.percentile_ms(99),
        };
        Self {
            change_to_forwarding_ms: percentiles(&ours.0),
            kube_proxy_ms: percentiles(&theirs.0),
            cold_start_s: rounded(ours.1.as_secs_f64()),
            kube_proxy_cold_start_s: rounded(theirs.1.as_secs_f64()),
            control_rss_mb: ours.2.round(),
        }
    }

    /// One line of JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("the report holds plain numbers")
    }
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_nearest_rank() {
        let mut samples = Samples::default();
        (1..=200).rev().for_each(|ms| samples.add(Duration::from_millis(ms)));
        assert!((samples.percentile_ms(50) - 100.0).abs() < 1e-9);
        assert!((samples.percentile_ms(99) - 198.0).abs() < 1e-9);
        assert!((samples.percentile_ms(100) - 200.0).abs() < 1e-9);
    }
}

//! Latency percentiles.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

const HIGHEST_NS: u64 = 60_000_000_000;

/// Collects latencies with three significant digits, up to a minute.
#[derive(Debug, Clone)]
pub struct LatencyRecorder {
    histogram: Histogram<u64>,
}

impl Default for LatencyRecorder {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, HIGHEST_NS, 3).expect("the bounds are valid constants");
        Self { histogram }
    }
}

impl LatencyRecorder {
    /// Adds one latency; more than a minute counts as a minute.
    pub fn record(&mut self, latency: Duration) {
        self.histogram.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(HIGHEST_NS).max(1));
    }

    /// The percentiles so far.
    pub fn summary(&self) -> LatencySummary {
        #[expect(clippy::cast_precision_loss, reason = "a minute of nanoseconds fits a f64 exactly")]
        let micros = |ns: u64| ns as f64 / 1e3;
        let at = |quantile| micros(self.histogram.value_at_quantile(quantile));
        LatencySummary {
            count: self.histogram.len(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: micros(self.histogram.max()),
        }
    }
}

/// Latency percentiles in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct LatencySummary {
    /// The number of measured latencies.
    pub count: u64,
    /// The median.
    pub p50_us: f64,
    /// 90 % were at most this.
    pub p90_us: f64,
    /// 99 % were at most this.
    pub p99_us: f64,
    /// 99.9 % were at most this.
    pub p999_us: f64,
    /// The largest.
    pub max_us: f64,
}

impl LatencySummary {
    /// The percentiles as one line of text.
    pub fn line(&self) -> String {
        if self.count == 0 {
            return "nothing measured".into();
        }
        let [p50, p90, p99, p999, max] =
            [self.p50_us, self.p90_us, self.p99_us, self.p999_us, self.max_us].map(human_micros);
        format!("p50 {p50}  p90 {p90}  p99 {p99}  p99.9 {p999}  max {max}")
    }
}

fn human_micros(us: f64) -> String {
    if us < 1e3 {
        format!("{us:.1} us")
    } else if us < 1e6 {
        format!("{:.2} ms", us / 1e3)
    } else {
        format!("{:.2} s", us / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_ramp_are_where_they_should_be() {
        let mut recorder = LatencyRecorder::default();
        for micros in 1..=1000 {
            recorder.record(Duration::from_micros(micros));
        }
        let summary = recorder.summary();
        assert_eq!(summary.count, 1000);
        for (got, wanted) in [
            (summary.p50_us, 500.0),
            (summary.p90_us, 900.0),
            (summary.p99_us, 990.0),
            (summary.max_us, 1000.0),
        ] {
            assert!((got / wanted - 1.0).abs() < 0.002, "{got} is not {wanted}");
        }
    }

    #[test]
    fn an_hour_counts_as_a_minute() {
        let mut recorder = LatencyRecorder::default();
        recorder.record(Duration::from_secs(3600));
        assert!((recorder.summary().max_us / 60e6 - 1.0).abs() < 0.002);
        assert_eq!(LatencyRecorder::default().summary().line(), "nothing measured");
    }
}

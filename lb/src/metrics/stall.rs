//! For how long the control thread was busy with one thing. It must never be away for long: it extends the grace period,
//! watches the workers and answers probes.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// Measures the delays of a tick on the control thread; clones share what was measured.
#[derive(Clone, Debug)]
pub(crate) struct StallMeter {
    stalls: Histogram,
    longest: Gauge<f64, AtomicU64>,
}

impl Default for StallMeter {
    fn default() -> Self {
        let bounds = [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
        Self { stalls: Histogram::new(bounds), longest: Gauge::default() }
    }
}

impl StallMeter {
    /// Measures until dropped. To be polled by the control thread.
    pub(crate) async fn measure(&self) {
        let mut ticks = interval(TICK);
        // After a long stall the ticks that were missed are not made up for.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = ticks.tick().await;
            self.observe(Instant::now().duration_since(due));
        }
    }

    fn observe(&self, late: Duration) {
        if late < TICK {
            return;
        }
        let seconds = late.as_secs_f64();
        self.stalls.observe(seconds);
        if seconds > self.longest.get() {
            self.longest.set(seconds);
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Times for which the control thread was busy with one thing, if longer than 25 ms; up to 25 ms too short";
        registry.register("flowgate_control_stall_seconds", help, self.stalls.clone());
        let help = "The longest of them since the start of the process";
        registry.register("flowgate_control_longest_stall_seconds", help, self.longest.clone());
    }
}

/// How often the control thread shows that it is there. A stall is seen for its length less than one tick.
const TICK: Duration = Duration::from_millis(25);

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[tokio::test]
    async fn a_thread_that_is_away_for_a_quarter_of_a_second_is_seen() {
        let meter = StallMeter::default();
        let blocked = async {
            // Lets the first tick pass.
            tokio::time::sleep(TICK).await;
            std::thread::sleep(Duration::from_millis(250));
            tokio::time::sleep(TICK).await;
        };
        tokio::select! {
            () = meter.measure() => {}
            () = blocked => {}
        }
        assert!(meter.longest.get() >= 0.2, "{}", meter.longest.get());
        let mut registry = Registry::default();
        meter.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).expect(name);
            line.trim().parse().unwrap()
        };
        let of = "flowgate_control_stall_seconds";
        let short = value(&format!("{of}_bucket{{le=\"0.2\"}}"));
        assert!(value(&format!("{of}_count")) > short, "{text}");
    }
}

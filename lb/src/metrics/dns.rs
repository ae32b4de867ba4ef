//! Metrics of the DNS server. Absent when it is off.

use flowgate_control::dns::Counters;

use super::families::{Families, Kind, Labels};

pub(super) fn add(families: &mut Families, counters: &Counters) {
    let samples = |label: &'static str, (name, count): (&str, u64)| {
        let labels: Labels = vec![(label, name.to_owned())];
        (labels, count.into())
    };
    families.add(
        Kind::Counter,
        "flowgate_dns_answers",
        "DNS queries by how they were answered.",
        counters.answers().map(|count| samples("result", count)),
    );
    families.add(
        Kind::Counter,
        "flowgate_dns_events",
        "What else happened to DNS queries.",
        counters.events().map(|count| samples("event", count)),
    );
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::super::families::tests::text;
    use super::*;

    #[test]
    fn answers_and_events_of_dns_are_counted_by_name() {
        let counters = Counters::default();
        counters.no_such_name.store(3, Ordering::Relaxed);
        counters.forwarded.store(2, Ordering::Relaxed);
        let mut families = Families::default();
        add(&mut families, &counters);
        let text = text(families);
        for line in [
            "flowgate_dns_answers_total{result=\"no_error\"} 0",
            "flowgate_dns_answers_total{result=\"no_such_name\"} 3",
            "flowgate_dns_events_total{event=\"forwarded\"} 2",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} in {text}");
        }
    }
}

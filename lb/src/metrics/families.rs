//! Metrics as plain values, and their encoding as text.

use std::fmt;

use flowgate_control::Shown;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// The labels of one sample.
pub(super) type Labels = Vec<(&'static str, String)>;

/// The type of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only grows; the names of its samples end in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// The value of a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Whole(u64),
    Real(f64),
}

impl From<u64> for Number {
    fn from(number: u64) -> Self {
        Self::Whole(number)
    }
}

impl From<u32> for Number {
    fn from(number: u32) -> Self {
        Self::Whole(number.into())
    }
}

impl From<usize> for Number {
    fn from(number: usize) -> Self {
        Self::Whole(number as u64)
    }
}

impl From<bool> for Number {
    fn from(yes: bool) -> Self {
        Self::Whole(yes.into())
    }
}

impl From<f64> for Number {
    fn from(number: f64) -> Self {
        Self::Real(number)
    }
}

#[derive(Debug)]
struct Family {
    name: String,
    help: String,
    kind: Kind,
    samples: Vec<(Labels, Number)>,
}

/// Families in the order in which they were added.
#[derive(Debug, Default)]
pub(super) struct Families(Vec<Family>);

impl Families {
    /// Adds a family. A name must be added only once.
    pub(super) fn add(
        &mut self,
        kind: Kind,
        name: impl Into<String>,
        help: impl Into<String>,
        samples: impl IntoIterator<Item = (Labels, Number)>,
    ) {
        let mut samples: Vec<(Labels, Number)> = samples.into_iter().collect();
        // Names may be anybody's, and the text is shown on terminals too.
        for (_, value) in samples.iter_mut().flat_map(|(labels, _)| labels) {
            if !Shown(value).is_plain() {
                *value = Shown(value).to_string();
            }
        }
        let (name, help) = (name.into(), help.into());
        debug_assert!(self.0.iter().all(|family| family.name != name), "{name} is added twice");
        self.0.push(Family { name, help, kind, samples });
    }

    /// Adds a gauge without labels.
    pub(super) fn gauge(&mut self, name: &str, help: &str, value: impl Into<Number>) {
        self.add(Kind::Gauge, name, help, [(Labels::new(), value.into())]);
    }
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in self.0.iter().filter(|family| !family.samples.is_empty()) {
            let kind = match family.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
            };
            let mut metric = encoder.encode_descriptor(&family.name, &family.help, None, kind)?;
            for (labels, number) in &family.samples {
                if labels.is_empty() {
                    encode(&mut metric, family.kind, *number)?;
                } else {
                    encode(&mut metric.encode_family(labels)?, family.kind, *number)?;
                }
            }
        }
        Ok(())
    }
}

fn encode(metric: &mut MetricEncoder<'_>, kind: Kind, number: Number) -> fmt::Result {
    match (kind, number) {
        (Kind::Counter, Number::Whole(n)) => metric.encode_counter::<NoLabelSet, _, u64>(&n, None),
        (Kind::Counter, Number::Real(n)) => metric.encode_counter::<NoLabelSet, _, u64>(&n, None),
        (Kind::Gauge, Number::Whole(n)) => metric.encode_gauge(&n),
        (Kind::Gauge, Number::Real(n)) => metric.encode_gauge(&n),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The text of some families.
    pub(in crate::metrics) fn text(families: Families) -> String {
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register_collector(Box::new(families));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn nothing_of_a_label_acts_on_a_terminal() {
        let mut families = Families::default();
        let labels = vec![("service", "we\u{1b}[2Jb\u{202e}\n".to_owned())];
        families.add(Kind::Gauge, "loads", "Loads.", [(labels, 1_u64.into())]);
        let text = text(families);
        assert!(text.contains(r#"{service="we\\u{1b}[2Jb\\u{202e}\\n"}"#), "{text}");
    }

    #[test]
    fn families_are_written_with_type_help_and_labels() {
        let mut families = Families::default();
        let by_worker = [(vec![("worker", "0".to_owned())], 7_u64.into())];
        families.add(Kind::Counter, "flowgate_packets", "Packets.", by_worker);
        families.gauge("flowgate_healthy", "Whether all is well.", true);
        families.gauge("flowgate_seconds", "A time.", 1.5);
        families.add(Kind::Gauge, "flowgate_nothing", "Nobody has any.", []);
        let expected = "# HELP flowgate_packets Packets.\n# TYPE flowgate_packets counter\n\
                        flowgate_packets_total{worker=\"0\"} 7\n\
                        # HELP flowgate_healthy Whether all is well.\n# TYPE flowgate_healthy gauge\nflowgate_healthy 1\n\
                        # HELP flowgate_seconds A time.\n# TYPE flowgate_seconds gauge\nflowgate_seconds 1.5\n# EOF\n";
        assert_eq!(text(families), expected);
    }
}

//! The outcome of the comparison, as a table and as one line of JSON.

use comfy_table::{Table, presets};
use serde::Serialize;

use super::cases::Explanation;
use super::observation::Observation;
use super::probe::Probe;

/// The number of probes by outcome.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CompareReport {
    /// Probes sent.
    pub probes: usize,
    /// Probes with the same outcome on both sides.
    pub same: usize,
    /// Probes with exactly the difference that the data explains.
    pub explained: usize,
    /// Probes with any other difference.
    pub different: usize,
    #[serde(skip)]
    rows: Vec<[String; 5]>,
    #[serde(skip)]
    reasons: Vec<String>,
}

impl CompareReport {
    pub(super) fn add(
        &mut self,
        probe: &Probe,
        ours: &Observation,
        theirs: &Observation,
        explanation: Option<&Explanation>,
    ) {
        let (ours_text, theirs_text) = (ours.to_string(), theirs.to_string());
        let explained = explanation
            .filter(|explanation| explanation.flowgate == ours_text && explanation.kube_proxy == theirs_text);
        // Unsteady outcomes are never the same, even with equal counts.
        let steady = !matches!(ours, Observation::Unsteady(_));
        let (verdict, count) = match explained {
            _ if ours == theirs && steady => ("same".to_owned(), &mut self.same),
            Some(explanation) => {
                let number = self.reasons.iter().position(|reason| *reason == explanation.reason);
                let number = number.unwrap_or_else(|| {
                    self.reasons.push(explanation.reason.clone());
                    self.reasons.len() - 1
                });
                (format!("explained [{}]", number + 1), &mut self.explained)
            }
            None => ("DIFFERENT".to_owned(), &mut self.different),
        };
        *count += 1;
        self.probes += 1;
        self.rows.push([probe.id.clone(), probe.about.clone(), ours_text, theirs_text, verdict]);
    }

    /// A table of all probes, and the explanations.
    pub(super) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_BORDERS_ONLY);
        table.set_header(["probe", "what", "flowgate", "kube-proxy", ""]);
        for row in &self.rows {
            table.add_row(row);
        }
        let mut text = table.to_string();
        for (number, reason) in (1..).zip(&self.reasons) {
            text.push_str(&format!("\n[{number}] {reason}"));
        }
        text
    }

    /// One line of JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("the report holds plain numbers")
    }

    /// Whether every difference is explained.
    pub fn is_success(&self) -> bool {
        self.different == 0
    }
}

#[cfg(test)]
mod tests {
    use super::super::observation::{Attempt, Compare};
    use super::*;

    #[test]
    fn an_explanation_covers_only_the_difference_that_it_names() {
        let client = [192, 0, 2, 10].into();
        let silent = Observation::of(&[Attempt::Silent], client, Compare::Names);
        let refused = Observation::of(&[Attempt::Refused], client, Compare::Names);
        let probe: Probe =
            serde_json::from_str(r#"{"id":"x","about":"y","to":["tcp 192.0.2.1:80"]}"#).unwrap();
        let explanation: Explanation = serde_json::from_str(
            r#"{"probes":["x"],"roles":["gateway"],"flowgate":"refused","kube_proxy":"silent","reason":"because"}"#,
        )
        .unwrap();
        let mut report = CompareReport::default();
        report.add(&probe, &refused, &silent, Some(&explanation));
        report.add(&probe, &silent, &refused, Some(&explanation));
        report.add(&probe, &silent, &silent, Some(&explanation));
        report.add(&probe, &refused, &silent, None);
        assert_eq!(report.json(), r#"{"probes":4,"same":1,"explained":1,"different":2}"#);
        assert!(!report.is_success() && report.table().contains("[1] because"));
    }
}

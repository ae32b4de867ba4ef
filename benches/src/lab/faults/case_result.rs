//! The result of a fault case.

use serde_json::{Map, Value};

/// Measured values by name, lost connections and failed expectations.
#[derive(Debug, Default)]
pub(crate) struct CaseResult {
    values: Map<String, Value>,
    lost_connections: u64,
    failures: Vec<String>,
    skipped: Option<String>,
}

impl CaseResult {
    /// Records a value; floating-point numbers are rounded to two decimals.
    pub(crate) fn record(&mut self, name: &str, value: impl Into<Value>) {
        let value = match value.into() {
            Value::Number(number) if number.is_f64() => {
                Value::from((number.as_f64().unwrap_or_default() * 100.0).round() / 100.0)
            }
            value => value,
        };
        self.values.insert(name.to_owned(), value);
    }

    /// Counts connections that were lost although their backend lived; any of them fails the case.
    pub(crate) fn record_lost(&mut self, count: u64, why: Option<&str>) {
        self.lost_connections += count;
        let why = why.unwrap_or("reason unknown");
        self.expect(count == 0, || format!("{count} connections were lost ({why})"));
    }

    /// Fails the case with `text` unless `holds`.
    pub(crate) fn expect(&mut self, holds: bool, text: impl FnOnce() -> String) {
        if !holds {
            self.fail(text());
        }
    }

    /// Fails the case.
    pub(crate) fn fail(&mut self, text: String) {
        self.failures.push(text);
    }

    /// Marks the case as one that this kernel or machine cannot run.
    pub(crate) fn skip(&mut self, reason: String) {
        self.skipped = Some(reason);
    }

    pub(in crate::lab) fn lost_connections(&self) -> u64 {
        self.lost_connections
    }

    pub(in crate::lab) fn failed(&self) -> bool {
        !self.failures.is_empty()
    }

    pub(in crate::lab) fn is_skipped(&self) -> bool {
        self.skipped.is_some() && self.failures.is_empty()
    }

    /// A line of progress.
    pub(in crate::lab) fn line(&self, name: &str) -> String {
        let sign = if self.failed() {
            '✗'
        } else if self.is_skipped() {
            '-'
        } else {
            '✓'
        };
        let values: Vec<_> = self.values.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let mut line =
            format!("{sign} {name}: lost_connections {}, {}", self.lost_connections, values.join(", "));
        for text in self.failures.iter().chain(&self.skipped) {
            line.push_str("\n    ");
            line.push_str(&text.replace('\n', "\n    "));
        }
        line
    }

    pub(in crate::lab) fn json(self) -> Value {
        let mut values = self.values;
        values.insert("lost_connections".into(), self.lost_connections.into());
        if !self.failures.is_empty() {
            values.insert("failures".into(), self.failures.into());
        }
        if let Some(reason) = self.skipped {
            values.insert("skipped".into(), reason.into());
        }
        Value::Object(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_connection_fails_the_case_and_a_skipped_one_is_none() {
        let mut result = CaseResult::default();
        result.record_lost(0, None);
        assert!(!result.failed());
        result.skip("no such kernel".into());
        assert!(result.is_skipped());
        result.record_lost(2, Some("reset"));
        assert!(result.failed() && !result.is_skipped());
        assert_eq!(
            result.json().to_string(),
            r#"{"lost_connections":2,"failures":["2 connections were lost (reset)"],"skipped":"no such kernel"}"#
                .to_owned()
                .parse::<Value>()
                .unwrap()
                .to_string()
        );
    }
}

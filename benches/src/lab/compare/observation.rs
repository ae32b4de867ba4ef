//! The outcome of a probe, in a form that can be compared between both sides.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

/// The outcome of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Attempt {
    /// A backend answered with its name and the client address that it sees.
    Answer { backend: String, sees: IpAddr },
    /// RST or ICMP port unreachable.
    Refused,
    /// Another ICMP unreachable error.
    Unreachable,
    /// No answer in time.
    Silent,
}

/// The outcome of all attempts of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Observation {
    /// Every attempt was answered by one of these backends.
    Answered { backends: Backends, source: Source },
    /// Every attempt was refused.
    Refused,
    /// Every attempt got an unreachable error.
    Unreachable,
    /// Every attempt went unanswered.
    Silent,
    /// Attempts ended in different ways; the text has the counts.
    Unsteady(String),
}

/// The backends that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Backends {
    /// Their names.
    Names(BTreeSet<String>),
    /// Their number, when it does not matter which.
    Number(usize),
}

/// The source address that backends see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The client's address.
    Preserved,
    /// Another address.
    Translated,
    /// Both occurred.
    Both,
}

/// What to compare of the answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Compare {
    /// The names of the backends.
    #[default]
    Names,
    /// The number of backends.
    Number,
}

impl Observation {
    /// Summarises the attempts of one client.
    pub(super) fn of(attempts: &[Attempt], client: IpAddr, compare: Compare) -> Self {
        let (mut names, mut preserved, mut translated) = (BTreeSet::new(), 0, 0);
        for attempt in attempts {
            if let Attempt::Answer { backend, sees } = attempt {
                names.insert(backend.clone());
                *(if *sees == client { &mut preserved } else { &mut translated }) += 1;
            }
        }
        let count = |wanted: &Attempt| attempts.iter().filter(|attempt| *attempt == wanted).count();
        let (refused, unreachable) = (count(&Attempt::Refused), count(&Attempt::Unreachable));
        let (answered, all) = (preserved + translated, attempts.len());
        if answered == all {
            let source = match (preserved, translated) {
                (_, 0) => Source::Preserved,
                (0, _) => Source::Translated,
                _ => Source::Both,
            };
            let backends = match compare {
                Compare::Names => Backends::Names(names),
                Compare::Number => Backends::Number(names.len()),
            };
            return Self::Answered { backends, source };
        }
        match all {
            _ if refused == all => Self::Refused,
            _ if unreachable == all => Self::Unreachable,
            _ if answered + refused + unreachable == 0 => Self::Silent,
            _ => Self::Unsteady(format!(
                "{answered} answered, {refused} refused, {unreachable} unreachable, {} silent",
                all - answered - refused - unreachable
            )),
        }
    }
}

impl fmt::Display for Observation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered { backends, source } => {
                match backends {
                    Backends::Names(names) => {
                        let names: Vec<_> = names.iter().map(String::as_str).collect();
                        out.write_str(&names.join(" "))?;
                    }
                    Backends::Number(number) => write!(out, "{number} backends")?,
                }
                out.write_str(match source {
                    Source::Preserved => ", client kept",
                    Source::Translated => ", SNAT",
                    Source::Both => ", client kept or SNAT",
                })
            }
            Self::Refused => out.write_str("refused"),
            Self::Unreachable => out.write_str("unreachable"),
            Self::Silent => out.write_str("silent"),
            Self::Unsteady(counts) => write!(out, "unsteady: {counts}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 10));

    fn answer(backend: &str, last: u8) -> Attempt {
        Attempt::Answer { backend: backend.into(), sees: IpAddr::from([192, 0, 2, last]) }
    }

    #[test]
    fn answers_are_summed_up_by_backends_and_source() {
        let of = |attempts: &[Attempt], compare| Observation::of(attempts, CLIENT, compare).to_string();
        let two = [answer("b", 10), answer("a", 10), answer("b", 10)];
        assert_eq!(of(&two, Compare::Names), "a b, client kept");
        assert_eq!(of(&two, Compare::Number), "2 backends, client kept");
        assert_eq!(of(&[answer("a", 1)], Compare::Names), "a, SNAT");
        assert_eq!(of(&[answer("a", 1), answer("a", 10)], Compare::Names), "a, client kept or SNAT");
    }

    #[test]
    fn one_attempt_that_ends_differently_is_not_hidden() {
        let mixed = [answer("a", 10), Attempt::Silent];
        let seen = Observation::of(&mixed, CLIENT, Compare::Names);
        assert_eq!(seen.to_string(), "unsteady: 1 answered, 0 refused, 0 unreachable, 1 silent");
        for attempt in [Attempt::Refused, Attempt::Unreachable, Attempt::Silent] {
            let all = vec![attempt.clone(); 3];
            let word = Observation::of(&all, CLIENT, Compare::Names).to_string();
            assert_eq!(word, format!("{attempt:?}").to_lowercase());
        }
    }
}

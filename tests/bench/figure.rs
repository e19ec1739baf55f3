//! One row of the table: what contestants came to, round by round, and what the loader must come to.

use serde_json::{Value, json};

/// Which values are better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Lower ones: times and memory.
    Low,
    /// Higher ones: rates.
    High,
}

/// A goal for the loader.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// At least this many times as good as the peer.
    TimesPeer(f64),
    /// At least this many times as good as the limit.
    TimesLimit(f64),
    /// At most this value.
    AtMost(f64),
}

/// A row.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What is measured.
    pub name: String,
    /// The unit of the values.
    pub unit: &'static str,
    /// Which values are better.
    pub better: Better,
    /// The loader's values, one per round.
    pub loader: Vec<f64>,
    /// The peer's values.
    pub peer: Vec<f64>,
    /// The limit's values.
    pub limit: Vec<f64>,
    /// The name of the limit.
    pub limit_is: String,
    /// All of them must be met.
    pub goals: Vec<Goal>,
}

impl Figure {
    /// A row without values.
    pub fn new(name: impl Into<String>, unit: &'static str, better: Better) -> Self {
        Self {
            name: name.into(),
            unit,
            better,
            loader: Vec::new(),
            peer: Vec::new(),
            limit: Vec::new(),
            limit_is: String::new(),
            goals: Vec::new(),
        }
    }

    /// Names the limit.
    pub fn limited_by(mut self, what: impl Into<String>) -> Self {
        self.limit_is = what.into();
        self
    }

    /// Adds a goal.
    pub fn goal(mut self, goal: Goal) -> Self {
        self.goals.push(goal);
        self
    }

    /// How many times as good as the others the loader is: the median of the rounds' ratios, since what disturbs a shared
    /// machine disturbs neighbours in time alike.
    fn ratio(&self, others: &[f64]) -> Option<f64> {
        let ratios = self.loader.iter().zip(others).map(|(loader, other)| match self.better {
            Better::Low => other / loader,
            Better::High => loader / other,
        });
        median(&ratios.collect::<Vec<_>>())
    }

    /// How many times as good as the peer.
    pub fn times_peer(&self) -> Option<f64> {
        self.ratio(&self.peer)
    }

    /// How many times as good as the limit.
    pub fn times_limit(&self) -> Option<f64> {
        self.ratio(&self.limit)
    }

    /// A goal in words, and whether it is met; none where there is nothing to compare.
    pub fn judge(&self, goal: Goal) -> (String, Option<bool>) {
        match goal {
            Goal::TimesPeer(factor) => {
                (format!("{} × peer", rounded(factor)), self.times_peer().map(|times| times >= factor))
            }
            Goal::TimesLimit(factor) => {
                (format!("{} × limit", rounded(factor)), self.times_limit().map(|times| times >= factor))
            }
            Goal::AtMost(value) => {
                (format!("at most {value} {}", self.unit), median(&self.loader).map(|median| median <= value))
            }
        }
    }

    /// All of it.
    pub fn to_json(&self) -> Value {
        let goals: Vec<_> = self.goals.iter().map(|goal| self.judge(*goal)).collect();
        json!({
            "name": self.name, "unit": self.unit, "limitIs": self.limit_is,
            "loader": {"median": median(&self.loader), "rounds": self.loader},
            "peer": {"median": median(&self.peer), "rounds": self.peer},
            "limit": {"median": median(&self.limit), "rounds": self.limit},
            "timesPeer": self.times_peer(), "timesLimit": self.times_limit(),
            "goals": goals.iter().map(|(goal, met)| json!({"goal": goal, "met": met})).collect::<Vec<_>>(),
        })
    }
}

/// Rounds to two decimals.
fn rounded(factor: f64) -> f64 {
    (factor * 100.0).round() / 100.0
}

/// The value in the middle; none of no values.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length.is_multiple_of(2) => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
        _ => Some(sorted[middle]),
    }
}

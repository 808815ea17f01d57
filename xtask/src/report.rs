//! The table at the end of the gate, and of the soak.

use std::fmt;
use std::time::Duration;

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    Failed,
    /// It passed; says what was seen, or what is less than it could be.
    PassedWith(String),
    /// It did not run; says what is missing.
    Skipped(String),
}

/// All steps so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<(&'static str, Outcome, Duration)>,
}

impl Outcome {
    pub(crate) fn of(passed: bool) -> Self {
        if passed { Self::Passed } else { Self::Failed }
    }
}

impl Report {
    pub(crate) fn add(&mut self, step: &'static str, outcome: Outcome, took: Duration) {
        self.rows.push((step, outcome, took));
    }

    pub(crate) fn passed(&self) -> bool {
        self.failed() == 0
    }

    fn failed(&self) -> usize {
        self.count(|outcome| *outcome == Outcome::Failed)
    }

    fn skipped(&self) -> usize {
        self.count(|outcome| matches!(outcome, Outcome::Skipped(_)))
    }

    fn count(&self, wanted: impl Fn(&Outcome) -> bool) -> usize {
        let outcomes = self.rows.iter().map(|(_, outcome, _)| outcome);
        outcomes.filter(|outcome| wanted(outcome)).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{:<12} {:>9}  result", "step", "seconds")?;
        for (step, outcome, took) in &self.rows {
            let result = match outcome {
                Outcome::Passed => "passed".to_owned(),
                Outcome::Failed => "FAILED".to_owned(),
                Outcome::PassedWith(what) => format!("passed, {what}"),
                Outcome::Skipped(why) => format!("skipped: {why}"),
            };
            writeln!(f, "{step:<12} {:>9.1}  {result}", took.as_secs_f64())?;
        }
        let total: Duration = self.rows.iter().map(|(_, _, took)| *took).sum();
        writeln!(f, "{:<12} {:>9.1}\n", "all", total.as_secs_f64())?;
        let (failed, skipped) = (self.failed(), self.skipped());
        let passed = self.rows.len() - failed - skipped;
        write!(f, "{passed} passed, {failed} failed")?;
        if skipped > 0 {
            write!(f, ", {skipped} skipped")?;
        }
        writeln!(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_counts_the_steps() {
        let mut report = Report::default();
        report.add("format", Outcome::Passed, Duration::from_millis(300));
        report.add(
            "tools",
            Outcome::PassedWith("without fio".to_owned()),
            Duration::ZERO,
        );
        assert!(report.passed());
        report.add("tests", Outcome::Failed, Duration::from_secs(61));
        assert!(!report.passed());
        let text = report.to_string();
        assert!(text.contains("tests             61.0  FAILED\n"), "{text}");
        assert!(text.ends_with("\n2 passed, 1 failed\n"), "{text}");
        report.add(
            "mount",
            Outcome::Skipped("no loop devices".to_owned()),
            Duration::ZERO,
        );
        let text = report.to_string();
        assert!(
            text.ends_with("\n2 passed, 1 failed, 1 skipped\n"),
            "{text}"
        );
    }
}

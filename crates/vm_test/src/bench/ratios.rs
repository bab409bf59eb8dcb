//! Figures of the workload program in relation to the host's own, and what the project wants of them.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::workloads::Session;

/// The subject that all others are compared with.
const NATIVE: &str = "native";
const OURS: &str = "bt";
const THEIRS: &str = "qemu";

/// Groups that only compute: no kernel takes part.
const COMPUTE: [&str; 4] = ["integer", "calls", "float", "memory"];

/// Nanoseconds per operation, by row and subject.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Ratios {
    rows: Vec<Row>,
    /// What must not be: other results, clocks that run at another speed.
    faults: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    /// Group and name, with a slash between.
    name: String,
    operation: String,
    checksum: String,
    /// One figure for each round.
    subjects: BTreeMap<String, Vec<f64>>,
}

impl Ratios {
    /// Adds what came out of a round. The first session says which results are right.
    pub(crate) fn add(&mut self, subject: &str, session: &Session) {
        for done in &session.rows {
            let known = self.rows.iter().position(|row| row.name == done.name);
            let position = known.unwrap_or_else(|| {
                self.rows.push(Row {
                    name: done.name.clone(),
                    operation: done.operation.clone(),
                    checksum: done.checksum.clone(),
                    subjects: BTreeMap::new(),
                });
                self.rows.len() - 1
            });
            let row = &mut self.rows[position];
            row.subjects.entry(subject.to_owned()).or_default().push(done.ns_per_op);
            if row.checksum != done.checksum {
                let fault =
                    format!("{subject}: {} gave {} instead of {}", row.name, done.checksum, row.checksum);
                self.fault(fault);
            }
        }
    }

    /// Notes something that must not be.
    pub(crate) fn fault(&mut self, sentence: String) {
        if !self.faults.contains(&sentence) {
            self.faults.push(sentence);
        }
    }

    /// What must not be and was.
    pub(crate) fn faults(&self) -> &[String] {
        &self.faults
    }

    /// The table, the goals and the faults, in Markdown.
    pub(crate) fn summary(&self, beside: &Beside) -> String {
        let mut text = self.table();
        if let Some(goals) = self.goals(beside) {
            text += &format!("\n{goals}");
        }
        for fault in &self.faults {
            let _ = write!(text, "\n**FAULT** {fault}\n");
        }
        text
    }

    fn table(&self) -> String {
        let mut guests: Vec<&str> =
            self.rows.iter().flat_map(|row| row.subjects.keys()).map(String::as_str).collect();
        guests.sort_unstable();
        guests.dedup();
        guests.retain(|subject| *subject != NATIVE);
        let compared = [OURS, THEIRS].iter().all(|subject| guests.contains(subject));

        let mut text = String::from("| row | one operation | native ns |");
        guests.iter().for_each(|guest| text += &format!(" {guest} × native |"));
        text += if compared { " bt faster than qemu |\n|---|---|---:|" } else { "\n|---|---|---:|" };
        text += &"---:|".repeat(guests.len() + usize::from(compared));
        text += "\n";
        let mut line = |name: &str, operation: &str, native: Option<f64>, rows: &[&Row]| {
            let _ = write!(text, "| {name} | {operation} | {} |", native.map_or(String::new(), short));
            let ratios = guests.iter().map(|guest| mean_ratio(rows, guest, NATIVE));
            let speed_up = compared.then(|| mean_ratio(rows, THEIRS, OURS));
            for ratio in ratios.chain(speed_up) {
                let _ = write!(text, " {} |", ratio.map_or(String::new(), |ratio| format!("{ratio:.2}")));
            }
            text += "\n";
        };
        for row in &self.rows {
            line(&row.name, &row.operation, row.least(NATIVE), &[row]);
        }
        for group in self.groups() {
            line(&format!("**{group}**"), "geometric mean", None, &self.of_groups(&[group]));
        }
        line("**compute**", "geometric mean of the rows without a kernel", None, &self.of_groups(&COMPUTE));
        line("**all**", "geometric mean", None, &self.rows.iter().collect::<Vec<_>>());
        text
    }

    fn groups(&self) -> Vec<&str> {
        let mut groups: Vec<&str> = self.rows.iter().map(Row::group).collect();
        groups.dedup();
        groups
    }

    fn of_groups(&self, groups: &[&str]) -> Vec<&Row> {
        self.rows.iter().filter(|row| groups.contains(&row.group())).collect()
    }

    fn named(&self, name: &str) -> Vec<&Row> {
        self.rows.iter().filter(|row| row.name == name).collect()
    }

    /// What the project wants of its engine, and whether it is so; nothing if not all was measured.
    fn goals(&self, beside: &Beside) -> Option<String> {
        let (compute, system) = (self.of_groups(&COMPUTE), self.of_groups(&["system"]));
        let faster = |rows: &[&Row]| mean_ratio(rows, THEIRS, OURS);
        let worst = system.iter().filter_map(|row| faster(&[row])).fold(f64::INFINITY, f64::min);
        let goals = [
            ("compute rows: at most 2.2 × native", -2.2, mean_ratio(&compute, OURS, NATIVE)?),
            ("compute rows: at least 4 × faster than QEMU", 4.0, faster(&compute)?),
            ("floating point: at least 10 × faster than QEMU", 10.0, faster(&self.of_groups(&["float"]))?),
            ("system rows: none slower than QEMU (the worst)", 1.0, worst),
            (
                "pipe round trip: at least 10 × faster than QEMU",
                10.0,
                faster(&self.named("system/ping-pong"))?,
            ),
            ("mmap: at least 10 × faster than QEMU", 10.0, faster(&self.named("system/mmap"))?),
            ("fork and exec: at least 4 × faster than QEMU", 4.0, faster(&self.named("system/exec"))?),
        ];
        let beside = [
            ("boot to init: at least 4 × faster than QEMU", 4.0, beside.boot),
            ("Debian to login: at least 3 × faster than QEMU", 3.0, beside.login),
            ("translation: at most 0.3 µs per guest instruction", -0.3, beside.translation),
        ];
        let beside = beside.into_iter().filter_map(|(goal, bound, measured)| Some((goal, bound, measured?)));
        let mut text = String::from("| goal | measured | |\n|---|---:|---|\n");
        for (goal, bound, measured) in goals.into_iter().chain(beside) {
            // A negative bound is an upper one.
            let reached = if bound < 0.0 { measured <= -bound } else { measured >= bound };
            let _ =
                writeln!(text, "| {goal} | {measured:.2} | {} |", if reached { "reached" } else { "missed" });
        }
        Some(text)
    }
}

/// What goals there are beside those of the rows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Beside {
    /// QEMU's time from the start to the guest's first process, as a multiple of ours.
    pub(crate) boot: Option<f64>,
    /// The same to Debian's login prompt.
    pub(crate) login: Option<f64>,
    /// Microseconds to translate a guest instruction.
    pub(crate) translation: Option<f64>,
}

impl Row {
    fn group(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
    }

    /// The fastest round.
    fn least(&self, subject: &str) -> Option<f64> {
        self.subjects.get(subject)?.iter().copied().min_by(f64::total_cmp)
    }
}

/// The geometric mean, over rows, of the ratio of one subject's figure to another's. Rows that one of
/// them did not do are left out.
fn mean_ratio(rows: &[&Row], above: &str, below: &str) -> Option<f64> {
    let logarithms: Vec<f64> =
        rows.iter().filter_map(|row| Some((row.least(above)? / row.least(below)?).ln())).collect();
    (!logarithms.is_empty()).then(|| (logarithms.iter().sum::<f64>() / logarithms.len() as f64).exp())
}

/// Three significant digits or a little more.
fn short(figure: f64) -> String {
    let decimals = match figure {
        size if size >= 1000.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{figure:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workloads;

    fn session(rows: &[(&str, f64, &str)]) -> Session {
        let rows = rows.iter().map(|(name, ns_per_op, checksum)| workloads::Row {
            name: (*name).to_owned(),
            operation: "thing".to_owned(),
            ns_per_op: *ns_per_op,
            checksum: (*checksum).to_owned(),
        });
        Session { rows: rows.collect(), ..Session::default() }
    }

    #[test]
    fn the_fastest_round_counts_and_means_are_geometric() {
        let mut ratios = Ratios::default();
        ratios.add("native", &session(&[("float/a", 3.0, "1"), ("float/b", 10.0, "2")]));
        ratios.add("native", &session(&[("float/a", 2.0, "1"), ("float/b", 20.0, "2")]));
        ratios.add("bt", &session(&[("float/a", 4.0, "1"), ("float/b", 80.0, "2")]));
        ratios.add("qemu", &session(&[("float/a", 36.0, "1"), ("float/b", 80.0, "2")]));
        let table = ratios.summary(&Beside::default());
        assert!(table.contains("| float/a | thing | 2.00 | 2.00 | 18.00 | 9.00 |\n"), "{table}");
        assert!(table.contains("| **float** | geometric mean |  | 4.00 | 12.00 | 3.00 |\n"), "{table}");
        assert!(ratios.faults().is_empty());
    }

    #[test]
    fn another_result_is_a_fault() {
        let mut ratios = Ratios::default();
        ratios.add("native", &session(&[("a/b", 1.0, "1")]));
        ratios.add("bt", &session(&[("a/b", 1.0, "2")]));
        ratios.add("bt", &session(&[("a/b", 1.0, "2")]));
        assert_eq!(ratios.faults(), ["bt: a/b gave 2 instead of 1"]);
        assert!(ratios.summary(&Beside::default()).contains("FAULT"));
    }

    #[test]
    fn goals_are_judged_when_all_was_measured() {
        let rows = |factor: f64| {
            session(&[
                ("integer/a", factor, "1"),
                ("float/a", factor, "1"),
                ("system/ping-pong", factor, "1"),
                ("system/mmap", factor, "1"),
                ("system/exec", factor, "1"),
            ])
        };
        let mut ratios = Ratios::default();
        for (subject, factor) in [("native", 1.0), ("bt", 2.0), ("qemu", 10.0)] {
            ratios.add(subject, &rows(factor));
        }
        let beside = Beside { boot: Some(3.0), login: None, translation: Some(0.25) };
        let goals = ratios.goals(&beside).expect("all rows were measured");
        assert!(goals.contains("at most 2.2 × native | 2.00 | reached"), "{goals}");
        assert!(goals.contains("floating point: at least 10 × faster than QEMU | 5.00 | missed"), "{goals}");
        assert!(goals.contains("boot to init: at least 4 × faster than QEMU | 3.00 | missed"), "{goals}");
        assert!(goals.contains("0.3 µs per guest instruction | 0.25 | reached"), "{goals}");
        assert!(!goals.contains("login"), "{goals}");
    }
}

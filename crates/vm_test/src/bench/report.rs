//! Figures: collected, put into ratios, saved.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::ratios::{Beside, Ratios};

/// What others are compared with: the engine, and the command line program.
const OURS: [&str; 2] = ["bt", "arnia"];

/// All figures of one run of the benchmarks.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    measures: Vec<Measure>,
    /// Figures of the workload program.
    #[serde(skip_serializing_if = "Option::is_none")]
    workloads: Option<Ratios>,
}

/// One quantity, of each subject.
#[derive(Debug, Serialize)]
struct Measure {
    name: String,
    unit: &'static str,
    /// Subject to figures, in the order in which they were taken.
    subjects: BTreeMap<String, Vec<f64>>,
}

impl Measure {
    /// The median of a subject.
    fn of(&self, subject: &str) -> Option<f64> {
        self.subjects.get(subject).map(|figures| median(figures))
    }
}

impl Report {
    /// Adds a figure.
    pub(crate) fn add(&mut self, measure: &str, unit: &'static str, subject: &str, figure: f64) {
        let position = self.measures.iter().position(|known| known.name == measure).unwrap_or_else(|| {
            self.measures.push(Measure { name: measure.to_owned(), unit, subjects: BTreeMap::new() });
            self.measures.len() - 1
        });
        self.measures[position].subjects.entry(subject.to_owned()).or_default().push(figure);
    }

    /// Takes over the figures of the workload program.
    pub(crate) fn set_ratios(&mut self, ratios: Ratios) {
        self.workloads = Some(ratios);
    }

    /// The middle figure of a subject in a measure.
    pub(crate) fn median(&self, measure: &str, subject: &str) -> Option<f64> {
        let measure = self.measures.iter().find(|known| known.name == measure)?;
        measure.subjects.get(subject).map(|figures| median(figures))
    }

    /// The names of all measures.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.measures.iter().map(|measure| measure.name.as_str())
    }

    /// What must not be and was.
    pub(crate) fn faults(&self) -> &[String] {
        self.workloads.as_ref().map_or(&[], Ratios::faults)
    }

    /// Tables of all figures, in Markdown.
    pub(crate) fn summary(&self) -> String {
        let mut text = self.table() + &super::disk::goals(self);
        if let Some(workloads) = &self.workloads {
            let beside = Beside {
                boot: self.faster("boot to init"),
                login: self.faster("Debian to login"),
                translation: self.measure("translation").and_then(|measure| measure.of("bt")),
            };
            text += &format!("\n{}", workloads.summary(&beside));
        }
        text
    }

    /// The first measure whose name begins so.
    fn measure(&self, name: &str) -> Option<&Measure> {
        self.measures.iter().find(|measure| measure.name.starts_with(name))
    }

    /// QEMU's figure as a multiple of ours.
    fn faster(&self, name: &str) -> Option<f64> {
        let measure = self.measure(name)?;
        Some(measure.of("qemu")? / measure.of("bt")?)
    }

    /// A table of medians, each with its ratio to ours.
    fn table(&self) -> String {
        let mut table =
            String::from("| measure | subject | median | least | most | runs | relative to ours |\n");
        table += "|---|---|---:|---:|---:|---:|---:|\n";
        for measure in &self.measures {
            let ours =
                OURS.iter().find_map(|ours| measure.subjects.get(*ours)).map(|figures| median(figures));
            for (subject, figures) in &measure.subjects {
                let middle = median(figures);
                let ratio = match ours {
                    Some(ours) if ours > 0.0 && !OURS.contains(&subject.as_str()) => {
                        format!("{:.2}", middle / ours)
                    }
                    _ => String::new(),
                };
                let least = figures.iter().copied().fold(f64::INFINITY, f64::min);
                let most = figures.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let (name, unit, runs) = (&measure.name, measure.unit, figures.len());
                let _ = writeln!(
                    table,
                    "| {name} | {subject} | {} {unit} | {} | {} | {runs} | {ratio} |",
                    short(middle),
                    short(least),
                    short(most)
                );
            }
        }
        table
    }

    /// Writes `raw.json`, `summary.md` and `machine.txt`.
    pub(crate) fn save(&self, folder: &Path, machine: &str) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        fs::write(folder.join("raw.json"), serde_json::to_string_pretty(self)? + "\n")?;
        fs::write(folder.join("summary.md"), self.summary())?;
        fs::write(folder.join("machine.txt"), machine)?;
        Ok(())
    }
}

/// The middle figure, or the mean of the two in the middle.
fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[length / 2],
        length => f64::midpoint(sorted[length / 2 - 1], sorted[length / 2]),
    }
}

/// Three significant digits or a little more.
fn short(figure: f64) -> String {
    let decimals = match figure.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{figure:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_counts() {
        for (figures, middle) in [(&[3.0, 1.0, 2.0][..], 2.0), (&[4.0, 1.0], 2.5), (&[7.0], 7.0)] {
            assert!((median(figures) - middle).abs() < 1e-9, "{figures:?}");
        }
    }

    #[test]
    fn the_summary_has_ratios_to_our_engine() {
        let mut report = Report::default();
        for (subject, figure) in [("bt", 2.0), ("qemu", 5.0), ("bt", 2.0), ("qemu", 7.0)] {
            report.add("boot", "s", subject, figure);
        }
        let summary = report.summary();
        assert!(summary.contains("| boot | bt | 2.00 s | 2.00 | 2.00 | 2 |  |"), "{summary}");
        assert!(summary.contains("| boot | qemu | 6.00 s | 5.00 | 7.00 | 2 | 3.00 |"), "{summary}");
    }
}

//! `arnia disk info`, `check` and `map`.

use super::{Source, bytes, refused};
use crate::commands::Run;
use crate::output::{Format, Row};
use crate::{Context, Error, ErrorKind};
use disk::qcow2::Repair;
use disk::{Access, Content, Image, ImageInfo};
use serde::Serialize;
use std::process::ExitCode;

/// Tell what an image is: format, sizes, what it stands on, its snapshots. One that is in use can be
/// looked at, too
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  arnia disk info web.qcow2\n  arnia disk info -o json web.qcow2")]
pub(super) struct Info {
    #[command(flatten)]
    source: Source,
}

#[derive(Serialize)]
struct InfoView {
    path: String,
    format: &'static str,
    size: u64,
    allocated: u64,
    file_length: u64,
    details: Vec<(String, String)>,
    backing_file: Option<String>,
    backing_format: Option<String>,
    snapshots: Vec<SnapshotView>,
}

#[derive(Serialize)]
struct SnapshotView {
    id: String,
    name: String,
    seconds: u32,
    disk_size: u64,
    vm_state_length: u64,
}

impl Run for Info {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let info = ImageInfo::read(&self.source.path, self.source.format).map_err(refused)?;
        let backing = info.backing();
        let snapshots = info.qcow2.iter().flat_map(|qcow2| &qcow2.snapshots).map(|snapshot| SnapshotView {
            id: snapshot.id.clone(),
            name: snapshot.name.clone(),
            seconds: snapshot.seconds,
            disk_size: snapshot.disk_size,
            vm_state_length: snapshot.vm_state_len,
        });
        let view = InfoView {
            path: self.source.path.display().to_string(),
            format: info.format.name(),
            size: info.size,
            allocated: info.allocated,
            file_length: info.file_len,
            details: info.details(),
            backing_file: backing.as_ref().map(|backing| backing.name.clone()),
            backing_format: backing.and_then(|backing| backing.format),
            snapshots: snapshots.collect(),
        };
        let mut lines = vec![
            ("File", view.path.clone()),
            ("Format", view.format.to_owned()),
            ("Disk size", format!("{} ({} bytes)", bytes(view.size), view.size)),
            ("Occupies", bytes(view.allocated)),
        ];
        lines.extend(view.details.iter().map(|(name, value)| (name.as_str(), value.clone())));
        if let Some(name) = &view.backing_file {
            let format = view.backing_format.as_deref().unwrap_or("format not recorded");
            lines.push(("Stands on", format!("{name} ({format})")));
        }
        if !view.snapshots.is_empty() {
            let names: Vec<_> = view.snapshots.iter().map(|s| format!("{} ({})", s.name, s.id)).collect();
            lines.push(("Snapshots", names.join("\n")));
        }
        context.output.item(&view, &lines)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Look for damage, and repair it. The image must not be in use. The exit status is 1 when something is
/// wrong that was not repaired
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  arnia disk check web.qcow2\n  arnia disk check --repair leaks web.qcow2"
)]
pub(super) struct Check {
    #[command(flatten)]
    source: Source,
    /// What to repair: space that nobody uses (always safe), or all that can be
    #[arg(long, value_enum, value_name = "WHAT")]
    repair: Option<RepairWhat>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum RepairWhat {
    /// Space that is counted and not used
    Leaks,
    /// All reference counts
    All,
}

/// What a check has found; all is 0 where the format has nothing to check.
#[derive(Default, Serialize)]
struct CheckView {
    checked: bool,
    errors: u64,
    leaked_clusters: u64,
    repaired: u64,
    allocated_clusters: u64,
    compressed_clusters: u64,
    total_clusters: u64,
    image_end: u64,
    findings: Vec<String>,
}

impl Run for Check {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let repair = match self.repair {
            None => Repair::No,
            Some(RepairWhat::Leaks) => Repair::Leaks,
            Some(RepairWhat::All) => Repair::All,
        };
        let report = disk::check(&self.source.path, self.source.format, repair).map_err(refused)?;
        let Some(report) = report else {
            match context.output.format() {
                Format::Table => {
                    context.output.say("There is nothing to check in an image of this format.")?;
                }
                _ => context.output.data(&CheckView::default())?,
            }
            return Ok(ExitCode::SUCCESS);
        };
        let view = CheckView {
            checked: true,
            errors: report.errors,
            leaked_clusters: report.leaks,
            repaired: report.repaired,
            allocated_clusters: report.allocated_clusters,
            compressed_clusters: report.compressed_clusters,
            total_clusters: report.total_clusters,
            image_end: report.image_end,
            findings: report.findings,
        };
        let lines = [
            ("Errors", view.errors.to_string()),
            ("Leaked clusters", view.leaked_clusters.to_string()),
            ("Repaired", view.repaired.to_string()),
            ("Allocated", format!("{} of {} clusters", view.allocated_clusters, view.total_clusters)),
            ("Findings", view.findings.join("\n")),
        ];
        context.output.item(&view, &lines)?;
        let left = view.errors + view.leaked_clusters - view.repaired.min(view.errors + view.leaked_clusters);
        if left == 0 {
            return Ok(ExitCode::SUCCESS);
        }
        let what = match view.errors {
            0 => format!("{left} clusters are leaked: no data is in danger"),
            _ => "the image is damaged".to_owned(),
        };
        let error = Error::new(ErrorKind::Failed, what);
        Err(match repair {
            Repair::All => {
                error.with_remedy("what is left cannot be repaired here; convert what can be read")
            }
            _ => error.with_remedy("repair it with --repair leaks or --repair all, after making a copy"),
        })
    }
}

/// Tell where a disk has data, and which image of a chain holds it
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  arnia disk map web.qcow2\n  arnia disk map -o json web.qcow2")]
pub(super) struct Map {
    #[command(flatten)]
    source: Source,
}

#[derive(Clone, Serialize)]
struct ExtentView {
    start: u64,
    length: u64,
    depth: u32,
    present: bool,
    zero: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
}

impl Row for ExtentView {
    const HEADS: &'static [&'static str] = &["start", "length", "layer", "content", "at"];

    fn cells(&self) -> Vec<String> {
        let content = if self.zero { "zeroes" } else { "data" };
        vec![
            format!("{:#x}", self.start),
            format!("{:#x}", self.length),
            self.depth.to_string(),
            content.to_owned(),
            self.offset.map_or("-".into(), |at| format!("{at:#x}")),
        ]
    }
}

impl Run for Map {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let image =
            Image::open(&self.source.path, &self.source.options(Access::ReadOnly)).map_err(refused)?;
        let size = image.disk.info().size;
        let mut extents: Vec<ExtentView> = Vec::new();
        let mut at = 0;
        while at < size {
            let extent = image.disk.extent(at, size - at).map_err(refused)?;
            let next = ExtentView {
                start: at,
                length: extent.len,
                depth: extent.depth,
                present: extent.present,
                zero: extent.content == Content::Zeroes,
                offset: extent.file_offset.filter(|_| extent.content == Content::Data),
            };
            at += extent.len;
            // Pieces of one stretch are told as one.
            match extents.last_mut() {
                Some(last) if goes_on(last, &next) => last.length += next.length,
                _ => extents.push(next),
            }
        }
        context.output.list(&extents)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn goes_on(last: &ExtentView, next: &ExtentView) -> bool {
    let same = (last.depth, last.present, last.zero) == (next.depth, next.present, next.zero);
    same && next.offset == last.offset.map(|at| at + last.length)
}

//! `arnia run IMAGE -- COMMAND`, from its start to its end, when the image is warm.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, ensure};

use super::milliseconds;
use crate::Arnia;
use crate::bench::Bed;
use crate::bench::report::Report;

/// The folder of images that are kept from one run to the next.
const IMAGES: &str = "ARNIA_BENCH_IMAGES";

pub(super) fn measure(bed: &Bed<'_>, report: &mut Report) -> Result<()> {
    let arnia = Arnia::new()?;
    arnia.import_tiny(bed.artifacts)?;
    one_image(bed, report, &arnia, Arnia::TINY)?;
    match std::env::var_os(IMAGES).map(PathBuf::from) {
        Some(images) if !bed.options.quick => {
            let arnia = Arnia::new()?.with_images(&images);
            println!("host: the image debian, built unless it is there");
            arnia.run(&["image", "build", "debian"])?;
            one_image(bed, report, &arnia, "debian")
        }
        _ => Ok(()),
    }
}

fn one_image(bed: &Bed<'_>, report: &mut Report, arnia: &Arnia, image: &str) -> Result<()> {
    println!("host: warm runs of {image}");
    // The first one boots, and is saved for the others.
    for number in 0..=bed.options.runs.max(5) {
        let name = format!("run-{number}");
        let begun = Instant::now();
        let said = arnia.run(&["run", image, "--name", &name, "--", "echo", "answer"])?;
        let took = begun.elapsed();
        ensure!(said == "answer\n", "the guest answers {said:?}");
        match number {
            0 => report.add("arnia run of an image that is not warm yet", "s", image, took.as_secs_f64()),
            _ => {
                report.add(
                    "arnia run of a warm image to a command's output (goal 300)",
                    "ms",
                    image,
                    milliseconds(took),
                );
            }
        }
        let begun = Instant::now();
        arnia.run(&["exec", &name, "--", "echo", "answer"])?;
        report.add("arnia exec of echo", "ms", image, milliseconds(begun.elapsed()));
        arnia.run(&["rm", "--force", &name])?;
    }
    Ok(())
}

//! `arnia image build`.

use super::{Act, Watch, explain};
use crate::{Context, Error, programs};
use image::Store;
use image::build::{BuildOptions, Programs, build, missing_tools};
use image::recipe::{Base, RecipeSource};
use std::process::Command;

/// Build an image by a recipe.
///
/// A recipe is a YAML file; `debian` comes along. Files are written and commands run in a virtual machine, not
/// on this host. What did not change since the last build is not made again.
#[derive(Debug, clap::Args)]
#[command(about = "Build an image by a recipe")]
#[command(after_help = "Examples:\n  arnia image build debian\n  arnia image build web.yaml --verbose\n\n\
                  A recipe:\n  name: web:1\n  from: {image: \"debian:12\"}\n  packages: [nginx-light]\n  \
                  files:\n    - {path: /var/www/html/index.html, content: \"hello\\n\"}\n  \
                  run:\n    - systemctl enable nginx\n  ports: [{port: 80, name: http}]")]
pub(super) struct Build {
    /// A recipe file, or `debian`
    #[arg(value_name = "RECIPE")]
    pub(super) recipe: String,
    /// Make everything anew
    #[arg(long)]
    pub(super) no_cache: bool,
    /// Virtual CPUs for the commands [default: 2]
    #[arg(long, value_name = "N")]
    pub(super) cpus: Option<u32>,
    /// Show what the tools and commands print
    #[arg(short, long)]
    pub(super) verbose: bool,
    /// Install the Debian packages that building takes, if they are missing (as root)
    #[arg(long)]
    pub(super) install_tools: bool,
}

impl Act for Build {
    fn act(&self, store: &Store, context: &Context) -> Result<(), Error> {
        let source = RecipeSource::read(&self.recipe).map_err(explain)?;
        if self.install_tools && matches!(source.recipe.from, Base::Debian(_)) {
            install_tools()?;
        }
        let programs = Programs { worker: programs::worker()?, agent: programs::agent()? };
        let options = BuildOptions { no_cache: self.no_cache, cpus: self.cpus.unwrap_or(2) };
        let mut watch = Watch::new(self.verbose);
        let digest = build(store, &source, &programs, &options, &mut watch).map_err(explain)?;
        drop(watch);
        super::list::show(store, digest, context, "built")
    }
}

fn install_tools() -> Result<(), Error> {
    let Some(missing) = missing_tools() else { return Ok(()) };
    let update = || Command::new("sh").args(["-c", "apt-get update -qq"]).status();
    let install = || Command::new("sh").args(["-c", &missing.command()]).status();
    crate::stderr::errln!("installing: {}", missing.0.join(" "));
    let installed = update().and_then(|_| install());
    match installed {
        Ok(status) if status.success() => Ok(()),
        _ => Err(Error::failed("the packages could not be installed")
            .with_remedy(format!("run: {}", missing.command()))),
    }
}

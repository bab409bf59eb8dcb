//! `arnia image publish`: the one command of images that asks the daemon, because it is about a machine.

use crate::commands::Run;
use crate::{Context, Error, progress};
use api::v1::image::{ImageParams, ImagePublish};
use std::process::ExitCode;

/// Make an image of a virtual machine. A machine that runs forgets who it is, by its agent, and is shut down; one that
/// does not run is taken as it is.
#[derive(Debug, clap::Args)]
#[command(about = "Make an image of a virtual machine")]
#[command(after_help = "Examples:
  arnia image publish web web:2
  arnia image publish web web:2 --description 'with the new shop' && arnia run web:2")]
pub(super) struct Publish {
    /// The machine, which comes from an image itself
    vm: String,
    /// The image's name
    #[arg(value_name = "NAME")]
    name: String,
    /// A sentence about it [default: that of the machine's image]
    #[arg(long, value_name = "TEXT", default_value = "")]
    description: String,
}

impl Run for Publish {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        context.with_daemon(async |client| {
            let (vm, name, description) = (self.vm.clone(), self.name.clone(), self.description.clone());
            let params = ImageParams::Publish(ImagePublish { vm, name, description });
            let operation = client.image_create(&params).await?;
            progress::watched(&client, operation, &format!("publishing {}", self.vm)).await?;
            context.output.say(&format!("{} is there", self.name))?;
            Ok(ExitCode::SUCCESS)
        })
    }
}

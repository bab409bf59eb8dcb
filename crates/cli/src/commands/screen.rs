//! `arnia screenshot` and `arnia key`: the screen of a machine and its keyboard.

use super::Run;
use crate::{Context, Error};
use api::v1::screen::Keys;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Takes a picture of a machine's screen, as PNG.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  arnia screenshot old                     # into old.png
  arnia screenshot old - | display -
  arnia screenshot old --text              # the lines of a text screen")]
pub struct Screenshot {
    /// The virtual machine; it needs a display, which machines with firmware have
    name: String,
    /// The file; - for standard output [default: NAME.png]
    file: Option<PathBuf>,
    /// Print the lines of a screen in a text mode instead
    #[arg(long, conflicts_with = "file")]
    text: bool,
}

impl Run for Screenshot {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        if self.text {
            let text = context.with_daemon(async |client| Ok(client.screen_text(&self.name).await?))?;
            print(text.as_bytes())?;
            return Ok(ExitCode::SUCCESS);
        }
        let png = context.with_daemon(async |client| Ok(client.screenshot(&self.name).await?))?;
        let file = self.file.clone().unwrap_or_else(|| format!("{}.png", self.name).into());
        if file == Path::new("-") {
            print(&png)?;
        } else {
            std::fs::write(&file, png).map_err(|e| {
                Error::failed(format!("the picture cannot be written into {}", file.display())).with_source(e)
            })?;
            context.output.say(&format!("the picture is in {}", file.display()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print(bytes: &[u8]) -> Result<(), Error> {
    let mut output = std::io::stdout().lock();
    let written = output.write_all(bytes).and_then(|()| output.flush());
    written.map_err(|e| Error::failed("standard output cannot be written").with_source(e))
}

/// Presses keys of a machine's keyboard: those named, one after the other, then those that type the text.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  arnia key old enter
  arnia key old ctrl-alt-delete
  arnia key old --text 'root' && arnia key old enter")]
pub struct Key {
    /// The virtual machine
    name: String,
    /// Names of keys, those pressed together with hyphens in between
    #[arg(value_name = "KEY", required_unless_present = "text")]
    keys: Vec<String>,
    /// Text to be typed on a US keyboard, after the keys
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    text: String,
}

impl Run for Key {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let keys = Keys { keys: self.keys.clone(), text: self.text.clone() };
        context.with_daemon(async |client| Ok(client.keys(&self.name, &keys).await?))?;
        Ok(ExitCode::SUCCESS)
    }
}

//! `arnia set`.

use super::Run;
use super::limits::LimitOptions;
use crate::{Context, Error};
use serde_json::{Map, Value};
use std::process::ExitCode;

/// Changes the configuration of a virtual machine. One that runs has the change after `arnia restart`, and changed
/// limits at once.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  arnia set web cpus=4 memory=2G
  arnia set web boot.append=\"console=ttyS0 quiet\" autostart.enabled=true
  arnia set web description=
  arnia set web --cpu-limit 0.5 --disk-iops 200
  arnia set web --cpu-limit none
The names are those of `arnia info NAME -o yaml` below `config`. A value that is JSON is taken as such, else as text.")]
pub struct Set {
    /// The virtual machine
    name: String,
    /// What to change
    #[arg(value_name = "FIELD=VALUE", value_parser = assignment)]
    changes: Vec<(String, Value)>,
    #[command(flatten)]
    limits: LimitOptions,
}

fn assignment(text: &str) -> Result<(String, Value), String> {
    let (field, value) = text.split_once('=').ok_or("write FIELD=VALUE")?;
    if field.is_empty() {
        return Err("the field is missing: write FIELD=VALUE".into());
    }
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    Ok((field.to_owned(), value))
}

impl Run for Set {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let mut patch = Value::Object(Map::new());
        for (field, value) in &self.changes {
            let mut place = &mut patch;
            for part in field.split('.') {
                if !place.is_object() {
                    *place = Value::Object(Map::new());
                }
                place = &mut place[part];
            }
            *place = value.clone();
        }
        if let Some(limits) = self.limits.patch() {
            patch["limits"] = limits;
        }
        if patch == Value::Object(Map::new()) {
            return Err(Error::bad_input("nothing is to be changed")
                .with_remedy("name a field and its value, like cpus=2, or a limit"));
        }
        context.with_daemon(async |client| {
            let vm = client.vm_update(&self.name, &patch, None).await?;
            let note = if vm.restart_needed { "; `arnia restart` makes it so" } else { "" };
            context.output.say(&format!("{} is changed{note}", vm.name))?;
            Ok(ExitCode::SUCCESS)
        })
    }
}

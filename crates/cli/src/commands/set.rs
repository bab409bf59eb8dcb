//! `arnia set`.

use super::Run;
use super::limits::LimitOptions;
use crate::output::Format;
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

impl Set {
    /// What is to be changed, as a merge patch (RFC 7396) of the configuration. An option counts more than a field that says
    /// the same.
    fn patch(&self) -> Result<Value, Error> {
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
            let said = &mut patch["limits"];
            if !said.is_object() && self.changes.iter().any(|(field, _)| field == "limits") {
                return Err(Error::bad_input("the limits are to be taken away and set at once")
                    .with_remedy("take them away by their options, like --cpu-limit none"));
            }
            merge(said, limits);
        }
        if patch == Value::Object(Map::new()) {
            return Err(Error::bad_input("nothing is to be changed")
                .with_remedy("name a field and its value, like cpus=2, or a limit"));
        }
        Ok(patch)
    }
}

/// Adds what the one says to the other, field by field.
fn merge(into: &mut Value, from: Value) {
    match from {
        Value::Object(fields) => {
            if !into.is_object() {
                *into = Value::Object(Map::new());
            }
            fields.into_iter().for_each(|(name, value)| merge(&mut into[name], value));
        }
        value => *into = value,
    }
}

impl Run for Set {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let patch = self.patch()?;
        context.with_daemon(async |client| {
            let vm = client.vm_update(&self.name, &patch, None).await?;
            let note = if vm.restart_needed { "; `arnia restart` makes it so" } else { "" };
            match context.output.format() {
                Format::Table => context.output.say(&format!("{} is changed{note}", vm.name))?,
                _ => context.output.data(&vm)?,
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use serde_json::json;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        set: Set,
    }

    fn patch(words: &[&str]) -> Result<Value, Error> {
        Line::parse_from([&["x", "m"], words].concat()).set.patch()
    }

    #[test]
    fn limits_by_field_and_by_option_come_together() {
        let both = ["limits.memory=64M", "limits.disk.bytes=1M", "--cpu-limit", "0.5", "--disk-iops", "9"];
        let disk = json!({"bytes": "1M", "operations": 9});
        let expected = json!({"limits": {"memory": "64M", "cpu": 50, "disk": disk}});
        assert_eq!(patch(&both).unwrap(), expected);
        assert_eq!(
            patch(&["limits.cpu=10", "--cpu-limit", "none"]).unwrap(),
            json!({"limits": {"cpu": null}})
        );
        assert_eq!(
            patch(&["cpus=2", "boot.append=a b"]).unwrap(),
            json!({"cpus": 2, "boot": {"append": "a b"}})
        );
        assert_eq!(patch(&["limits=null"]).unwrap(), json!({"limits": null}));
        assert!(patch(&["limits=null", "--cpu-limit", "1"]).is_err() && patch(&[]).is_err());
    }
}

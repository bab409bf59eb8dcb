//! `arnia port`.

use super::Run;
use crate::output::Row;
use crate::{Context, Error};
use std::process::ExitCode;

/// Ports of this host that lead into virtual machines
#[derive(Debug, clap::Subcommand)]
pub enum Port {
    /// Let a port of the host lead into a virtual machine, also while it runs
    Add(Add),
    /// List the ports that lead into a virtual machine
    #[command(alias = "list")]
    Ls(Ls),
    /// Close ports; connections through them go on
    #[command(alias = "remove")]
    Rm(Rm),
}

impl Run for Port {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        match self {
            Port::Add(command) => command.run(context),
            Port::Ls(command) => command.run(context),
            Port::Rm(command) => command.run(context),
        }
    }
}

impl Row for api::v1::network::Port {
    const HEADS: &'static [&'static str] = &["card", "port"];

    fn cells(&self) -> Vec<String> {
        vec![self.nic.to_string(), self.rule.clone()]
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  arnia port add web 8080:80
  arnia port add web 0.0.0.0:443:443 127.0.0.1:5353:53/udp
  arnia port add web 0:22
Without an address the port is open to this host only; 0.0.0.0 opens it to the network. With port 0 the host chooses.")]
pub struct Add {
    /// The virtual machine
    name: String,
    /// [ADDRESS:]PORT:[GUEST:]PORT[/tcp|/udp]
    #[arg(required = true, value_name = "PORTS")]
    rules: Vec<String>,
    /// The network card, counted from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    card: usize,
}

impl Run for Add {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        context.with_daemon(async |client| {
            let mut opened = Vec::new();
            for rule in &self.rules {
                let port = api::v1::network::Port { rule: rule.clone(), nic: self.card };
                opened.push(client.port_create(&self.name, &port).await?);
            }
            match context.output.format() {
                crate::output::Format::Table => opened.iter().try_for_each(|port| {
                    context.output.say(&format!("{} leads into {}", port.rule, self.name))
                })?,
                _ => context.output.data(&opened)?,
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  arnia port ls web\n  arnia port ls web -o json")]
pub struct Ls {
    /// The virtual machine
    name: String,
}

impl Run for Ls {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let ports = context.with_daemon(async |client| Ok(client.ports(&self.name).await?))?;
        context.output.list(&ports)?;
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  arnia port rm web 8080\n  arnia port rm web 127.0.0.1:5353/udp")]
pub struct Rm {
    /// The virtual machine
    name: String,
    /// Where the host listens: [ADDRESS:]PORT[/tcp|/udp], or as `arnia port ls` shows it
    #[arg(required = true, value_name = "PORT")]
    ports: Vec<String>,
}

impl Run for Rm {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        context.with_daemon(async |client| {
            for port in &self.ports {
                client.port_delete(&self.name, port).await?;
                context.output.say(&format!("{port} is closed"))?;
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

//! `arnia network`.

use super::{Run, remove_each};
use crate::output::Row;
use crate::{Context, Error};
use api::v1::network::{MTU_DEFAULT, Network as View, NetworkConfig, NetworkMode, NetworkParams};
use std::process::ExitCode;

/// Commands for networks.
#[derive(Debug, clap::Subcommand)]
pub enum Network {
    /// Create a network that machines of the project have in common
    #[command(after_help = "Examples:
  arnia network create lab
  arnia network create backend --mode internal --subnet 10.20.0.0/24
  arnia run debian --network lab --network backend
Machines in it find each other by name: `ping web`, `ping web.lab.internal`.")]
    Create {
        /// Its name
        name: String,
        /// Whom machines reach: `nat`, each other and the outside by address translation; `internal`, each other alone
        #[arg(long, value_name = "MODE", value_parser = mode, default_value = "nat")]
        mode: NetworkMode,
        /// Its IPv4 addresses [default: 254 that no other network here has]
        #[arg(long, value_name = "NETWORK/BITS")]
        subnet: Option<String>,
        /// The domain of its machines [default: NAME.internal]
        #[arg(long, value_name = "DOMAIN")]
        domain: Option<String>,
        /// Give no addresses by DHCP
        #[arg(long)]
        no_dhcp: bool,
        /// Largest IP packet, in bytes
        #[arg(long, value_name = "BYTES", default_value_t = MTU_DEFAULT)]
        mtu: u16,
        /// For people
        #[arg(long, value_name = "TEXT", default_value = "")]
        description: String,
    },
    /// List networks
    #[command(alias = "list", after_help = "Example:\n  arnia network ls")]
    Ls {},
    /// Show a network and the cards in it
    #[command(after_help = "Examples:\n  arnia network info lab\n  arnia network info lab -o yaml")]
    Info {
        /// The network
        name: String,
    },
    /// Change a network; while it has cards, only its description
    #[command(after_help = "Examples:
  arnia network set lab --description 'For the course'
  arnia network set lab --mode internal")]
    Set {
        /// The network
        name: String,
        /// Whom machines reach: nat or internal
        #[arg(long, value_name = "MODE", value_parser = mode)]
        mode: Option<NetworkMode>,
        /// Its IPv4 addresses
        #[arg(long, value_name = "NETWORK/BITS")]
        subnet: Option<String>,
        /// The domain of its machines
        #[arg(long, value_name = "DOMAIN")]
        domain: Option<String>,
        /// Largest IP packet, in bytes
        #[arg(long, value_name = "BYTES")]
        mtu: Option<u16>,
        /// For people
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
    },
    /// Remove networks in which no machine has a card
    #[command(after_help = "Example:\n  arnia network rm lab")]
    Rm {
        /// The networks
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

fn mode(text: &str) -> Result<NetworkMode, String> {
    match text {
        "nat" => Ok(NetworkMode::Nat),
        "internal" => Ok(NetworkMode::Internal),
        "bridged" | "host-only" => Err("it is not to be had yet: write nat or internal".into()),
        _ => Err("write nat or internal".into()),
    }
}

impl Run for Network {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        context.with_daemon(async |client| {
            match self {
                Network::Create { name, mode, subnet, domain, no_dhcp, mtu, description } => {
                    let config = NetworkConfig {
                        description: description.clone(),
                        subnet: subnet.clone(),
                        domain: domain.clone(),
                        dhcp: !no_dhcp,
                        mtu: *mtu,
                        ..NetworkConfig::new(*mode)
                    };
                    let params = NetworkParams { name: name.clone(), config };
                    show(context, &client.network_create(&params).await?)?;
                }
                Network::Ls {} => context.output.list(&client.networks().await?)?,
                Network::Info { name } => show(context, &client.network(name).await?)?,
                Network::Set { name, mode, subnet, domain, mtu, description } => {
                    let mut patch = serde_json::Map::new();
                    let mut put = |field: &str, value: Option<serde_json::Value>| {
                        if let Some(value) = value {
                            patch.insert(field.into(), value);
                        }
                    };
                    put("mode", mode.map(|mode| mode.to_string().into()));
                    put("subnet", subnet.clone().map(Into::into));
                    put("domain", domain.clone().map(Into::into));
                    put("mtu", mtu.map(Into::into));
                    put("description", description.clone().map(Into::into));
                    if patch.is_empty() {
                        return Err(Error::bad_input("nothing is to be changed")
                            .with_remedy("see `arnia network set --help` for what can be"));
                    }
                    show(context, &client.network_update(name, &patch.into(), None).await?)?;
                }
                Network::Rm { names } => {
                    remove_each(context, names, async |name| client.network_delete(name).await).await?;
                }
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

fn show(context: &Context, network: &View) -> Result<(), Error> {
    let config = &network.config;
    let cards = network.cards.iter().map(|card| {
        let address = card.address.as_deref().unwrap_or_default();
        format!("{} {} {} {address}", card.vm, card.nic, card.mac).trim_end().to_owned()
    });
    let rows = [
        ("Network", network.name.clone()),
        ("Description", config.description.clone()),
        ("Mode", config.mode.to_string()),
        ("Subnet", config.subnet.clone().unwrap_or_default()),
        ("Gateway", network.gateway.clone().unwrap_or_default()),
        ("Name server", network.name_server.clone().unwrap_or_default()),
        ("Domain", config.domain.clone().unwrap_or_default()),
        ("DHCP", if config.dhcp { "yes".into() } else { "no".into() }),
        ("MTU", config.mtu.to_string()),
        ("Cards", cards.collect::<Vec<_>>().join("\n")),
    ];
    let rows: Vec<_> = rows.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    context.output.item(network, &rows)
}

impl Row for View {
    const HEADS: &'static [&'static str] = &["name", "mode", "subnet", "machines"];

    fn cells(&self) -> Vec<String> {
        let mut vms: Vec<&str> = self.cards.iter().map(|card| card.vm.as_str()).collect();
        vms.dedup();
        let machines = if vms.is_empty() { "-".into() } else { vms.join(" ") };
        let subnet = self.config.subnet.clone().unwrap_or_default();
        vec![self.name.clone(), self.config.mode.to_string(), subnet, machines]
    }
}

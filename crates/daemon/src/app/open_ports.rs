//! Ports of the host as they are open: what it has chosen where a rule has port 0.

use super::ports::{parse, ports, same_place};
use super::{App, Machine};
use api::v1::network::Port;
use api::v1::vm::VmConfig;
use net::Forward;
use store::VmRecord;

impl App {
    /// The ports of a machine, in the order of its configuration; those that the host has chosen as they are open while the
    /// machine runs.
    pub(crate) async fn ports_now(&self, vm: &VmRecord) -> Vec<Port> {
        let written = ports(&vm.config);
        if !written.iter().any(is_to_be_chosen) || self.running(vm).is_err() {
            return written;
        }
        match self.folder(&vm.id).control().ports().await {
            Ok(open) => as_open(&vm.config, open),
            Err(error) => {
                log::warn!("machine {} does not tell its ports: {error}", vm.name);
                written
            }
        }
    }

    /// Remembers what the host has chosen for a machine that has begun to run.
    pub(super) async fn note_ports(&self, machine: &Machine, vm: &VmRecord) {
        let open = self.ports_now(vm).await;
        let of_rules = ports(&vm.config).into_iter().zip(open);
        let chosen = of_rules.filter(|(rule, open)| rule != open).map(|(_, open)| open).collect();
        if let Some(view) = &mut machine.live().view {
            view.chosen_ports = chosen;
        }
    }

    /// Forgets a port that is closed.
    pub(super) fn forget_port(&self, machine: &Machine, closed: &Port) {
        if let Some(view) = &mut machine.live().view {
            view.chosen_ports.retain(|port| port != closed);
        }
    }
}

fn is_to_be_chosen(port: &Port) -> bool {
    parse(&port.rule).is_ok_and(|rule| rule.listen.port() == 0)
}

/// Whether a port can be what the host has made of a rule with port 0. The worker names the guest also where the rule
/// does not.
fn is_made_of(open: &Forward, rule: &Forward) -> bool {
    let guest = rule.guest_address.is_none() || rule.guest_address == open.guest_address;
    guest
        && (open.listen.ip(), open.protocol, open.guest_port)
            == (rule.listen.ip(), rule.protocol, rule.guest_port)
}

/// The ports of a configuration, with those that are `open` in place of those that the host was to choose.
fn as_open(config: &VmConfig, mut open: Vec<Port>) -> Vec<Port> {
    let mut ports = ports(config);
    let mut take = |of: &Port, is_it: &dyn Fn(&Forward, &Forward) -> bool| {
        let rule = parse(&of.rule).ok()?;
        let is_it = |port: &Port| port.nic == of.nic && parse(&port.rule).is_ok_and(|it| is_it(&it, &rule));
        Some(open.remove(open.iter().position(is_it)?))
    };
    // First those of which it is known where they are, so that nobody takes them for chosen ones.
    for port in ports.iter().filter(|port| !is_to_be_chosen(port)) {
        take(port, &same_place);
    }
    // Then those that name their guest: the others take any.
    for names_guest in [true, false] {
        let is_next = |port: &Port| {
            let rule = parse(&port.rule).ok();
            rule.is_some_and(|it| it.listen.port() == 0 && it.guest_address.is_some() == names_guest)
        };
        for port in ports.iter_mut().filter(|port| is_next(port)) {
            if let Some(chosen) = take(port, &is_made_of) {
                *port = chosen;
            }
        }
    }
    ports
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::v1::network::NicConfig;

    #[test]
    fn what_the_host_has_chosen_is_found_again() {
        let nic = |rules: &[&str]| NicConfig {
            ports: rules.iter().map(|rule| (*rule).to_owned()).collect(),
            ..NicConfig::default()
        };
        let config = VmConfig {
            nics: vec![nic(&["0:22", "0:22/udp", "0:10.0.2.16:22", "0:22", "2222:22"]), nic(&["0:22"])],
            ..VmConfig::new("/k")
        };
        let open = [
            (0, "127.0.0.1:2222:10.0.2.15:22/tcp"),
            (0, "127.0.0.1:40003:10.0.2.16:22/tcp"),
            (0, "127.0.0.1:40001:10.0.2.15:22/tcp"),
            (0, "127.0.0.1:40002:10.0.2.15:22/udp"),
            (1, "127.0.0.1:40004:10.0.2.15:22/tcp"),
        ];
        let open = open.map(|(nic, rule)| Port { rule: rule.into(), nic });
        let found = as_open(&config, open.to_vec()).into_iter().map(|port| port.rule).collect::<Vec<_>>();
        assert_eq!(
            found,
            [
                "127.0.0.1:40001:10.0.2.15:22/tcp",
                "127.0.0.1:40002:10.0.2.15:22/udp",
                "127.0.0.1:40003:10.0.2.16:22/tcp",
                // Nothing is open of this one.
                "0:22",
                "2222:22",
                "127.0.0.1:40004:10.0.2.15:22/tcp",
            ]
        );
    }
}

//! Ports of the host that lead into the guest, changed while the machine runs.

use api::worker::control::{ControlError, ControlErrorKind, PortStatus, Reply};
use net::{Forward, ForwardStatus, NatHandle, NetErrorKind};

/// All of them.
pub(super) fn list(networks: &[Option<NatHandle>]) -> Reply {
    let of_card = |(card, network): (usize, &Option<NatHandle>)| {
        let forwards = network.as_ref().map(NatHandle::forwards).unwrap_or_default();
        forwards.into_iter().map(move |status| written(card, &status)).collect::<Vec<_>>()
    };
    Reply::Ports { ports: networks.iter().enumerate().flat_map(of_card).collect() }
}

fn written(card: usize, status: &ForwardStatus) -> PortStatus {
    PortStatus { card, rule: status.forward.to_string() }
}

/// Opens one.
pub(super) fn add(networks: &[Option<NatHandle>], card: usize, rule: &str) -> Result<Reply, ControlError> {
    let network = network(networks, card)?;
    let status = parse(rule)?;
    let status = network.add_forward(&status).map_err(|error| {
        let kind = match error.kind() {
            NetErrorKind::Bind | NetErrorKind::Config => ControlErrorKind::BadRequest,
            _ => ControlErrorKind::Failed,
        };
        ControlError { kind, message: error.to_string() }
    })?;
    Ok(Reply::Ports { ports: vec![written(card, &status)] })
}

/// Closes one.
pub(super) fn remove(networks: &[Option<NatHandle>], card: usize, rule: &str) -> Result<Reply, ControlError> {
    let network = network(networks, card)?;
    let wanted = parse(rule)?;
    let same = |status: &ForwardStatus| {
        (status.forward.listen, status.forward.protocol) == (wanted.listen, wanted.protocol)
    };
    let missing = || bad(format!("no port listens at {} ({})", wanted.listen, wanted.protocol));
    let status = network.forwards().into_iter().find(same).ok_or_else(missing)?;
    network.remove_forward(status.id).map_err(|error| bad(error.to_string()))?;
    Ok(Reply::Done)
}

fn network(networks: &[Option<NatHandle>], card: usize) -> Result<&NatHandle, ControlError> {
    match networks.get(card) {
        Some(Some(network)) => Ok(network),
        Some(None) => Err(bad(format!("network card {card} is in a network that has no ports of the host"))),
        None => Err(bad(format!("there is no network card {card}"))),
    }
}

fn parse(rule: &str) -> Result<Forward, ControlError> {
    rule.parse().map_err(|error: net::NetError| bad(error.to_string()))
}

fn bad(message: String) -> ControlError {
    ControlError { kind: ControlErrorKind::BadRequest, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use net::{Nat, NatConfig};
    use std::net::TcpStream;

    #[test]
    fn ports_open_and_close_while_the_network_lives() {
        let mut nat = Nat::new(NatConfig::default()).unwrap();
        let networks = [Some(nat.handle()), None];
        let Ok(Reply::Ports { ports }) = add(&networks, 0, "0:22") else { panic!("it opens") };
        let rule = ports[0].rule.clone();
        let listen = rule.parse::<Forward>().unwrap().listen;
        assert!(listen.port() != 0, "the host has chosen: {rule}");
        TcpStream::connect(listen).unwrap();
        assert_eq!(list(&networks), Reply::Ports { ports });
        let taken = add(&networks, 0, &rule).unwrap_err();
        assert!(
            taken.kind == ControlErrorKind::BadRequest && taken.message.contains("already uses"),
            "{taken:?}"
        );
        for (card, rule) in [(1, "0:22"), (2, "0:22"), (0, "x"), (0, "0:10.9.9.9:22")] {
            assert_eq!(add(&networks, card, rule).unwrap_err().kind, ControlErrorKind::BadRequest, "{rule}");
        }
        remove(&networks, 0, &rule).unwrap();
        assert!(remove(&networks, 0, &rule).is_err());
        assert_eq!(list(&networks), Reply::Ports { ports: Vec::new() });
        // The thread that moves frames closes the socket.
        net::Backend::poll(&mut nat);
        assert!(TcpStream::connect(listen).is_err());
    }
}

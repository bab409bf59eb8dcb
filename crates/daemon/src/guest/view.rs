//! What is kept and shown of a guest.

use api::agent::{Info, Interface};
use api::v1::guest::Guest;

/// More cards and addresses than these are not shown.
const INTERFACES_MAX: usize = 64;
const ADDRESSES_MAX: usize = 64;
const TEXT_LEN_MAX: usize = 128;

/// Text of a guest: of bounded length, and without what a terminal would obey.
pub(crate) fn printable(text: &str, len_max: usize) -> String {
    let clean = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c });
    clean.take(len_max).collect()
}

/// The view of a guest.
pub(crate) fn view(info: &Info, interfaces: Vec<Interface>) -> Guest {
    let short = |text: &str| printable(text, TEXT_LEN_MAX);
    let interfaces = interfaces.into_iter().filter(|interface| interface.name != "lo").map(|interface| {
        let addresses = interface.addresses.iter().take(ADDRESSES_MAX).map(|address| short(address));
        Interface {
            name: short(&interface.name),
            mac: interface.mac.as_deref().map(short),
            up: interface.up,
            addresses: addresses.collect(),
        }
    });
    Guest {
        agent: format!("arnia {}", short(&info.agent)),
        hostname: short(&info.hostname),
        system: short(&info.system),
        kernel: short(&info.kernel),
        interfaces: interfaces.take(INTERFACES_MAX).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_says_is_bounded_and_harmless() {
        let info = Info { hostname: "\x1b[2J".repeat(1000), ..Info::default() };
        let card = Interface {
            name: "\n".repeat(500),
            mac: None,
            up: true,
            addresses: vec!["10.0.0.1/8\x07".into(); 1000],
        };
        let view = view(&info, vec![card; 1000]);
        assert_eq!(view.hostname.chars().count(), TEXT_LEN_MAX);
        assert!(!view.hostname.contains('\x1b'));
        assert_eq!((view.interfaces.len(), view.interfaces[0].addresses.len()), (64, 64));
        assert_eq!(view.interfaces[0].addresses[0], "10.0.0.1/8\u{fffd}");
    }
}

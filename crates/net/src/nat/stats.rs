//! Counters: written by the one thread that moves frames, read from anywhere.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter with one writer.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    /// Adds to the counter. Only one thread at a time may write, so load and store suffice.
    pub(super) fn add(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: Counter,)*
        }

        impl Counters {
            pub(super) fn snapshot(&self) -> NatStats {
                NatStats { $($name: self.$name.get(),)* }
            }
        }

        /// What user-mode networking has done so far.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct NatStats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl NatStats {
            /// Returns the figures with their names, in a fixed order.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Frames taken from the guest, dropped ones included.
    frames_from_guest,
    /// Bytes of those.
    bytes_from_guest,
    /// Frames handed to the guest.
    frames_to_guest,
    /// Bytes of those.
    bytes_to_guest,
    /// Frames from the guest dropped because they are malformed or carry a wrong checksum.
    drops_malformed,
    /// Frames dropped because they are for another station or name a source that cannot be.
    drops_not_for_us,
    /// Frames dropped because they carry something that is not handled, such as IPv6.
    drops_unsupported,
    /// Packets refused because the guest may not go there.
    drops_denied,
    /// Packets dropped because a limit was reached.
    drops_limit,
    /// Frames for the guest dropped because it took none for too long.
    drops_queue_full,
    /// TCP connections that the guest opened and the host accepted.
    tcp_opened,
    /// TCP connections taken on forwarded ports.
    tcp_accepted,
    /// TCP connections of the guest that were refused or failed to open.
    tcp_failed,
    /// TCP connections now, those still opening or closing included.
    tcp_active,
    /// Bytes that had to be sent to the guest again.
    tcp_retransmitted_bytes,
    /// Bytes now buffered for TCP.
    tcp_buffered_bytes,
    /// UDP ports of the guest mapped so far.
    udp_mapped,
    /// UDP ports of the guest mapped now.
    udp_active,
    /// DNS questions taken from the guest.
    dns_questions,
    /// DNS questions that were answered with a failure of ours.
    dns_failed,
    /// Echo requests taken from the guest.
    icmp_echoes,
    /// DHCP leases given or renewed.
    dhcp_acks,
}

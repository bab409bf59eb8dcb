//! TCP: each connection of the guest ends here and is spliced to a socket of the host.
//!
//! ```text
//!  guest ── segments ──> Endpoint.rx ── sendmsg ──> socket of the host
//!  guest <── segments ── Endpoint.tx <── recvmsg ── socket of the host
//! ```
//!
//! - A connection that the guest opens is answered only when the host's socket is connected; what prevents that
//!   becomes RST or ICMP. One that comes in by a forwarded port is opened towards the guest at once.
//! - Data from the guest gathers in `rx` over the frames of a batch and goes to the socket with one call; data
//!   for the guest is read with one call for many segments, when the guest asks for a frame and its window is
//!   open. Nothing is allocated for either once the pools are warm.
//! - Half-closing works both ways: a FIN becomes `shutdown`, end of file becomes a FIN, each after the data
//!   before it. A reset on one side becomes a reset on the other.
//! - What cannot go on stays where it is: a closed window of the guest leaves data in the host's socket, a full
//!   socket leaves data in `rx` and closes the window that the guest sees.

pub(crate) mod buffer;
pub(crate) mod endpoint;
mod flow;
pub(crate) mod ranges;
pub(crate) mod seq;
mod table;

pub(super) use table::TcpTable;

/// Smallest buffer of a connection that makes sense: one read ahead of what is under way.
pub(super) const FLOW_BUFFER_MIN: usize = 2 * buffer::CHUNK;

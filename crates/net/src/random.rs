//! Random bytes from the host's kernel.

use rustix::rand::{GetRandomFlags, getrandom};

use crate::{NetError, NetErrorKind};

/// Returns `N` random bytes fit for secrets.
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N], NetError> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => {
                return Err(NetError::new(
                    NetErrorKind::Host,
                    "cannot get random bytes from the host's kernel",
                )
                .with_source(errno));
            }
        }
    }
    Ok(bytes)
}

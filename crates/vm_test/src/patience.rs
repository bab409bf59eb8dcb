//! How long to wait for what. Generous: a wait that ends early is a fault found, one that ends late
//! costs time only when something is broken.

use std::time::Duration;

/// Something that a test waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// An answer of the host's programs.
    Host,
    /// A command in the guest that does little.
    Command,
    /// A busybox guest from power-on to the end of its tests.
    Boot,
    /// The same in lock-step, where all is done twice and compared.
    LockStep,
    /// A Debian guest from power-on to its login prompt.
    Login,
    /// A real program's tests in the guest.
    Software,
    /// A guest that was told to shut down.
    Shutdown,
}

impl Patience {
    /// The bound, multiplied by `ARNIA_TEST_PATIENCE` (a number) for slow hosts and debug builds.
    pub fn limit(self) -> Duration {
        let seconds = match self {
            Self::Host => 20,
            Self::Command => 120,
            Self::Boot => 240,
            Self::LockStep => 1200,
            Self::Login => 600,
            Self::Software => 2400,
            Self::Shutdown => 180,
        };
        let factor = std::env::var("ARNIA_TEST_PATIENCE").ok().and_then(|text| text.parse().ok());
        Duration::from_secs(seconds).mul_f64(factor.unwrap_or(1.0_f64).clamp(0.1, 100.0))
    }

    /// The same in seconds, as far as `arnia exec --wait` takes them.
    pub fn seconds_to_wait(self) -> u64 {
        self.limit().as_secs().min(600)
    }
}

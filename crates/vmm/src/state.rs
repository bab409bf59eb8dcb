//! What a machine does, and what may follow.
//!
//! ```text
//!               ┌───────── Resetting <────────┐
//!               v              │ ^            │
//! Starting ─> Running <────────┼─┼───────> Paused <─ Starting (restored)
//!    │          │              v │            │
//!    └──────────┴────────> Stopped <──────────┘
//! ```

pub use api::worker::control::VmState;

/// Whether a machine may go from one state to the other.
pub const fn valid_transition(from: VmState, to: VmState) -> bool {
    use VmState::*;
    matches!(
        (from, to),
        (Starting, Running | Paused | Stopped)
            | (Running, Paused | Resetting | Stopped)
            | (Paused, Running | Resetting | Stopped)
            | (Resetting, Running | Paused | Stopped)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use VmState::*;

    #[test]
    fn nothing_leaves_the_end_and_nothing_returns_to_the_beginning() {
        for state in [Starting, Running, Paused, Resetting, Stopped] {
            assert!(!valid_transition(Stopped, state));
            assert!(!valid_transition(state, Starting));
            assert!(!valid_transition(state, state));
            assert_eq!(valid_transition(state, Stopped), state != Stopped);
        }
    }
}

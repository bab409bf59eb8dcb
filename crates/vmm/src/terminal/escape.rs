//! The escape key: how a person talks to the worker and not to the guest.

/// Ctrl-].
const ESCAPE: u8 = 0x1d;

/// What a person asks of the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// End the machine at once.
    Stop,
    /// Press its power button.
    Power,
    /// Say which keys there are.
    Help,
}

/// Separates what is typed for the guest from what is typed for the worker.
#[derive(Debug, Default)]
pub(super) struct EscapeFilter {
    escaped: bool,
}

impl EscapeFilter {
    /// Takes typed bytes; appends the guest's to `for_guest` and returns the commands among them.
    pub(super) fn filter(&mut self, typed: &[u8], for_guest: &mut Vec<u8>) -> Vec<Command> {
        let mut commands = Vec::new();
        for &byte in typed {
            match (std::mem::take(&mut self.escaped), byte) {
                (false, ESCAPE) => self.escaped = true,
                (false, byte) | (true, byte @ ESCAPE) => for_guest.push(byte),
                (true, b'x' | b'X') => commands.push(Command::Stop),
                (true, b'p' | b'P') => commands.push(Command::Power),
                (true, _) => commands.push(Command::Help),
            }
        }
        commands
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_key_works_across_reads() {
        let mut filter = EscapeFilter::default();
        let mut guest = Vec::new();
        for (typed, commands) in [
            (&b"ls\r"[..], &[][..]),
            (b"a\x1d", &[]),
            (b"x", &[Command::Stop]),
            (b"x\x1d\x1d", &[]),
            (b"\x1dp\x1d?b", &[Command::Power, Command::Help]),
        ] {
            assert_eq!(filter.filter(typed, &mut guest), commands, "{typed:?}");
        }
        assert_eq!(guest, b"ls\rax\x1db");
    }
}

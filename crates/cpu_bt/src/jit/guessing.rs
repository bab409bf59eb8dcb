//! Which accesses find their page by a guess, and which by the soft TLB: learned from how often guesses are wrong.
//!
//! A guess costs less than the soft TLB while it is right, and as much as some twenty accesses by that when it is wrong.
//! Translated code counts only what is wrong. Where that happens soon again, a translation that also counts how often
//! the guess is made decides, and goes.

/// How an access that was guessed wrongly often within some time finds its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guessing {
    /// By a guess; it is counted how often that is made. For which time that is found out.
    Counted(u8),
    /// By a guess, which was right often enough so many times.
    Trusted(u8),
    /// By the soft TLB.
    Never,
}

/// What was found out about the guess for an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Experience {
    /// It was wrong [`MISSES`](crate::mmu::guess::MISSES) times within so many host cycles. All these were its own.
    Wrong { cycles: u64, own: bool },
    /// It was made as often as it is counted, and wrong less often.
    Right,
}

/// What became of an [`Experience`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Learned {
    Nothing,
    /// Guesses are made there all the same.
    Known,
    /// Translations became void by it.
    Voided,
}

impl Guessing {
    /// Host cycles in which wrong guesses cost more than finding out how often they are made.
    const SOON: u64 = 2_000_000;
    /// The same for one that was found right often enough before.
    const SOON_AGAIN: u64 = 150_000;
    /// Times that this is found out.
    const TIMES: u8 = 3;

    /// What follows `before`; `None` for no change.
    pub(crate) fn after(before: Option<Guessing>, experience: Experience) -> Option<Guessing> {
        match (before, experience) {
            (None, Experience::Wrong { cycles, .. }) if cycles < Guessing::SOON => Some(Guessing::Counted(1)),
            (Some(Guessing::Trusted(times)), Experience::Wrong { cycles, .. })
                if cycles < Guessing::SOON_AGAIN && times < Guessing::TIMES =>
            {
                Some(Guessing::Counted(times + 1))
            }
            (Some(Guessing::Counted(_)), Experience::Wrong { own: true, .. }) => Some(Guessing::Never),
            (Some(Guessing::Counted(times)), Experience::Right) => Some(Guessing::Trusted(times)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Experience = Experience::Wrong { cycles: 100_000, own: false };
    const LATE: Experience = Experience::Wrong { cycles: 100_000_000, own: false };
    const OFTEN: Experience = Experience::Wrong { cycles: 100_000_000, own: true };

    #[test]
    fn what_is_wrong_soon_again_is_counted_and_then_decided() {
        assert_eq!(Guessing::after(None, LATE), None);
        assert_eq!(Guessing::after(None, Experience::Right), None);
        let counted = Guessing::after(None, SOON);
        assert_eq!(counted, Some(Guessing::Counted(1)));
        // Another access may share the number.
        assert_eq!(Guessing::after(counted, SOON), None);
        assert_eq!(Guessing::after(counted, OFTEN), Some(Guessing::Never));
        let trusted = Guessing::after(counted, Experience::Right);
        assert_eq!(trusted, Some(Guessing::Trusted(1)));
        assert_eq!(Guessing::after(trusted, LATE), None);
    }

    #[test]
    fn it_is_found_out_a_few_times_only() {
        let mut guessing = None;
        for times in 1..=Guessing::TIMES {
            guessing = Guessing::after(guessing, SOON);
            assert_eq!(guessing, Some(Guessing::Counted(times)));
            guessing = Guessing::after(guessing, Experience::Right);
        }
        assert_eq!(Guessing::after(guessing, SOON), None);
        assert_eq!(Guessing::after(Some(Guessing::Never), SOON), None);
    }
}

//! Both controllers and the wire between them.

use super::chip::ChipSaved;
use super::spec::*;
use device::state::{RestoreError, SaveRestore};
use serde::{Deserialize, Serialize};

const MASTER: usize = 0;
const SLAVE: usize = 1;

/// The state of both controllers: first, second.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PicSaved {
    chips: [ChipSaved; 2],
}

/// The pair of controllers.
#[derive(Clone, Debug)]
pub struct PicPair {
    chips: [ChipSaved; 2],
}

impl Default for PicPair {
    fn default() -> PicPair {
        PicPair::new()
    }
}

impl PicPair {
    /// Both as after power-on: all inputs edge-triggered. A controller that was never initialized does
    /// nothing; here everything is masked until then, ICW1 lifts it.
    pub fn new() -> PicPair {
        let chip = ChipSaved { imr: 0xff, ..ChipSaved::default() };
        PicPair { chips: [chip.clone(), chip] }
    }

    /// Puts both in their state after power-on; the levels of the inputs stay as devices drive them.
    pub fn reset(&mut self) {
        let lines = [MASTER, SLAVE].map(|chip| self.chips[chip].lines);
        *self = PicPair::new();
        for (chip, lines) in self.chips.iter_mut().zip(lines) {
            chip.lines = lines;
        }
        self.cascade();
    }

    /// Sets the level of an input, 0 to 15. The cascade input and numbers beyond are ignored.
    pub fn set_irq(&mut self, irq: u32, level: bool) {
        if irq < INPUTS && irq != CASCADE as u32 {
            self.chips[irq as usize / 8].set_line(irq as u8 & 7, level);
            self.cascade();
        }
    }

    /// The level of INTR.
    pub fn interrupt(&self) -> bool {
        self.chips[MASTER].pending(Some(CASCADE)).is_some()
    }

    /// The processor's interrupt acknowledge: returns the vector. When the request has gone in between,
    /// that is the vector of the seventh input, which is not in service then ("Default IR7").
    pub fn acknowledge(&mut self) -> u8 {
        let Some(input) = self.chips[MASTER].pending(Some(CASCADE)) else {
            return self.chips[MASTER].base + 7;
        };
        let mut vector = self.chips[MASTER].base + input;
        if input == CASCADE {
            let slave = &mut self.chips[SLAVE];
            let input = slave.pending(None);
            vector = slave.base + input.unwrap_or(7);
            if let Some(input) = input {
                slave.acknowledge(input);
            }
        }
        self.chips[MASTER].acknowledge(input);
        self.cascade();
        vector
    }

    /// Reads a port.
    pub fn read(&mut self, port: u16) -> u8 {
        match port {
            PORT_MASTER | PORT_SLAVE => self.read_command(which(port)),
            0x21 | 0xa1 => self.read_data(which(port)),
            0x4d0 | 0x4d1 => self.chips[(port & 1) as usize].elcr,
            _ => 0xff,
        }
    }

    /// Writes a port.
    pub fn write(&mut self, port: u16, value: u8) {
        match port {
            PORT_MASTER | PORT_SLAVE => self.chips[which(port)].write_command(value),
            0x21 | 0xa1 => self.chips[which(port)].write_data(value),
            0x4d0 | 0x4d1 => {
                let chip = (port & 1) as usize;
                self.chips[chip].elcr = value & ELCR_MASK[chip];
            }
            _ => {}
        }
        self.cascade();
    }

    /// Sets which inputs are level-triggered, as firmware would: bit n for input n.
    pub fn set_elcr(&mut self, inputs: u16) {
        let [low, high] = inputs.to_le_bytes();
        self.write(PORT_ELCR, low);
        self.write(PORT_ELCR + 1, high);
    }

    fn read_command(&mut self, chip: usize) -> u8 {
        if std::mem::take(&mut self.chips[chip].poll) {
            return self.polled(chip);
        }
        let chip = &self.chips[chip];
        if chip.read_isr { chip.isr } else { chip.irr() }
    }

    fn read_data(&mut self, chip: usize) -> u8 {
        // A poll is answered by the next read, whichever port it names.
        if std::mem::take(&mut self.chips[chip].poll) {
            return self.polled(chip);
        }
        self.chips[chip].imr
    }

    /// A poll acknowledges the interrupt as the processor would (data sheet, "Poll command").
    fn polled(&mut self, chip: usize) -> u8 {
        let slave_input = (chip == MASTER).then_some(CASCADE);
        let Some(input) = self.chips[chip].pending(slave_input) else { return 0 };
        self.chips[chip].acknowledge(input);
        self.cascade();
        0x80 | input
    }

    /// Carries the second controller's output to its input of the first. That input follows the level,
    /// so that no request is lost when one follows another without a gap.
    fn cascade(&mut self) {
        let level = self.chips[SLAVE].pending(None).is_some();
        let master = &mut self.chips[MASTER];
        let bit = 1 << CASCADE;
        master.lines = master.lines & !bit | if level { bit } else { 0 };
        master.edges = master.edges & !bit | if level { bit } else { 0 };
    }
}

fn which(port: u16) -> usize {
    if port < PORT_SLAVE { MASTER } else { SLAVE }
}

impl SaveRestore for PicPair {
    type Saved = PicSaved;

    fn save(&self) -> PicSaved {
        PicSaved { chips: self.chips.clone() }
    }

    fn restore(&mut self, saved: PicSaved) -> Result<(), RestoreError> {
        for (chip, elcr_mask) in saved.chips.iter().zip(ELCR_MASK) {
            let known = chip.first < 8
                && chip.base & 7 == 0
                && chip.elcr & !elcr_mask == 0
                && matches!(chip.next_icw, 0 | 2..=4);
            if !known {
                return Err(RestoreError::new("interrupt controller", "a register has impossible bits"));
            }
        }
        self.chips = saved.chips;
        self.cascade();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux's init_8259A does, with vectors 0x30 and 0x38.
    fn initialized() -> PicPair {
        let mut pic = PicPair::new();
        for (port, value) in [
            (0x20, 0x11),
            (0x21, 0x30),
            (0x21, 4),
            (0x21, 1),
            (0xa0, 0x11),
            (0xa1, 0x38),
            (0xa1, 2),
            (0xa1, 1),
        ] {
            pic.write(port, value);
        }
        pic
    }

    fn pulse(pic: &mut PicPair, irq: u32) {
        pic.set_irq(irq, true);
        pic.set_irq(irq, false);
    }

    #[test]
    fn an_uninitialized_pair_is_silent() {
        let mut pic = PicPair::new();
        (0..16).for_each(|irq| pulse(&mut pic, irq));
        assert!(!pic.interrupt());
        let mut pic = initialized();
        pulse(&mut pic, 7);
        pic.reset();
        assert!(!pic.interrupt());
    }

    #[test]
    fn linux_finds_the_controllers_by_their_masks() {
        let mut pic = initialized();
        for (port, value) in [(0xa1, 0xff), (0x21, 0xfb), (0x21, 0xff)] {
            pic.write(port, value);
            assert_eq!(pic.read(port), value);
        }
        pulse(&mut pic, 0);
        assert!(!pic.interrupt());
        pic.write(0x21, 0);
        assert!(pic.interrupt(), "the edge was kept while masked");
        assert_eq!(pic.acknowledge(), 0x30);
    }

    #[test]
    fn priority_and_end_of_interrupt() {
        let mut pic = initialized();
        pulse(&mut pic, 4);
        pulse(&mut pic, 1);
        assert_eq!(pic.acknowledge(), 0x31);
        assert!(!pic.interrupt(), "4 waits for 1");
        pulse(&mut pic, 0);
        assert_eq!(pic.acknowledge(), 0x30, "0 does not wait");
        pic.write(0x20, 0x0b);
        assert_eq!(pic.read(0x20), 0b11);
        pic.write(0x20, 0x20);
        assert_eq!(pic.read(0x20), 0b10);
        pic.write(0x20, 0x61);
        assert_eq!(pic.acknowledge(), 0x34);
        pic.write(0x20, 0x0a);
        assert_eq!(pic.read(0x20), 0);
    }

    #[test]
    fn the_second_controller_interrupts_through_the_first() {
        let mut pic = initialized();
        pulse(&mut pic, 12);
        pulse(&mut pic, 8);
        assert_eq!(pic.acknowledge(), 0x38);
        assert!(!pic.interrupt());
        pic.write(0xa0, 0x20);
        assert!(!pic.interrupt(), "the first controller still serves its input 2");
        pic.write(0x20, 0x20);
        assert_eq!(pic.acknowledge(), 0x3c);
        pic.write(0x20, 0x20);
        pulse(&mut pic, 9);
        assert!(pic.interrupt(), "9 goes before 12 in the second controller");
        assert_eq!(pic.acknowledge(), 0x39);
    }

    #[test]
    fn special_fully_nested_mode_lets_a_higher_slave_request_through() {
        for (icw4, expected) in [(0x01, false), (0x11, true)] {
            let mut pic = initialized();
            pic.write(0x20, 0x11);
            [0x30, 4, icw4].iter().for_each(|value| pic.write(0x21, *value));
            pulse(&mut pic, 12);
            assert_eq!(pic.acknowledge(), 0x3c);
            pulse(&mut pic, 8);
            assert_eq!(pic.interrupt(), expected, "ICW4 {icw4:#x}");
        }
    }

    #[test]
    fn level_inputs_request_as_long_as_they_are_high() {
        let mut pic = initialized();
        pic.set_elcr(0xffff);
        assert_eq!((pic.read(0x4d0), pic.read(0x4d1)), (0xf8, 0xde));
        pic.set_irq(5, true);
        assert_eq!(pic.acknowledge(), 0x35);
        pic.write(0x20, 0x20);
        assert!(pic.interrupt());
        pic.set_irq(5, false);
        assert!(!pic.interrupt());
        pic.set_irq(0, true);
        assert_eq!(pic.acknowledge(), 0x30);
        pic.write(0x20, 0x20);
        assert!(!pic.interrupt(), "0 is edge-triggered for ever");
    }

    #[test]
    fn a_request_that_went_away_is_spurious() {
        let mut pic = initialized();
        assert_eq!(pic.acknowledge(), 0x37);
        pic.write(0x20, 0x0b);
        assert_eq!(pic.read(0x20), 0, "not in service");
        // The second controller's request vanishes between its two acknowledge cycles.
        pulse(&mut pic, 10);
        let mut saved = pic.save();
        saved.chips[SLAVE].imr = 0xff;
        pic.chips = saved.chips;
        assert_eq!(pic.acknowledge(), 0x3f);
        assert_eq!(pic.read(0x20), 1 << 2, "the first controller serves its input 2");
    }

    #[test]
    fn automatic_end_of_interrupt_with_and_without_rotation() {
        let mut pic = initialized();
        pic.write(0x20, 0x11);
        [0x30, 4, 3].iter().for_each(|value| pic.write(0x21, *value));
        pulse(&mut pic, 3);
        assert_eq!(pic.acknowledge(), 0x33);
        pulse(&mut pic, 4);
        assert_eq!(pic.acknowledge(), 0x34, "nothing is in service");
        pic.write(0x20, 0x80);
        pulse(&mut pic, 3);
        assert_eq!(pic.acknowledge(), 0x33);
        pulse(&mut pic, 3);
        pulse(&mut pic, 4);
        assert_eq!(pic.acknowledge(), 0x34, "3 has become the last");
    }

    #[test]
    fn rotation_and_set_priority() {
        let mut pic = initialized();
        pic.write(0x20, 0xc0 | 4);
        pulse(&mut pic, 0);
        pulse(&mut pic, 5);
        assert_eq!(pic.acknowledge(), 0x35, "5 is first after 4");
        pic.write(0x20, 0xa0);
        pulse(&mut pic, 5);
        assert_eq!(pic.acknowledge(), 0x30, "5 has become the last");
        pic.write(0x20, 0xe0);
        pulse(&mut pic, 1);
        assert_eq!(pic.acknowledge(), 0x31);
    }

    #[test]
    fn special_mask_mode_lets_lower_requests_through() {
        let mut pic = initialized();
        pulse(&mut pic, 3);
        assert_eq!(pic.acknowledge(), 0x33);
        pulse(&mut pic, 6);
        assert!(!pic.interrupt());
        pic.write(0x21, 1 << 3);
        pic.write(0x20, 0x68);
        assert_eq!(pic.acknowledge(), 0x36);
        pic.write(0x20, 0x20);
        pic.write(0x20, 0x0b);
        assert_eq!(pic.read(0x20), 1 << 3, "a non-specific end does not reach the masked one");
    }

    #[test]
    fn a_poll_acknowledges() {
        let mut pic = initialized();
        pic.write(0x20, 0x0c);
        assert_eq!(pic.read(0x20), 0);
        pulse(&mut pic, 6);
        pic.write(0x20, 0x0c);
        assert_eq!(pic.read(0x20), 0x86);
        assert!(!pic.interrupt());
        assert_eq!(pic.read(0x20), 0, "the request is gone");
    }

    #[test]
    fn a_saved_pair_goes_on_and_an_impossible_one_is_refused() {
        let mut pic = initialized();
        pulse(&mut pic, 9);
        let saved = pic.save();
        let mut other = PicPair::new();
        other.restore(saved.clone()).unwrap();
        assert_eq!(other.acknowledge(), 0x39);
        for spoil in [
            |chip: &mut ChipSaved| chip.first = 8,
            |chip: &mut ChipSaved| chip.base = 0xff,
            |chip: &mut ChipSaved| chip.elcr = 0xff,
            |chip: &mut ChipSaved| chip.next_icw = 9,
        ] {
            let mut bad = saved.clone();
            spoil(&mut bad.chips[1]);
            assert!(other.restore(bad).is_err());
        }
    }
}

//! One 8259A.

use super::spec::*;
use serde::{Deserialize, Serialize};

/// The registers of one controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChipSaved {
    /// Levels of the inputs.
    pub(super) lines: u8,
    /// Edges not yet acknowledged.
    pub(super) edges: u8,
    /// In service.
    pub(super) isr: u8,
    /// Masked.
    pub(super) imr: u8,
    /// Level-triggered inputs.
    pub(super) elcr: u8,
    /// First vector.
    pub(super) base: u8,
    /// The input of highest priority.
    pub(super) first: u8,
    /// Which initialization word comes next (2 to 4); 0 when initialized.
    pub(super) next_icw: u8,
    pub(super) wants_icw4: bool,
    pub(super) single: bool,
    pub(super) auto_eoi: bool,
    pub(super) rotate_on_auto_eoi: bool,
    pub(super) special_fully_nested: bool,
    pub(super) special_mask: bool,
    pub(super) read_isr: bool,
    pub(super) poll: bool,
}

impl ChipSaved {
    /// Sets the level of an input.
    pub(super) fn set_line(&mut self, input: u8, level: bool) {
        let bit = 1 << input;
        if level && self.lines & bit == 0 {
            self.edges |= bit;
        }
        self.lines = self.lines & !bit | if level { bit } else { 0 };
    }

    /// The request register. An edge stays requested even when its line falls before it is acknowledged:
    /// emulated devices pulse their lines faster than any processor looks.
    pub(super) fn irr(&self) -> u8 {
        self.edges & !self.elcr | self.lines & self.elcr
    }

    /// The input to be served now: requested, not masked, and of higher priority than what is in service.
    ///
    /// `slave_input` is the input that another controller leads to. In special fully nested mode its being
    /// in service does not hold off further requests from it (data sheet, "Special fully nested mode").
    pub(super) fn pending(&self, slave_input: Option<u8>) -> Option<u8> {
        let wanted = self.rank(self.irr() & !self.imr)?;
        let mut blocking = self.isr;
        if self.special_mask {
            blocking &= !self.imr;
        }
        if let (true, Some(input)) = (self.special_fully_nested, slave_input) {
            blocking &= !(1 << input);
        }
        match self.rank(blocking) {
            Some(busy) if busy <= wanted => None,
            _ => Some((wanted + self.first) & 7),
        }
    }

    /// The highest priority (0 is first) among the inputs of a bit set.
    fn rank(&self, inputs: u8) -> Option<u8> {
        match inputs.rotate_right(self.first.into()).trailing_zeros() {
            8 => None,
            rank => Some(rank as u8),
        }
    }

    /// The processor takes an input's interrupt.
    pub(super) fn acknowledge(&mut self, input: u8) {
        let bit = 1 << input;
        self.edges &= !bit;
        if !self.auto_eoi {
            self.isr |= bit;
        } else if self.rotate_on_auto_eoi {
            self.first = (input + 1) & 7;
        }
    }

    /// Writes the command port: ICW1, OCW2 or OCW3.
    pub(super) fn write_command(&mut self, value: u8) {
        if value & ICW1_INIT != 0 {
            self.initialize(value);
        } else if value & OCW3 != 0 {
            self.write_ocw3(value);
        } else {
            self.write_ocw2(value);
        }
    }

    /// Data sheet, "Initialization command words": what ICW1 clears. The level bit is not decoded: a PC
    /// has ELCR instead.
    fn initialize(&mut self, icw1: u8) {
        *self = ChipSaved {
            lines: self.lines,
            elcr: self.elcr,
            base: self.base,
            next_icw: 2,
            wants_icw4: icw1 & ICW1_IC4 != 0,
            single: icw1 & ICW1_SINGLE != 0,
            ..ChipSaved::default()
        };
    }

    fn write_ocw2(&mut self, value: u8) {
        let input = value & 7;
        match value >> 5 {
            0b000 => self.rotate_on_auto_eoi = false,
            0b100 => self.rotate_on_auto_eoi = true,
            0b001 => drop(self.end_highest()),
            0b101 => {
                if let Some(ended) = self.end_highest() {
                    self.first = (ended + 1) & 7;
                }
            }
            0b011 => self.isr &= !(1 << input),
            0b111 => {
                self.isr &= !(1 << input);
                self.first = (input + 1) & 7;
            }
            0b110 => self.first = (input + 1) & 7,
            // 0b010: no operation.
            _ => {}
        }
    }

    /// Non-specific end of interrupt. In special mask mode a masked input is not ended by it.
    fn end_highest(&mut self) -> Option<u8> {
        let endable = if self.special_mask { self.isr & !self.imr } else { self.isr };
        let input = (self.rank(endable)? + self.first) & 7;
        self.isr &= !(1 << input);
        Some(input)
    }

    fn write_ocw3(&mut self, value: u8) {
        if value & OCW3_POLL != 0 {
            self.poll = true;
        }
        if value & OCW3_READ != 0 {
            self.read_isr = value & OCW3_ISR != 0;
        }
        if value & OCW3_ESMM != 0 {
            self.special_mask = value & OCW3_SMM != 0;
        }
    }

    /// Writes the data port: an initialization word while they are awaited, otherwise the mask.
    pub(super) fn write_data(&mut self, value: u8) {
        let after_icw3 = if self.wants_icw4 { 4 } else { 0 };
        match self.next_icw {
            2 => {
                self.base = value & 0xf8;
                self.next_icw = if self.single { after_icw3 } else { 3 };
            }
            // The cascade is wired as it is, whatever ICW3 says.
            3 => self.next_icw = after_icw3,
            4 => {
                self.special_fully_nested = value & ICW4_SFNM != 0;
                self.auto_eoi = value & ICW4_AEOI != 0;
                self.next_icw = 0;
            }
            _ => self.imr = value,
        }
    }
}

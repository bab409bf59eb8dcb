//! The keyboard controller as registers.

use super::spec::*;
use super::translation::{UP, translate};
use device::state::{RestoreError, SaveRestore};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Answers and input that wait to be read; more is lost, as in the controller's one buffer.
const QUEUE_MAX: usize = 64;

/// The state of the controller.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct I8042Saved {
    /// Byte 0 is the configuration.
    ram: [u8; 32],
    output_port: u8,
    /// The command whose data byte is awaited.
    command: Option<u8>,
    /// The last write went to the command port.
    last_was_command: bool,
    /// Status bits and byte of what waits to be read; the first is in the output buffer.
    queue: VecDeque<(u8, u8)>,
    /// What was read last: reading again gives it again.
    last_read: u8,
    /// With translation: the keyboard has said that a key goes up, and the key follows.
    #[serde(default)]
    going_up: bool,
}

/// What a register access asks of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum I8042Effect {
    /// Reset the machine.
    Reset,
    /// The keyboard port sends a byte to its device.
    ToKeyboard(u8),
    /// The auxiliary port sends a byte to its device.
    ToAux(u8),
}

/// The controller.
#[derive(Clone, Debug)]
pub struct I8042Model {
    regs: I8042Saved,
    has_keyboard: bool,
    has_aux: bool,
}

impl I8042Model {
    /// The controller after firmware has tested it, with devices in the ports named.
    pub fn new(has_keyboard: bool, has_aux: bool) -> I8042Model {
        let mut ram = [0; 32];
        ram[0] = CONFIG_KEYBOARD_IRQ | CONFIG_SYSTEM | CONFIG_AUX_OFF | CONFIG_TRANSLATE;
        let regs = I8042Saved {
            ram,
            output_port: OUTPUT_NO_RESET | OUTPUT_A20,
            command: None,
            last_was_command: false,
            queue: VecDeque::new(),
            last_read: 0,
            going_up: false,
        };
        I8042Model { regs, has_keyboard, has_aux }
    }

    /// Plugs devices in or out.
    pub fn set_devices(&mut self, has_keyboard: bool, has_aux: bool) {
        (self.has_keyboard, self.has_aux) = (has_keyboard, has_aux);
    }

    /// Puts the controller in its state after power-on.
    pub fn reset(&mut self) {
        *self = I8042Model::new(self.has_keyboard, self.has_aux);
    }

    /// The levels of the keyboard's and the auxiliary port's interrupt lines.
    pub fn interrupts(&self) -> (bool, bool) {
        let (config, first) = (self.regs.ram[0], self.regs.queue.front());
        let from_aux = first.is_some_and(|(status, _)| status & STATUS_AUX != 0);
        (
            first.is_some() && !from_aux && config & CONFIG_KEYBOARD_IRQ != 0,
            from_aux && config & CONFIG_AUX_IRQ != 0,
        )
    }

    /// Whether address line 20 passes. It always does in this machine; the bit is only remembered.
    pub fn a20(&self) -> bool {
        self.regs.output_port & OUTPUT_A20 != 0
    }

    /// Whether the keyboard may send a byte: its clock runs, and nothing waits to be read.
    pub fn takes_from_keyboard(&self) -> bool {
        self.regs.ram[0] & CONFIG_KEYBOARD_OFF == 0 && self.regs.queue.is_empty()
    }

    /// The keyboard sends a byte of scan code set 2; lost when the port is switched off.
    pub fn from_keyboard(&mut self, byte: u8) {
        if self.regs.ram[0] & CONFIG_KEYBOARD_OFF != 0 {
            return;
        }
        if self.regs.ram[0] & CONFIG_TRANSLATE == 0 {
            self.answer(0, byte);
        } else if byte == UP {
            self.regs.going_up = true;
        } else {
            let up = std::mem::take(&mut self.regs.going_up);
            self.answer(0, translate(byte, up));
        }
    }

    /// The auxiliary device sends a byte; lost when the port is switched off.
    pub fn from_aux(&mut self, byte: u8) {
        if self.regs.ram[0] & CONFIG_AUX_OFF == 0 {
            self.answer(STATUS_AUX, byte);
        }
    }

    /// Reads a port.
    pub fn read(&mut self, port: u16) -> u8 {
        match port {
            PORT_DATA => {
                if let Some((_, byte)) = self.regs.queue.pop_front() {
                    self.regs.last_read = byte;
                }
                self.regs.last_read
            }
            PORT_COMMAND => self.status(),
            PORT_SYSTEM_A => {
                if self.a20() {
                    SYSTEM_A_A20
                } else {
                    0
                }
            }
            _ => 0xff,
        }
    }

    /// Writes a port.
    pub fn write(&mut self, port: u16, value: u8) -> Option<I8042Effect> {
        match port {
            PORT_DATA => self.write_data(value),
            PORT_COMMAND => self.write_command(value),
            PORT_SYSTEM_A => {
                self.set_a20(value & SYSTEM_A_A20 != 0);
                (value & SYSTEM_A_RESET != 0).then_some(I8042Effect::Reset)
            }
            _ => None,
        }
    }

    fn status(&self) -> u8 {
        let mut status = STATUS_UNLOCKED;
        if let Some((source, _)) = self.regs.queue.front() {
            status |= STATUS_OUTPUT_FULL | source;
        }
        if self.regs.ram[0] & CONFIG_SYSTEM != 0 {
            status |= STATUS_SYSTEM;
        }
        if self.regs.last_was_command {
            status |= STATUS_COMMAND;
        }
        status
    }

    fn answer(&mut self, source: u8, byte: u8) {
        if self.regs.queue.len() < QUEUE_MAX {
            self.regs.queue.push_back((source, byte));
        }
    }

    fn write_command(&mut self, command: u8) -> Option<I8042Effect> {
        self.regs.last_was_command = true;
        self.regs.command = None;
        let config = self.regs.ram[0];
        match command {
            0x20..0x40 => self.answer(0, self.regs.ram[(command & 0x1f) as usize]),
            0x60..0x80 | CMD_WRITE_OUTPUT | CMD_LOOP_KEYBOARD | CMD_LOOP_AUX | CMD_WRITE_AUX => {
                self.regs.command = Some(command);
            }
            // Without an auxiliary port its bit in the configuration cannot be changed, by which drivers
            // see that there is none.
            CMD_AUX_OFF if self.has_aux => self.regs.ram[0] = config | CONFIG_AUX_OFF,
            CMD_AUX_ON if self.has_aux => self.regs.ram[0] = config & !CONFIG_AUX_OFF,
            CMD_AUX_TEST => self.answer(0, if self.has_aux { LINES_GOOD } else { LINES_DEAD }),
            CMD_SELF_TEST => {
                self.regs.going_up = false;
                self.regs.ram[0] |= CONFIG_SYSTEM;
                self.regs.queue.clear();
                self.answer(0, SELF_TEST_PASSED);
            }
            CMD_KEYBOARD_TEST => self.answer(0, LINES_GOOD),
            CMD_KEYBOARD_OFF => self.regs.ram[0] = config | CONFIG_KEYBOARD_OFF,
            CMD_KEYBOARD_ON => self.regs.ram[0] = config & !CONFIG_KEYBOARD_OFF,
            CMD_READ_INPUT => self.answer(0, 0x80),
            CMD_READ_OUTPUT => self.answer(0, self.output_port()),
            CMD_PULSE.. if command & OUTPUT_NO_RESET == 0 => return Some(I8042Effect::Reset),
            _ => {}
        }
        None
    }

    fn write_data(&mut self, value: u8) -> Option<I8042Effect> {
        self.regs.last_was_command = false;
        let Some(command) = self.regs.command.take() else {
            // For the keyboard. Writing to it switches its clock on.
            self.regs.ram[0] &= !CONFIG_KEYBOARD_OFF;
            if self.has_keyboard {
                return Some(I8042Effect::ToKeyboard(value));
            }
            self.answer(STATUS_TIMEOUT, NO_ANSWER);
            return None;
        };
        match command {
            CMD_WRITE_OUTPUT => {
                self.set_a20(value & OUTPUT_A20 != 0);
                return (value & OUTPUT_NO_RESET == 0).then_some(I8042Effect::Reset);
            }
            CMD_LOOP_KEYBOARD => self.answer(0, value),
            // A controller without that port gives the byte back without naming the port.
            CMD_LOOP_AUX => self.answer(if self.has_aux { STATUS_AUX } else { 0 }, value),
            CMD_WRITE_AUX if self.has_aux => {
                self.regs.ram[0] &= !CONFIG_AUX_OFF;
                return Some(I8042Effect::ToAux(value));
            }
            CMD_WRITE_AUX => self.answer(STATUS_AUX | STATUS_TIMEOUT, NO_ANSWER),
            CMD_WRITE_RAM => {
                let fixed = if self.has_aux { 0 } else { CONFIG_AUX_OFF };
                self.regs.ram[0] = value & !CONFIG_AUX_OFF | (value | fixed) & CONFIG_AUX_OFF;
            }
            _ => self.regs.ram[(command & 0x1f) as usize] = value,
        }
        None
    }

    fn output_port(&self) -> u8 {
        let (keyboard, aux) = self.interrupts();
        self.regs.output_port | (keyboard as u8) << 4 | (aux as u8) << 5
    }

    fn set_a20(&mut self, on: bool) {
        let others = self.regs.output_port & !OUTPUT_A20;
        self.regs.output_port = others | if on { OUTPUT_A20 } else { 0 };
    }
}

impl SaveRestore for I8042Model {
    type Saved = I8042Saved;

    fn save(&self) -> I8042Saved {
        self.regs.clone()
    }

    fn restore(&mut self, saved: I8042Saved) -> Result<(), RestoreError> {
        let refuse = |reason| Err(RestoreError::new("keyboard controller", reason));
        if saved.queue.len() > QUEUE_MAX {
            return refuse("more bytes wait than fit");
        }
        if saved.queue.iter().any(|(source, _)| source & !(STATUS_AUX | STATUS_TIMEOUT) != 0)
            || saved.output_port & !(OUTPUT_NO_RESET | OUTPUT_A20) != 0
        {
            return refuse("a register has bits that do not exist");
        }
        self.regs = saved;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends a command with its data and returns the answer with its status, if there is one.
    fn command(model: &mut I8042Model, command: u8, data: Option<u8>) -> Option<(u8, u8)> {
        assert_eq!(model.write(PORT_COMMAND, command), None);
        if let Some(data) = data {
            assert_eq!(model.write(PORT_DATA, data), None);
        }
        let status = model.read(PORT_COMMAND);
        (status & STATUS_OUTPUT_FULL != 0).then(|| (status, model.read(PORT_DATA)))
    }

    /// The steps of Linux's i8042 driver in a machine without keyboard and mouse.
    #[test]
    fn linux_finds_a_working_controller_with_nothing_in_its_ports() {
        let mut model = I8042Model::new(false, false);
        assert_eq!(model.read(PORT_COMMAND) & STATUS_OUTPUT_FULL, 0, "nothing to flush");
        let config = command(&mut model, CMD_READ_RAM, None).unwrap().1;
        assert_eq!(command(&mut model, CMD_SELF_TEST, None).unwrap().1, SELF_TEST_PASSED);
        assert_eq!(command(&mut model, CMD_WRITE_RAM, Some(config | 0x30 & !1)), None);
        // No auxiliary port: the loop does not name it and the line test fails.
        let (status, _) = command(&mut model, CMD_LOOP_AUX, Some(0x5a)).unwrap();
        assert_eq!(status & STATUS_AUX, 0);
        assert_eq!(command(&mut model, CMD_AUX_TEST, None).unwrap().1, LINES_DEAD);
        // No keyboard: everything sent to it times out at once, with an interrupt.
        assert_eq!(command(&mut model, CMD_WRITE_RAM, Some(CONFIG_KEYBOARD_IRQ)), None);
        for byte in [0xff, 0xf2, 0xed] {
            assert_eq!(model.write(PORT_DATA, byte), None);
            assert_eq!(model.interrupts(), (true, false));
            assert_ne!(model.read(PORT_COMMAND) & STATUS_TIMEOUT, 0);
            assert_eq!(model.read(PORT_DATA), NO_ANSWER);
            assert_eq!(model.interrupts(), (false, false));
        }
    }

    #[test]
    fn every_way_to_reset_works() {
        let mut model = I8042Model::new(false, false);
        assert_eq!(model.write(PORT_COMMAND, 0xfe), Some(I8042Effect::Reset));
        assert_eq!(model.write(PORT_COMMAND, 0xff), None);
        assert_eq!(model.write(PORT_SYSTEM_A, 3), Some(I8042Effect::Reset));
        assert_eq!(model.write(PORT_COMMAND, CMD_WRITE_OUTPUT), None);
        assert_eq!(model.write(PORT_DATA, 0xfe), Some(I8042Effect::Reset));
    }

    #[test]
    fn a20_reads_back_in_both_places() {
        let mut model = I8042Model::new(false, false);
        for on in [false, true] {
            model.write(PORT_SYSTEM_A, (on as u8) << 1);
            let output = command(&mut model, CMD_READ_OUTPUT, None).unwrap().1;
            assert_eq!((model.a20(), output & OUTPUT_A20 != 0), (on, on));
            assert_eq!(model.read(PORT_SYSTEM_A), (on as u8) << 1);
        }
    }

    #[test]
    fn devices_in_the_ports_are_reached_and_heard() {
        let mut model = I8042Model::new(true, true);
        assert_eq!(model.write(PORT_DATA, 0xf4), Some(I8042Effect::ToKeyboard(0xf4)));
        model.write(PORT_COMMAND, CMD_WRITE_AUX);
        assert_eq!(model.write(PORT_DATA, 0xf4), Some(I8042Effect::ToAux(0xf4)));
        command(&mut model, CMD_WRITE_RAM, Some(CONFIG_KEYBOARD_IRQ | CONFIG_AUX_IRQ));
        model.from_aux(0xfa);
        model.from_keyboard(0xfa);
        assert_eq!(model.interrupts(), (false, true));
        assert_ne!(model.read(PORT_COMMAND) & STATUS_AUX, 0);
        model.read(PORT_DATA);
        assert_eq!(model.interrupts(), (true, false));
        model.write(PORT_COMMAND, CMD_KEYBOARD_OFF);
        model.read(PORT_DATA);
        model.from_keyboard(1);
        assert_eq!(model.interrupts(), (false, false));
        (0..1000).for_each(|_| model.from_aux(1));
        assert_eq!(model.regs.queue.len(), QUEUE_MAX);
    }

    #[test]
    fn a_saved_controller_goes_on_and_an_impossible_one_is_refused() {
        let mut model = I8042Model::new(false, false);
        model.write(PORT_COMMAND, CMD_WRITE_RAM + 5);
        let saved = model.save();
        let mut other = I8042Model::new(false, false);
        other.restore(saved.clone()).unwrap();
        other.write(PORT_DATA, 0x77);
        assert_eq!(command(&mut other, CMD_READ_RAM + 5, None).unwrap().1, 0x77);
        for bad in [
            I8042Saved { queue: vec![(0, 0); QUEUE_MAX + 1].into(), ..saved.clone() },
            I8042Saved { queue: [(1, 0)].into(), ..saved.clone() },
            I8042Saved { output_port: 0x80, ..saved },
        ] {
            assert!(other.restore(bad).is_err());
        }
    }
}

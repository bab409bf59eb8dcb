//! A PS/2 keyboard as a state machine: what it answers to commands, and the codes that its keys send
//! (IBM Personal System/2 Hardware Interface Technical Reference, "Keyboard (101/102-Key)").

use super::keys::Key;
use super::spec::*;
use super::translation::to_set_1;
use device::state::{RestoreError, SaveRestore};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Bytes that wait to be read; keys that do not fit any more are lost, whole.
const OUTPUT_MAX: usize = 32;

/// The state of a keyboard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyboardSaved {
    scanning: bool,
    /// The set of scan codes, 1 or 2.
    set: u8,
    leds: u8,
    typematic: u8,
    /// The command whose data byte is awaited.
    command: Option<u8>,
    output: VecDeque<u8>,
    last_sent: u8,
    /// Keys that are down, by number.
    held: Vec<u8>,
}

/// The keyboard.
#[derive(Clone, Debug)]
pub struct KeyboardModel {
    state: KeyboardSaved,
}

impl Default for KeyboardModel {
    fn default() -> KeyboardModel {
        KeyboardModel::new()
    }
}

impl KeyboardModel {
    /// A keyboard after power-on.
    pub fn new() -> KeyboardModel {
        let state = KeyboardSaved {
            scanning: true,
            set: 2,
            leds: 0,
            typematic: TYPEMATIC_DEFAULT,
            command: None,
            output: VecDeque::new(),
            last_sent: 0,
            held: Vec::new(),
        };
        KeyboardModel { state }
    }

    /// Takes a byte from the controller.
    pub fn receive(&mut self, byte: u8) {
        let state = &mut self.state;
        if let Some(command) = state.command.take()
            && byte < KEYBOARD_SET_LEDS
        {
            return self.data(command, byte);
        }
        match byte {
            KEYBOARD_RESET => {
                let held = std::mem::take(&mut state.held);
                *self = KeyboardModel::new();
                self.state.held = held;
                self.answer(&[KEYBOARD_ACK, KEYBOARD_TEST_PASSED]);
            }
            KEYBOARD_RESEND => {
                let last = state.last_sent;
                self.answer(&[last]);
            }
            KEYBOARD_DEFAULTS | KEYBOARD_DISABLE => {
                (state.set, state.typematic, state.scanning) =
                    (2, TYPEMATIC_DEFAULT, byte == KEYBOARD_DEFAULTS);
                state.output.clear();
                self.answer(&[KEYBOARD_ACK]);
            }
            KEYBOARD_ENABLE => {
                state.scanning = true;
                state.output.clear();
                self.answer(&[KEYBOARD_ACK]);
            }
            KEYBOARD_IDENTIFY => self.answer(&[KEYBOARD_ACK, KEYBOARD_ID[0], KEYBOARD_ID[1]]),
            KEYBOARD_ECHO => self.answer(&[KEYBOARD_ECHO]),
            KEYBOARD_SET_LEDS | KEYBOARD_SET | KEYBOARD_TYPEMATIC => {
                state.command = Some(byte);
                self.answer(&[KEYBOARD_ACK]);
            }
            _ => self.answer(&[KEYBOARD_RESEND]),
        }
    }

    fn data(&mut self, command: u8, byte: u8) {
        match (command, byte) {
            (KEYBOARD_SET_LEDS, leds) => self.state.leds = leds & 7,
            (KEYBOARD_TYPEMATIC, rate) => self.state.typematic = rate & 0x7f,
            (_, 0) => {
                let set = self.state.set;
                return self.answer(&[KEYBOARD_ACK, set]);
            }
            (_, set @ 1..=2) => self.state.set = set,
            // Set 3 is not there.
            _ => return self.answer(&[KEYBOARD_RESEND]),
        }
        self.answer(&[KEYBOARD_ACK]);
    }

    fn answer(&mut self, bytes: &[u8]) {
        if self.state.output.len() + bytes.len() <= OUTPUT_MAX {
            self.state.output.extend(bytes);
        }
    }

    /// A key goes down or up.
    pub fn key(&mut self, key: Key, down: bool) {
        let held = &mut self.state.held;
        held.retain(|other| *other != key.index());
        if down {
            held.push(key.index());
        }
        if !self.state.scanning {
            return;
        }
        let mut codes = key.codes(down);
        if self.state.set == 1 {
            codes = to_set_1(&codes);
        }
        self.answer(&codes);
    }

    /// The keys that are down.
    pub fn held(&self) -> Vec<Key> {
        self.state.held.iter().filter_map(|index| Key::from_index(*index)).collect()
    }

    /// The next byte for the controller.
    pub fn take(&mut self) -> Option<u8> {
        let byte = self.state.output.pop_front()?;
        self.state.last_sent = byte;
        Some(byte)
    }
}

impl SaveRestore for KeyboardModel {
    type Saved = KeyboardSaved;

    fn save(&self) -> KeyboardSaved {
        self.state.clone()
    }

    fn restore(&mut self, saved: KeyboardSaved) -> Result<(), RestoreError> {
        if !(1..=2).contains(&saved.set)
            || saved.output.len() > OUTPUT_MAX
            || saved.held.len() > 256
            || saved.held.iter().any(|index| Key::from_index(*index).is_none())
        {
            return Err(RestoreError::new("keyboard", "a value is one that it can never have"));
        }
        self.state = saved;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(keyboard: &mut KeyboardModel) -> Vec<u8> {
        std::iter::from_fn(|| keyboard.take()).collect()
    }

    /// What Linux's atkbd sends, and what it expects.
    #[test]
    fn a_driver_finds_a_keyboard() {
        let mut keyboard = KeyboardModel::new();
        for (bytes, answer) in [
            (&[0xff][..], &[0xfa, 0xaa][..]),
            (&[0xf2], &[0xfa, 0xab, 0x83]),
            (&[0xed, 0x07], &[0xfa, 0xfa]),
            (&[0xf3, 0x00], &[0xfa, 0xfa]),
            (&[0xf0, 0x02], &[0xfa, 0xfa]),
            (&[0xf0, 0x00], &[0xfa, 0xfa, 2]),
            (&[0xf0, 0x03], &[0xfa, 0xfe]),
            (&[0xee], &[0xee]),
            (&[0xfe], &[0xee]),
            (&[0x42], &[0xfe]),
            (&[0xf4], &[0xfa]),
        ] {
            bytes.iter().for_each(|byte| keyboard.receive(*byte));
            assert_eq!(drain(&mut keyboard), answer, "{bytes:x?}");
        }
    }

    #[test]
    fn keys_send_codes_of_the_chosen_set_while_scanning() {
        let mut keyboard = KeyboardModel::new();
        let delete = Key::named("delete").unwrap();
        keyboard.key(delete, true);
        keyboard.key(delete, false);
        assert_eq!(drain(&mut keyboard), [0xe0, 0x71, 0xe0, 0xf0, 0x71]);
        [0xf0, 1].into_iter().for_each(|byte| keyboard.receive(byte));
        drain(&mut keyboard);
        keyboard.key(delete, true);
        assert_eq!(keyboard.held(), [delete]);
        keyboard.key(delete, false);
        assert_eq!(drain(&mut keyboard), [0xe0, 0x53, 0xe0, 0xd3]);
        keyboard.receive(0xf5);
        drain(&mut keyboard);
        keyboard.key(delete, true);
        assert!(drain(&mut keyboard).is_empty());
    }

    #[test]
    fn a_saved_keyboard_goes_on_and_an_impossible_one_is_refused() {
        let mut keyboard = KeyboardModel::new();
        keyboard.receive(0xf0);
        let mut other = KeyboardModel::new();
        other.restore(keyboard.save()).unwrap();
        other.receive(1);
        assert_eq!(other.state.set, 1);
        let good = keyboard.save();
        for bad in [
            KeyboardSaved { set: 3, ..good.clone() },
            KeyboardSaved { output: vec![0; 33].into(), ..good.clone() },
            KeyboardSaved { held: vec![255], ..good },
        ] {
            assert!(other.restore(bad).is_err());
        }
    }
}

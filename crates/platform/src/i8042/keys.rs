//! Keys: their names, their scan codes, and which of them make a text.

use std::fmt;

/// A key of a keyboard with 104 keys, US layout. Ordered and named as in the table of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u8);

/// Name and scan code of set 2 (high byte 0xE0 for extended ones).
const KEYS: [(&str, u16); 100] = [
    ("a", 0x1c),
    ("b", 0x32),
    ("c", 0x21),
    ("d", 0x23),
    ("e", 0x24),
    ("f", 0x2b),
    ("g", 0x34),
    ("h", 0x33),
    ("i", 0x43),
    ("j", 0x3b),
    ("k", 0x42),
    ("l", 0x4b),
    ("m", 0x3a),
    ("n", 0x31),
    ("o", 0x44),
    ("p", 0x4d),
    ("q", 0x15),
    ("r", 0x2d),
    ("s", 0x1b),
    ("t", 0x2c),
    ("u", 0x3c),
    ("v", 0x2a),
    ("w", 0x1d),
    ("x", 0x22),
    ("y", 0x35),
    ("z", 0x1a),
    ("0", 0x45),
    ("1", 0x16),
    ("2", 0x1e),
    ("3", 0x26),
    ("4", 0x25),
    ("5", 0x2e),
    ("6", 0x36),
    ("7", 0x3d),
    ("8", 0x3e),
    ("9", 0x46),
    ("enter", 0x5a),
    ("esc", 0x76),
    ("backspace", 0x66),
    ("tab", 0x0d),
    ("space", 0x29),
    ("minus", 0x4e),
    ("equal", 0x55),
    ("bracketleft", 0x54),
    ("bracketright", 0x5b),
    ("backslash", 0x5d),
    ("semicolon", 0x4c),
    ("apostrophe", 0x52),
    ("grave", 0x0e),
    ("comma", 0x41),
    ("period", 0x49),
    ("slash", 0x4a),
    ("less", 0x61),
    ("shift", 0x12),
    ("ctrl", 0x14),
    ("alt", 0x11),
    ("rshift", 0x59),
    ("rctrl", 0xe014),
    ("altgr", 0xe011),
    ("meta", 0xe01f),
    ("rmeta", 0xe027),
    ("menu", 0xe02f),
    ("capslock", 0x58),
    ("numlock", 0x77),
    ("scrolllock", 0x7e),
    ("f1", 0x05),
    ("f2", 0x06),
    ("f3", 0x04),
    ("f4", 0x0c),
    ("f5", 0x03),
    ("f6", 0x0b),
    ("f7", 0x83),
    ("f8", 0x0a),
    ("f9", 0x01),
    ("f10", 0x09),
    ("f11", 0x78),
    ("f12", 0x07),
    ("up", 0xe075),
    ("down", 0xe072),
    ("left", 0xe06b),
    ("right", 0xe074),
    ("home", 0xe06c),
    ("end", 0xe069),
    ("pageup", 0xe07d),
    ("pagedown", 0xe07a),
    ("insert", 0xe070),
    ("delete", 0xe071),
    ("kp0", 0x70),
    ("kp1", 0x69),
    ("kp2", 0x72),
    ("kp3", 0x7a),
    ("kp4", 0x6b),
    ("kp5", 0x73),
    ("kp6", 0x74),
    ("kp7", 0x6c),
    ("kp8", 0x75),
    ("kp9", 0x7d),
    ("kpplus", 0x79),
    ("kpminus", 0x7b),
    ("kpenter", 0xe05a),
];

/// Other names that people know.
const ALIASES: [(&str, &str); 9] = [
    ("return", "enter"),
    ("ret", "enter"),
    ("escape", "esc"),
    ("control", "ctrl"),
    ("del", "delete"),
    ("ins", "insert"),
    ("pgup", "pageup"),
    ("pgdn", "pagedown"),
    ("win", "meta"),
];

/// Keys of the US layout that are not letters, digits or lower ones: what they give, without and with shift.
const SYMBOLS: [(char, char, &str); 21] = [
    ('1', '!', "1"),
    ('2', '@', "2"),
    ('3', '#', "3"),
    ('4', '$', "4"),
    ('5', '%', "5"),
    ('6', '^', "6"),
    ('7', '&', "7"),
    ('8', '*', "8"),
    ('9', '(', "9"),
    ('0', ')', "0"),
    ('-', '_', "minus"),
    ('=', '+', "equal"),
    ('[', '{', "bracketleft"),
    (']', '}', "bracketright"),
    ('\\', '|', "backslash"),
    (';', ':', "semicolon"),
    ('\'', '"', "apostrophe"),
    ('`', '~', "grave"),
    (',', '<', "comma"),
    ('.', '>', "period"),
    ('/', '?', "slash"),
];

/// Keys pressed together: down in this order, up in the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stroke(Vec<Key>);

/// The most keys of one stroke.
const STROKE_KEYS_MAX: usize = 6;

/// Why keys cannot be pressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// There is no key of this name.
    UnknownKey(String),
    /// No key gives this letter.
    UnknownLetter(char),
    /// More keys at once than hands have.
    TooManyKeys,
    /// What was typed before is still waiting for the guest.
    Busy,
    /// The machine has no keyboard.
    NoKeyboard,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyError::UnknownKey(name) => write!(
                f,
                "there is no key {name:?}: write a letter or digit, or enter, esc, tab, space, backspace, up, down, \
                 left, right, home, end, pageup, pagedown, insert, delete, f1 to f12, and ctrl-alt-delete for keys \
                 together"
            ),
            KeyError::UnknownLetter(letter) => {
                write!(f, "no key of a US keyboard gives {letter:?}: type ASCII text")
            }
            KeyError::TooManyKeys => write!(f, "at most {STROKE_KEYS_MAX} keys can be pressed together"),
            KeyError::Busy => f.write_str("what was typed before still waits for the guest: try again later"),
            KeyError::NoKeyboard => f.write_str("the machine has no keyboard: start it with a display"),
        }
    }
}

impl std::error::Error for KeyError {}

impl Key {
    /// The key of a name.
    pub fn named(name: &str) -> Option<Key> {
        let lower = name.to_ascii_lowercase();
        let name = ALIASES.iter().find(|(alias, _)| *alias == lower).map_or(lower.as_str(), |(_, name)| name);
        KEYS.iter().position(|(known, _)| *known == name).map(|index| Key(index as u8))
    }

    /// The bytes of set 2 for the key going down or up.
    pub(super) fn codes(self, down: bool) -> Vec<u8> {
        let code = KEYS[usize::from(self.0)].1;
        let mut bytes = Vec::with_capacity(3);
        if code >> 8 != 0 {
            bytes.push(0xe0);
        }
        if !down {
            bytes.push(0xf0);
        }
        bytes.push(code as u8);
        bytes
    }

    pub(super) fn index(self) -> u8 {
        self.0
    }

    pub(super) fn from_index(index: u8) -> Option<Key> {
        (usize::from(index) < KEYS.len()).then_some(Key(index))
    }
}

impl Stroke {
    /// Reads names of keys that are pressed together, with hyphens in between: `ctrl-alt-delete`.
    ///
    /// # Errors
    /// When a name is not known, or there are too many.
    pub fn named(text: &str) -> Result<Stroke, KeyError> {
        let unknown = |name: &str| KeyError::UnknownKey(name.to_owned());
        let names: Vec<&str> = text.split(['-', '+']).collect();
        if names.len() > STROKE_KEYS_MAX {
            return Err(KeyError::TooManyKeys);
        }
        names
            .iter()
            .map(|name| Key::named(name).ok_or_else(|| unknown(name)))
            .collect::<Result<_, _>>()
            .map(Stroke)
    }

    /// The strokes that type a text on a US keyboard.
    ///
    /// # Errors
    /// When no key gives a letter.
    pub fn typing(text: &str) -> Result<Vec<Stroke>, KeyError> {
        text.chars().map(Stroke::of_letter).collect()
    }

    fn of_letter(letter: char) -> Result<Stroke, KeyError> {
        let plain = |name: &str| Key::named(name).map(|key| Stroke(vec![key]));
        let shifted = |name: &str| {
            let (shift, key) = (Key::named("shift")?, Key::named(name)?);
            Some(Stroke(vec![shift, key]))
        };
        let stroke = match letter {
            '\n' | '\r' => plain("enter"),
            '\t' => plain("tab"),
            '\u{8}' | '\u{7f}' => plain("backspace"),
            '\u{1b}' => plain("esc"),
            ' ' => plain("space"),
            'a'..='z' => plain(letter.encode_utf8(&mut [0; 4])),
            'A'..='Z' => shifted(letter.to_ascii_lowercase().encode_utf8(&mut [0; 4])),
            _ => match SYMBOLS.iter().find(|(low, high, _)| *low == letter || *high == letter) {
                Some((low, _, name)) if *low == letter => plain(name),
                Some((_, _, name)) => shifted(name),
                None => None,
            },
        };
        stroke.ok_or(KeyError::UnknownLetter(letter))
    }

    /// The keys in the order in which they go down.
    pub fn keys(&self) -> &[Key] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_letters_become_keys() {
        let codes =
            |stroke: &Stroke| stroke.keys().iter().flat_map(|key| key.codes(true)).collect::<Vec<_>>();
        assert_eq!(codes(&Stroke::named("ctrl-alt-delete").unwrap()), [0x14, 0x11, 0xe0, 0x71]);
        assert_eq!(Stroke::named("Return"), Stroke::named("enter"));
        assert_eq!(Key::named("rctrl").unwrap().codes(false), [0xe0, 0xf0, 0x14]);
        let typed: Vec<_> = Stroke::typing("aA~\n").unwrap().iter().map(codes).collect();
        assert_eq!(typed, [vec![0x1c], vec![0x12, 0x1c], vec![0x12, 0x0e], vec![0x5a]]);
        let ascii: String = (' '..='~').collect();
        assert_eq!(Stroke::typing(&ascii).unwrap().len(), 95);
        assert_eq!(Stroke::typing("ä"), Err(KeyError::UnknownLetter('ä')));
        assert_eq!(Stroke::named("ctrl-x-fly"), Err(KeyError::UnknownKey("fly".into())));
        assert_eq!(Stroke::named("a-a-a-a-a-a-a"), Err(KeyError::TooManyKeys));
        assert!(KEYS.iter().all(|(name, _)| Key::named(name).is_some()));
    }
}

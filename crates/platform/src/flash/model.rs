//! The chip: contents and commands.

use super::spec::*;
use device::state::{RestoreError, SaveRestore};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// What reads show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Shows {
    Array,
    Status,
}

/// What the next write is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Expects {
    Command,
    /// The byte to program.
    Byte,
    /// The confirmation of an erase.
    EraseConfirmation,
    /// The length of a buffered write, less one.
    Count,
    /// Bytes for the buffer, of which so many are missing.
    Buffer {
        missing: usize,
        writes: Vec<(u32, u8)>,
    },
    /// The confirmation of a buffered write.
    ProgramConfirmation {
        writes: Vec<(u32, u8)>,
    },
}

/// The chip's state: the blocks that are not blank, and where it stands in a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlashSaved {
    blocks: Vec<(u32, Vec<u8>)>,
    shows: Shows,
    expects: Expects,
    status: u8,
}

/// A flash chip.
#[derive(Clone, Debug)]
pub struct FlashModel {
    data: Vec<u8>,
    shows: Shows,
    expects: Expects,
    status: u8,
}

impl FlashModel {
    /// A chip with these contents, of which it keeps the length.
    pub fn new(data: Vec<u8>) -> FlashModel {
        FlashModel { data, shows: Shows::Array, expects: Expects::Command, status: 0 }
    }

    /// Puts the chip in its state after power-on. Its contents stay.
    pub fn reset(&mut self) {
        (self.shows, self.expects, self.status) = (Shows::Array, Expects::Command, 0);
    }

    /// The contents.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Reads bytes at `offset`.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        match self.shows {
            Shows::Status => data.fill(self.status),
            Shows::Array => {
                for (byte, at) in data.iter_mut().zip(offset..) {
                    *byte = self.data.get(at).copied().unwrap_or(BLANK);
                }
            }
        }
    }

    /// Writes one byte at `offset`: a command or what belongs to one. Returns what of the contents has
    /// changed.
    pub fn write(&mut self, offset: usize, value: u8) -> Option<Range<usize>> {
        match std::mem::replace(&mut self.expects, Expects::Command) {
            Expects::Command => {
                self.command(value);
                None
            }
            Expects::Byte => self.program(&[(offset as u32, value)]),
            Expects::EraseConfirmation if value == CONFIRM => self.erase(offset),
            Expects::Count if (value as usize) < BUFFER_SIZE => {
                self.expects = Expects::Buffer { missing: value as usize + 1, writes: Vec::new() };
                None
            }
            Expects::Buffer { missing, mut writes } => {
                writes.push((offset as u32, value));
                self.expects = match missing - 1 {
                    0 => Expects::ProgramConfirmation { writes },
                    missing => Expects::Buffer { missing, writes },
                };
                None
            }
            Expects::ProgramConfirmation { writes } if value == CONFIRM => self.program(&writes),
            Expects::EraseConfirmation | Expects::Count | Expects::ProgramConfirmation { .. } => {
                self.status |= STATUS_READY | STATUS_ERASE_ERROR | STATUS_PROGRAM_ERROR;
                self.shows = Shows::Status;
                None
            }
        }
    }

    fn command(&mut self, command: u8) {
        self.shows = Shows::Status;
        match command {
            READ_STATUS => {}
            CLEAR_STATUS => self.status = 0,
            PROGRAM | PROGRAM_ALTERNATE => self.expects = Expects::Byte,
            ERASE_BLOCK => self.expects = Expects::EraseConfirmation,
            BUFFERED_PROGRAM => {
                self.status |= STATUS_READY;
                self.expects = Expects::Count;
            }
            // READ_ARRAY, and whatever is not known.
            _ => self.shows = Shows::Array,
        }
    }

    /// Programming clears bits and sets none.
    fn program(&mut self, writes: &[(u32, u8)]) -> Option<Range<usize>> {
        self.status |= STATUS_READY;
        let mut changed: Option<Range<usize>> = None;
        for (offset, value) in writes {
            let at = *offset as usize;
            if let Some(byte) = self.data.get_mut(at) {
                *byte &= value;
                changed = Some(match changed {
                    None => at..at + 1,
                    Some(range) => range.start.min(at)..range.end.max(at + 1),
                });
            }
        }
        changed
    }

    fn erase(&mut self, offset: usize) -> Option<Range<usize>> {
        self.status |= STATUS_READY;
        let start = offset - offset % BLOCK_SIZE;
        let end = (start + BLOCK_SIZE).min(self.data.len());
        self.data.get_mut(start..end)?.fill(BLANK);
        Some(start..end)
    }
}

impl SaveRestore for FlashModel {
    type Saved = FlashSaved;

    fn save(&self) -> FlashSaved {
        let blocks = self.data.chunks(BLOCK_SIZE).enumerate();
        let used = blocks.filter(|(_, block)| block.iter().any(|byte| *byte != BLANK));
        FlashSaved {
            blocks: used.map(|(index, block)| (index as u32, block.to_vec())).collect(),
            shows: self.shows,
            expects: self.expects.clone(),
            status: self.status,
        }
    }

    fn restore(&mut self, saved: FlashSaved) -> Result<(), RestoreError> {
        let refuse = |reason| Err(RestoreError::new("flash", reason));
        let mut data = vec![BLANK; self.data.len()];
        for (index, block) in &saved.blocks {
            let start = *index as usize * BLOCK_SIZE;
            match data.get_mut(start..(start + BLOCK_SIZE).min(self.data.len())) {
                Some(place) if place.len() == block.len() => place.copy_from_slice(block),
                _ => return refuse("a block lies beyond the chip's end"),
            }
        }
        let possible = match &saved.expects {
            Expects::Buffer { missing, writes } => *missing > 0 && missing + writes.len() <= BUFFER_SIZE,
            Expects::ProgramConfirmation { writes } => writes.len() <= BUFFER_SIZE,
            _ => true,
        };
        if !possible {
            return refuse("more bytes are buffered than fit");
        }
        *self = FlashModel { data, shows: saved.shows, expects: saved.expects, status: saved.status };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chip() -> FlashModel {
        let mut data = vec![BLANK; 3 * BLOCK_SIZE];
        data[..4].copy_from_slice(b"head");
        FlashModel::new(data)
    }

    fn read(model: &FlashModel, offset: usize) -> u8 {
        let mut byte = [0];
        model.read(offset, &mut byte);
        byte[0]
    }

    /// The steps by which OVMF tells flash from RAM and ROM.
    #[test]
    fn firmware_finds_a_flash_chip() {
        let mut model = chip();
        let before = read(&model, 0);
        model.write(0, CLEAR_STATUS);
        assert_ne!(read(&model, 0), CLEAR_STATUS, "not RAM");
        model.write(0, READ_STATUS);
        assert_ne!(read(&model, 0), before, "not ROM");
        assert_eq!(read(&model, 0), 0, "the cleared status");
        model.write(0, READ_ARRAY);
        assert_eq!(read(&model, 0), before);
    }

    #[test]
    fn bytes_are_programmed_and_blocks_erased() {
        let mut model = chip();
        for (at, byte) in (BLOCK_SIZE..).zip(*b"data") {
            assert_eq!(model.write(at, PROGRAM), None);
            assert_eq!(model.write(at, byte), Some(at..at + 1));
            assert_eq!(read(&model, at), STATUS_READY);
        }
        model.write(0, READ_ARRAY);
        assert_eq!(&model.data()[BLOCK_SIZE..BLOCK_SIZE + 5], b"data\xff");
        model.write(7, PROGRAM);
        model.write(BLOCK_SIZE, 0x0f);
        assert_eq!(model.data()[BLOCK_SIZE], b'd' & 0x0f, "bits are cleared, not set");
        model.write(BLOCK_SIZE + 9, ERASE_BLOCK);
        assert_eq!(model.write(BLOCK_SIZE + 9, CONFIRM), Some(BLOCK_SIZE..2 * BLOCK_SIZE));
        assert!(model.data()[BLOCK_SIZE..].iter().all(|byte| *byte == BLANK));
        assert_eq!(&model.data()[..4], b"head");
        model.write(0, ERASE_BLOCK);
        assert_eq!(model.write(0, READ_ARRAY), None, "not confirmed");
        assert_eq!(read(&model, 0) & (STATUS_ERASE_ERROR | STATUS_PROGRAM_ERROR), 0x30);
        assert_eq!(&model.data()[..4], b"head");
    }

    #[test]
    fn a_buffer_is_programmed_as_a_whole() {
        let mut model = chip();
        model.write(0x2000, BUFFERED_PROGRAM);
        assert_eq!(read(&model, 0x2000), STATUS_READY);
        model.write(0x2000, 2);
        for (at, byte) in (0x2001..).zip(*b"abc") {
            assert_eq!(model.write(at, byte), None);
        }
        let saved = model.save();
        assert_eq!(model.write(0x2000, CONFIRM), Some(0x2001..0x2004));
        assert_eq!(&model.data()[0x2000..0x2005], b"\xffabc\xff");
        let mut other = FlashModel::new(vec![0; 3 * BLOCK_SIZE]);
        other.restore(saved).unwrap();
        other.write(0x2000, CONFIRM);
        assert_eq!(other.data(), model.data());
        assert_eq!(model.write(usize::MAX, 0x55), None, "an address beyond the end");
        model.write(usize::MAX, PROGRAM);
        assert_eq!(model.write(0x5000, 0), None);
    }

    #[test]
    fn an_impossible_state_is_refused() {
        let mut model = chip();
        let saved = model.save();
        assert_eq!(saved.blocks.len(), 1, "blank blocks are left out");
        for bad in [
            FlashSaved { blocks: vec![(3, vec![0; BLOCK_SIZE])], ..saved.clone() },
            FlashSaved { blocks: vec![(u32::MAX, vec![0; BLOCK_SIZE])], ..saved.clone() },
            FlashSaved { blocks: vec![(0, vec![0; 5])], ..saved.clone() },
            FlashSaved { expects: Expects::Buffer { missing: 0, writes: vec![] }, ..saved.clone() },
            FlashSaved {
                expects: Expects::ProgramConfirmation { writes: vec![(0, 0); BUFFER_SIZE + 1] },
                ..saved.clone()
            },
        ] {
            assert!(model.restore(bad).is_err());
        }
        model.restore(saved).unwrap();
    }
}

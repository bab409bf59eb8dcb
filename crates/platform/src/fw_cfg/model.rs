//! The fw_cfg registers and items.

use super::spec::*;
use device::state::{RestoreError, SaveRestore};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Why an item could not be added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FwCfgError {
    /// The name is empty, too long, or has a zero in it.
    #[error("{0:?} cannot name a fw_cfg file: 1 to 55 bytes without a zero")]
    BadName(String),
    /// A file of that name exists.
    #[error("there is a fw_cfg file {0:?} already")]
    Exists(String),
    /// There are too many files.
    #[error("no more fw_cfg files fit")]
    Full,
    /// The item is longer than its length field can say.
    #[error("fw_cfg item {0:?} is larger than 4 GiB")]
    TooLarge(String),
}

/// The state of the registers, and what the guest wrote. All other items belong to the machine's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FwCfgSaved {
    selector: u16,
    offset: u32,
    dma_high: u32,
    /// Files that the guest may write, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    written: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Registers {
    selector: u16,
    offset: u32,
    dma_high: u32,
}

/// What a DMA request asks for, after its control word was understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DmaOperation {
    /// Nothing (more) to do.
    None,
    /// Copy bytes of the item to guest memory.
    Read,
    /// Copy bytes of guest memory to the item.
    Write,
    /// Not possible.
    Refused,
}

/// The fw_cfg device.
#[derive(Clone, Debug)]
pub struct FwCfgModel {
    regs: Registers,
    items: BTreeMap<u16, Vec<u8>>,
    names: BTreeMap<String, u16>,
    /// Names and keys of files that the guest may write.
    writable: BTreeMap<String, u16>,
}

impl Default for FwCfgModel {
    fn default() -> FwCfgModel {
        FwCfgModel::new()
    }
}

impl FwCfgModel {
    /// A device with no files.
    pub fn new() -> FwCfgModel {
        let mut model = FwCfgModel {
            regs: Registers::default(),
            items: BTreeMap::new(),
            names: BTreeMap::new(),
            writable: BTreeMap::new(),
        };
        model.set_item(KEY_SIGNATURE, SIGNATURE.to_vec());
        model.set_item(KEY_ID, ID.to_le_bytes().to_vec());
        model.write_directory();
        model
    }

    /// Puts the registers in their state after power-on; items stay, but what the guest wrote is zero again.
    pub fn reset(&mut self) {
        self.regs = Registers::default();
        for key in self.writable.values() {
            if let Some(item) = self.items.get_mut(key) {
                item.fill(0);
            }
        }
    }

    /// Sets an item that has a fixed key.
    pub fn set_item(&mut self, key: u16, data: Vec<u8>) {
        self.items.insert(key & !KEY_WRITE, data);
    }

    /// Adds a file, which firmware finds by its name.
    ///
    /// # Errors
    /// When the name is taken or cannot be one, or the data is too long.
    pub fn add_file(&mut self, name: &str, data: Vec<u8>) -> Result<(), FwCfgError> {
        if name.is_empty() || name.len() > NAME_MAX || name.contains('\0') {
            return Err(FwCfgError::BadName(name.into()));
        }
        if self.names.contains_key(name) {
            return Err(FwCfgError::Exists(name.into()));
        }
        if u32::try_from(data.len()).is_err() {
            return Err(FwCfgError::TooLarge(name.into()));
        }
        let key = KEY_FILE_FIRST + self.names.len() as u16;
        if key >= KEY_FILE_END {
            return Err(FwCfgError::Full);
        }
        self.names.insert(name.into(), key);
        self.items.insert(key, data);
        self.write_directory();
        Ok(())
    }

    /// Adds a file of `len` zeros, which the guest may write.
    ///
    /// # Errors
    /// As [`FwCfgModel::add_file`].
    pub fn add_writable_file(&mut self, name: &str, len: usize) -> Result<(), FwCfgError> {
        self.add_file(name, vec![0; len])?;
        self.writable.extend(self.key(name).map(|key| (name.to_owned(), key)));
        Ok(())
    }

    /// The contents of a file.
    pub fn contents(&self, name: &str) -> Option<&[u8]> {
        self.items.get(self.names.get(name)?).map(Vec::as_slice)
    }

    /// The key of a file.
    pub(super) fn key(&self, name: &str) -> Option<u16> {
        self.names.get(name).copied()
    }

    /// The item that a selector means.
    pub(super) fn selected_key(selector: u16) -> u16 {
        selector & !KEY_WRITE
    }

    /// Replaces the contents of a file by others of the same length.
    pub(super) fn replace(&mut self, key: u16, mut data: Vec<u8>) {
        if let Some(item) = self.items.get_mut(&key) {
            // The directory has told the length.
            data.resize(item.len(), 0);
            *item = data;
        }
    }

    /// The directory: a big-endian count, then for each file size, key, two reserved bytes and the name.
    fn write_directory(&mut self) {
        let mut directory = (self.names.len() as u32).to_be_bytes().to_vec();
        for (name, key) in &self.names {
            let size = self.items.get(key).map_or(0, Vec::len) as u32;
            directory.extend(size.to_be_bytes());
            directory.extend(key.to_be_bytes());
            directory.extend([0; 2]);
            let mut field = [0; NAME_MAX + 1];
            field[..name.len()].copy_from_slice(name.as_bytes());
            directory.extend(field);
        }
        self.set_item(KEY_DIRECTORY, directory);
    }

    /// Selects an item, from its start.
    pub fn select(&mut self, selector: u16) {
        (self.regs.selector, self.regs.offset) = (selector, 0);
    }

    /// Reads the next byte of the selected item; zero beyond its end.
    pub fn read_data(&mut self) -> u8 {
        let byte = self.rest().first().copied().unwrap_or(0);
        self.advance(1);
        byte
    }

    /// What is left of the selected item.
    pub(super) fn rest(&self) -> &[u8] {
        let item = self.items.get(&(self.regs.selector & !KEY_WRITE));
        item.and_then(|item| item.get(self.regs.offset as usize..)).unwrap_or(&[])
    }

    /// Moves on in the selected item, not beyond its end.
    pub(super) fn advance(&mut self, len: u32) {
        let rest = self.rest().len() as u64;
        self.regs.offset += (len as u64).min(rest) as u32;
    }

    /// Begins a DMA request with its control word.
    pub(super) fn begin_dma(&mut self, control: u32, len: u32) -> DmaOperation {
        if control & DMA_SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        if control & DMA_READ != 0 {
            DmaOperation::Read
        } else if control & DMA_WRITE != 0 {
            let key = FwCfgModel::selected_key(self.regs.selector);
            let fits = len as usize <= self.rest().len();
            let is_writable = self.writable.values().any(|writable| *writable == key);
            if fits && is_writable { DmaOperation::Write } else { DmaOperation::Refused }
        } else {
            if control & DMA_SKIP != 0 {
                self.advance(len);
            }
            DmaOperation::None
        }
    }

    /// Writes to the selected item, which was found to be writable and long enough, and moves on in it.
    pub(super) fn write_data(&mut self, data: &[u8]) {
        let (key, start) = (FwCfgModel::selected_key(self.regs.selector), self.regs.offset as usize);
        if let Some(part) = self.items.get_mut(&key).and_then(|item| item.get_mut(start..start + data.len()))
        {
            part.copy_from_slice(data);
            self.advance(data.len() as u32);
        }
    }

    /// The high half of the DMA address; used up by the low half.
    pub(super) fn set_dma_high(&mut self, high: u32) {
        self.regs.dma_high = high;
    }

    pub(super) fn take_dma_address(&mut self, low: u32) -> u64 {
        (std::mem::take(&mut self.regs.dma_high) as u64) << 32 | low as u64
    }
}

impl SaveRestore for FwCfgModel {
    type Saved = FwCfgSaved;

    fn save(&self) -> FwCfgSaved {
        let Registers { selector, offset, dma_high } = self.regs;
        let contents = |(name, key): (&String, &u16)| Some((name.clone(), self.items.get(key)?.clone()));
        let written = self.writable.iter().filter_map(contents).collect();
        FwCfgSaved { selector, offset, dma_high, written }
    }

    fn restore(&mut self, saved: FwCfgSaved) -> Result<(), RestoreError> {
        let FwCfgSaved { selector, offset, dma_high, written } = saved;
        let len = self.items.get(&FwCfgModel::selected_key(selector)).map_or(0, Vec::len);
        if offset as usize > len {
            return Err(RestoreError::new("fw_cfg", "it stands beyond the end of its item"));
        }
        for (name, data) in written {
            let item = self.writable.get(&name).and_then(|key| self.items.get_mut(key));
            match item.filter(|item| item.len() == data.len()) {
                Some(item) => *item = data,
                None => {
                    return Err(RestoreError::new(
                        "fw_cfg",
                        "it has a written file that the machine has not",
                    ));
                }
            }
        }
        self.regs = Registers { selector, offset, dma_high };
        Ok(())
    }
}

//! Carrying out commands.

use super::command::Command;
use super::identify;
use super::spec::*;
use crate::{Action, Cdrom, CdromSaved, Sense};
use device::limit::Limiter;
use disk::{Buffers, Disk, Durability, SECTOR_SIZE};
use memory::{Bytes, GuestAddress, Ram};
use std::fmt;
use std::sync::Arc;

/// What is at a port.
pub(super) enum Drive {
    /// A disk, and what keeps its rate.
    Disk(Arc<dyn Disk>, Arc<Limiter>),
    /// A drive with a disc, or without.
    Cd(Cdrom, Option<Arc<dyn Disk>>),
}

/// A device at a port.
pub(super) struct Attached {
    pub(super) drive: Drive,
    pub(super) serial: String,
}

/// What came of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) status: u8,
    pub(super) error: u8,
    /// Data came by PIO: that frame is sent first.
    pub(super) pio: bool,
    /// Bytes that were moved.
    pub(super) moved: u64,
    /// The count field of the answer: what it means is the command's.
    pub(super) count: u8,
    /// The frame is no command but the end of a reset: the device says what it is.
    pub(super) announces: bool,
}

impl Outcome {
    fn done(moved: u64) -> Outcome {
        Outcome { status: STATUS_READY, error: 0, pio: false, moved, count: 0, announces: false }
    }

    fn failed(error: u8) -> Outcome {
        Outcome { status: STATUS_READY | STATUS_ERROR, error, ..Outcome::done(0) }
    }
}

/// Why a disc cannot be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscError {
    /// There is no such drive.
    NoSuchDrive,
    /// The guest holds the disc; it was told that somebody wants it.
    Held,
}

impl fmt::Display for DiscError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DiscError::NoSuchDrive => "the machine has no such CD-ROM drive",
            DiscError::Held => "the guest holds the disc; it was asked to let go of it",
        })
    }
}

impl std::error::Error for DiscError {}

impl Attached {
    pub(super) fn signature(&self) -> u32 {
        match self.drive {
            Drive::Disk(..) => SIGNATURE_DISK,
            Drive::Cd(..) => SIGNATURE_ATAPI,
        }
    }

    pub(super) fn reset(&mut self) {
        if let Drive::Cd(drive, _) = &mut self.drive {
            drive.reset();
        }
    }

    pub(super) fn save(&self) -> Option<CdromSaved> {
        match &self.drive {
            Drive::Disk(..) => None,
            Drive::Cd(drive, _) => Some(drive.save()),
        }
    }

    /// Carries out a command. It may take as long as the disk does.
    pub(super) fn run(&mut self, command: &Command, ram: &Arc<Ram>) -> Outcome {
        let fis = &command.fis;
        if fis[0] != FIS_FROM_HOST {
            return Outcome::failed(ERROR_ABORTED);
        }
        if fis[1] & 0x80 == 0 {
            // The control register: a reset begins with its bit 2 set, and is over with it clear.
            let begins = fis[15] & 4 != 0;
            if !begins {
                self.reset();
            }
            return Outcome { announces: !begins, ..Outcome::done(0) };
        }
        let serial = &self.serial;
        match &mut self.drive {
            Drive::Disk(disk, limiter) => {
                let outcome = run_disk(disk, serial, command, ram);
                // What tells of the disk is answered by PIO and costs nothing, and so does what fails at once.
                let fails = outcome.status & STATUS_ERROR != 0;
                if is_limited(fis[2]) && !fails {
                    limiter.charge(1, outcome.moved);
                }
                outcome
            }
            Drive::Cd(drive, disc) => match fis[2] {
                IDENTIFY_PACKET => give(command, ram, &identify::drive(serial)),
                PACKET => run_packet(drive, disc, command, ram),
                SET_FEATURES => set_features(fis),
                DEVICE_RESET => {
                    drive.reset();
                    Outcome { announces: true, ..Outcome::done(0) }
                }
                // IDENTIFY DEVICE fails with the signature, by which drivers see what it is.
                _ => Outcome::failed(ERROR_ABORTED),
            },
        }
    }
}

/// What is not in effect afterwards is refused (ACS-3, §7.45): above all a write cache that is switched off. A guest
/// that believed that would not flush any more.
fn set_features(fis: &[u8; 20]) -> Outcome {
    match fis[3] {
        // The cache is on, and any way of transfer is as good as another.
        FEATURE_ENABLE_WRITE_CACHE | FEATURE_TRANSFER_MODE => Outcome::done(0),
        _ => Outcome::failed(ERROR_ABORTED),
    }
}

/// Answers by PIO.
fn give(command: &Command, ram: &Ram, bytes: &[u8]) -> Outcome {
    Outcome { pio: true, ..Outcome::done(command.put(ram, bytes) as u64) }
}

fn run_packet(
    drive: &mut Cdrom,
    disc: &mut Option<Arc<dyn Disk>>,
    command: &Command,
    ram: &Arc<Ram>,
) -> Outcome {
    let failed = |drive: &mut Cdrom, sense: Sense| {
        drive.fail(sense);
        // The sense key is in the error register's upper half (ATA/ATAPI-7, §6.24).
        Outcome { count: 3, ..Outcome::failed(sense.key << 4 | ERROR_ABORTED) }
    };
    // Interrupt reason: the command is over.
    let over =
        |moved: u64, by_dma: bool| Outcome { count: 3, pio: !by_dma && moved > 0, ..Outcome::done(moved) };
    let by_dma = command.fis[3] & 1 != 0;
    match drive.command(&command.packet) {
        Action::Done => over(0, by_dma),
        Action::Eject => {
            *disc = None;
            over(0, by_dma)
        }
        Action::Answer(bytes) => over(command.put(ram, &bytes) as u64, by_dma),
        Action::Check(sense) => failed(drive, sense),
        Action::Read { offset, len } => {
            let Some(disc) = disc else { return failed(drive, Sense::NO_MEDIUM) };
            // The last block may be cut off in the file: the rest is zero.
            let stored = disc.info().size.saturating_sub(offset).min(len);
            let pieces = command.pieces(len);
            match move_data(&**disc, ram, &pieces, offset, Way::In { stored }) {
                Ok(moved) => over(moved, by_dma),
                Err(_) => failed(drive, Sense::READ_ERROR),
            }
        }
    }
}

/// Whether a command stores, reads or makes safe what is on the disk.
fn is_limited(command: u8) -> bool {
    matches!(command, 0x20..=0x39 | 0x3d | 0xc4..=0xce | FLUSH | FLUSH_EXT)
}

fn run_disk(disk: &Arc<dyn Disk>, serial: &str, command: &Command, ram: &Arc<Ram>) -> Outcome {
    let fis = &command.fis;
    let info = disk.info();
    let ext = || {
        let bytes = [fis[4], fis[5], fis[6], fis[8], fis[9], fis[10], 0, 0];
        let count = u64::from(u16::from_le_bytes([fis[12], fis[13]]));
        (u64::from_le_bytes(bytes), if count == 0 { 1 << 16 } else { count })
    };
    let plain = || {
        let bytes = [fis[4], fis[5], fis[6], fis[7] & 15];
        (u64::from(u32::from_le_bytes(bytes)), if fis[12] == 0 { 256 } else { u64::from(fis[12]) })
    };
    let at_end = |forced: bool| if forced { Durability::AtCompletion } else { Durability::AtFlush };
    let ((sector, count), way, by_pio) = match fis[2] {
        // READ and WRITE, by DMA or PIO, of 28 and 48 bits; the last two are forced to the disk.
        0xc8 => (plain(), Way::In { stored: u64::MAX }, false),
        0x20 | 0xc4 => (plain(), Way::In { stored: u64::MAX }, true),
        0x25 => (ext(), Way::In { stored: u64::MAX }, false),
        0x24 | 0x29 => (ext(), Way::In { stored: u64::MAX }, true),
        0xca | 0x30 | 0xc5 => (plain(), Way::Out(at_end(false)), false),
        0x35 | 0x34 | 0x39 => (ext(), Way::Out(at_end(false)), false),
        0x3d | 0xce => (ext(), Way::Out(at_end(true)), false),
        IDENTIFY => return give(command, ram, &identify::disk(serial, &info)),
        FLUSH | FLUSH_EXT => {
            return match disk.flush() {
                Ok(()) => Outcome::done(0),
                Err(_) => Outcome::failed(ERROR_ABORTED),
            };
        }
        SET_FEATURES => return set_features(fis),
        // SET MULTIPLE, IDLE and kin, READ VERIFY, INITIALIZE DEVICE PARAMETERS
        0xc6 | 0xe0..=0xe3 | 0x40 | 0x42 | 0x91 => return Outcome::done(0),
        // CHECK POWER MODE: active.
        0xe5 => return Outcome { count: 0xff, ..Outcome::done(0) },
        _ => return Outcome::failed(ERROR_ABORTED),
    };
    let (offset, len) = (sector * SECTOR_SIZE, count * SECTOR_SIZE);
    if offset + len > info.size {
        return Outcome::failed(ERROR_NO_SUCH_BLOCK);
    }
    let pieces = command.pieces(len);
    match move_data(&**disk, ram, &pieces, offset, way) {
        Ok(moved) => Outcome { pio: by_pio, ..Outcome::done(moved) },
        Err(_) if matches!(way, Way::In { .. }) => Outcome::failed(ERROR_UNREADABLE),
        Err(_) => Outcome::failed(ERROR_ABORTED),
    }
}

/// Which way data go.
#[derive(Clone, Copy)]
enum Way {
    /// From the disk, which has so many bytes; the rest is zero.
    In {
        stored: u64,
    },
    Out(Durability),
}

/// The unit in which data are moved: no command holds more than this at once.
const STEP: u64 = 1 << 20;

/// Moves data between disk and memory; returns how many bytes.
fn move_data(
    disk: &dyn Disk,
    ram: &Arc<Ram>,
    pieces: &[(u64, u32)],
    offset: u64,
    way: Way,
) -> Result<u64, ()> {
    let mut moved = 0;
    for (address, len) in pieces {
        let mut done = 0;
        while done < u64::from(*len) {
            let here = (u64::from(*len) - done).min(STEP);
            let at = address.checked_add(done).ok_or(())?;
            let mut buffers = Buffers::guest(ram.clone());
            match way {
                Way::Out(durability) => {
                    buffers.push(at, here as u32).map_err(drop)?;
                    disk.write(offset + moved, &buffers, durability).map_err(drop)?;
                }
                Way::In { stored } => {
                    let whole = stored.saturating_sub(moved).min(here);
                    // Behind its end the disk refuses even to read nothing.
                    if whole > 0 {
                        buffers.push(at, whole as u32).map_err(drop)?;
                        disk.read(offset + moved, &mut buffers).map_err(drop)?;
                    }
                    if whole < here {
                        let zeroes = vec![0; (here - whole) as usize];
                        ram.guest().write_slice(&zeroes, GuestAddress(at + whole)).map_err(drop)?;
                    }
                }
            }
            (done, moved) = (done + here, moved + here);
        }
    }
    Ok(moved)
}

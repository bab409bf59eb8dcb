//! What is at a target: a disk, or a CD-ROM drive.

use super::spec::{CHECK_CONDITION, GOOD};
use device::limit::Limiter;
use disk::{Buffers, Disk, Durability, Unmap};
use scsi::{Action, Cdrom, CdromSaved, DiscError, DiskAction, ScsiDisk, Sense};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What a target is made with.
pub enum TargetConfig {
    /// A disk with a serial number.
    Disk {
        /// The disk.
        disk: Arc<dyn Disk>,
        /// Its serial number.
        serial: String,
        /// What keeps its rate: reads and writes together.
        limiter: Arc<Limiter>,
    },
    /// A CD-ROM drive with a disc, or without.
    Cd(Option<Arc<dyn Disk>>),
}

pub(super) enum Unit {
    Disk(ScsiDisk, Arc<dyn Disk>, Arc<Limiter>),
    Cd(Cdrom, Option<Arc<dyn Disk>>),
}

/// The state of a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetSaved {
    /// A disk of so many bytes.
    Disk(u64),
    /// A CD-ROM drive.
    Cd(CdromSaved),
}

/// Where data of a request come from and go to. Longer data than there is room for are cut off.
pub(super) trait Data {
    /// How many bytes the driver has to give.
    fn out_len(&self) -> u64;
    /// How many bytes it takes.
    fn in_len(&self) -> u64;
    /// Stretches of memory with `len` bytes that the driver gives, from `at` on.
    fn out_buffers(&mut self, at: u64, len: u64) -> Option<Buffers<'static>>;
    /// Stretches of memory for `len` bytes that it takes, from `at` on.
    fn in_buffers(&mut self, at: u64, len: u64) -> Option<Buffers<'static>>;
}

/// What came of a command.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) status: u8,
    pub(super) sense: Option<Sense>,
    /// Bytes that were moved.
    pub(super) moved: u64,
}

impl Outcome {
    fn done(moved: u64) -> Outcome {
        Outcome { status: GOOD, sense: None, moved }
    }

    /// Nothing was done.
    pub(super) fn nothing() -> Outcome {
        Outcome { status: GOOD, sense: None, moved: 0 }
    }

    pub(super) fn failed(sense: Sense) -> Outcome {
        Outcome { status: CHECK_CONDITION, sense: Some(sense), moved: 0 }
    }
}

/// The unit in which data are moved: no command holds more than this at once.
const STEP: u64 = 1 << 20;
/// No list of what is not needed is longer.
const LIST_MAX: u64 = 8 + 16 * 255;
/// The block of a disk.
const BLOCK: usize = 512;

impl Unit {
    pub(super) fn new(config: TargetConfig) -> Unit {
        match config {
            TargetConfig::Disk { disk, serial, limiter } => Unit::Disk(ScsiDisk::new(&serial), disk, limiter),
            TargetConfig::Cd(disc) => Unit::Cd(Cdrom::new(disc.as_ref().map(|disc| disc.info().size)), disc),
        }
    }

    pub(super) fn reset(&mut self) {
        if let Unit::Cd(drive, _) = self {
            drive.reset();
        }
    }

    pub(super) fn save(&self) -> TargetSaved {
        match self {
            Unit::Disk(_, disk, _) => TargetSaved::Disk(disk.info().size),
            Unit::Cd(drive, _) => TargetSaved::Cd(drive.save()),
        }
    }

    /// Puts another disc into the drive, or takes it out.
    pub(super) fn change_disc(&mut self, disc: Option<Arc<dyn Disk>>, force: bool) -> Result<(), DiscError> {
        let Unit::Cd(drive, present) = self else { return Err(DiscError::NoSuchDrive) };
        if drive.is_locked() && drive.has_disc() && !force {
            drive.press_eject();
            return Err(DiscError::Held);
        }
        drive.change(disc.as_ref().map(|disc| disc.info().size));
        *present = disc;
        Ok(())
    }

    /// What keeps the rate of a command, if its kind is limited: what a disk stores, frees or makes safe, and not what
    /// tells of the disk.
    pub(super) fn limiter(&self, cdb: &[u8; 16]) -> Option<&Arc<Limiter>> {
        let Unit::Disk(unit, disk, limiter) = self else { return None };
        match unit.command(cdb, &disk.info()) {
            DiskAction::Done | DiskAction::Answer(_) | DiskAction::Check(_) => None,
            _ => Some(limiter),
        }
    }

    /// Carries out a command. It may take as long as the disk does.
    pub(super) fn run(&mut self, cdb: &[u8; 16], data: &mut dyn Data) -> Outcome {
        let result = match self {
            Unit::Disk(unit, disk, _) => run_disk(unit, &**disk, cdb, data),
            Unit::Cd(drive, disc) => {
                let result = run_cd(drive, disc, cdb, data);
                if let Err(sense) = result {
                    drive.fail(sense);
                }
                result
            }
        };
        result.map_or_else(Outcome::failed, Outcome::done)
    }
}

fn run_cd(
    drive: &mut Cdrom,
    disc: &mut Option<Arc<dyn Disk>>,
    cdb: &[u8; 16],
    data: &mut dyn Data,
) -> Result<u64, Sense> {
    match drive.command(cdb) {
        Action::Done => Ok(0),
        Action::Eject => {
            *disc = None;
            Ok(0)
        }
        Action::Answer(bytes) => answer(&bytes, data),
        Action::Check(sense) => Err(sense),
        Action::Read { offset, len } => {
            let disc = disc.as_ref().ok_or(Sense::NO_MEDIUM)?;
            read(&**disc, offset, len, data)
        }
    }
}

fn run_disk(unit: &ScsiDisk, disk: &dyn Disk, cdb: &[u8; 16], data: &mut dyn Data) -> Result<u64, Sense> {
    let info = disk.info();
    let failed = |_| Sense::WRITE_ERROR;
    match unit.command(cdb, &info) {
        DiskAction::Done => Ok(0),
        DiskAction::Answer(bytes) => answer(&bytes, data),
        DiskAction::Check(sense) => Err(sense),
        DiskAction::Read { offset, len } => read(disk, offset, len, data),
        DiskAction::Write { offset, len, forced } => {
            let durability = if forced { Durability::AtCompletion } else { Durability::AtFlush };
            // Less data than the command says: what is there is written, in whole blocks.
            let len = len.min(data.out_len() / BLOCK as u64 * BLOCK as u64);
            each_step(len, |at, here| {
                let buffers = data.out_buffers(at, here).ok_or(Sense::WRITE_ERROR)?;
                disk.write(offset + at, &buffers, durability).map_err(failed)
            })?;
            Ok(len)
        }
        DiskAction::Flush => disk.flush().map(|()| 0).map_err(failed),
        DiskAction::Unmap { list } => {
            let len = list.min(data.out_len()).min(LIST_MAX);
            let bytes = take(data, len as usize)?;
            for (offset, len) in unit.unmap_list(&bytes, &info)? {
                disk.discard(offset, len).map_err(failed)?;
            }
            Ok(len)
        }
        DiskAction::WriteSame { offset, len, unmap, zero } => {
            let block = if zero { vec![0; BLOCK] } else { take(data, BLOCK)? };
            if block.iter().all(|byte| *byte == 0) {
                let unmap = if unmap { Unmap::Allowed } else { Unmap::Keep };
                disk.write_zeroes(offset, len, unmap, Durability::AtFlush).map_err(failed)?;
            } else {
                let bytes = block.repeat((len.min(STEP) as usize).div_ceil(BLOCK));
                each_step(len, |at, here| {
                    let from = Buffers::from_slice(&bytes[..here as usize]);
                    disk.write(offset + at, &from, Durability::AtFlush).map_err(failed)
                })?;
            }
            Ok(if zero { 0 } else { BLOCK as u64 })
        }
    }
}

fn answer(bytes: &[u8], data: &mut dyn Data) -> Result<u64, Sense> {
    let len = (bytes.len() as u64).min(data.in_len());
    if len > 0 {
        let mut buffers = data.in_buffers(0, len).ok_or(Sense::READ_ERROR)?;
        buffers.copy_from(0, &bytes[..len as usize]);
    }
    Ok(len)
}

/// The first bytes of what the driver gives.
fn take(data: &mut dyn Data, len: usize) -> Result<Vec<u8>, Sense> {
    if (data.out_len() as usize) < len {
        return Err(Sense::BAD_PARAMETER);
    }
    let mut bytes = vec![0; len];
    if len > 0 {
        data.out_buffers(0, len as u64).ok_or(Sense::WRITE_ERROR)?.copy_to(0, &mut bytes);
    }
    Ok(bytes)
}

fn read(disk: &dyn Disk, offset: u64, len: u64, data: &mut dyn Data) -> Result<u64, Sense> {
    let len = len.min(data.in_len());
    // A disc's last block may be cut off in its file: the rest is zero.
    let stored = disk.info().size.saturating_sub(offset).min(len);
    each_step(stored, |at, here| {
        let mut buffers = data.in_buffers(at, here).ok_or(Sense::READ_ERROR)?;
        disk.read(offset + at, &mut buffers).map_err(|_| Sense::READ_ERROR)
    })?;
    if stored < len {
        let mut buffers = data.in_buffers(stored, len - stored).ok_or(Sense::READ_ERROR)?;
        let rest = buffers.len();
        buffers.zero(0, rest);
    }
    Ok(len)
}

fn each_step(len: u64, mut f: impl FnMut(u64, u64) -> Result<(), Sense>) -> Result<(), Sense> {
    let mut at = 0;
    while at < len {
        let here = (len - at).min(STEP);
        f(at, here)?;
        at += here;
    }
    Ok(())
}

//! A CD-ROM drive by its commands (MMC-5, SPC-4).

use crate::Sense;
use device::state::RestoreError;
use serde::{Deserialize, Serialize};

/// Bytes of a block of a disc.
pub const BLOCK: u64 = 2048;

/// What a command asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing more: it is done.
    Done,
    /// These bytes are the answer.
    Answer(Vec<u8>),
    /// The answer is these bytes of the disc.
    Read {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// Eject the disc. What the drive thinks of it is done already.
    Eject,
    /// The command failed. Sense data are kept for who asks for them.
    Check(Sense),
}

/// A drive. It knows how large the disc is; the disc itself is with the controller.
#[derive(Clone, Debug)]
pub struct Cdrom {
    state: CdromSaved,
}

/// The state of a drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CdromSaved {
    /// Blocks of the disc; none, and there is no disc.
    pub blocks: Option<u64>,
    /// Whether the guest holds the disc.
    pub locked: bool,
    /// What the last command failed with.
    pub sense: Sense,
    /// What the next command will be told first.
    pub attention: Option<Sense>,
    /// What happened to the disc since the guest asked: 0 nothing, 1 somebody wants it out, 2 new, 3 gone.
    pub event: u8,
}

/// Feature codes (MMC-5, §5.3) and profile.
const PROFILE_CD_ROM: u16 = 8;
const PROFILE_DVD_ROM: u16 = 0x10;
/// Discs with more blocks than a CD has room for are DVDs.
const CD_BLOCKS_MAX: u64 = 450_000;

impl Cdrom {
    /// A drive with a disc of so many bytes, or without.
    pub fn new(disc: Option<u64>) -> Cdrom {
        let state = CdromSaved {
            blocks: disc.map(|size| size.div_ceil(BLOCK)),
            locked: false,
            sense: Sense::NONE,
            attention: Some(Sense::WAS_RESET),
            event: 0,
        };
        Cdrom { state }
    }

    /// Puts the drive in its state after power-on; the disc stays.
    pub fn reset(&mut self) {
        (self.state.locked, self.state.sense) = (false, Sense::NONE);
        (self.state.attention, self.state.event) = (Some(Sense::WAS_RESET), 0);
    }

    /// Whether there is a disc.
    pub fn has_disc(&self) -> bool {
        self.state.blocks.is_some()
    }

    /// Whether the guest holds the disc.
    pub fn is_locked(&self) -> bool {
        self.state.locked
    }

    /// Somebody puts another disc in, of so many bytes, or takes it out.
    pub fn change(&mut self, disc: Option<u64>) {
        self.state.blocks = disc.map(|size| size.div_ceil(BLOCK));
        self.state.event = if disc.is_some() { 2 } else { 3 };
        self.state.attention = disc.map(|_| Sense::CHANGED);
        self.state.locked = false;
    }

    /// Somebody presses the eject button of a drive whose disc the guest holds: it is told.
    pub fn press_eject(&mut self) {
        self.state.event = 1;
    }

    /// What the last command failed with.
    pub fn sense(&self) -> Sense {
        self.state.sense
    }

    /// The controller found that the disc cannot be read.
    pub fn fail(&mut self, sense: Sense) {
        self.state.sense = sense;
    }

    /// Finds out what a command (6 to 16 bytes, padded with zeroes) asks for.
    pub fn command(&mut self, cdb: &[u8; 16]) -> Action {
        let action = self.try_command(cdb).unwrap_or_else(Action::Check);
        // REQUEST SENSE has told of the last failure.
        self.state.sense = if let Action::Check(sense) = action { sense } else { Sense::NONE };
        action
    }

    fn try_command(&mut self, cdb: &[u8; 16]) -> Result<Action, Sense> {
        let word = |at: usize| u16::from_be_bytes([cdb[at], cdb[at + 1]]);
        let dword = |at: usize| u32::from_be_bytes([cdb[at], cdb[at + 1], cdb[at + 2], cdb[at + 3]]);
        let answer = |mut bytes: Vec<u8>, allocated: usize| {
            bytes.truncate(allocated);
            Ok(Action::Answer(bytes))
        };
        // These report no unit attention (SPC-4, §5.14); all others do, once.
        if !matches!(cdb[0], 0x03 | 0x12 | 0x46 | 0x4a)
            && let Some(sense) = self.state.attention.take()
        {
            return Err(sense);
        }
        match cdb[0] {
            // TEST UNIT READY
            0x00 => self.disc().map(|_| Action::Done),
            // REQUEST SENSE
            0x03 => {
                let sense = match self.state.sense {
                    Sense::NONE => self.state.attention.take().unwrap_or(Sense::NONE),
                    sense => sense,
                };
                answer(sense.fixed().to_vec(), cdb[4].into())
            }
            // INQUIRY
            0x12 if cdb[1] & 1 == 0 && cdb[2] == 0 => answer(inquiry(), word(3).into()),
            0x12 if cdb[1] & 1 != 0 && cdb[2] == 0 => answer(vec![5, 0, 0, 1, 0], word(3).into()),
            // MODE SENSE (6) and (10)
            0x1a => {
                let pages = mode_pages(cdb[2] & 0x3f)?;
                answer([&[pages.len() as u8 + 3, 1, 0, 0][..], &pages].concat(), cdb[4].into())
            }
            0x5a => {
                let pages = mode_pages(cdb[2] & 0x3f)?;
                answer([&[0, pages.len() as u8 + 6, 1, 0, 0, 0, 0, 0][..], &pages].concat(), word(7).into())
            }
            // START STOP UNIT: bit 1 says that the tray is meant, bit 0 that it shall close.
            0x1b if cdb[4] & 3 == 2 => {
                if self.state.locked {
                    return Err(Sense::LOCKED);
                }
                self.change(None);
                Ok(Action::Eject)
            }
            0x1b => Ok(Action::Done),
            // PREVENT ALLOW MEDIUM REMOVAL
            0x1e => {
                self.state.locked = cdb[4] & 1 != 0;
                Ok(Action::Done)
            }
            // READ CAPACITY
            0x25 => {
                let last = (self.disc()?.max(1) - 1).min(u32::MAX.into()) as u32;
                answer([last.to_be_bytes(), (BLOCK as u32).to_be_bytes()].concat(), 8)
            }
            // READ (10) and (12)
            0x28 => self.read(dword(2), word(7).into()),
            0xa8 => self.read(dword(2), dword(6)),
            // READ CD: user data of data sectors, and nothing beside.
            0xbe if cdb[9] & 0xf8 == 0x10 || cdb[9] == 0 => {
                let blocks = if cdb[9] == 0 { 0 } else { u32::from_be_bytes([0, cdb[6], cdb[7], cdb[8]]) };
                self.read(dword(2), blocks)
            }
            // SEEK (10), VERIFY (10), SYNCHRONIZE CACHE, SET CD SPEED
            0x2b | 0x2f | 0x35 | 0xbb => self.disc().map(|_| Action::Done),
            // READ TOC
            0x43 => answer(self.contents(cdb)?, word(7).into()),
            // GET CONFIGURATION
            0x46 => answer(self.configuration(cdb[1] & 3, word(2)), word(7).into()),
            // GET EVENT STATUS NOTIFICATION
            0x4a if cdb[1] & 1 != 0 => answer(self.events(cdb[4]), word(7).into()),
            // READ DISC INFORMATION
            0x51 => {
                self.disc()?;
                let mut bytes = vec![0; 34];
                // 32 bytes follow; a complete disc of one session and one track.
                (bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6]) = (32, 0x0e, 1, 1, 1, 1);
                answer(bytes, word(7).into())
            }
            // MECHANISM STATUS
            0xbd => answer(vec![0; 8], word(8).into()),
            0x12 | 0x4a | 0xbe => Err(Sense::BAD_FIELD),
            _ => Err(Sense::UNKNOWN_COMMAND),
        }
    }

    /// Blocks of the disc.
    fn disc(&self) -> Result<u64, Sense> {
        self.state.blocks.ok_or(Sense::NO_MEDIUM)
    }

    fn read(&self, first: u32, count: u32) -> Result<Action, Sense> {
        let (first, count) = (u64::from(first), u64::from(count));
        if first + count > self.disc()? {
            return Err(Sense::OUT_OF_RANGE);
        }
        Ok(match count {
            0 => Action::Done,
            _ => Action::Read { offset: first * BLOCK, len: count * BLOCK },
        })
    }

    /// The table of contents (MMC-5, §6.26): one data track.
    fn contents(&self, cdb: &[u8; 16]) -> Result<Vec<u8>, Sense> {
        let blocks = self.disc()?.min(u32::MAX.into()) as u32;
        let address = |block: u32| match cdb[1] & 2 {
            0 => block.to_be_bytes(),
            // Minutes, seconds and frames; two seconds come before the first block.
            _ => {
                let frames = block.saturating_add(150);
                [0, (frames / 4500).min(255) as u8, (frames / 75 % 60) as u8, (frames % 75) as u8]
            }
        };
        let format = if cdb[2] & 0xf != 0 { cdb[2] & 0xf } else { cdb[9] >> 6 };
        match format {
            0 => {
                let mut entries = Vec::new();
                let tracks = [(1, 0), (0xaa, blocks)];
                for (track, start) in tracks.into_iter().filter(|(track, _)| *track >= cdb[6]) {
                    entries.extend([0, 0x14, track, 0]);
                    entries.extend(address(start));
                }
                Ok([&[0, entries.len() as u8 + 2, 1, 1][..], &entries].concat())
            }
            // Sessions.
            1 => Ok([&[0, 10, 1, 1, 0, 0x14, 1, 0][..], &address(0)].concat()),
            _ => Err(Sense::BAD_FIELD),
        }
    }

    /// Features (MMC-5, §6.6): profiles, core, random reading, CD and DVD reading.
    fn configuration(&self, wanted: u8, first: u16) -> Vec<u8> {
        let profile = match self.state.blocks {
            None => 0,
            Some(blocks) if blocks > CD_BLOCKS_MAX => PROFILE_DVD_ROM,
            Some(_) => PROFILE_CD_ROM,
        };
        let is = |other: u16| u8::from(profile == other);
        let profiles = [0, 0x10, is(PROFILE_DVD_ROM), 0, 0, 8, is(PROFILE_CD_ROM), 0];
        let has_disc = u8::from(profile != 0);
        let features: [(u16, u8, &[u8]); 6] = [
            (0x0000, 3, &profiles),
            // Core: version 2, SATA-like interface (ATAPI).
            (0x0001, 3 | 2 << 2, &[0, 0, 0, 2, 1, 0, 0, 0]),
            // Removable: a tray that ejects and locks.
            (0x0003, 3 | 2 << 2, &[0x29, 0, 0, 0]),
            // Random readable: blocks of 2048 bytes.
            (0x0010, has_disc, &[0, 0, 8, 0, 0, 1, 0, 0]),
            (0x001e, is(PROFILE_CD_ROM) | 2 << 2, &[0, 0, 0, 0]),
            (0x001f, is(PROFILE_DVD_ROM), &[]),
        ];
        let mut bytes = vec![0; 8];
        bytes[6..8].copy_from_slice(&profile.to_be_bytes());
        for (code, flags, data) in features {
            let is_wanted = match wanted {
                // All from the first on, those of them that hold now, this one.
                0 => code >= first,
                1 => code >= first && flags & 1 != 0,
                _ => code == first,
            };
            if is_wanted {
                bytes.extend(code.to_be_bytes());
                bytes.extend([flags, data.len() as u8]);
                bytes.extend(data);
            }
        }
        let len = bytes.len() as u32 - 4;
        bytes[..4].copy_from_slice(&len.to_be_bytes());
        bytes
    }

    /// What happened to the disc (MMC-5, §6.7), for those who ask for media events.
    fn events(&mut self, classes: u8) -> Vec<u8> {
        const MEDIA: u8 = 4;
        const SUPPORTED: u8 = 1 << MEDIA;
        if classes & SUPPORTED == 0 {
            return vec![0, 2, 0x80, SUPPORTED];
        }
        let event = std::mem::take(&mut self.state.event);
        let is_there = if self.has_disc() { 2 } else { 1 };
        vec![0, 6, MEDIA, SUPPORTED, event, is_there, 0, 0]
    }

    /// The saved form.
    pub fn save(&self) -> CdromSaved {
        self.state.clone()
    }

    /// Takes over a saved state with the disc that is there now.
    ///
    /// # Errors
    /// When the disc is another one, or the state cannot be.
    pub fn restore(&mut self, saved: CdromSaved) -> Result<(), RestoreError> {
        if saved.event > 3 {
            return Err(RestoreError::new(
                "CD-ROM drive",
                "something happened to its disc that cannot happen",
            ));
        }
        let is = self.state.blocks;
        let was = saved.blocks;
        self.state = saved;
        if is != was {
            // The guest sees another disc, as if somebody had changed it.
            self.change(is.map(|blocks| blocks * BLOCK));
        }
        Ok(())
    }
}

/// Standard INQUIRY data (SPC-4, §6.6.2).
fn inquiry() -> Vec<u8> {
    let mut bytes = vec![0; 36];
    // A CD-ROM, removable; SPC-3; data in the form of today.
    (bytes[0], bytes[1], bytes[2], bytes[3], bytes[4]) = (5, 0x80, 5, 2, 31);
    bytes[8..16].copy_from_slice(b"ARNIA   ");
    bytes[16..32].copy_from_slice(b"CD-ROM          ");
    bytes[32..36].copy_from_slice(b"1   ");
    bytes
}

/// Mode pages (MMC-5, §7): error recovery, and capabilities.
fn mode_pages(page: u8) -> Result<Vec<u8>, Sense> {
    let recovery = [1, 6, 0, 5, 0, 0, 0, 0];
    let mut capabilities = [0; 22];
    // Reads CD-R, CD-RW and DVDs; a tray that ejects and locks; 4x.
    (capabilities[0], capabilities[1], capabilities[2], capabilities[6]) = (0x2a, 20, 0x0b, 0x29);
    capabilities[8..10].copy_from_slice(&706u16.to_be_bytes());
    capabilities[14..16].copy_from_slice(&706u16.to_be_bytes());
    match page {
        1 => Ok(recovery.to_vec()),
        0x2a => Ok(capabilities.to_vec()),
        0x3f => Ok([&recovery[..], &capabilities].concat()),
        _ => Err(Sense::BAD_FIELD),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(drive: &mut Cdrom, bytes: &[u8]) -> Action {
        let mut cdb = [0; 16];
        cdb[..bytes.len()].copy_from_slice(bytes);
        drive.command(&cdb)
    }

    fn ready(blocks: u64) -> Cdrom {
        let mut drive = Cdrom::new(Some(blocks * BLOCK));
        assert_eq!(command(&mut drive, &[0]), Action::Check(Sense::WAS_RESET));
        assert_eq!(command(&mut drive, &[0]), Action::Done);
        drive
    }

    #[test]
    fn a_disc_is_found_and_read() {
        let mut drive = ready(1000);
        let Action::Answer(inquiry) = command(&mut drive, &[0x12, 0, 0, 0, 36]) else { panic!() };
        assert_eq!((inquiry[0], inquiry[1], inquiry.len()), (5, 0x80, 36));
        assert_eq!(command(&mut drive, &[0x25]), Action::Answer(vec![0, 0, 3, 231, 0, 0, 8, 0]));
        let read = [0x28, 0, 0, 0, 0, 16, 0, 0, 2];
        assert_eq!(command(&mut drive, &read), Action::Read { offset: 16 * 2048, len: 4096 });
        let beyond = [0x28, 0, 0, 0, 3, 231, 0, 0, 2];
        assert_eq!(command(&mut drive, &beyond), Action::Check(Sense::OUT_OF_RANGE));
        let Action::Answer(sense) = command(&mut drive, &[3, 0, 0, 0, 18]) else { panic!() };
        assert_eq!((sense[2], sense[12]), (5, 0x21));
        let Action::Answer(toc) = command(&mut drive, &[0x43, 0, 0, 0, 0, 0, 0, 0, 100]) else { panic!() };
        assert_eq!(toc, [0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0, 0, 0x14, 0xaa, 0, 0, 0, 3, 232]);
        let Action::Answer(features) = command(&mut drive, &[0x46, 0, 0, 0, 0, 0, 0, 0, 255]) else {
            panic!()
        };
        assert_eq!(features[7], 8);
        assert_eq!(u32::from_be_bytes(features[..4].try_into().unwrap()) as usize, features.len() - 4);
        assert_eq!(command(&mut drive, &[0xff]), Action::Check(Sense::UNKNOWN_COMMAND));
    }

    #[test]
    fn discs_are_changed_and_held() {
        let mut drive = ready(1000);
        assert_eq!(command(&mut drive, &[0x1e, 0, 0, 0, 1]), Action::Done);
        assert_eq!(command(&mut drive, &[0x1b, 0, 0, 0, 2]), Action::Check(Sense::LOCKED));
        drive.press_eject();
        let events = [0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8];
        assert_eq!(command(&mut drive, &events), Action::Answer(vec![0, 6, 4, 0x10, 1, 2, 0, 0]));
        command(&mut drive, &[0x1e]);
        assert_eq!(command(&mut drive, &[0x1b, 0, 0, 0, 2]), Action::Eject);
        assert_eq!(command(&mut drive, &[0]), Action::Check(Sense::NO_MEDIUM));
        drive.change(Some(5 * BLOCK));
        assert_eq!(command(&mut drive, &events), Action::Answer(vec![0, 6, 4, 0x10, 2, 2, 0, 0]));
        assert_eq!(command(&mut drive, &[0]), Action::Check(Sense::CHANGED));
        assert_eq!(command(&mut drive, &[0x25]), Action::Answer(vec![0, 0, 0, 4, 0, 0, 8, 0]));
    }

    #[test]
    fn a_saved_drive_goes_on_and_sees_when_its_disc_is_another() {
        let mut drive = ready(1000);
        command(&mut drive, &[0x1e, 0, 0, 0, 1]);
        let mut same = Cdrom::new(Some(1000 * BLOCK));
        same.restore(drive.save()).unwrap();
        assert_eq!(same.save(), drive.save());
        let mut other = Cdrom::new(Some(7 * BLOCK));
        other.restore(drive.save()).unwrap();
        assert_eq!(command(&mut other, &[0]), Action::Check(Sense::CHANGED));
        assert!(other.restore(CdromSaved { event: 9, ..drive.save() }).is_err());
    }
}

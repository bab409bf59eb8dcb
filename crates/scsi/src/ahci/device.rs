//! The controller in the machine.

use super::command::{self, Command};
use super::model::{Effect, Registers};
use super::spec::*;
use super::work::{Attached, DiscError, Drive, Outcome};
use crate::{Cdrom, CdromSaved};
use device::IrqLine;
use device::limit::Limiter;
use device::pci::{Bar, BarKind, ConfigSaved, ConfigSpace, Identity, PciFunction, reg};
use device::state::RestoreError;
use disk::Disk;
use memory::Ram;
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// What is at a port.
pub enum DriveConfig {
    /// A disk with a serial number.
    Disk {
        /// The disk.
        disk: Arc<dyn Disk>,
        /// At most 20 letters.
        serial: String,
        /// What keeps its rate. [`Ahci::wake`] after a change.
        limiter: Arc<Limiter>,
    },
    /// A CD-ROM drive with a disc, or without.
    Cd(Option<Arc<dyn Disk>>),
}

/// Saved form of [`Ahci`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AhciSaved {
    config: ConfigSaved,
    registers: Registers,
    /// The state of the drive at each port, if one is there.
    drives: Vec<Option<CdromSaved>>,
}

const IDENTITY: Identity = Identity {
    vendor: 0x8086,
    // That of the I/O controller hub that goes with the Q35 chipset.
    device: 0x2922,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
    revision: 2,
    // Mass storage, SATA, AHCI.
    class: 0x01_06_01,
};

/// The controller, a PCI function with an interrupt line.
pub struct Ahci {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    ram: Arc<Ram>,
    irq: IrqLine,
    state: Mutex<State>,
    /// The thread waits here for commands, and others for the thread to stand still.
    changed: Condvar,
    /// By port; held while a command is carried out.
    drives: Vec<Mutex<Attached>>,
    /// By port; none for a drive with a disc.
    limiters: Vec<Option<Arc<Limiter>>>,
}

struct State {
    config: ConfigSpace,
    registers: Registers,
    /// A command is being carried out.
    busy: bool,
    /// Nothing is begun.
    paused: bool,
    ended: bool,
}

fn config_space() -> ConfigSpace {
    let mut config = ConfigSpace::new(IDENTITY);
    config.add_bar(BAR, BarKind::Memory32, BAR_SIZE);
    // INTA#.
    config.set_u8(reg::INTERRUPT_PIN, 1);
    config
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ahci {
    /// Creates a controller with these devices at its ports, and starts its thread.
    ///
    /// # Errors
    /// When the host gives no thread.
    ///
    /// # Panics
    /// When there are no devices or more than [`PORTS_MAX`]: the caller's mistake.
    pub fn new(drives: Vec<DriveConfig>, ram: Arc<Ram>, irq: IrqLine) -> io::Result<Arc<Ahci>> {
        assert!((1..=PORTS_MAX).contains(&drives.len()), "a number of ports that there can be");
        let attached: Vec<Attached> = drives
            .into_iter()
            .enumerate()
            .map(|(port, config)| match config {
                DriveConfig::Disk { disk, serial, limiter } => {
                    let serial = if serial.is_empty() { format!("ARNIA{port}") } else { serial };
                    Attached { drive: Drive::Disk(disk, limiter), serial }
                }
                DriveConfig::Cd(disc) => {
                    let drive = Cdrom::new(disc.as_ref().map(|disc| disc.info().size));
                    Attached { drive: Drive::Cd(drive, disc), serial: format!("ARNIA-CD{port}") }
                }
            })
            .collect();
        let limiter_of = |attached: &Attached| match &attached.drive {
            Drive::Disk(_, limiter) => Some(limiter.clone()),
            Drive::Cd(..) => None,
        };
        let limiters = attached.iter().map(limiter_of).collect();
        let signatures: Vec<u32> = attached.iter().map(Attached::signature).collect();
        let registers = Registers::new(&signatures);
        let state = State { config: config_space(), registers, busy: false, paused: false, ended: false };
        let drives = attached.into_iter().map(Mutex::new).collect();
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let shared = Arc::new(Shared { ram, irq, state, changed, drives, limiters });
        let for_thread = shared.clone();
        let thread = std::thread::Builder::new().name("ahci".into()).spawn(move || for_thread.serve())?;
        Ok(Arc::new(Ahci { shared, thread: Some(thread) }))
    }

    /// Ports with a CD-ROM drive, in order.
    pub fn cd_ports(&self) -> Vec<usize> {
        let is_cd = |drive: &Mutex<Attached>| matches!(lock(drive).drive, Drive::Cd(..));
        (0..).zip(&self.shared.drives).filter(|(_, drive)| is_cd(drive)).map(|(port, _)| port).collect()
    }

    /// Puts another disc into a drive, or takes it out. `force` takes it from a guest that holds it.
    ///
    /// # Errors
    /// When there is no drive at the port, or the guest holds the disc.
    pub fn change_disc(
        &self,
        port: usize,
        disc: Option<Arc<dyn Disk>>,
        force: bool,
    ) -> Result<(), DiscError> {
        let drive = self.shared.drives.get(port).ok_or(DiscError::NoSuchDrive)?;
        let Drive::Cd(drive, present) = &mut lock(drive).drive else { return Err(DiscError::NoSuchDrive) };
        if drive.is_locked() && drive.has_disc() && !force {
            drive.press_eject();
            return Err(DiscError::Held);
        }
        drive.change(disc.as_ref().map(|disc| disc.info().size));
        *present = disc;
        Ok(())
    }

    /// Stops work, waiting for the command that is being carried out.
    pub fn pause(&self) {
        let mut state = lock(&self.shared.state);
        state.paused = true;
        drop(self.shared.wait_idle(state));
    }

    /// Undoes [`Ahci::pause`].
    pub fn resume(&self) {
        lock(&self.shared.state).paused = false;
        self.shared.changed.notify_all();
    }

    /// A limit has changed: what waits for it looks again.
    pub fn wake(&self) {
        // Under the lock, so that nobody is between looking and waiting.
        let _state = lock(&self.shared.state);
        self.shared.changed.notify_all();
    }

    /// Puts the controller and its drives in their state after power-on; discs stay. A paused one stays paused.
    pub fn reset(&self) {
        let mut state = lock(&self.shared.state);
        state.registers.reset();
        let mut state = self.shared.wait_idle(state);
        state.config = config_space();
        self.shared.irq.set(false);
        drop(state);
        self.shared.drives.iter().for_each(|drive| lock(drive).reset());
    }

    /// The saved form. The controller is paused.
    pub fn save(&self) -> AhciSaved {
        let state = lock(&self.shared.state);
        let drives = self.shared.drives.iter().map(|drive| lock(drive).save()).collect();
        AhciSaved { config: state.config.save(), registers: state.registers.clone(), drives }
    }

    /// Takes over a saved state. The controller is paused.
    ///
    /// # Errors
    /// When the state is one that it can never have, or that of one with other devices.
    pub fn restore(&self, saved: AhciSaved) -> Result<(), RestoreError> {
        let mut state = lock(&self.shared.state);
        saved.registers.check(&state.registers)?;
        if saved.drives.len() != self.shared.drives.len() {
            return Err(RestoreError::new("AHCI controller", "it has other devices"));
        }
        state.config.restore(saved.config)?;
        state.registers = saved.registers;
        for (drive, saved) in self.shared.drives.iter().zip(saved.drives) {
            match (&mut lock(drive).drive, saved) {
                (Drive::Cd(drive, _), Some(saved)) => drive.restore(saved)?,
                (Drive::Disk(..), None) => {}
                _ => return Err(RestoreError::new("AHCI controller", "it has other devices")),
            }
        }
        self.shared.sync(&state);
        Ok(())
    }
}

impl Drop for Ahci {
    fn drop(&mut self) {
        lock(&self.shared.state).ended = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn wait_idle<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        while state.busy {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }

    /// Drives the interrupt line.
    fn sync(&self, state: &State) {
        let off = state.config.u16(reg::COMMAND) & reg::COMMAND_INTX_DISABLE != 0;
        self.irq.set(state.registers.interrupt() && !off);
    }

    /// The thread: carries out what is issued.
    fn serve(&self) {
        let mut state = lock(&self.state);
        while !state.ended {
            match state.next(&self.limiters) {
                Next::Command(port, slot) => {
                    state.busy = true;
                    drop(state);
                    state = self.carry_out(port, slot);
                    state.busy = false;
                    self.changed.notify_all();
                }
                Next::Nothing => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Next::Later(delay) => {
                    let waited = self.changed.wait_timeout(state, delay);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    fn carry_out(&self, port: usize, slot: u32) -> MutexGuard<'_, State> {
        let (list, generation) = {
            let state = lock(&self.state);
            let port = &state.registers.ports[port];
            (port.list, port.generation)
        };
        let command = Command::read(&self.ram, list, slot);
        let outcome = command.as_ref().map(|command| {
            let outcome = lock(&self.drives[port]).run(command, &self.ram);
            command.set_moved(&self.ram, outcome.moved);
            outcome
        });
        let mut state = lock(&self.state);
        // Whoever stopped the port meanwhile hears of nothing.
        if state.registers.ports[port].generation == generation {
            match outcome {
                Some(outcome) => self.complete(&mut state, port, slot, outcome),
                // The command is not in memory: there is nothing to carry out, and nobody to answer.
                None => state.registers.ports[port].issued &= !(1 << slot),
            }
            self.sync(&state);
        }
        state
    }

    fn complete(&self, state: &mut State, port: usize, slot: u32, outcome: Outcome) {
        let signature = lock(&self.drives[port]).signature();
        let registers = &mut state.registers.ports[port];
        let fails = outcome.status & STATUS_ERROR != 0;
        if outcome.pio && !fails {
            let len = outcome.moved.min(0xffff) as u16;
            let mut fis = [0; 20];
            (fis[0], fis[1], fis[2], fis[15]) = (FIS_PIO, 0x60, outcome.status, outcome.status);
            fis[16..18].copy_from_slice(&len.to_le_bytes());
            self.receive(registers, RECEIVED_PIO, &fis);
            registers.interrupts |= INT_PIO;
        }
        registers.task = u32::from(outcome.error) << 8 | u32::from(outcome.status);
        let mut fis = [0; 20];
        (fis[0], fis[1], fis[2], fis[3]) = (FIS_TO_HOST, 0x40, outcome.status, outcome.error);
        fis[12] = outcome.count;
        if outcome.announces {
            fill_signature(&mut fis, signature);
            registers.task = 1 << 8 | u32::from(STATUS_READY);
        }
        self.receive(registers, RECEIVED_REGISTER, &fis);
        registers.interrupts |= INT_REGISTER;
        if fails {
            registers.interrupts |= INT_ERROR;
            // The port stands still until it is stopped and started again (AHCI, §6.2.2.1): the command that
            // failed is named, and nothing more is begun.
            registers.command = registers.command & !0x1f00 | slot << 8;
            registers.fail();
        } else {
            registers.issued &= !(1 << slot);
        }
    }

    fn receive(&self, registers: &super::model::Port, offset: u64, fis: &[u8]) {
        if registers.command & CMD_FIS != 0 {
            command::receive(&self.ram, registers.received, offset, fis);
        }
    }

    /// The device at a port says what it is.
    fn announce(&self, state: &mut State, port: usize, signature: u32) {
        let registers = &mut state.registers.ports[port];
        let mut fis = [0; 20];
        (fis[0], fis[2]) = (FIS_TO_HOST, STATUS_READY);
        fill_signature(&mut fis, signature);
        self.receive(registers, RECEIVED_REGISTER, &fis);
        registers.interrupts |= INT_REGISTER;
    }
}

/// The signature in a register FIS, with error 1: all is well.
fn fill_signature(fis: &mut [u8; 20], signature: u32) {
    let [count, low, mid, high] = signature.to_le_bytes();
    (fis[3], fis[4], fis[5], fis[6], fis[12]) = (1, low, mid, high, count);
}

/// What the thread does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// The command in a slot of a port.
    Command(usize, u32),
    /// All that is issued waits for a limit, so long.
    Later(Duration),
    Nothing,
}

impl State {
    /// The next command. What waits for the limit of its disk holds up no other port.
    fn next(&self, limiters: &[Option<Arc<Limiter>>]) -> Next {
        if self.paused || !self.config.is_bus_master() {
            return Next::Nothing;
        }
        let mut later: Option<Duration> = None;
        for ((index, port), limiter) in (0..).zip(&self.registers.ports).zip(limiters) {
            if !port.works() || port.issued == 0 {
                continue;
            }
            match limiter.as_ref().and_then(|limiter| limiter.delay()) {
                None => return Next::Command(index, port.issued.trailing_zeros()),
                Some(delay) => later = Some(later.map_or(delay, |other| other.min(delay))),
            }
        }
        later.map_or(Next::Nothing, Next::Later)
    }
}

impl PciFunction for Ahci {
    fn config_read(&self, register: u16) -> u32 {
        lock(&self.shared.state).config.read(register)
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        let mut state = lock(&self.shared.state);
        state.config.write(offset, data);
        self.shared.sync(&state);
        drop(state);
        // Bus mastering may be on now.
        self.shared.changed.notify_all();
    }

    fn bars(&self) -> Vec<Bar> {
        lock(&self.shared.state).config.bars()
    }

    fn bar_read(&self, _index: usize, offset: u64, data: &mut [u8]) {
        let state = lock(&self.shared.state);
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = state.registers.read(at & !3).to_le_bytes()[(at & 3) as usize];
        }
    }

    fn bar_write(&self, _index: usize, offset: u64, data: &[u8]) {
        // Registers are written as doublewords (AHCI, §3); two at once by 64-bit drivers.
        if !offset.is_multiple_of(4) || !data.len().is_multiple_of(4) {
            return;
        }
        for (word, at) in data.chunks_exact(4).zip((offset..).step_by(4)) {
            let value = word.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
            let mut state = lock(&self.shared.state);
            let effect = state.registers.write(at, value);
            if at == GHC || (at >= PORT_FIRST && (at - PORT_FIRST) % PORT_SIZE == P_CMD) {
                // A port is stopped only when its command is over: memory is the guest's again then.
                state = self.shared.wait_idle(state);
            }
            match effect {
                Effect::None => {}
                Effect::Work => self.shared.changed.notify_all(),
                Effect::Announce(port) => {
                    let signature = state.registers.signature(port);
                    self.shared.announce(&mut state, port, signature);
                }
            }
            self.shared.sync(&state);
        }
    }
}

#[cfg(test)]
mod tests;

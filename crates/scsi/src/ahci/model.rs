//! The registers, without what commands do.

use super::spec::*;
use device::state::RestoreError;
use serde::{Deserialize, Serialize};

/// The registers of the controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    control: u32,
    /// By number.
    pub(super) ports: Vec<Port>,
}

/// The registers of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Port {
    pub(super) list: u64,
    pub(super) received: u64,
    pub(super) interrupts: u32,
    enabled: u32,
    pub(super) command: u32,
    pub(super) task: u32,
    signature: u32,
    control: u32,
    errors: u32,
    /// Commands that are issued and not done.
    pub(super) issued: u32,
    /// The device has said what it is since it was reset: that frame waits for memory to receive it, and comes once.
    announced: bool,
    /// A command failed: nothing is begun until the port is stopped and started.
    failed: bool,
    /// Raised by whatever ends the commands that are issued: what is being done for one is void then.
    #[serde(skip)]
    pub(super) generation: u64,
}

/// What a write asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Look for commands.
    Work,
    /// The device at this port says what it is.
    Announce(usize),
}

impl Port {
    fn new(signature: u32) -> Port {
        Port {
            list: 0,
            received: 0,
            interrupts: 0,
            enabled: 0,
            command: CMD_SPIN_UP | CMD_POWER,
            task: TASK_READY,
            signature,
            control: 0,
            errors: 0,
            issued: 0,
            announced: false,
            failed: false,
            generation: 0,
        }
    }

    /// Whether commands are carried out.
    pub(super) fn runs(&self) -> bool {
        self.command & CMD_RUNS != 0
    }

    /// Whether commands are begun: it runs, and none has failed since it was started.
    pub(super) fn works(&self) -> bool {
        self.runs() && !self.failed
    }

    /// A command failed.
    pub(super) fn fail(&mut self) {
        self.failed = true;
    }

    /// Ends what is issued.
    fn abandon(&mut self) {
        (self.issued, self.failed) = (0, false);
        self.generation += 1;
    }
}

/// The task file of a device that has just started: error 1 means that all is well.
const TASK_READY: u32 = 1 << 8 | STATUS_READY as u32;

impl Registers {
    /// A controller with devices of these signatures at its ports.
    pub fn new(signatures: &[u32]) -> Registers {
        Registers { control: GHC_AHCI, ports: signatures.iter().map(|s| Port::new(*s)).collect() }
    }

    /// Puts all in the state after power-on.
    pub fn reset(&mut self) {
        for port in &mut self.ports {
            *port = Port { generation: port.generation + 1, ..Port::new(port.signature) };
        }
        self.control = GHC_AHCI;
    }

    /// Whether the interrupt is asked for.
    pub fn interrupt(&self) -> bool {
        self.control & GHC_INTERRUPTS != 0 && self.status() != 0
    }

    /// Which ports ask for it.
    fn status(&self) -> u32 {
        let asks = |port: &Port| port.interrupts & port.enabled != 0;
        (0..).zip(&self.ports).filter(|(_, port)| asks(port)).fold(0, |bits, (index, _)| bits | 1 << index)
    }

    /// What the device at a port is.
    pub(super) fn signature(&self, port: usize) -> u32 {
        self.ports.get(port).map_or(0, |port| port.signature)
    }

    /// Reads a register.
    pub fn read(&self, offset: u64) -> u32 {
        let ports = self.ports.len() as u32;
        match offset {
            CAP => CAP_VALUE | (ports - 1),
            GHC => self.control,
            IS => self.status(),
            PI => (1 << ports) - 1,
            VS => VERSION,
            PORT_FIRST.. => {
                let (port, register) = ((offset - PORT_FIRST) / PORT_SIZE, (offset - PORT_FIRST) % PORT_SIZE);
                self.ports.get(port as usize).map_or(0, |port| match register {
                    P_CLB => port.list as u32,
                    P_CLBU => (port.list >> 32) as u32,
                    P_FB => port.received as u32,
                    P_FBU => (port.received >> 32) as u32,
                    P_IS => port.interrupts,
                    P_IE => port.enabled,
                    P_CMD => port.command,
                    P_TFD => port.task,
                    P_SIG => port.signature,
                    P_SSTS if port.control & 0xf == 4 => 4,
                    P_SSTS => SSTS_PRESENT,
                    P_SCTL => port.control,
                    P_SERR => port.errors,
                    P_CI => port.issued,
                    _ => 0,
                })
            }
            _ => 0,
        }
    }

    /// Writes a register.
    pub fn write(&mut self, offset: u64, value: u32) -> Effect {
        match offset {
            GHC if value & GHC_RESET != 0 => self.reset(),
            GHC => self.control = GHC_AHCI | value & GHC_INTERRUPTS,
            PORT_FIRST.. => {
                let (index, register) =
                    ((offset - PORT_FIRST) / PORT_SIZE, (offset - PORT_FIRST) % PORT_SIZE);
                if let Some(port) = self.ports.get_mut(index as usize) {
                    return port.write(index as usize, register, value);
                }
            }
            _ => {}
        }
        Effect::None
    }

    /// Refuses what the registers can never be.
    ///
    /// # Errors
    /// When a value is impossible, or there are other devices.
    pub fn check(&self, present: &Registers) -> Result<(), RestoreError> {
        let refuse = |why| Err(RestoreError::new("AHCI controller", why));
        if self.ports.len() != present.ports.len()
            || self.ports.iter().zip(&present.ports).any(|(a, b)| a.signature != b.signature)
        {
            return refuse("it has other devices");
        }
        if self.control & !GHC_INTERRUPTS != GHC_AHCI
            || self.ports.iter().any(|port| port.list & 0x3ff != 0 || port.received & 0xff != 0)
        {
            return refuse("a register has a value that it can never have");
        }
        Ok(())
    }
}

impl Port {
    fn write(&mut self, index: usize, register: u64, value: u32) -> Effect {
        let low = |address: u64, mask: u32| address & !0xffff_ffff | u64::from(value & mask);
        let high = |address: u64| address & 0xffff_ffff | u64::from(value) << 32;
        match register {
            P_CLB => self.list = low(self.list, !0x3ff),
            P_CLBU => self.list = high(self.list),
            P_FB => self.received = low(self.received, !0xff),
            P_FBU => self.received = high(self.received),
            P_IS => self.interrupts &= !value,
            P_IE => self.enabled = value & INT_MASK,
            P_SERR => self.errors &= !value,
            P_CMD => return self.write_command(index, value),
            // A reset of the link begins with 1 and ends with 0.
            P_SCTL => {
                let before = std::mem::replace(&mut self.control, value & 0xfff);
                match (before & 0xf, value & 0xf) {
                    (1, 0) => {
                        self.abandon();
                        self.task = TASK_READY;
                        // The link came up: exchanged.
                        self.errors |= 1 << 26;
                        self.announced = self.command & CMD_FIS != 0;
                        if self.announced {
                            return Effect::Announce(index);
                        }
                    }
                    (_, 1) => self.task = 0x7f,
                    _ => {}
                }
            }
            P_CI if self.runs() => {
                self.issued |= value;
                return Effect::Work;
            }
            _ => {}
        }
        Effect::None
    }

    fn write_command(&mut self, index: usize, value: u32) -> Effect {
        let before = self.command;
        let mut command = value & CMD_WRITABLE | CMD_SPIN_UP | CMD_POWER;
        if command & CMD_FIS != 0 {
            command |= CMD_FIS_RUNS;
        }
        if command & CMD_START != 0 {
            command |= CMD_RUNS;
        } else if before & CMD_START != 0 {
            self.abandon();
        }
        if value & CMD_OVERRIDE != 0 && before & CMD_START == 0 {
            self.task &= !0x89;
        }
        self.command = command;
        let announces = command & CMD_FIS != 0 && !self.announced;
        self.announced |= announces;
        if announces { Effect::Announce(index) } else { Effect::None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_find_ports_and_devices() {
        let mut hba = Registers::new(&[SIGNATURE_ATAPI, SIGNATURE_DISK]);
        assert_eq!((hba.read(CAP) & 0x1f, hba.read(PI), hba.read(VS)), (1, 3, VERSION));
        assert_eq!((hba.read(0x124), hba.read(0x1a4)), (SIGNATURE_ATAPI, SIGNATURE_DISK));
        assert_eq!((hba.read(0x128), hba.read(0x200)), (SSTS_PRESENT, 0));
        assert_eq!(hba.write(0x100, 0x1234_5678), Effect::None);
        assert_eq!(hba.read(0x100), 0x1234_5400);
        assert_eq!(hba.write(0x138, 1), Effect::None, "not while it is stopped");
        assert_eq!(hba.write(0x118, CMD_FIS | CMD_START), Effect::Announce(0));
        assert_eq!(hba.read(0x118) & (CMD_FIS_RUNS | CMD_RUNS), CMD_FIS_RUNS | CMD_RUNS);
        assert_eq!((hba.write(0x138, 5), hba.read(0x138)), (Effect::Work, 5));
        hba.write(0x118, 0);
        assert_eq!(hba.read(0x138), 0);
        // Firmware switches reception off and on around each command: no frame but the command's may come.
        assert_eq!(hba.write(0x118, CMD_FIS | CMD_START), Effect::None);
        // A reset of the link.
        hba.write(0x12c, 1);
        assert_eq!(hba.write(0x12c, 0), Effect::Announce(0));
        let good = hba.clone();
        assert!(good.check(&hba).is_ok());
        hba.write(GHC, GHC_RESET);
        assert_eq!(hba.read(0x118), CMD_SPIN_UP | CMD_POWER);
        assert!(Registers::new(&[1]).check(&hba).is_err());
    }

    #[test]
    fn interrupts_follow_their_masks() {
        let mut hba = Registers::new(&[SIGNATURE_DISK]);
        hba.ports[0].interrupts = INT_REGISTER;
        assert!(!hba.interrupt());
        hba.write(0x114, INT_REGISTER);
        hba.write(GHC, GHC_INTERRUPTS);
        assert!(hba.interrupt() && hba.read(IS) == 1);
        hba.write(0x110, INT_REGISTER);
        assert!(!hba.interrupt());
    }
}

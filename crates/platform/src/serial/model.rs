//! The 16550A as registers: no lock, no thread, no bus.

use super::spec::*;
use device::state::{RestoreError, SaveRestore};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// The register state of one UART.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SerialSaved {
    ier: u8,
    lcr: u8,
    mcr: u8,
    /// Modem lines (high nibble) and what changed since the last read (low nibble).
    msr: u8,
    scratch: u8,
    divisor: u16,
    fifo_enabled: bool,
    /// Bits 7:6 of FCR.
    trigger: u8,
    overrun: bool,
    /// The transmitter became empty and nobody was told yet.
    thre_pending: bool,
    received: VecDeque<u8>,
}

/// What a register access asks of the world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UartEffect {
    /// A byte left the transmitter.
    pub transmit: Option<u8>,
}

/// A 16550A. Transmission takes no time: the transmitter is empty again at once. Received bytes below
/// the trigger level are reported as timed out at once, so that no input waits for more.
#[derive(Clone, Debug)]
pub struct Uart {
    regs: SerialSaved,
}

/// The modem lines of an idle, connected peer.
const PEER_LINES: u8 = MSR_CTS | MSR_DSR | MSR_DCD;

impl Default for Uart {
    fn default() -> Uart {
        Uart::new()
    }
}

impl Uart {
    /// A UART as after reset (data sheet, table II).
    pub fn new() -> Uart {
        Uart {
            regs: SerialSaved {
                ier: 0,
                lcr: 0,
                mcr: 0,
                msr: PEER_LINES,
                scratch: 0,
                divisor: 12,
                fifo_enabled: false,
                trigger: 0,
                overrun: false,
                thre_pending: false,
                received: VecDeque::with_capacity(FIFO_SIZE),
            },
        }
    }

    /// The level of the interrupt output. OUT2 does not gate it: software written against other virtual
    /// machines forgets to set that.
    pub fn interrupt(&self) -> bool {
        self.identify() != IIR_NONE
    }

    /// How many received bytes fit now. None in loopback, where the receiver is cut off the line.
    pub fn room(&self) -> usize {
        if self.looped() { 0 } else { self.capacity().saturating_sub(self.regs.received.len()) }
    }

    /// Whether the guest has taken all input.
    pub fn is_drained(&self) -> bool {
        self.regs.received.is_empty()
    }

    /// Bytes arrive from the line; returns how many fit.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let count = self.room().min(bytes.len());
        self.regs.received.extend(&bytes[..count]);
        count
    }

    /// Reads a register (0 to 7).
    pub fn read(&mut self, register: u8) -> u8 {
        let dlab = self.regs.lcr & LCR_DLAB != 0;
        match register & 7 {
            REG_DATA if dlab => self.regs.divisor as u8,
            REG_DATA => self.regs.received.pop_front().unwrap_or(0),
            REG_IER if dlab => (self.regs.divisor >> 8) as u8,
            REG_IER => self.regs.ier,
            REG_IIR => self.read_iir(),
            REG_LCR => self.regs.lcr,
            REG_MCR => self.regs.mcr,
            REG_LSR => self.read_lsr(),
            REG_MSR => {
                let value = self.regs.msr;
                self.regs.msr &= !MSR_DELTA;
                value
            }
            _ => self.regs.scratch,
        }
    }

    /// Writes a register (0 to 7).
    pub fn write(&mut self, register: u8, value: u8) -> UartEffect {
        let dlab = self.regs.lcr & LCR_DLAB != 0;
        let mut effect = UartEffect::default();
        match register & 7 {
            REG_DATA if dlab => self.regs.divisor = self.regs.divisor & 0xff00 | value as u16,
            REG_DATA => effect.transmit = self.transmit(value),
            REG_IER if dlab => self.regs.divisor = self.regs.divisor & 0xff | (value as u16) << 8,
            REG_IER => self.write_ier(value & IER_MASK),
            REG_FCR => self.write_fcr(value),
            REG_LCR => self.regs.lcr = value,
            REG_MCR => self.write_mcr(value & MCR_MASK),
            REG_SCR => self.regs.scratch = value,
            // LSR and MSR are read-only but for factory tests.
            _ => {}
        }
        effect
    }

    fn looped(&self) -> bool {
        self.regs.mcr & MCR_LOOP != 0
    }

    fn capacity(&self) -> usize {
        if self.regs.fifo_enabled { FIFO_SIZE } else { 1 }
    }

    /// The interrupt of highest priority (data sheet, table V).
    fn identify(&self) -> u8 {
        let regs = &self.regs;
        let waiting = regs.received.len();
        let trigger = if regs.fifo_enabled { TRIGGER_LEVELS[regs.trigger as usize >> 6 & 3] } else { 1 };
        if regs.ier & IER_RLS != 0 && regs.overrun {
            IIR_RLS
        } else if regs.ier & IER_RDA != 0 && waiting >= trigger {
            IIR_RDA
        } else if regs.ier & IER_RDA != 0 && waiting > 0 {
            IIR_TIMEOUT
        } else if regs.ier & IER_THRE != 0 && regs.thre_pending {
            IIR_THRE
        } else if regs.ier & IER_MODEM != 0 && regs.msr & MSR_DELTA != 0 {
            IIR_MODEM
        } else {
            IIR_NONE
        }
    }

    fn read_iir(&mut self) -> u8 {
        let source = self.identify();
        // Reading this register is what acknowledges the transmitter's interrupt, if it is the one shown.
        if source == IIR_THRE {
            self.regs.thre_pending = false;
        }
        source | if self.regs.fifo_enabled { IIR_FIFO } else { 0 }
    }

    fn read_lsr(&mut self) -> u8 {
        let mut value = LSR_THRE | LSR_TEMT;
        if !self.regs.received.is_empty() {
            value |= LSR_DR;
        }
        if std::mem::take(&mut self.regs.overrun) {
            value |= LSR_OE;
        }
        value
    }

    fn transmit(&mut self, byte: u8) -> Option<u8> {
        // The byte goes out at once, so the transmitter is empty again.
        self.regs.thre_pending = true;
        if !self.looped() {
            return Some(byte);
        }
        if self.regs.received.len() < self.capacity() {
            self.regs.received.push_back(byte);
        } else {
            self.regs.overrun = true;
            // Without a FIFO the new character destroys the old one; with it, the FIFO stays as it is.
            if !self.regs.fifo_enabled {
                self.regs.received[0] = byte;
            }
        }
        None
    }

    fn write_ier(&mut self, value: u8) {
        // Enabling the interrupt while the transmitter is empty raises it (data sheet, §8.4 and what
        // drivers test for).
        if value & !self.regs.ier & IER_THRE != 0 {
            self.regs.thre_pending = true;
        }
        self.regs.ier = value;
    }

    fn write_fcr(&mut self, value: u8) {
        let enable = value & FCR_ENABLE != 0;
        if enable != self.regs.fifo_enabled {
            self.regs.received.clear();
        }
        self.regs.fifo_enabled = enable;
        // The other bits are not programmed unless the FIFOs are enabled.
        if enable {
            self.regs.trigger = value & 0xc0;
            if value & FCR_CLEAR_RX != 0 {
                self.regs.received.clear();
            }
        }
    }

    fn write_mcr(&mut self, value: u8) {
        self.regs.mcr = value;
        let lines = if !self.looped() {
            PEER_LINES
        } else {
            // §8.7: in loopback the four outputs lead to the four inputs.
            [(MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD)]
                .iter()
                .filter(|(output, _)| value & output != 0)
                .fold(0, |lines, (_, input)| lines | input)
        };
        let old = self.regs.msr;
        let mut changed = (old ^ lines) >> 4;
        // The ring indicator reports only its trailing edge.
        if lines & MSR_RI != 0 {
            changed &= !MSR_TERI;
        }
        self.regs.msr = lines | (old & MSR_DELTA) | changed;
    }
}

impl SaveRestore for Uart {
    type Saved = SerialSaved;

    fn save(&self) -> SerialSaved {
        self.regs.clone()
    }

    fn restore(&mut self, saved: SerialSaved) -> Result<(), RestoreError> {
        let refuse = |reason| Err(RestoreError::new("serial port", reason));
        if saved.received.len() > if saved.fifo_enabled { FIFO_SIZE } else { 1 } {
            return refuse("more bytes are received than fit");
        }
        if saved.ier & !IER_MASK != 0 || saved.mcr & !MCR_MASK != 0 || saved.trigger & 0x3f != 0 {
            return refuse("a register has bits that do not exist");
        }
        self.regs = saved;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Linux's 8250 driver does to tell a 16550A from its relatives.
    #[test]
    fn linux_finds_a_16550a() {
        let mut uart = Uart::new();
        for probe in [0x00, 0x0f] {
            uart.write(REG_IER, probe);
            assert_eq!(uart.read(REG_IER) & 0x0f, probe);
        }
        uart.write(REG_IER, 0x40 | 0x0f);
        assert_eq!(uart.read(REG_IER) & 0x40, 0, "no XScale unit enable");
        uart.write(REG_IER, 0);
        uart.write(REG_MCR, MCR_LOOP | 0x0a);
        assert_eq!(uart.read(REG_MSR) & 0xf0, 0x90);
        uart.write(REG_MCR, 0);
        uart.write(REG_LCR, 0);
        uart.write(REG_FCR, FCR_ENABLE);
        assert_eq!(uart.read(REG_IIR) >> 6, 3, "FIFOs work");
        for lcr in [0x80, 0xbf] {
            uart.write(REG_LCR, lcr);
            assert_ne!(uart.read(2), 0, "no enhanced feature register");
        }
        uart.write(REG_LCR, 0);
        uart.write(REG_FCR, FCR_ENABLE | 0x20);
        assert_eq!(uart.read(REG_IIR) & 0x20, 0, "no 64-byte FIFO");
    }

    #[test]
    fn enabling_the_transmit_interrupt_raises_it_every_time() {
        let mut uart = Uart::new();
        for _ in 0..2 {
            uart.write(REG_IER, IER_THRE);
            assert!(uart.interrupt());
            assert_eq!(uart.read(REG_IIR), IIR_THRE);
            assert!(!uart.interrupt());
            assert_eq!(uart.read(REG_IIR), IIR_NONE);
            uart.write(REG_IER, 0);
        }
        uart.write(REG_IER, IER_THRE);
        uart.read(REG_IIR);
        assert_eq!(uart.write(REG_DATA, b'x').transmit, Some(b'x'));
        assert!(uart.interrupt());
        assert_eq!(uart.read(REG_LSR), LSR_THRE | LSR_TEMT);
    }

    #[test]
    fn input_is_taken_as_far_as_it_fits_and_read_in_order() {
        let mut uart = Uart::new();
        assert_eq!(uart.receive(b"ab"), 1, "one byte without a FIFO");
        assert_eq!(uart.read(REG_DATA), b'a');
        uart.write(REG_FCR, FCR_ENABLE | 0x40);
        uart.write(REG_IER, IER_RDA);
        assert_eq!(uart.receive(b"abc"), 3);
        assert_eq!(uart.read(REG_IIR), IIR_FIFO | IIR_TIMEOUT);
        assert_eq!(uart.receive(&[b'd'; 20]), 13);
        assert_eq!(uart.read(REG_IIR), IIR_FIFO | IIR_RDA);
        assert_eq!(uart.room(), 0);
        let read: Vec<u8> = (0..4).map(|_| uart.read(REG_DATA)).collect();
        assert_eq!(read, b"abcd");
        assert_eq!(uart.room(), 4);
        uart.write(REG_FCR, FCR_ENABLE | FCR_CLEAR_RX);
        assert!(uart.is_drained() && !uart.interrupt());
        assert_eq!(uart.read(REG_LSR) & LSR_DR, 0);
    }

    #[test]
    fn loopback_returns_what_is_sent_and_reports_overrun() {
        let mut uart = Uart::new();
        uart.write(REG_FCR, FCR_ENABLE);
        uart.write(REG_MCR, MCR_LOOP);
        uart.write(REG_IER, IER_RLS);
        assert_eq!(uart.receive(b"x"), 0, "cut off the line");
        for byte in 0..17 {
            assert_eq!(uart.write(REG_DATA, byte).transmit, None);
        }
        assert_eq!(uart.read(REG_IIR), IIR_FIFO | IIR_RLS);
        assert_ne!(uart.read(REG_LSR) & LSR_OE, 0);
        assert_eq!(uart.read(REG_LSR) & LSR_OE, 0);
        let read: Vec<u8> = (0..16).map(|_| uart.read(REG_DATA)).collect();
        assert_eq!(read, (0..16).collect::<Vec<u8>>());
    }

    #[test]
    fn modem_lines_report_their_changes_once() {
        let mut uart = Uart::new();
        uart.write(REG_IER, IER_MODEM);
        assert!(!uart.interrupt());
        uart.write(REG_MCR, MCR_LOOP | MCR_OUT1);
        assert_eq!(uart.read(REG_IIR), IIR_MODEM);
        assert_eq!(uart.read(REG_MSR), MSR_RI | 0b1011, "CTS, DSR and DCD fell, RI rose silently");
        assert_eq!(uart.read(REG_MSR), MSR_RI);
        uart.write(REG_MCR, MCR_LOOP);
        assert_eq!(uart.read(REG_MSR), MSR_TERI);
        assert!(!uart.interrupt());
    }

    #[test]
    fn the_divisor_and_scratch_registers_keep_their_values() {
        let mut uart = Uart::new();
        uart.write(REG_LCR, LCR_DLAB | 3);
        uart.write(REG_DATA, 0x34);
        uart.write(REG_IER, 0x12);
        assert_eq!((uart.read(REG_DATA), uart.read(REG_IER)), (0x34, 0x12));
        uart.write(REG_LCR, 3);
        assert_eq!(uart.read(REG_IER), 0);
        uart.write(REG_SCR, 0xa5);
        assert_eq!(uart.read(REG_SCR), 0xa5);
    }

    #[test]
    fn a_saved_uart_goes_on_and_an_impossible_one_is_refused() {
        let mut uart = Uart::new();
        uart.write(REG_FCR, FCR_ENABLE);
        uart.write(REG_IER, IER_RDA);
        uart.receive(b"hello");
        let saved = uart.save();
        let mut other = Uart::new();
        other.restore(saved.clone()).unwrap();
        assert!(other.interrupt());
        assert_eq!(other.read(REG_DATA), b'h');
        let bad = [
            SerialSaved { received: [0; 17].into(), ..saved.clone() },
            SerialSaved { received: [0; 2].into(), fifo_enabled: false, ..saved.clone() },
            SerialSaved { ier: 0x80, ..saved.clone() },
            SerialSaved { trigger: 1, ..saved },
        ];
        for saved in bad {
            assert!(other.restore(saved).is_err());
        }
        assert_eq!(other.read(REG_DATA), b'e', "a refused state changes nothing");
    }
}

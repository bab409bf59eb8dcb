//! Registers of the 16550A (National Semiconductor PC16550D data sheet, §8) and where a PC has them.

/// First I/O port of COM1 to COM4.
pub const COM_PORTS: [u16; 4] = [0x3f8, 0x2f8, 0x3e8, 0x2e8];
/// ISA interrupt of COM1 to COM4.
pub const COM_IRQS: [u32; 4] = [4, 3, 4, 3];
/// Ports per device.
pub const PORT_COUNT: u16 = 8;
/// Bytes in each FIFO.
pub const FIFO_SIZE: usize = 16;

/// Receiver buffer (read), transmitter holding (write), divisor low (with [`LCR_DLAB`]).
pub const REG_DATA: u8 = 0;
/// Interrupt enable; divisor high with [`LCR_DLAB`].
pub const REG_IER: u8 = 1;
/// Interrupt identification (read).
pub const REG_IIR: u8 = 2;
/// FIFO control (write).
pub const REG_FCR: u8 = 2;
/// Line control.
pub const REG_LCR: u8 = 3;
/// Modem control.
pub const REG_MCR: u8 = 4;
/// Line status.
pub const REG_LSR: u8 = 5;
/// Modem status.
pub const REG_MSR: u8 = 6;
/// Scratch.
pub const REG_SCR: u8 = 7;

/// Received data available.
pub const IER_RDA: u8 = 1 << 0;
/// Transmitter holding register empty.
pub const IER_THRE: u8 = 1 << 1;
/// Receiver line status.
pub const IER_RLS: u8 = 1 << 2;
/// Modem status.
pub const IER_MODEM: u8 = 1 << 3;
/// The bits of IER that exist.
pub const IER_MASK: u8 = 0x0f;

/// No interrupt is pending.
pub const IIR_NONE: u8 = 0x01;
/// Receiver line status.
pub const IIR_RLS: u8 = 0x06;
/// Received data available.
pub const IIR_RDA: u8 = 0x04;
/// Characters are waiting below the trigger level.
pub const IIR_TIMEOUT: u8 = 0x0c;
/// Transmitter holding register empty.
pub const IIR_THRE: u8 = 0x02;
/// Modem status.
pub const IIR_MODEM: u8 = 0x00;
/// FIFOs are enabled.
pub const IIR_FIFO: u8 = 0xc0;

/// Enable both FIFOs.
pub const FCR_ENABLE: u8 = 1 << 0;
/// Empty the receiver FIFO.
pub const FCR_CLEAR_RX: u8 = 1 << 1;
/// Receiver trigger levels by FCR bits 7:6.
pub const TRIGGER_LEVELS: [usize; 4] = [1, 4, 8, 14];

/// Divisor latch access.
pub const LCR_DLAB: u8 = 1 << 7;

/// Data terminal ready.
pub const MCR_DTR: u8 = 1 << 0;
/// Request to send.
pub const MCR_RTS: u8 = 1 << 1;
/// Auxiliary output 1.
pub const MCR_OUT1: u8 = 1 << 2;
/// Auxiliary output 2.
pub const MCR_OUT2: u8 = 1 << 3;
/// Loop the transmitter back to the receiver.
pub const MCR_LOOP: u8 = 1 << 4;
/// The bits of MCR that exist.
pub const MCR_MASK: u8 = 0x1f;

/// Data ready.
pub const LSR_DR: u8 = 1 << 0;
/// Overrun error.
pub const LSR_OE: u8 = 1 << 1;
/// Transmitter holding register empty.
pub const LSR_THRE: u8 = 1 << 5;
/// Transmitter empty.
pub const LSR_TEMT: u8 = 1 << 6;

/// Clear to send.
pub const MSR_CTS: u8 = 1 << 4;
/// Data set ready.
pub const MSR_DSR: u8 = 1 << 5;
/// Ring indicator.
pub const MSR_RI: u8 = 1 << 6;
/// Data carrier detect.
pub const MSR_DCD: u8 = 1 << 7;
/// Change bits for CTS, DSR, DCD; and the trailing edge of RI.
pub const MSR_DELTA: u8 = 0x0f;
/// Trailing edge of the ring indicator.
pub const MSR_TERI: u8 = 1 << 2;

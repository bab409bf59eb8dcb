//! Registers of the VGA (IBM VGA technical reference; D. Hinerman, "FreeVGA") and of the Bochs display interface
//! (VBE DISPI, as Bochs, QEMU and their video BIOS know it).

/// PCI vendor and device ID that drivers for "standard VGA" know.
pub const PCI_ID: (u16, u16) = (0x1234, 0x1111);
/// Place on PCI bus 0: beside the ISA bridge, so that it moves no other device.
pub const PCI_DEVICE: u8 = 30;

/// First of the VGA's ports.
pub const PORT_FIRST: u16 = 0x3b0;
/// Their number.
pub const PORT_COUNT: u16 = 0x30;
/// Attribute controller: index, and data when written.
pub const PORT_ATTRIBUTE: u16 = 0x3c0;
/// Attribute controller: data when read.
pub const PORT_ATTRIBUTE_READ: u16 = 0x3c1;
/// Miscellaneous output (write), input status 0 (read).
pub const PORT_MISC: u16 = 0x3c2;
/// Sequencer index and data.
pub const PORT_SEQUENCER: u16 = 0x3c4;
/// DAC mask.
pub const PORT_DAC_MASK: u16 = 0x3c6;
/// DAC index for reading (write), DAC state (read).
pub const PORT_DAC_READ: u16 = 0x3c7;
/// DAC index for writing.
pub const PORT_DAC_WRITE: u16 = 0x3c8;
/// DAC data.
pub const PORT_DAC_DATA: u16 = 0x3c9;
/// Feature control when read.
pub const PORT_FEATURE_READ: u16 = 0x3ca;
/// Miscellaneous output when read.
pub const PORT_MISC_READ: u16 = 0x3cc;
/// Graphics controller index and data.
pub const PORT_GRAPHICS: u16 = 0x3ce;
/// CRT controller index (data follows), for colour; 0x20 lower for monochrome.
pub const PORT_CRTC: u16 = 0x3d4;
/// Input status 1 (read), feature control (write), for colour.
pub const PORT_STATUS: u16 = 0x3da;

/// Miscellaneous output: the CRT controller is at its colour ports.
pub const MISC_COLOR: u8 = 1;
/// Attribute index: the palette is in use, the screen shows something.
pub const ATTRIBUTE_ON: u8 = 0x20;
/// Input status 1: the beam is not in the picture, and it is in the vertical retrace.
pub const STATUS_RETRACE: u8 = 0b1001;

/// Index port of the Bochs display interface; data ports follow.
pub const PORT_DISPI: u16 = 0x1ce;
/// Ports of the Bochs display interface: index, data, and data again, for those who align it.
pub const PORT_DISPI_COUNT: u16 = 4;
/// Its version 5: with a linear frame buffer and the size of its memory.
pub const DISPI_ID: u16 = 0xb0c5;
/// Its registers.
pub mod dispi {
    #![allow(missing_docs)]
    pub const ID: usize = 0;
    pub const WIDTH: usize = 1;
    pub const HEIGHT: usize = 2;
    pub const BPP: usize = 3;
    pub const ENABLE: usize = 4;
    pub const BANK: usize = 5;
    pub const VIRTUAL_WIDTH: usize = 6;
    pub const VIRTUAL_HEIGHT: usize = 7;
    pub const X: usize = 8;
    pub const Y: usize = 9;
    pub const MEMORY_64K: usize = 10;
    pub const COUNT: usize = 11;

    pub const ENABLED: u16 = 1 << 0;
    pub const GET_CAPABILITIES: u16 = 1 << 1;
    pub const DAC_8_BIT: u16 = 1 << 5;
    pub const KEEP_MEMORY: u16 = 1 << 7;

    pub const WIDTH_MAX: u16 = 16000;
    pub const HEIGHT_MAX: u16 = 12000;
    pub const BPP_MAX: u16 = 32;
}

/// The frame buffer's base address register.
pub const BAR_FRAME_BUFFER: usize = 0;
/// Size of video memory.
pub const VIDEO_MEMORY: u64 = 16 << 20;
/// The base address register of EDID and registers.
pub const BAR_REGISTERS: usize = 2;
/// Its size.
pub const REGISTERS_SIZE: u64 = 0x1000;
/// There: the VGA's ports from 0x3c0 on.
pub const REGISTERS_VGA: u64 = 0x400;
/// There: the Bochs display interface, a 16-bit register each.
pub const REGISTERS_DISPI: u64 = 0x500;
/// There: the size of the extended registers, and the byte order of the frame buffer.
pub const REGISTERS_EXTENDED: u64 = 0x600;
/// Little-endian.
pub const BYTE_ORDER_LITTLE: u32 = 0x1e1e_1e1e;

/// The window below 1 MiB through which video memory is reached.
pub const WINDOW_START: u64 = 0xa_0000;
/// Its length.
pub const WINDOW_LEN: u64 = 0x2_0000;

//! Ports, keys and structures of the fw_cfg interface.

/// Selector (16 bits, little-endian, write-only); the data port is inside its range.
pub const PORT_SELECTOR: u16 = 0x510;
/// Data port: reads give one byte after the other.
pub const PORT_DATA: u16 = 0x511;
/// DMA address, high half (big-endian).
pub const PORT_DMA: u16 = 0x514;
/// DMA address, low half; writing it starts the operation.
pub const PORT_DMA_LOW: u16 = 0x518;
/// Ports from [`PORT_SELECTOR`] on.
pub const PORT_COUNT: u16 = 12;

/// Key: "QEMU".
pub const KEY_SIGNATURE: u16 = 0x0000;
/// Key: interface revision bits.
pub const KEY_ID: u16 = 0x0001;
/// Key: number of processors at the start (16 bits).
pub const KEY_CPU_COUNT: u16 = 0x0005;
/// Key: the largest number of processors (16 bits).
pub const KEY_CPU_COUNT_MAX: u16 = 0x000f;
/// Key: bytes of RAM (64 bits).
pub const KEY_RAM_SIZE: u16 = 0x0003;
/// Key: whether ISA interrupt 0 is on input 2 of the I/O APIC (8 bits; an item of this architecture).
pub const KEY_IRQ0_OVERRIDE: u16 = 0x8002;
/// Key: the directory of files.
pub const KEY_DIRECTORY: u16 = 0x0019;
/// First key of files.
pub const KEY_FILE_FIRST: u16 = 0x0020;
/// Keys of files end here.
pub const KEY_FILE_END: u16 = 0x1000;
/// In a selector: write. Items cannot be written through the data port.
pub const KEY_WRITE: u16 = 1 << 14;

/// What [`KEY_SIGNATURE`] holds.
pub const SIGNATURE: &[u8; 4] = b"QEMU";
/// What the DMA address port reads as, big-endian.
pub const DMA_SIGNATURE: u64 = u64::from_be_bytes(*b"QEMU CFG");
/// Bits of [`KEY_ID`]: the traditional interface and DMA.
pub const ID: u32 = 0b11;
/// Longest name of a file, without the zero that ends it.
pub const NAME_MAX: usize = 55;

/// DMA control: an error happened.
pub const DMA_ERROR: u32 = 1 << 0;
/// DMA control: copy to guest memory.
pub const DMA_READ: u32 = 1 << 1;
/// DMA control: move on without copying.
pub const DMA_SKIP: u32 = 1 << 2;
/// DMA control: select the item in the upper half.
pub const DMA_SELECT: u32 = 1 << 3;
/// DMA control: copy from guest memory.
pub const DMA_WRITE: u32 = 1 << 4;

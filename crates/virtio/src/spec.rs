//! Constants of the virtio 1.2 specification that concern all devices.

#![allow(missing_docs)]

/// Device types (§5).
pub mod device_type {
    pub const NET: u16 = 1;
    pub const BLOCK: u16 = 2;
    pub const CONSOLE: u16 = 3;
    pub const ENTROPY: u16 = 4;
    pub const BALLOON: u16 = 5;
    pub const SCSI: u16 = 8;
    pub const VSOCK: u16 = 19;
    pub const FILE_SYSTEM: u16 = 26;
}

/// Reserved feature bits (§6), as masks.
pub mod feature {
    pub const RING_INDIRECT_DESC: u64 = 1 << 28;
    pub const RING_EVENT_IDX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;
}

/// Bits of the device status field (§2.1).
pub mod status {
    pub const ACKNOWLEDGE: u8 = 1;
    pub const DRIVER: u8 = 2;
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
    pub const DEVICE_NEEDS_RESET: u8 = 64;
    pub const FAILED: u8 = 128;
}

/// The PCI transport (§4.1).
pub mod pci {
    pub const VENDOR_ID: u16 = 0x1af4;
    /// A modern device's ID is this plus its type (§4.1.2).
    pub const DEVICE_ID_BASE: u16 = 0x1040;

    pub const CAP_ID_VENDOR: u8 = 0x09;
    pub const CAP_COMMON_CFG: u8 = 1;
    pub const CAP_NOTIFY_CFG: u8 = 2;
    pub const CAP_ISR_CFG: u8 = 3;
    pub const CAP_DEVICE_CFG: u8 = 4;
    pub const CAP_PCI_CFG: u8 = 5;

    pub const ISR_QUEUE: u8 = 1;
    pub const ISR_CONFIG: u8 = 2;

    /// "No MSI-X vector is mapped" (§4.1.5.1.2).
    pub const NO_VECTOR: u16 = 0xffff;

    /// Offsets in the common configuration structure (§4.1.4.3).
    pub mod common {
        pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
        pub const DEVICE_FEATURE: u64 = 0x04;
        pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
        pub const DRIVER_FEATURE: u64 = 0x0c;
        pub const CONFIG_MSIX_VECTOR: u64 = 0x10;
        pub const NUM_QUEUES: u64 = 0x12;
        pub const DEVICE_STATUS: u64 = 0x14;
        pub const CONFIG_GENERATION: u64 = 0x15;
        pub const QUEUE_SELECT: u64 = 0x16;
        pub const QUEUE_SIZE: u64 = 0x18;
        pub const QUEUE_MSIX_VECTOR: u64 = 0x1a;
        pub const QUEUE_ENABLE: u64 = 0x1c;
        pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
        pub const QUEUE_DESC: u64 = 0x20;
        pub const QUEUE_DRIVER: u64 = 0x28;
        pub const QUEUE_DEVICE: u64 = 0x30;
        pub const LEN: u64 = 0x38;
    }
}

/// Descriptor flags (§2.7.5).
pub mod desc {
    pub const NEXT: u16 = 1;
    pub const WRITE: u16 = 2;
    pub const INDIRECT: u16 = 4;
}

//! PC devices: serial port, RTC, interrupt controllers, timers, ACPI power management, PCI root.

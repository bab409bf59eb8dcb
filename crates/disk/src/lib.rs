//! Disks behind virtual machines: the disk contract and the raw format.

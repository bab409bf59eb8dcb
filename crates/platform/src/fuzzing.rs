//! Fuzz targets, as plain functions: each drives a device with what a hostile guest could send.

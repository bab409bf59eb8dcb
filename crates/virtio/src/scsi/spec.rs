//! Constants of the SCSI host (virtio 1.2, §5.6).

#![allow(missing_docs)]

/// Queues (§5.6.2): control, events, and requests from this one on.
pub const CONTROL_QUEUE: usize = 0;
pub const EVENT_QUEUE: usize = 1;
pub const REQUEST_QUEUE: usize = 2;

/// Length of `struct virtio_scsi_config` (§5.6.4).
pub const CONFIG_LEN: usize = 36;
/// Bytes of a command and of sense data, unless the driver sets others (§5.6.4).
pub const CDB_SIZE: u32 = 32;
pub const SENSE_SIZE: u32 = 96;
/// Where these two are in the structure.
pub const SENSE_SIZE_AT: u64 = 20;
pub const CDB_SIZE_AT: u64 = 24;
/// Length of an event (§5.6.6.3).
pub const EVENT_LEN: u32 = 16;
/// The driver is told of units that come and go (§5.6.3, VIRTIO_SCSI_F_HOTPLUG). None do; but Linux gives buffers for events
/// only to a device that says so.
pub const F_HOTPLUG: u64 = 1 << 1;
/// The driver is told of changes of a unit (VIRTIO_SCSI_F_CHANGE).
pub const F_CHANGE: u64 = 1 << 2;
/// The event of such a change (§5.6.6.3), whose reason is an additional sense code and, above it, its qualifier: here
/// "capacity data has changed" (SPC-4, annex F).
pub const T_PARAM_CHANGE: u32 = 3;
pub const CAPACITY_CHANGED: u32 = 0x2a | 0x09 << 8;
/// Length of a LUN as requests have it.
pub const LUN_LEN: usize = 8;

/// `struct virtio_scsi_req_cmd` (§5.6.6.1): LUN, ID, attributes; then the command, then the data.
pub const REQUEST_HEAD: u32 = 19;
/// What is written: lengths, qualifier, status, response; then sense data, then the data.
pub const ANSWER_HEAD: u32 = 12;

/// Responses (§5.6.6.1, §5.6.6.2).
pub const S_OK: u8 = 0;
pub const S_ABORTED: u8 = 2;
pub const S_BAD_TARGET: u8 = 3;
pub const S_RESET: u8 = 4;
pub const S_FAILURE: u8 = 9;
pub const S_FUNCTION_SUCCEEDED: u8 = 10;
pub const S_FUNCTION_REJECTED: u8 = 11;
pub const S_INCORRECT_LUN: u8 = 12;

/// Requests to the control queue (§5.6.6.2).
pub const T_TMF: u32 = 0;
pub const T_AN_QUERY: u32 = 1;
pub const T_AN_SUBSCRIBE: u32 = 2;
/// Task management functions.
pub const TMF_ABORT_TASK: u32 = 0;
pub const TMF_ABORT_TASK_SET: u32 = 1;
pub const TMF_CLEAR_ACA: u32 = 2;
pub const TMF_CLEAR_TASK_SET: u32 = 3;
pub const TMF_I_T_NEXUS_RESET: u32 = 4;
pub const TMF_LOGICAL_UNIT_RESET: u32 = 5;
pub const TMF_QUERY_TASK: u32 = 6;
pub const TMF_QUERY_TASK_SET: u32 = 7;
/// Length of such a request: type, function, LUN, tag.
pub const TMF_LEN: usize = 24;

/// SCSI status (SAM-5, §5.3.1).
pub const GOOD: u8 = 0;
pub const CHECK_CONDITION: u8 = 2;

//! Model-specific registers of a saved state.

use super::bad_state;
use crate::kvm_refused;
use cpu::Error;
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use x86::msr::*;
use x86::state::CpuState;

/// Registers that a saved state holds, if KVM has them. Others have fields of their own, follow from the CPU
/// model, or cannot be of use to a guest of this project.
const SAVED: &[std::ops::RangeInclusive<u32>] = &[
    TSC_ADJUST..=TSC_ADJUST,
    SPEC_CTRL..=SPEC_CTRL,
    SYSENTER_CS..=SYSENTER_EIP,
    MCG_STATUS..=MCG_STATUS,
    MCG_CTL..=MCG_CTL,
    MISC_ENABLE..=MISC_ENABLE,
    DEBUG_CTL..=DEBUG_CTL,
    MTRR_PHYS_BASE0..=MTRR_PHYS_LAST,
    MTRR_FIX64K..=MTRR_FIX64K,
    MTRR_FIX16K_8..=MTRR_FIX16K_A,
    MTRR_FIX4K_C0..=MTRR_FIX4K_LAST,
    PAT..=PAT,
    MTRR_DEF_TYPE..=MTRR_DEF_TYPE,
    MC_FIRST..=MC_LAST,
    STAR..=SFMASK,
    KERNEL_GS_BASE..=TSC_AUX,
    AMD_HWCR..=AMD_HWCR,
    KVM_WALL_CLOCK..=KVM_POLL_CONTROL,
];

const MCG_CTL: u32 = 0x17b;
const MTRR_PHYS_LAST: u32 = MTRR_PHYS_BASE0 + 15;
const MTRR_FIX4K_LAST: u32 = 0x26f;
const MC_FIRST: u32 = 0x400;
/// Ten banks of four registers.
const MC_LAST: u32 = MC_FIRST + 39;

/// Registers that have a field of their own in a saved state, or follow from the machine's clock.
const ELSEWHERE: [u32; 7] = [TSC, EFER, FS_BASE, GS_BASE, APIC_BASE, TSC_DEADLINE, XSS];

/// Registers that only remember what systems write, with no effect on what a guest computes: one that KVM does
/// not have, or not with that value, is left out when a state is loaded.
fn is_cosmetic(number: u32) -> bool {
    matches!(
        number,
        SPEC_CTRL
            | MISC_ENABLE
            | DEBUG_CTL
            | MCG_STATUS
            | MCG_CTL
            | MC_FIRST..=MC_LAST
            // Power, clock modulation, prefetch and performance hints of Intel's processors.
            | 0x140 | 0x199..=0x19b | 0x1a4 | 0x1b0 | 0x1fc | 0x600
            // System, north bridge and unit configuration of AMD's.
            | 0xc001_0000..=0xc001_ffff
    )
}

/// The registers of a vCPU that a saved state holds, with their values after power-up.
#[derive(Debug)]
pub(crate) struct MsrList(Vec<(u32, u64)>);

impl MsrList {
    /// Finds out which there are. The vCPU is new and has its CPU model. The kernel's own list tells of
    /// paravirtual registers only; all others are tried.
    pub(crate) fn of(vcpu: &VcpuFd, listed: &[u32]) -> Result<MsrList, Error> {
        let candidates = SAVED.iter().cloned().flatten();
        let wanted = candidates.filter(|number| {
            !(KVM_WALL_CLOCK..=KVM_POLL_CONTROL).contains(number) || listed.contains(number)
        });
        let mut found = Vec::new();
        let mut rest: Vec<u32> = wanted.collect();
        while !rest.is_empty() {
            let values = read_many(vcpu, &rest)?;
            let count = values.len();
            found.extend(values);
            // The first that is not there ended it.
            rest.drain(..(count + 1).min(rest.len()));
        }
        Ok(MsrList(found))
    }

    /// The present values.
    pub(super) fn save(&self, vcpu: &VcpuFd) -> Result<Vec<(u32, u64)>, Error> {
        let numbers: Vec<u32> = self.0.iter().map(|(number, _)| *number).collect();
        let mut values = read_many(vcpu, &numbers)?;
        if values.len() < numbers.len() {
            let number = numbers[values.len()];
            return Err(Error::new(
                cpu::ErrorKind::HostRefused,
                format!("KVM does not give model-specific register {number:#x} any more"),
            ));
        }
        // What is as after power-up need not be told, and so does not keep an engine without the register
        // from going on.
        let defaults = self.0.iter().map(|(_, default)| *default);
        let mut told: Vec<_> = values
            .drain(..)
            .zip(defaults)
            .filter(|((number, value), default)| value != default || *default != 0 && !is_cosmetic(*number))
            .map(|(entry, _)| entry)
            .collect();
        told.sort_unstable();
        Ok(told)
    }

    /// Writes the registers of a state; what it does not mention is as after power-up.
    pub(super) fn load(&self, vcpu: &VcpuFd, state: &CpuState) -> Result<(), Error> {
        let absent = self.0.iter().filter(|(number, _)| value(state, *number).is_none());
        let given = state.msrs.iter().filter(|(number, _)| !ELSEWHERE.contains(number));
        let all: Vec<(u32, u64)> = absent.chain(given).copied().collect();
        let mut rest = &all[..];
        while !rest.is_empty() {
            let count = write_many(vcpu, rest)?;
            let Some((number, value)) = rest.get(count) else { break };
            // One that is not there may be in the state unused.
            let unused = *value == 0 && !self.0.iter().any(|(own, _)| own == number);
            if !unused && !is_cosmetic(*number) && read(vcpu, *number)? != Some(*value) {
                return Err(bad_state(format!(
                    "KVM refuses {value:#x} for model-specific register {number:#x}"
                )));
            }
            log::debug!("KVM has no model-specific register {number:#x} with {value:#x}: left out");
            rest = &rest[count + 1..];
        }
        Ok(())
    }
}

/// A register's value in a state.
pub(super) fn value(state: &CpuState, number: u32) -> Option<u64> {
    state.msrs.iter().find(|(own, _)| *own == number).map(|(_, value)| *value)
}

/// As many requests take at most.
const BATCH: usize = 200;

fn batch(entries: impl Iterator<Item = (u32, u64)>) -> Msrs {
    let entries: Vec<_> =
        entries.take(BATCH).map(|(index, data)| kvm_msr_entry { index, data, reserved: 0 }).collect();
    Msrs::from_entries(&entries).expect("a batch fits")
}

/// Reads registers up to the first that is not there.
fn read_many(vcpu: &VcpuFd, numbers: &[u32]) -> Result<Vec<(u32, u64)>, Error> {
    let mut found = Vec::new();
    for part in numbers.chunks(BATCH) {
        let mut msrs = batch(part.iter().map(|number| (*number, 0)));
        let count = vcpu.get_msrs(&mut msrs).map_err(kvm_refused("KVM gives no model-specific registers"))?;
        found.extend(msrs.as_slice()[..count].iter().map(|entry| (entry.index, entry.data)));
        if count < part.len() {
            break;
        }
    }
    Ok(found)
}

/// Writes registers up to the first that is refused; returns how many were written.
fn write_many(vcpu: &VcpuFd, entries: &[(u32, u64)]) -> Result<usize, Error> {
    let mut written = 0;
    for part in entries.chunks(BATCH) {
        let msrs = batch(part.iter().copied());
        let count = vcpu.set_msrs(&msrs).map_err(kvm_refused("KVM takes no model-specific registers"))?;
        written += count;
        if count < part.len() {
            break;
        }
    }
    Ok(written)
}

/// One register; `None` when it is not there.
pub(super) fn read(vcpu: &VcpuFd, number: u32) -> Result<Option<u64>, Error> {
    Ok(read_many(vcpu, &[number])?.first().map(|(_, value)| *value))
}

/// Writes one register.
pub(super) fn write(vcpu: &VcpuFd, number: u32, value: u64) -> Result<(), Error> {
    match write_many(vcpu, &[(number, value)])? {
        0 => Err(bad_state(format!("KVM refuses {value:#x} for model-specific register {number:#x}"))),
        _ => Ok(()),
    }
}

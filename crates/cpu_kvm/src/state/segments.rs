//! Segment registers and descriptor tables.

use kvm_bindings::{kvm_dtable, kvm_segment, kvm_sregs};
use x86::segment::{Segment, system_type};
use x86::state::TableRegister;

/// The six segment registers.
pub(super) fn save(sregs: &kvm_sregs) -> [Segment; 6] {
    let other = |segment: &kvm_segment| from_kernel(segment, false);
    // A null stack segment still has the privilege level.
    let stack = from_kernel(&sregs.ss, true);
    [other(&sregs.es), other(&sregs.cs), stack, other(&sregs.ds), other(&sregs.fs), other(&sregs.gs)]
}

/// One segment. An unusable one has no rights, or only its privilege level.
pub(super) fn from_kernel(segment: &kvm_segment, keep_level: bool) -> Segment {
    let bit = |value: u8, at: u32| u16::from(value & 1) << at;
    let level = u16::from(segment.dpl & 3) << 5;
    let rights = u16::from(segment.type_ & 0xf)
        | bit(segment.s, 4)
        | level
        | bit(segment.present, 7)
        | bit(segment.avl, 12)
        | bit(segment.l, 13)
        | bit(segment.db, 14)
        | bit(segment.g, 15);
    let access = match (segment.unusable != 0 || segment.present == 0, keep_level) {
        (false, _) => rights,
        (true, true) => level,
        (true, false) => 0,
    };
    Segment { base: segment.base, limit: segment.limit, selector: segment.selector, access }
}

pub(super) fn for_kernel(segment: &Segment) -> kvm_segment {
    let bit = |at: u32| (segment.access >> at & 1) as u8;
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.kind() as u8,
        present: bit(7),
        dpl: segment.dpl(),
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        unusable: segment.is_unusable().into(),
        padding: 0,
    }
}

/// The task register. Processors enter a guest only with a busy task-state segment (SDM vol. 3C, §27.3.1.2),
/// which no guest can tell from an available one that was never loaded.
pub(super) fn task_for_kernel(segment: &Segment) -> kvm_segment {
    let mut task = for_kernel(segment);
    if segment.is_unusable() {
        (task.limit, task.present, task.s, task.unusable) = (task.limit.max(0x67), 1, 0, 0);
        (task.type_, task.l, task.db, task.g) = (system_type::TSS_BUSY as u8, 0, 0, 0);
    }
    if task.type_ != system_type::TSS16_BUSY as u8 {
        task.type_ = system_type::TSS_BUSY as u8;
    }
    task
}

pub(super) fn table_from_kernel(table: &kvm_dtable) -> TableRegister {
    TableRegister { base: table.base, limit: table.limit }
}

pub(super) fn table_for_kernel(table: &TableRegister) -> kvm_dtable {
    kvm_dtable { base: table.base, limit: table.limit, padding: [0; 3] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use x86::segment::access;

    #[test]
    fn a_segment_is_the_same_there_and_back() {
        for descriptor in [0x00af_9b00_0000_ffffu64, 0x12cf_f334_5678_0001, 0x0000_8b00_0000_0067] {
            let segment = Segment::from_descriptor(0x10, descriptor);
            assert_eq!(from_kernel(&for_kernel(&segment), false), segment);
        }
    }

    #[test]
    fn an_unusable_segment_has_no_rights() {
        let null = Segment { base: 7, limit: 0, selector: 0, access: 3 << 5 };
        let there = for_kernel(&null);
        assert_eq!((there.unusable, there.dpl), (1, 3));
        assert_eq!(from_kernel(&there, true).access, 3 << 5);
        assert_eq!(from_kernel(&there, false), Segment { access: 0, ..null });
    }

    #[test]
    fn the_task_register_is_busy() {
        let task = task_for_kernel(&Segment::default());
        assert_eq!((task.type_, task.present, task.unusable, task.limit), (11, 1, 0, 0x67));
        let available = Segment { access: access::PRESENT | 9, limit: 0x67, ..Segment::default() };
        assert_eq!(task_for_kernel(&available).type_, 11);
    }
}

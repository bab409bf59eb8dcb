use super::*;
use crate::image::bzimage::tests::bzimage;
use crate::image::elf::tests::elf;
use std::io::Write;

const MIB: u64 = 1 << 20;

fn plan(kernel: Vec<u8>, ram: &Ram, method: Method, initrd_size: Option<u64>) -> Result<Plan, Error> {
    let inputs = Inputs { ram, initrd_size, command_line: "console=ttyS0", method };
    Plan::new(Kernel::from_bytes(kernel)?, inputs)
}

fn load(plan: &Plan, ram: &Ram, initrd: Option<&File>) -> Entry {
    plan.load(ram, initrd, &Machine::example(), [7; 32]).unwrap()
}

fn file_with(data: &[u8]) -> File {
    let mut file = File::from(rustix::fs::memfd_create("initrd", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.write_all(data).unwrap();
    file
}

fn bytes(ram: &Ram, at: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    ram.guest().read_slice(&mut out, GuestAddress(at)).unwrap();
    out
}

#[test]
fn a_bzimage_is_decompressed_and_entered_directly() {
    let ram = Ram::new(64 * MIB).unwrap();
    let kernel = bzimage(&elf(b"kernel", 0x5000, 0x10_0002, Some(0x10_0004)));
    let plan = plan(kernel, &ram, Method::Auto, Some(6)).unwrap();
    let entry = load(&plan, &ram, Some(&file_with(b"initrd")));
    assert_eq!(entry, Entry::Linux64 { rip: 0x10_0002, boot_params: layout::ZERO_PAGE });
    assert_eq!(bytes(&ram, 0x10_0000, 7), b"kernel\0");

    let page = layout::ZERO_PAGE;
    let u32_at = |at: u64| u32::from_le_bytes(bytes(&ram, page + at, 4).try_into().unwrap());
    assert_eq!(u32_at(0x202), 0x5372_6448, "the header is there");
    assert_eq!(bytes(&ram, page + 0x210, 1), [0xff], "type of loader");
    let (start, len) = (u32_at(0x218), u32_at(0x21c));
    assert_eq!((start as u64, len), (64 * MIB - 4096, 6));
    assert_eq!(bytes(&ram, start as u64, 6), b"initrd");
    assert_eq!(bytes(&ram, u32_at(0x228) as u64, 14), b"console=ttyS0\0");
    assert_eq!(u32_at(0x70) as u64, layout::ACPI.start);
    assert_eq!(bytes(&ram, layout::ACPI.start, 8), b"RSD PTR ");
    assert_eq!(bytes(&ram, layout::SMBIOS.start, 5), b"_SM3_");
    let seed = u32_at(0x250) as u64;
    assert_eq!(bytes(&ram, seed + 8, 8), [9, 0, 0, 0, 32, 0, 0, 0]);
    assert_eq!(bytes(&ram, seed + 16, 32), [7; 32]);
    assert_eq!(bytes(&ram, page + 0x1e8, 1), [5], "memory map entries");
    assert_eq!(bytes(&ram, page + 0x1ef, 1), [0], "the sentinel says that the page was cleared");
}

#[test]
fn the_methods_enter_where_they_say() {
    let ram = Ram::new(64 * MIB).unwrap();
    let inner = elf(b"kernel", 0x5000, 0x10_0002, Some(0x10_0004));
    let plain = elf(b"kernel", 0x5000, 0x10_0002, None);
    let linux = |rip| Ok(Entry::Linux64 { rip, boot_params: layout::ZERO_PAGE });
    let pvh = Ok(Entry::Pvh { eip: 0x10_0004, start_info: layout::PVH_START_INFO as u32 });
    let cases = [
        (bzimage(&inner), Method::Direct, linux(0x10_0002)),
        (bzimage(&inner), Method::SelfDecompressing, linux(0x100_0200)),
        (bzimage(&inner), Method::Pvh, pvh),
        (bzimage(b"LZOP or whatever"), Method::Auto, linux(0x100_0200)),
        (bzimage(b"LZOP or whatever"), Method::Direct, Err(ErrorKind::Unsupported)),
        (inner.clone(), Method::Auto, pvh),
        (inner.clone(), Method::Direct, linux(0x10_0002)),
        (inner, Method::SelfDecompressing, Err(ErrorKind::Unsupported)),
        (plain.clone(), Method::Auto, linux(0x10_0002)),
        (plain, Method::Pvh, Err(ErrorKind::Unsupported)),
        (b"#!/bin/sh\n".to_vec(), Method::Auto, Err(ErrorKind::NotAKernel)),
        (Vec::new(), Method::Auto, Err(ErrorKind::NotAKernel)),
    ];
    for (index, (kernel, method, expected)) in cases.into_iter().enumerate() {
        let got = plan(kernel, &ram, method, None).map(|plan| load(&plan, &ram, None)).map_err(|e| e.kind());
        assert_eq!(got, expected, "case {index}");
    }
}

#[test]
fn pvh_gets_its_start_info() {
    let ram = Ram::new(64 * MIB).unwrap();
    let plan = plan(elf(b"k", 0x5000, 0x10_0000, Some(0x10_0004)), &ram, Method::Auto, Some(5000)).unwrap();
    load(&plan, &ram, Some(&file_with(&[1; 5000])));
    let info = layout::PVH_START_INFO;
    let u32_at = |at| ram.load::<u32>(info + at).unwrap();
    let u64_at = |at| ram.load::<u64>(info + at).unwrap();
    assert_eq!([u32_at(0), u32_at(4), u32_at(12)], [0x336e_c578, 1, 1]);
    let module = u64_at(16) - info;
    assert_eq!((u64_at(module), u64_at(module + 8)), (64 * MIB - 8192, 5000));
    assert_eq!(bytes(&ram, u64_at(24), 7), b"console");
    assert_eq!(u64_at(32), layout::ACPI.start);
    let (map, entries) = (u64_at(40), u32_at(48));
    assert_eq!(entries, 5);
    assert_eq!(ram.load::<u64>(map), Some(0));
    assert_eq!(ram.load::<u64>(map + 8), Some(layout::LOW_USABLE_END));
    assert_eq!(ram.load::<u32>(map + 16), Some(1));
}

#[test]
fn too_little_memory_is_refused_with_the_size_needed() {
    let ram = Ram::new(4 * MIB).unwrap();
    for (size, initrd, needs) in [
        (8 * MIB, None, Some("need 9 MiB, of 4 MiB")),
        (MIB, Some(3 * MIB), Some("need 5 MiB, of 4 MiB")),
        (MIB, Some(u64::MAX), Some("too little memory")),
        (MIB, Some(2 * MIB), None),
    ] {
        let result = plan(elf(b"k", size, 0x10_0000, None), &ram, Method::Auto, initrd);
        match (result, needs) {
            (Ok(_), None) => {}
            (Err(e), Some(text)) if e.kind() == ErrorKind::TooLittleMemory => {
                assert!(e.to_string().contains(text), "{e}");
            }
            (result, _) => panic!("{size} + {initrd:?}: {result:?}"),
        }
    }
    // The decompressed size is known before anything is decompressed.
    let packed = bzimage(b"\x02\x21\x4c\x18\0\0\0\0\0\0\0\x40");
    let error = plan(packed, &ram, Method::Auto, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLittleMemory);
    assert!(error.to_string().contains("1024 MiB"), "{error}");
}

#[test]
fn command_lines_that_the_kernel_does_not_take_are_refused() {
    let ram = Ram::new(64 * MIB).unwrap();
    let check = |line: &str| {
        let kernel = Kernel::from_bytes(bzimage(&elf(b"k", 1, 0x10_0000, None))).unwrap();
        let inputs = Inputs { ram: &ram, initrd_size: None, command_line: line, method: Method::Auto };
        Plan::new(kernel, inputs).map(drop).map_err(|e| e.kind())
    };
    assert_eq!(check(&"x".repeat(2047)), Ok(()));
    assert_eq!(check(&"x".repeat(2048)), Err(ErrorKind::BadCommandLine));
    assert_eq!(check("a\0b"), Err(ErrorKind::BadCommandLine));
}

#[test]
fn the_initial_ram_disk_stays_below_what_the_kernel_says() {
    let ram = Ram::new(memory::LOW_RAM_END).unwrap();
    let plan = plan(bzimage(&elf(b"k", 1, 0x10_0000, None)), &ram, Method::Auto, Some(MIB)).unwrap();
    assert_eq!(plan.initrd, Some(0x8000_0000 - MIB..0x8000_0000));
}

#[test]
fn a_large_initial_ram_disk_arrives_whole_and_one_that_shrank_is_told() {
    let ram = Ram::new(64 * MIB).unwrap();
    let content: Vec<u8> = (0..5 * MIB as u32 + 7).map(|n| (n ^ n >> 9) as u8).collect();
    let len = content.len() as u64;
    let plan = plan(bzimage(&elf(b"k", 1, 0x10_0000, None)), &ram, Method::Auto, Some(len)).unwrap();
    load(&plan, &ram, Some(&file_with(&content)));
    let range = plan.initrd.clone().unwrap();
    assert!(bytes(&ram, range.start, content.len()) == content);
    assert_eq!(bytes(&ram, range.end, 9), [0; 9]);

    let shorter = file_with(&content[..content.len() - 1]);
    let error = plan.load(&ram, Some(&shorter), &Machine::example(), [7; 32]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreadable);
}

#[test]
fn a_kernel_below_1_mib_is_refused() {
    let ram = Ram::new(64 * MIB).unwrap();
    let mut kernel = elf(b"k", 0x1000, 0x8000, None);
    kernel[64 + 24..64 + 32].copy_from_slice(&0x8000u64.to_le_bytes());
    assert_eq!(plan(kernel, &ram, Method::Auto, None).unwrap_err().kind(), ErrorKind::Unsupported);
}

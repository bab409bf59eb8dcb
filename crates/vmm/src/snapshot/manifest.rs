//! Writing and reading the manifest.

use super::folder::disk_file;
use crate::spec::{MEMORY_MAX, PCI_DEVICES_MAX};
use api::worker::snapshot::{
    Envelope, FORMAT, FileEntry, MEMORY_FILE, Manifest, PARTS_MAX, STATE_FILE, SavedDisk, is_valid_name,
};
use memory::PAGE_SIZE;
use serde_json::value::RawValue;
use std::path::Path;

/// A manifest is not larger than this.
pub const SIZE_MAX: u64 = 4 << 20;
/// The state of a machine is not larger than this.
pub const STATE_SIZE_MAX: u64 = 256 << 20;
/// More CPUID leaves than this no processor has.
const LEAVES_MAX: usize = 4096;
/// A disk has no more layers than this in a snapshot.
pub const LAYERS_MAX: usize = 32;
/// The hash in hexadecimal digits.
const HASH_LEN: usize = 64;

/// The manifest's file.
pub fn encode(manifest: &Manifest) -> Vec<u8> {
    let text = serde_json::to_string(manifest).expect("plain data");
    let hash = super::checksum::of_bytes(text.as_bytes());
    let raw = RawValue::from_string(text).expect("just written as JSON");
    // As low as can be, so that older programs read it.
    let has_layers = manifest.disks.iter().any(|disk| matches!(disk, SavedDisk::Layers(_)));
    let format = if has_layers { 2 } else { 1 };
    let envelope = Envelope { arnia_snapshot: format, blake3: hash, manifest: &raw };
    let mut bytes = serde_json::to_vec(&envelope).expect("plain data");
    bytes.push(b'\n');
    bytes
}

/// Reads a manifest's file and checks it.
///
/// # Errors
/// What is wrong, as a clause with `it` for the snapshot.
pub fn decode(bytes: &[u8]) -> Result<Manifest, String> {
    #[derive(serde::Deserialize)]
    struct Head {
        arnia_snapshot: u32,
        #[serde(default)]
        manifest: Newer,
    }
    #[derive(Default, serde::Deserialize)]
    struct Newer {
        program: Option<String>,
    }
    // A newer form is told from a damaged one: as little as possible is asked of it.
    let head: Head = serde_json::from_slice(bytes).map_err(|e| match e.classify() {
        serde_json::error::Category::Data => {
            "its manifest is not one of a snapshot of this program".to_owned()
        }
        _ => format!("its manifest is damaged: {e}"),
    })?;
    if head.arnia_snapshot > FORMAT {
        let program = head.manifest.program.unwrap_or_else(|| "a newer version".into());
        return Err(format!(
            "it has format {} of arnia-vmm {program}, and this program reads formats up to {FORMAT}",
            head.arnia_snapshot
        ));
    }
    if head.arnia_snapshot == 0 {
        return Err("it has format 0, which there is none".into());
    }
    let damaged = |e: serde_json::Error| format!("its manifest is damaged: {e}");
    let envelope: Envelope<'_> = serde_json::from_slice(bytes).map_err(damaged)?;
    let text = envelope.manifest.get();
    if super::checksum::of_bytes(text.as_bytes()) != envelope.blake3 {
        return Err("its manifest is damaged: the check sum is wrong".into());
    }
    let manifest: Manifest = serde_json::from_str(text).map_err(damaged)?;
    check(&manifest)?;
    Ok(manifest)
}

/// Checks what the types leave open.
fn check(manifest: &Manifest) -> Result<(), String> {
    let require =
        |ok: bool, what: &str| if ok { Ok(()) } else { Err(format!("its manifest is wrong: {what}")) };
    let machine = &manifest.machine;
    let memory = &manifest.memory;
    check_file(&manifest.state, STATE_FILE)?;
    require(manifest.state.size <= STATE_SIZE_MAX, "the state is too large")?;
    check_file(&memory.file, MEMORY_FILE)?;
    let size = memory.file.size;
    require(size == machine.memory.0, "the memory's size is not the machine's")?;
    require(size > 0 && size <= MEMORY_MAX && size.is_multiple_of(PAGE_SIZE), "the memory's size cannot be")?;
    require(memory.parts.is_some() == manifest.parent.is_some(), "parent and parts of memory do not fit")?;
    if let Some(parts) = &memory.parts {
        require(parts.len() <= PARTS_MAX, "the memory has too many parts")?;
        let mut before = 0;
        for &(start, count) in parts {
            let end = start.checked_add(count).filter(|end| *end <= size / PAGE_SIZE);
            require(count > 0 && start >= before && end.is_some(), "the parts of memory are out of order")?;
            before = end.unwrap_or(0);
        }
    }
    if let Some(parent) = &manifest.parent {
        require(is_valid_name(&parent.name), "the parent's name cannot be")?;
        require(parent.id != manifest.id, "it is its own parent")?;
    }
    require(manifest.cpuid.len() <= LEAVES_MAX, "there are too many CPUID leaves")?;
    require(manifest.disks.len() == machine.disks.len(), "the number of disks is not the machine's")?;
    require(manifest.disks.len() <= PCI_DEVICES_MAX, "there are too many disks")?;
    require(manifest.macs.len() == machine.nets.len(), "the number of network cards is not the machine's")?;
    for (index, disk) in manifest.disks.iter().enumerate() {
        match disk {
            SavedDisk::Copy(file) => {
                check_file(file, &disk_file(index))?;
                require(file.size > 0, "a disk is empty")?;
            }
            SavedDisk::Layers(layers) => {
                require(layers.size > 0, "a disk is empty")?;
                require((1..=LAYERS_MAX).contains(&layers.files.len()), "a disk has no or too many layers")?;
                require(
                    layers.files.iter().all(|name| is_layer_name(name)),
                    "the name of a layer cannot be",
                )?;
            }
            SavedDisk::Outside(_) => {}
        }
    }
    Ok(())
}

/// Whether a file of the snapshot's folder can have this name.
fn is_layer_name(name: &str) -> bool {
    !name.contains(['/', '\0']) && disk::is_layer(Path::new(name))
}

/// Files have fixed names, so that none leads out of the folder.
fn check_file(entry: &FileEntry, name: &str) -> Result<(), String> {
    let is_hash = entry.blake3.len() == HASH_LEN && entry.blake3.bytes().all(|b| b.is_ascii_hexdigit());
    if entry.file != name || !is_hash {
        return Err(format!("its manifest is wrong: the entry of {name} cannot be"));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use api::ByteSize;
    use api::worker::config::{DiskConfig, VmConfig};
    use api::worker::snapshot::{CpuidLeaf, Memory, Parent};

    pub(crate) fn example() -> Manifest {
        let file = |name: &str, size| FileEntry { file: name.into(), size, blake3: "0a".repeat(32) };
        let mut machine = VmConfig::new("vmlinuz");
        machine.memory = ByteSize(16 << 20);
        machine.disks = vec![DiskConfig::new("d")];
        Manifest {
            id: "a".into(),
            program: "0.1.0".into(),
            created_ms: 1,
            parent: Some(Parent { name: "base".into(), id: "b".into() }),
            engine: "bt".into(),
            cpu_model: "x86-64-v2".into(),
            cpuid: vec![CpuidLeaf { function: 0, index: None, registers: [1, 2, 3, 4] }],
            tsc_hz: 1_000_000_000,
            machine,
            uuid: "u".into(),
            macs: vec![],
            state: file(STATE_FILE, 10),
            memory: Memory { file: file(MEMORY_FILE, 16 << 20), parts: Some(vec![(0, 1), (5, 10)]) },
            disks: vec![SavedDisk::Copy(file("disk0.img", 512))],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let manifest = example();
        assert_eq!(decode(&encode(&manifest)).unwrap(), manifest);
    }

    #[test]
    fn what_is_foreign_newer_cut_or_changed_is_told_apart() {
        let bytes = encode(&example());
        let text = String::from_utf8(bytes.clone()).unwrap();
        let changed = text.replace("x86-64-v2", "x86-64-v3").into_bytes();
        let newer = text.replace("\"arnia_snapshot\":1", "\"arnia_snapshot\":3").into_bytes();
        for (bytes, word) in [
            (&b"{\"machine\": 1}"[..], "not one of a snapshot"),
            (b"[]", "not one of a snapshot"),
            (b"", "damaged"),
            (b"\x7fELF", "damaged"),
            (b"{\"arnia_snapshot\": 0}", "format 0"),
            (b"{\"arnia_snapshot\": 3, \"parts\": []}", "format 3 of arnia-vmm a newer version"),
            (&bytes[..bytes.len() / 2], "damaged"),
            (&changed, "check sum"),
            (&newer, "format 3 of arnia-vmm 0.1.0"),
        ] {
            let error = decode(bytes).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let spoil: &[fn(&mut Manifest)] = &[
            |m| m.state.file = "../state.json".into(),
            |m| m.state.size = u64::MAX,
            |m| m.state.blake3.push('0'),
            |m| m.memory.file.file = "/dev/zero".into(),
            |m| m.memory.file.size = 17 << 20,
            |m| m.memory.parts = None,
            |m| m.memory.parts = Some(vec![(5, 1), (0, 1)]),
            |m| m.memory.parts = Some(vec![(0, 2), (1, 1)]),
            |m| m.memory.parts = Some(vec![(0, 0)]),
            |m| m.memory.parts = Some(vec![(4095, 2)]),
            |m| m.memory.parts = Some(vec![(u64::MAX, 2)]),
            |m| m.memory.parts = Some(vec![(0, 1); PARTS_MAX + 1]),
            |m| m.parent = None,
            |m| m.parent.as_mut().unwrap().name = "..".into(),
            |m| m.parent.as_mut().unwrap().id = "a".into(),
            |m| m.disks.clear(),
            |m| m.macs.push("x".into()),
            |m| {
                m.memory.file.size = 4097;
                m.machine.memory = ByteSize(4097);
            },
        ];
        for (index, spoil) in spoil.iter().enumerate() {
            let mut manifest = example();
            spoil(&mut manifest);
            assert!(decode(&encode(&manifest)).is_err(), "{index}");
        }
    }
}

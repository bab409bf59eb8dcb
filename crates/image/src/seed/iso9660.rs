//! A small writer of ISO 9660 file systems with Rock Ridge names (ECMA-119; IEEE P1281 SUSP and P1282 RRIP,
//! drafts 1.12), enough for seed disks: some small files in some folders.
//!
//! | sector | content |
//! |---|---|
//! | 0–15 | nothing |
//! | 16, 17 | primary volume descriptor, end of descriptors |
//! | 18, 19 | path tables, little and big endian |
//! | 20– | folders, then files |

/// Bytes in a sector (ECMA-119, section 6.1.2).
const SECTOR: usize = 2048;
const FIRST_FREE: u32 = 20;
/// Longest name: it has to fit one directory record together with its other fields.
const NAME_LEN_MAX: usize = 150;

/// A folder or file on its way into the image.
struct Node {
    name: String,
    parent: usize,
    /// Numbers of what is in it, for a folder.
    children: Option<Vec<usize>>,
    content: Vec<u8>,
    sector: u32,
}

/// Makes an image with this volume name of files by their paths, like `openstack/latest/user_data`.
///
/// # Panics
/// If a name is empty or longer than 150 bytes, or a file is longer than 4 GiB: names and files of seeds
/// are ours.
pub(super) fn image(volume: &str, files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut nodes = vec![Node {
        name: String::new(),
        parent: 0,
        children: Some(Vec::new()),
        content: Vec::new(),
        sector: 0,
    }];
    for (path, content) in files {
        let mut folder = 0;
        let mut parts = path.split('/').peekable();
        while let Some(part) = parts.next() {
            assert!((1..=NAME_LEN_MAX).contains(&part.len()), "a name of a seed is short");
            let is_folder = parts.peek().is_some();
            let siblings = nodes[folder].children.clone().unwrap_or_default();
            let known = siblings.into_iter().find(|&child| nodes[child].name == part);
            folder = known.unwrap_or_else(|| {
                let children = is_folder.then(Vec::new);
                let content = if is_folder { Vec::new() } else { content.clone() };
                nodes.push(Node { name: part.to_owned(), parent: folder, children, content, sector: 0 });
                let new = nodes.len() - 1;
                nodes[folder].children.get_or_insert_default().push(new);
                new
            });
        }
    }
    // Sectors: folders first. A folder's length does not depend on where anything lies.
    let mut next = FIRST_FREE;
    for is_folder in [true, false] {
        for index in 0..nodes.len() {
            if nodes[index].children.is_some() == is_folder {
                let len =
                    if is_folder { folder_bytes(&nodes, index).len() } else { nodes[index].content.len() };
                nodes[index].sector = next;
                next += len.div_ceil(SECTOR) as u32;
            }
        }
    }
    let mut image = vec![0; 16 * SECTOR];
    let (little, big) = (
        path_table(&nodes, u32::to_le_bytes, u16::to_le_bytes),
        path_table(&nodes, u32::to_be_bytes, u16::to_be_bytes),
    );
    image.extend(primary_descriptor(volume, &nodes, next, little.len() as u32));
    image.extend(padded(b"\xffCD001\x01".to_vec()));
    image.extend(padded(little));
    image.extend(padded(big));
    for is_folder in [true, false] {
        for index in 0..nodes.len() {
            if nodes[index].children.is_some() == is_folder {
                let bytes =
                    if is_folder { folder_bytes(&nodes, index) } else { nodes[index].content.clone() };
                debug_assert!(bytes.is_empty() || image.len() == nodes[index].sector as usize * SECTOR);
                image.extend(padded(bytes));
            }
        }
    }
    image
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
    bytes
}

/// A number in both byte orders (section 7.3.3).
fn both32(value: u32) -> Vec<u8> {
    [value.to_le_bytes(), value.to_be_bytes()].concat()
}

fn both16(value: u16) -> Vec<u8> {
    [value.to_le_bytes(), value.to_be_bytes()].concat()
}

/// Section 8.4.
fn primary_descriptor(volume: &str, nodes: &[Node], sectors: u32, path_table_len: u32) -> Vec<u8> {
    let text = |text: &str, len: usize| {
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(len, b' ');
        bytes
    };
    let mut bytes = b"\x01CD001\x01\0".to_vec();
    bytes.extend(text("LINUX", 32));
    bytes.extend(text(volume, 32));
    bytes.extend([0; 8]);
    bytes.extend(both32(sectors));
    bytes.extend([0; 32]);
    bytes.extend(both16(1)); // volume set size
    bytes.extend(both16(1)); // volume sequence number
    bytes.extend(both16(SECTOR as u16));
    bytes.extend(both32(path_table_len));
    bytes.extend(18_u32.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(19_u32.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(record(nodes, 0, &[0], &[]));
    bytes.extend(text("", 128 * 4 + 37 * 3));
    // Four dates: created, changed, expires, effective; none is known (section 8.4.26.1).
    for _ in 0..4 {
        bytes.extend([b'0'; 16]);
        bytes.push(0);
    }
    bytes.push(1); // version of the file structure
    padded(bytes)
}

/// Section 9.4.
fn path_table(nodes: &[Node], four: fn(u32) -> [u8; 4], two: fn(u16) -> [u8; 2]) -> Vec<u8> {
    let folders: Vec<usize> = (0..nodes.len()).filter(|&index| nodes[index].children.is_some()).collect();
    let mut bytes = Vec::new();
    for &index in &folders {
        let name = if index == 0 { vec![0] } else { iso_name(nodes, index) };
        let parent = folders.iter().position(|&folder| folder == nodes[index].parent).unwrap_or(0) + 1;
        bytes.extend([name.len() as u8, 0]);
        bytes.extend(four(nodes[index].sector));
        bytes.extend(two(parent as u16));
        bytes.extend(&name);
        if name.len() % 2 == 1 {
            bytes.push(0);
        }
    }
    bytes
}

/// Names for readers without Rock Ridge; in the order of numbers, as records have to be.
fn iso_name(nodes: &[Node], index: usize) -> Vec<u8> {
    match nodes[index].children {
        Some(_) => format!("N{index:07}"),
        None => format!("N{index:07}.;1"),
    }
    .into_bytes()
}

fn folder_bytes(nodes: &[Node], index: usize) -> Vec<u8> {
    let mut first = Vec::new();
    if index == 0 {
        first.extend(b"SP\x07\x01\xbe\xef\0"); // SUSP, section 5.3
        let (id, text) = (b"RRIP_1991A", b"");
        // SUSP, section 5.5.
        first.extend([
            b'E',
            b'R',
            (8 + id.len() + text.len()) as u8,
            1,
            id.len() as u8,
            text.len() as u8,
            0,
            1,
        ]);
        first.extend(id);
    }
    let mut records = vec![record(nodes, index, &[0], &first), record(nodes, nodes[index].parent, &[1], &[])];
    for &child in nodes[index].children.iter().flatten() {
        let name = nodes[child].name.as_bytes();
        // RRIP, section 4.1.4.
        let mut alternate = vec![b'N', b'M', 5 + name.len() as u8, 1, 0];
        alternate.extend(name);
        records.push(record(nodes, child, &iso_name(nodes, child), &alternate));
    }
    let mut bytes: Vec<u8> = Vec::new();
    for record in records {
        // Records do not cross sectors.
        if bytes.len() % SECTOR + record.len() > SECTOR {
            bytes = padded(bytes);
        }
        bytes.extend(record);
    }
    padded(bytes)
}

/// Section 9.1.
fn record(nodes: &[Node], index: usize, name: &[u8], system_use: &[u8]) -> Vec<u8> {
    let node = &nodes[index];
    let is_folder = node.children.is_some();
    // A folder says how long it is in whole sectors; while that is being found out, nobody asks.
    let len = if is_folder && node.sector != 0 { folder_len(nodes, index) } else { node.content.len() };
    let mut bytes = vec![0, 0];
    bytes.extend(both32(node.sector));
    bytes.extend(both32(len as u32));
    bytes.extend([70, 1, 1, 0, 0, 0, 0]); // 1970-01-01 (section 9.1.5)
    bytes.push(if is_folder { 2 } else { 0 });
    bytes.extend([0, 0]);
    bytes.extend(both16(1));
    bytes.push(name.len() as u8);
    bytes.extend(name);
    if name.len().is_multiple_of(2) {
        bytes.push(0);
    }
    // Only the records of folders have more; that of the descriptor has a fixed length.
    if !(name == [0] && system_use.is_empty() && index == 0) {
        bytes.extend(system_use);
        // RRIP, section 4.1.1: mode, links, user, group; root only, because of what a seed may hold.
        bytes.extend([b'P', b'X', 36, 1]);
        for value in [if is_folder { 0o040_500 } else { 0o100_400 }, 1, 0, 0] {
            bytes.extend(both32(value));
        }
    }
    if bytes.len() % 2 == 1 {
        bytes.push(0);
    }
    bytes[0] = bytes.len() as u8;
    bytes
}

/// The length of a folder without regard to what its records say about lengths.
fn folder_len(nodes: &[Node], index: usize) -> usize {
    let fixed = |name: usize, more: usize| {
        (33 + name + usize::from(name.is_multiple_of(2)) + more + 36).next_multiple_of(2)
    };
    let first = if index == 0 { 7 + 18 } else { 0 };
    let mut len = fixed(1, first) + fixed(1, 0);
    for &child in nodes[index].children.iter().flatten() {
        let record = fixed(iso_name(nodes, child).len(), 5 + nodes[child].name.len());
        if len % SECTOR + record > SECTOR {
            len = len.next_multiple_of(SECTOR);
        }
        len += record;
    }
    len.next_multiple_of(SECTOR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::Folder;
    use std::process::Command;

    /// xorriso (libisofs) reads what was written.
    #[test]
    fn another_program_reads_it() {
        let folder = Folder::new("iso");
        let long = "long-name-".repeat(12);
        let mut files = vec![
            ("meta-data", b"instance-id: x\n".to_vec()),
            ("empty", Vec::new()),
            ("openstack/latest/meta_data.json", vec![b'x'; 5000]),
            ("openstack/latest/user_data", b"u".to_vec()),
            ("openstack/content/0000", b"c".to_vec()),
            (long.as_str(), b"l".to_vec()),
        ];
        let many: Vec<String> = (0..60).map(|number| format!("many/file-with-a-name-{number:03}")).collect();
        files.extend(many.iter().map(|path| (path.as_str(), path.clone().into_bytes())));
        let path = folder.0.join("seed.iso");
        std::fs::write(&path, image("cidata", &files)).unwrap();
        let mut command = Command::new("xorriso");
        command
            .args(["-osirrox", "on", "-indev"])
            .arg(&path)
            .args(["-extract", "/"])
            .arg(folder.0.join("out"));
        let output = match command.output() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("skipped: this host has no xorriso");
                return;
            }
            result => result.unwrap(),
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains("WARNING") && !said.contains("SORRY"), "{said}");
        assert!(said.contains("'cidata'"), "{said}");
        for (name, content) in &files {
            assert!(std::fs::read(folder.0.join("out").join(name)).unwrap() == *content, "{name}");
        }
        let _ = Command::new("chmod").args(["-R", "u+w"]).arg(folder.0.join("out")).status();
    }
}

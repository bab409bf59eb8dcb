//! A snapshot that an earlier version has made must go on in every later one.
//!
//! `golden/v1` holds a machine of 16 MiB whose guest is a few instructions: it counts, and when a byte comes over
//! the serial port it hands it to the debug exit port. Its memory is compressed, to be small in the repository.
//! `ARNIA_BLESS=1 cargo test --package vmm --test golden` makes one with the present version, for a new format.

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vmm::snapshot::manifest;

const BYTE: u8 = 0x41;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1")
}

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("arnia-golden-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    path
}

/// A kernel for PVH: an ELF file with its note, and the guest's instructions at 1 MiB.
fn kernel() -> Vec<u8> {
    #[rustfmt::skip]
    let code: &[u8] = &[
        0x66, 0xba, 0xfd, 0x03,             // start: mov dx, 0x3fd
        0xec,                               //        in al, dx
        0xa8, 0x01,                         //        test al, 1
        0x75, 0x08,                         //        jnz got
        0xff, 0x05, 0x00, 0x00, 0x20, 0x00, //        inc dword [0x200000]
        0xeb, 0xef,                         //        jmp start
        0x66, 0xba, 0xf8, 0x03,             // got:   mov dx, 0x3f8
        0xec,                               //        in al, dx
        0x66, 0xba, 0xf4, 0x00,             //        mov dx, 0xf4
        0xee,                               //        out dx, al
        0xeb, 0xe3,                         //        jmp start
    ];
    const LOAD: u64 = 0x10_0000;
    const CODE_AT: u64 = 0x1000;
    const NOTE_AT: u64 = 0x200;
    let mut note = Vec::new();
    for word in [4u32, 4, 18] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend((LOAD as u32).to_le_bytes());
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([2u16.to_le_bytes(), 62u16.to_le_bytes()].concat());
    elf.extend(1u32.to_le_bytes());
    elf.extend([LOAD, 64, 0].map(u64::to_le_bytes).concat());
    elf.extend(0u32.to_le_bytes());
    elf.extend([64u16, 56, 2, 64, 0, 0].map(u16::to_le_bytes).concat());
    let mut header = |kind: u32, flags: u32, at: u64, address: u64, len: u64| {
        elf.extend([kind.to_le_bytes(), flags.to_le_bytes()].concat());
        elf.extend([at, address, address, len, len, 0x1000].map(u64::to_le_bytes).concat());
    };
    header(1, 7, CODE_AT, LOAD, code.len() as u64);
    header(4, 4, NOTE_AT, 0, note.len() as u64);
    elf.resize(NOTE_AT as usize, 0);
    elf.extend(note);
    elf.resize(CODE_AT as usize, 0);
    elf.extend(code);
    elf
}

fn worker() -> Command {
    let mut worker = Command::new(env!("CARGO_BIN_EXE_arnia-vmm"));
    worker.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    worker
}

fn ask(socket: &Path, line: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut stream = loop {
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            Err(e) => assert!(Instant::now() < deadline, "no control socket: {e}"),
        }
        std::thread::yield_now();
    };
    writeln!(stream, "{line}").unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    answer
}

/// Types the byte and returns the exit status with what the worker said.
fn type_and_wait(mut child: Child) -> (Option<i32>, String) {
    child.stdin.take().unwrap().write_all(&[BYTE]).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn bless() {
    let work = folder("bless");
    fs::write(work.join("kernel"), kernel()).unwrap();
    let socket = work.join("control");
    let mut worker = worker();
    worker.arg("--kernel").arg(work.join("kernel")).args(["--memory", "16M", "--cpu-model", "x86-64-v2"]);
    worker.args(["--engine", "bt", "--debug-exit", "--name", "golden"]);
    worker.arg("--snapshots").arg(&work).arg("--control").arg(&socket);
    let child = worker.spawn().unwrap();
    let answer = ask(&socket, r#"{"op": "snapshot", "name": "golden"}"#);
    assert!(answer.contains("\"ok\""), "{answer}");
    assert_eq!(type_and_wait(child).0, Some(i32::from(BYTE << 1 | 1)));
    fs::create_dir_all(golden()).unwrap();
    for name in ["manifest.json", "state.json"] {
        fs::copy(work.join("golden").join(name), golden().join(name)).unwrap();
    }
    let mut memory = File::open(work.join("golden/memory")).unwrap();
    let packed = File::create(golden().join("memory.gz")).unwrap();
    let mut packer = GzEncoder::new(packed, Compression::best());
    io::copy(&mut memory, &mut packer).unwrap();
    packer.finish().unwrap();
    fs::remove_dir_all(&work).unwrap();
}

#[test]
fn the_snapshot_of_an_earlier_version_goes_on() {
    if std::env::var_os("ARNIA_BLESS").is_some() {
        bless();
    }
    let work = folder("restore");
    fs::copy(golden().join("state.json"), work.join("state.json")).unwrap();
    let mut memory = Vec::new();
    GzDecoder::new(File::open(golden().join("memory.gz")).unwrap()).read_to_end(&mut memory).unwrap();
    assert_eq!(memory.len(), 16 << 20);
    fs::write(work.join("memory"), memory).unwrap();
    // It was made on a certain processor. That this one is another is not what is tested here.
    let mut golden = manifest::decode(&fs::read(golden().join("manifest.json")).unwrap()).unwrap();
    golden.tsc_hz = clock::host_tsc_hz();
    let leaves = x86::cpuid::build("x86-64-v2", 1, golden.tsc_hz).unwrap();
    golden.cpuid = leaves.iter().map(vmm::snapshot::restore::from_leaf).collect();
    fs::write(work.join("manifest.json"), manifest::encode(&golden)).unwrap();

    let child =
        worker().arg("--restore").arg(&work).args(["--allow", "/", "--engine", "bt"]).spawn().unwrap();
    let (status, said) = type_and_wait(child);
    assert_eq!(status, Some(i32::from(BYTE << 1 | 1)), "{said}");
    fs::remove_dir_all(&work).unwrap();
}

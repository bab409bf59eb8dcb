//! Appliances: a descriptor and its disks, in an archive or in a folder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use api::ByteSize;
use api::image::{Blob, ImageBoot, ImageDisk, Minimum};

use super::{Found, take_disk};
use crate::error::AboutFile;
use crate::files::{RemoveUnlessKept, SparseWriter};
use crate::ovf::{Appliance, CHECKSUMS_LEN_MAX, Checksums, DESCRIPTOR_LEN_MAX, DiskSource};
use crate::progress::{self, Progress};
use crate::{Error, Result, Session};

/// Files in an archive at most: the descriptor, checksums, a certificate, disks, texts.
const FILES_MAX: usize = 64;

/// An OVF descriptor, with its files beside it.
pub(super) fn from_descriptor(
    session: &Session<'_>,
    path: &Path,
    progress: &mut dyn Progress,
) -> Result<Found> {
    let descriptor = small(&mut File::open(path).about("open", path)?, DESCRIPTOR_LEN_MAX, path)?;
    let sums = path.with_extension("mf");
    let sums = match File::open(&sums) {
        Ok(mut file) => small(&mut file, CHECKSUMS_LEN_MAX, &sums)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(Error::file("open", &sums, error)),
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let place = |name: &str| folder.join(name);
    let own_name = path.file_name().unwrap_or_default().to_string_lossy();
    take(session, (&own_name, path, &descriptor), &sums, place, progress)
}

/// An OVA archive.
pub(super) fn from_archive(session: &Session<'_>, path: &Path, progress: &mut dyn Progress) -> Result<Found> {
    let folder = session.partial("appliance");
    let _undo = RemoveUnlessKept::new(&folder);
    fs::create_dir(&folder).about("create", &folder)?;
    let broken = |error: std::io::Error| {
        Error::bad_input(format!("{} is a damaged archive", path.display())).with_source(error)
    };
    let odd = |what: String| Error::bad_input(format!("{} is no appliance: {what}", path.display()));
    let file = File::open(path).about("open", path)?;
    progress.begin("unpacking the appliance", Some(file.metadata().about("read", path)?.len()));
    let mut archive = tar::Archive::new(file);
    // Under names of our own: those in the archive are only compared.
    let mut files: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut descriptor = None;
    // As they are: extensions for long names would be read into memory, however long.
    for entry in archive.entries().map_err(broken)?.raw(true) {
        let mut entry = entry.map_err(broken)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if entry.header().entry_type() != tar::EntryType::Regular {
            return Err(odd(format!("{name:?} in it is no ordinary file")));
        }
        if files.len() == FILES_MAX || files.contains_key(&name) {
            return Err(odd(format!("it has more than {FILES_MAX} files, or two of one name")));
        }
        let place = folder.join(files.len().to_string());
        unpack(&mut entry, &place, progress)?;
        if descriptor.is_none() && name.to_lowercase().ends_with(".ovf") {
            descriptor = Some(name.clone());
        }
        files.insert(name, place);
    }
    let name = descriptor.ok_or_else(|| odd("it has no descriptor".to_owned()))?;
    let own_place = &files[&name];
    let read = |place: &Path, limit| small(&mut File::open(place).about("open", place)?, limit, path);
    let text = read(own_place, DESCRIPTOR_LEN_MAX)?;
    let sums = files.iter().find(|(name, _)| name.to_lowercase().ends_with(".mf"));
    let sums = sums.map(|(_, place)| read(place, CHECKSUMS_LEN_MAX)).transpose()?.unwrap_or_default();
    let missing = folder.join("missing");
    let place = |name: &str| files.get(name).unwrap_or(&missing).clone();
    take(session, (&name, own_place, &text), &sums, place, progress)
}

/// Checks what the appliance's files are and takes its disks.
fn take(
    session: &Session<'_>,
    (name, path, descriptor): (&str, &Path, &[u8]),
    sums: &[u8],
    place: impl Fn(&str) -> PathBuf,
    progress: &mut dyn Progress,
) -> Result<Found> {
    let sums = Checksums::parse(&String::from_utf8_lossy(sums));
    sums.check(name, path, progress)?;
    let appliance = Appliance::parse(descriptor)?;
    let mut disks = Vec::new();
    for (index, source) in appliance.disks.iter().enumerate() {
        let blob = match source {
            DiskSource::Empty(len) => empty_disk(session, *len, progress)?,
            DiskSource::File(name) => {
                let path = place(name);
                if !path.exists() {
                    return Err(Error::bad_input(format!("the appliance's disk {name:?} is missing")));
                }
                sums.check(name, &path, progress)?;
                take_disk(session, &path, None, progress)?
            }
        };
        let name = if index == 0 { "root".to_owned() } else { format!("disk-{index}") };
        disks.push(ImageDisk { name, blob });
    }
    let description = match appliance.description {
        text if text.is_empty() => appliance.name,
        text => text,
    };
    Ok(Found {
        disks,
        boot: Some(ImageBoot::Firmware { firmware: appliance.firmware }),
        minimum: Minimum { memory: appliance.memory.map(ByteSize), disk: None },
        description,
    })
}

fn empty_disk(session: &Session<'_>, len: u64, progress: &mut dyn Progress) -> Result<Blob> {
    let path = session.partial("empty");
    let undo = RemoveUnlessKept::new(&path);
    File::create(&path).and_then(|file| file.set_len(len)).about("create", &path)?;
    let blob = session.take_file(&path, progress)?;
    undo.keep();
    Ok(blob)
}

fn unpack(from: &mut dyn Read, to: &Path, progress: &mut dyn Progress) -> Result<()> {
    use std::io::Write;
    let mut writer = SparseWriter::create(to).about("create", to)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        progress::check(progress)?;
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                writer.write_all(&buffer[..count]).about("write", to)?;
                progress.advance(count as u64);
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::bad_input("the archive is damaged").with_source(error)),
        }
    }
    writer.finish().about("write", to).map(drop)
}

/// All of a file that must be small.
fn small(from: &mut dyn Read, limit: u64, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(limit + 1).read_to_end(&mut bytes).about("read", path)?;
    if bytes.len() as u64 > limit {
        let text =
            format!("{}: its descriptor or its checksums are longer than {limit} bytes", path.display());
        return Err(Error::bad_input(text));
    }
    Ok(bytes)
}

//! The file in which UEFI firmware keeps its variables.

use super::firmware::Variables;
use super::open_file;
use crate::Error;
use platform::flash::Keep;
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The largest sensible file of variables in bytes.
const SIZE_MAX: u64 = 4 << 20;
/// The steps of the size of flash memory.
const SIZE_STEP: u64 = platform::flash::spec::BLOCK_SIZE as u64;

/// Reads the variables: from `kept`, which is made from the firmware's template if it is not there, or from
/// the template alone. `None` for firmware without a template when none are named.
pub(super) fn open(firmware: &Path, kept: Option<&Path>) -> Result<Option<Variables>, Error> {
    let template = template(firmware).filter(|path| path.exists());
    let from_template = || match &template {
        None => Ok(None),
        Some(path) => read(&mut open_file(path, "template of variables", "--firmware")?, path).map(Some),
    };
    let Some(path) = kept else {
        return Ok(from_template()?.map(|data| Variables { data, file: None }));
    };
    let cannot = |e: std::io::Error| {
        Error::bad_input(format!("the firmware's variables {path:?} cannot be used"))
            .with_source(e)
            .with_advice("check --firmware-variables")
    };
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(cannot)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        Error::bad_input(format!("another machine uses the firmware's variables {path:?}"))
            .with_advice("give each machine a file of its own with --firmware-variables")
    })?;
    let data = if file.metadata().map_err(cannot)?.len() > 0 {
        read(&mut file, path)?
    } else {
        let data = from_template()?.ok_or_else(|| {
            Error::bad_input(format!("there is no template from which {path:?} could be made"))
                .with_advice(format!("put one beside {firmware:?}, with VARS in its name for CODE"))
        })?;
        file.write_all(&data).map_err(cannot)?;
        data
    };
    Ok(Some(Variables { data, file: Some(Arc::new(file)) }))
}

/// Where packages put the template of a firmware's variables: beside it, by the same name with VARS for CODE.
fn template(firmware: &Path) -> Option<PathBuf> {
    let name = firmware.file_name()?.to_str()?;
    // Firmware with keys built in has a template without them, too.
    let name = name.replace(".secboot", "");
    name.contains("CODE").then(|| firmware.with_file_name(name.replace("CODE", "VARS")))
}

fn read(file: &mut File, path: &Path) -> Result<Vec<u8>, Error> {
    let mut data = Vec::new();
    file.take(SIZE_MAX + 1).read_to_end(&mut data).map_err(|e| {
        Error::bad_input(format!("the firmware's variables {path:?} cannot be read")).with_source(e)
    })?;
    let len = data.len() as u64;
    if len == 0 || len > SIZE_MAX || !len.is_multiple_of(SIZE_STEP) {
        return Err(Error::bad_input(format!(
            "{path:?} is not a file of firmware variables: it has {len} bytes"
        ))
        .with_advice("name another file with --firmware-variables; one that is not there is made"));
    }
    Ok(data)
}

/// Writes to the file what is written to the chip.
pub(super) fn keep(file: Arc<File>) -> Keep {
    Box::new(move |offset, data| {
        if let Err(e) = file.write_all_at(data, offset) {
            log::error!("the firmware's variables cannot be written: {e}");
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_made_from_the_template_kept_and_locked() {
        let dir = std::env::temp_dir().join(format!("arnia-variables-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (code, kept) = (dir.join("FW_CODE_4M.fd"), dir.join("vm.fd"));
        let report = |result: Result<Option<Variables>, Error>| result.err().unwrap().report();
        assert!(open(&code, None).unwrap().is_none(), "firmware without variables");
        assert!(report(open(&code, Some(&kept))).contains("no template"));
        std::fs::write(dir.join("FW_VARS_4M.fd"), vec![0xff; 0x2000]).unwrap();
        assert!(open(&code, None).unwrap().unwrap().file.is_none());
        let variables = open(&code, Some(&kept)).unwrap().unwrap();
        assert_eq!(variables.data.len(), 0x2000);
        assert!(report(open(&code, Some(&kept))).contains("another machine"));
        keep(variables.file.clone().unwrap())(0x1000, b"set");
        drop(variables);
        let again = open(&code, Some(&kept)).unwrap().unwrap();
        assert_eq!(&again.data[0x1000..0x1004], b"set\xff");
        drop(again);
        std::fs::write(&kept, b"precious").unwrap();
        assert!(report(open(&code, Some(&kept))).contains("8 bytes"));
        assert_eq!(std::fs::read(&kept).unwrap(), b"precious");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

//! Where kernel, initial RAM disk and command line go.

use crate::image::bzimage::SetupHeader;
use crate::image::contents::{Contents, Image};
use crate::image::elf::Elf;
use crate::image::{Format, Kernel, copy_to_guest};
use crate::layout::{self, low_ram_end};
use crate::{Entry, Error, ErrorKind, Machine, acpi, linux, pvh, smbios};
use memory::{Bytes, GuestAddress, PAGE_SIZE, Ram};
use std::fs::File;
use std::ops::Range;

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// What suits the file: a bzImage is decompressed on the host and entered directly (in its own
    /// decompressor if its compression is not known here); an ELF file is entered by PVH if it has the
    /// note, else directly.
    #[default]
    Auto,
    /// The 64-bit Linux boot protocol into the decompressed kernel.
    Direct,
    /// The 64-bit Linux boot protocol into the decompressor that the bzImage brings along. The kernel
    /// then chooses its base address at random, if it was built so.
    SelfDecompressing,
    /// PVH.
    Pvh,
}

/// What a [`Plan`] is made for.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// Guest memory; only its ranges are looked at.
    pub ram: &'a Ram,
    /// Size of the initial RAM disk in bytes, if there is one.
    pub initrd_size: Option<u64>,
    /// The kernel's command line.
    pub command_line: &'a str,
    /// How to enter the kernel.
    pub method: Method,
}

/// A complete plan of what goes where. Making it checks everything that can be checked without decompressing all of
/// the kernel; it holds the kernel, so it is dropped once loaded.
#[derive(Debug)]
pub struct Plan {
    image: Image,
    protocol: Protocol,
    entry: u64,
    /// The memory that the kernel uses before it looks at the memory map.
    kernel: Range<u64>,
    initrd: Option<Range<u64>>,
    command_line: String,
}

#[derive(Debug)]
enum Protocol {
    Linux(Option<SetupHeader>),
    Pvh,
}

/// x86 Linux's COMMAND_LINE_SIZE without the NUL, for files that do not tell.
const COMMAND_LINE_LEN_DEFAULT: u64 = 2047;

impl Plan {
    /// Decides how to boot `kernel` and where everything goes. Touches nothing.
    ///
    /// # Errors
    /// When the kernel is damaged, of the wrong kind for the method, or does not fit into memory; when
    /// the command line does not suit it.
    pub fn new(kernel: Kernel, inputs: Inputs<'_>) -> Result<Plan, Error> {
        let memory = low_ram_end(inputs.ram);
        let mut plan = match kernel.format {
            Format::BzImage(header) => plan_bzimage(kernel.data, header, inputs.method, memory)?,
            Format::Elf => {
                let contents = Contents::whole(kernel.data);
                let elf = contents.elf()?;
                plan_elf(contents, Vec::new(), elf, None, inputs.method)?
            }
        };
        plan.check_command_line(inputs.command_line)?;
        plan.command_line = inputs.command_line.to_owned();
        plan.place(memory, inputs.initrd_size)?;
        Ok(plan)
    }

    /// Writes the kernel into `ram`.
    pub(crate) fn load_kernel(&self, ram: &Ram) -> Result<(), Error> {
        self.image.write(ram)
    }

    fn header(&self) -> Option<&SetupHeader> {
        match &self.protocol {
            Protocol::Linux(header) => header.as_ref(),
            Protocol::Pvh => None,
        }
    }

    fn check_command_line(&self, text: &str) -> Result<(), Error> {
        // A header that says 0 is from before the field existed: 255.
        let told = self.header().map_or(COMMAND_LINE_LEN_DEFAULT, |h| h.cmdline_size.max(255));
        let len_max = told.min(layout::COMMAND_LINE_SIZE - 1);
        let bad = |message: String| Err(Error::new(ErrorKind::BadCommandLine, message));
        if text.contains('\0') {
            return bad("the kernel's command line contains a NUL character".into());
        }
        if text.len() as u64 > len_max {
            return bad(format!(
                "the kernel's command line is {} bytes long, this kernel takes at most {len_max}",
                text.len()
            ));
        }
        Ok(())
    }

    /// Checks that the kernel fits below `memory` and places the initial RAM disk: as high as it may
    /// lie, as the boot protocol advises.
    fn place(&mut self, memory: u64, initrd_size: Option<u64>) -> Result<(), Error> {
        if self.kernel.start < layout::KERNEL_MIN {
            let message = format!("the kernel wants to lie at {:#x}, below 1 MiB", self.kernel.start);
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let initrd_size = initrd_size.unwrap_or(0);
        let kernel_end = self.kernel.end.next_multiple_of(PAGE_SIZE);
        let needed =
            kernel_end.saturating_add(initrd_size.checked_next_multiple_of(PAGE_SIZE).unwrap_or(u64::MAX));
        if needed > memory {
            let what = if initrd_size > 0 { "kernel and initial RAM disk" } else { "kernel" };
            let message = format!(
                "the guest has too little memory: {what} need {} MiB, of {} MiB below 4 GiB",
                needed.div_ceil(1 << 20),
                memory >> 20
            );
            return Err(Error::new(ErrorKind::TooLittleMemory, message));
        }
        if initrd_size > 0 {
            let top = memory.min(self.header().map_or(u64::MAX, |h| h.initrd_addr_max.saturating_add(1)));
            let start = top.checked_sub(initrd_size).map(|start| start & !(PAGE_SIZE - 1));
            let start = start.filter(|start| *start >= kernel_end).ok_or_else(|| {
                let message = format!(
                    "the initial RAM disk is too large: {} MiB do not fit between the kernel's end and the \
                     highest address that this kernel takes it at, {:#x}",
                    initrd_size.div_ceil(1 << 20),
                    top
                );
                Error::new(ErrorKind::Unsupported, message)
            })?;
            self.initrd = Some(start..start + initrd_size);
        }
        Ok(())
    }

    /// Writes kernel, initial RAM disk, command line, boot structures and tables into `ram`, which is all
    /// zero. `initrd` is the file whose size the plan was made with; it is read from its beginning.
    /// `random_seed` goes to kernels that take it from their boot loader; fresh for each boot.
    ///
    /// # Errors
    /// When the kernel turns out to be damaged where it is decompressed only now, the initial RAM disk cannot be read,
    /// the machine does not fit into its tables, or the plan was made for other memory.
    pub fn load(
        &self,
        ram: &Ram,
        initrd: Option<&File>,
        machine: &Machine,
        random_seed: [u8; 32],
    ) -> Result<Entry, Error> {
        let write =
            |data: &[u8], at: u64| ram.guest().write_slice(data, GuestAddress(at)).map_err(memory_error);
        self.load_kernel(ram)?;
        if let (Some(range), Some(file)) = (&self.initrd, initrd) {
            copy_to_guest(file, ram, range.start, range.end - range.start).map_err(|e| {
                Error::new(ErrorKind::Unreadable, "the initial RAM disk cannot be read").with_source(e)
            })?;
        }
        write(self.command_line.as_bytes(), layout::COMMAND_LINE)?;
        write(&[0], layout::COMMAND_LINE + self.command_line.len() as u64)?;
        let rsdp = acpi::write(ram, machine)?;
        smbios::write(ram, machine)?;

        let boot = Boot {
            memory_map: &layout::memory_map(ram, machine.ecam),
            rsdp,
            initrd: self.initrd.clone(),
            command_line_len: self.command_line.len() as u64,
            random_seed,
        };
        let entry = match &self.protocol {
            Protocol::Linux(header) => {
                write(&linux::zero_page(header.as_ref(), &boot), layout::ZERO_PAGE)?;
                write(&linux::setup_data(&boot), layout::SETUP_DATA)?;
                Entry::Linux64 { rip: self.entry, boot_params: layout::ZERO_PAGE }
            }
            Protocol::Pvh => {
                write(&pvh::start_info(&boot), layout::PVH_START_INFO)?;
                write(&pvh::memory_map(&boot), layout::PVH_MEMORY_MAP)?;
                Entry::Pvh { eip: self.entry as u32, start_info: layout::PVH_START_INFO as u32 }
            }
        };
        entry.write_tables(ram).map_err(memory_error)?;
        Ok(entry)
    }

    /// In a few words how the kernel will be entered, for logs.
    pub fn describe(&self) -> String {
        let how = match (&self.protocol, self.image.piece_count()) {
            (Protocol::Pvh, _) => "PVH",
            (Protocol::Linux(Some(h)), 1)
                if self.entry == self.kernel.start + 0x200 && h.has_64_bit_entry =>
            {
                "64-bit entry of the bzImage"
            }
            (Protocol::Linux(_), _) => "64-bit entry of the decompressed kernel",
        };
        format!("{how} at {:#x}, kernel {:#x}..{:#x}", self.entry, self.kernel.start, self.kernel.end)
    }
}

/// What the boot structures of both protocols tell.
pub(crate) struct Boot<'a> {
    pub(crate) memory_map: &'a [layout::MemoryMapEntry],
    pub(crate) rsdp: u64,
    pub(crate) initrd: Option<Range<u64>>,
    pub(crate) command_line_len: u64,
    pub(crate) random_seed: [u8; 32],
}

pub(crate) fn memory_error(e: vm_memory::GuestMemoryError) -> Error {
    Error::new(ErrorKind::Memory, "guest memory cannot be written").with_source(e)
}

fn plan_bzimage(data: Vec<u8>, header: SetupHeader, method: Method, memory: u64) -> Result<Plan, Error> {
    if method == Method::SelfDecompressing {
        return plan_self_decompressing(data, header);
    }
    // A PVH note inside a bzImage is used when asked for; Linux's own protocol tells it more.
    let is_pvh = method == Method::Pvh;
    let decompressed = header.decompress(&data, memory).and_then(|kernel| {
        let kernel = if is_pvh { kernel.complete(&data)? } else { kernel };
        let elf = kernel.elf()?;
        Ok((kernel, elf))
    });
    match decompressed {
        Ok((kernel, elf)) => {
            let method = if is_pvh { method } else { Method::Direct };
            plan_elf(kernel, data, elf, Some(header), method)
        }
        Err(error) => match error.kind() {
            ErrorKind::Unsupported | ErrorKind::NotAKernel
                if method == Method::Auto && header.has_64_bit_entry =>
            {
                plan_self_decompressing(data, header)
            }
            _ => Err(error),
        },
    }
}

fn plan_self_decompressing(data: Vec<u8>, header: SetupHeader) -> Result<Plan, Error> {
    if !header.has_64_bit_entry {
        let message = "the kernel is not for 64-bit processors: it has no 64-bit entry point";
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    let code = header.code_offset..data.len();
    let start = if header.is_relocatable {
        header.pref_address.max(layout::KERNEL_MIN).checked_next_multiple_of(header.kernel_alignment)
    } else {
        Some(header.code32_start)
    };
    // Page tables map 4 GiB: a start beyond it would not fit into low memory either.
    let start = start
        .filter(|start| *start < 1 << 32)
        .ok_or_else(|| Error::new(ErrorKind::Unsupported, "the kernel wants to lie above 4 GiB"))?;
    Ok(Plan {
        kernel: start..start + header.init_size.max(code.len() as u64),
        // Boot protocol, "64-bit boot protocol": "the kernel is started by jumping to the 64-bit kernel
        // entry point, which is the start address of loaded 64-bit kernel plus 0x200".
        entry: start + 0x200,
        image: Image::new(Contents::whole(data), Vec::new(), vec![(code, start)]),
        protocol: Protocol::Linux(Some(header)),
        initrd: None,
        command_line: String::new(),
    })
}

/// A plan for the executable `contents`, which are decompressed from `file`.
fn plan_elf(
    contents: Contents,
    file: Vec<u8>,
    elf: Elf,
    header: Option<SetupHeader>,
    method: Method,
) -> Result<Plan, Error> {
    let unsupported = |message: &str| Err(Error::new(ErrorKind::Unsupported, message));
    let (protocol, entry) = match (method, elf.pvh_entry) {
        (Method::SelfDecompressing, _) => {
            return unsupported("the kernel is not compressed: it cannot decompress itself");
        }
        (Method::Pvh, None) => return unsupported("the kernel has no PVH entry point"),
        (Method::Auto | Method::Pvh, Some(entry)) => (Protocol::Pvh, entry as u64),
        (Method::Auto | Method::Direct, _) => (Protocol::Linux(header), elf.entry),
    };
    let pieces = elf.segments.iter().map(|segment| (segment.file.clone(), segment.paddr)).collect();
    Ok(Plan {
        kernel: elf.extent(),
        entry,
        image: Image::new(contents, file, pieces),
        protocol,
        initrd: None,
        command_line: String::new(),
    })
}

#[cfg(test)]
mod tests;

//! Reading a descriptor.

use api::image::{DISKS_MAX, ImageFirmware};
use roxmltree::{Document, Node, ParsingOptions};

use crate::{Error, Result};

/// Longest descriptor that is read, in bytes.
pub(crate) const DESCRIPTOR_LEN_MAX: u64 = 1 << 20;
/// More elements than this no descriptor has.
const NODES_MAX: u32 = 100_000;
/// Resource types (CIM_ResourceAllocationSettingData, DSP0243 table 8).
const MEMORY: &str = "4";
const DISK_DRIVE: &str = "17";

/// What a descriptor tells, as far as an image has a place for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Appliance {
    pub(crate) name: String,
    pub(crate) description: String,
    /// In bytes.
    pub(crate) memory: Option<u64>,
    pub(crate) firmware: ImageFirmware,
    /// In the order in which the guest sees them.
    pub(crate) disks: Vec<DiskSource>,
}

/// What is on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DiskSource {
    /// What is in the file of this name.
    File(String),
    /// Nothing, on so many bytes.
    Empty(u64),
}

impl Appliance {
    /// Reads a descriptor.
    ///
    /// # Errors
    /// If it is none, holds several machines, or names files in a way that is not understood.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Appliance> {
        let text = std::str::from_utf8(bytes).map_err(|error| odd("it is not UTF-8").with_source(error))?;
        // Without document type definitions, no entity can name a file or grow.
        let options =
            ParsingOptions { allow_dtd: false, nodes_limit: NODES_MAX, ..ParsingOptions::default() };
        let document = Document::parse_with_options(text, options)
            .map_err(|error| odd("it is no well-formed XML").with_source(error))?;
        let envelope = document.root_element();
        if envelope.tag_name().name() != "Envelope" {
            return Err(odd("its outermost element is no Envelope"));
        }
        let mut systems = envelope.descendants().filter(|node| node.has_tag_name_of("VirtualSystem"));
        let system = systems.next().ok_or_else(|| odd("it describes no machine"))?;
        if systems.next().is_some() {
            return Err(odd("it describes several machines").with_remedy("import the disks one by one"));
        }
        let items = || {
            system
                .descendants()
                .filter(|node| node.has_tag_name_of("Item") || node.has_tag_name_of("StorageItem"))
        };
        let of_type =
            |kind: &'static str| items().filter(move |item| item.child_text("ResourceType") == Some(kind));
        let memory = of_type(MEMORY).next().and_then(|item| {
            let units = item.child_text("AllocationUnits").unwrap_or("byte * 2^20");
            item.child_text("VirtualQuantity")?.parse::<u64>().ok()?.checked_mul(unit(units)?)
        });
        let mut disks = Vec::new();
        for drive in of_type(DISK_DRIVE) {
            if disks.len() == DISKS_MAX {
                return Err(odd(&format!("it has more than {DISKS_MAX} disks")));
            }
            disks.push(source_of(envelope, drive)?);
        }
        Ok(Appliance {
            name: clean(system.attribute_of("id").or(system.child_text("Name")).unwrap_or_default()),
            description: clean(
                system
                    .child("AnnotationSection")
                    .and_then(|node| node.child_text("Annotation"))
                    .unwrap_or_default(),
            ),
            memory,
            firmware: firmware(system),
            disks,
        })
    }
}

/// What the drive's `HostResource` leads to (DSP0243, section 8.4).
fn source_of(envelope: Node<'_, '_>, drive: Node<'_, '_>) -> Result<DiskSource> {
    let resource = drive.child_text("HostResource").ok_or_else(|| odd("a disk drive has no HostResource"))?;
    let path = resource.strip_prefix("ovf:").unwrap_or(resource);
    let (kind, id) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
    let disk_of = |id: &str| {
        let disks = envelope.child("DiskSection").into_iter().flat_map(|section| section.children());
        disks.filter(|node| node.has_tag_name_of("Disk")).find(|disk| disk.attribute_of("diskId") == Some(id))
    };
    let file = match kind {
        "file" => Some(id),
        "disk" => {
            let disk = disk_of(id).ok_or_else(|| odd(&format!("there is no disk {id:?}")))?;
            if disk.attribute_of("parentRef").is_some() {
                return Err(
                    odd("a disk stands on another one").with_remedy("export it again with flat disks")
                );
            }
            match disk.attribute_of("fileRef") {
                Some(file) => Some(file),
                None => {
                    return capacity(disk)
                        .map(DiskSource::Empty)
                        .ok_or_else(|| odd("a disk has no capacity"));
                }
            }
        }
        _ => None,
    };
    let file = file.ok_or_else(|| odd(&format!("a disk drive leads to {resource:?}")))?;
    let files = envelope.child("References").into_iter().flat_map(|section| section.children());
    let reference = files
        .filter(|node| node.has_tag_name_of("File"))
        .find(|node| node.attribute_of("id") == Some(file))
        .ok_or_else(|| odd(&format!("there is no file {file:?}")))?;
    if reference.attribute_of("compression").is_some_and(|kind| kind != "identity")
        || reference.attribute_of("chunkSize").is_some()
    {
        return Err(
            odd("its disks are compressed or cut into pieces as files").with_remedy("unpack them first")
        );
    }
    let href = reference.attribute_of("href").unwrap_or_default();
    // Beside the descriptor and nowhere else.
    if href.is_empty() || href.contains('/') || href == ".." || href.len() > 255 {
        return Err(odd(&format!("it names the file {href:?}, which does not lie beside it")));
    }
    Ok(DiskSource::File(href.to_owned()))
}

fn capacity(disk: Node<'_, '_>) -> Option<u64> {
    let units = disk.attribute_of("capacityAllocationUnits").unwrap_or("byte");
    disk.attribute_of("capacity")?.parse::<u64>().ok()?.checked_mul(unit(units)?)
}

/// A programmatic unit (DSP0004, annex C), as far as capacities use them; and their older names.
fn unit(text: &str) -> Option<u64> {
    let text = text.trim().to_lowercase();
    match text.as_str() {
        "byte" | "bytes" => return Some(1),
        "kilobytes" => return Some(1 << 10),
        "megabytes" => return Some(1 << 20),
        "gigabytes" => return Some(1 << 30),
        _ => {}
    }
    let mut factors = text.split('*').map(str::trim);
    if factors.next() != Some("byte") {
        return None;
    }
    factors.try_fold(1u64, |product, factor| {
        let factor = match factor.split_once('^') {
            Some((base, power)) => base.parse::<u64>().ok()?.checked_pow(power.parse().ok()?)?,
            None => factor.parse().ok()?,
        };
        product.checked_mul(factor)
    })
}

/// Which firmware: VMware's and VirtualBox's ways to say UEFI; else a PC's BIOS.
fn firmware(system: Node<'_, '_>) -> ImageFirmware {
    let is_uefi = |node: Node<'_, '_>| match node.tag_name().name() {
        "Config" => node.attribute_of("key") == Some("firmware") && node.attribute_of("value") == Some("efi"),
        "Firmware" => node.attribute_of("type").is_some_and(|kind| kind.to_lowercase().starts_with("efi")),
        _ => false,
    };
    if system.descendants().any(is_uefi) { ImageFirmware::Uefi } else { ImageFirmware::Bios }
}

/// A text for a manifest: in one line, of bearable length.
fn clean(text: &str) -> String {
    let words: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(1000).collect();
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn odd(what: &str) -> Error {
    Error::bad_input(format!("the OVF descriptor cannot be used: {what}"))
}

/// Elements and attributes by their local names: writers differ in the namespaces' versions.
trait Local<'a> {
    fn has_tag_name_of(&self, name: &str) -> bool;
    fn child(&self, name: &str) -> Option<Node<'a, 'a>>;
    fn child_text(&self, name: &str) -> Option<&'a str>;
    fn attribute_of(&self, name: &str) -> Option<&'a str>;
}

impl<'a, 'input: 'a> Local<'a> for Node<'a, 'input> {
    fn has_tag_name_of(&self, name: &str) -> bool {
        self.is_element() && self.tag_name().name() == name
    }

    fn child(&self, name: &str) -> Option<Node<'a, 'a>> {
        self.children().find(|node| node.has_tag_name_of(name))
    }

    fn child_text(&self, name: &str) -> Option<&'a str> {
        self.child(name)?.text().map(str::trim)
    }

    fn attribute_of(&self, name: &str) -> Option<&'a str> {
        self.attributes().find(|attribute| attribute.name() == name).map(|attribute| attribute.value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a well-known program writes it, shortened.
    const FOREIGN: &str = r#"<?xml version="1.0"?>
<Envelope ovf:version="1.0" xml:lang="en-US" xmlns="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
  xmlns:vmw="http://www.vmware.com/schema/ovf">
 <References><File ovf:id="file1" ovf:href="box-disk001.vmdk"/></References>
 <DiskSection><Info>disks</Info>
  <Disk ovf:capacity="8" ovf:capacityAllocationUnits="byte * 2^30" ovf:diskId="vmdisk1" ovf:fileRef="file1"/>
  <Disk ovf:capacity="1048576" ovf:diskId="vmdisk2"/>
 </DiskSection>
 <VirtualSystem ovf:id="box"><Info>a machine</Info>
  <AnnotationSection><Info/><Annotation>An old
    box</Annotation></AnnotationSection>
  <VirtualHardwareSection><Info/>
   <Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
   <Item><rasd:AllocationUnits>MegaBytes</rasd:AllocationUnits><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>512</rasd:VirtualQuantity></Item>
   <Item><rasd:HostResource>/disk/vmdisk1</rasd:HostResource><rasd:ResourceType>17</rasd:ResourceType></Item>
   <Item><rasd:HostResource>ovf:/disk/vmdisk2</rasd:HostResource><rasd:ResourceType>17</rasd:ResourceType></Item>
   <vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/>
  </VirtualHardwareSection></VirtualSystem></Envelope>"#;

    #[test]
    fn foreign_descriptors_are_understood() {
        let appliance = Appliance::parse(FOREIGN.as_bytes()).unwrap();
        assert_eq!(
            appliance,
            Appliance {
                name: "box".into(),
                description: "An old box".into(),
                memory: Some(512 << 20),
                firmware: ImageFirmware::Uefi,
                disks: vec![DiskSource::File("box-disk001.vmdk".into()), DiskSource::Empty(1 << 20)],
            }
        );
        let bios = FOREIGN.replace("\"efi\"", "\"bios\"");
        assert_eq!(Appliance::parse(bios.as_bytes()).unwrap().firmware, ImageFirmware::Bios);
    }

    #[test]
    fn units_are_counted() {
        for (text, bytes) in [
            ("byte", Some(1)),
            ("byte * 2^30", Some(1 << 30)),
            ("byte*10^9", Some(1_000_000_000)),
            ("byte * 1024 * 2", Some(2048)),
            ("MegaBytes", Some(1 << 20)),
            ("byte * 2^64", None),
            ("hertz * 10^6", None),
            ("", None),
        ] {
            assert_eq!(unit(text), bytes, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let with = |from: &str, to: &str| FOREIGN.replace(from, to);
        let cases = [
            String::new(),
            "<a/>".to_owned(),
            with("box-disk001.vmdk", "../etc/passwd"),
            with("box-disk001.vmdk", "/etc/passwd"),
            with("box-disk001.vmdk\"", "box.vmdk\" ovf:compression=\"gzip\""),
            with("ovf:fileRef=\"file1\"", "ovf:fileRef=\"file9\""),
            with("/disk/vmdisk1", "/disk/vmdisk9"),
            with("/disk/vmdisk1", "http://elsewhere"),
            with("1048576", "-1"),
            with("<?xml version=\"1.0\"?>", "<!DOCTYPE a [<!ENTITY b SYSTEM \"file:///etc/passwd\">]>"),
            with("</VirtualSystem>", "</VirtualSystem><VirtualSystem/>"),
        ];
        for case in cases {
            Appliance::parse(case.as_bytes()).unwrap_err();
        }
    }

    #[test]
    fn deep_and_wide_descriptors_are_survived() {
        let deep = "<Envelope>".repeat(90_000) + &"</Envelope>".repeat(90_000);
        Appliance::parse(deep.as_bytes()).unwrap_err();
        let wide = format!("<Envelope>{}</Envelope>", "<a/>".repeat(200_000));
        Appliance::parse(wide.as_bytes()).unwrap_err();
    }

    #[test]
    fn damaged_descriptors_are_survived() {
        for at in 0..FOREIGN.len() {
            crate::fuzzing::foreign_files(&FOREIGN.as_bytes()[..at]);
            for byte in *b"<>\"&/:()=9\0" {
                let mut bytes = FOREIGN.as_bytes().to_vec();
                bytes[at] = byte;
                crate::fuzzing::foreign_files(&bytes);
            }
        }
    }
}

//! Writing a descriptor.

use std::fmt::Write as _;

use api::image::{ImageFirmware, Manifest};

/// A disk of the appliance, as a stream-optimised VMDK.
pub(crate) struct DiskFile {
    /// The file's name beside the descriptor.
    pub(crate) name: String,
    /// The file's size, in bytes.
    pub(crate) len: u64,
    /// The disk's size as the guest sees it, in bytes.
    pub(crate) capacity: u64,
}

/// Memory of the machine if the image names no minimum, in bytes.
const MEMORY: u64 = 1 << 30;
/// What the disks' format is called (DSP0243, section 7.3, and VMware's specification of the format).
const STREAM_OPTIMIZED: &str = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized";

/// The descriptor of an image that boots by firmware: one machine with two processors, a SATA controller with the
/// disks, and a network card that drivers everywhere know.
pub(crate) fn descriptor(
    name: &str,
    manifest: &Manifest,
    firmware: ImageFirmware,
    disks: &[DiskFile],
) -> String {
    let name = escape(name);
    let memory = manifest.minimum.memory.map_or(MEMORY, |size| size.0).div_ceil(1 << 20);
    let (mut files, mut sections, mut drives) = (String::new(), String::new(), String::new());
    for (index, disk) in disks.iter().enumerate() {
        let file = escape(&disk.name);
        // Writing to a string does not fail.
        let _ =
            writeln!(files, r#"    <File ovf:id="file{index}" ovf:href="{file}" ovf:size="{}"/>"#, disk.len);
        let _ = writeln!(
            sections,
            r#"    <Disk ovf:diskId="disk{index}" ovf:fileRef="file{index}" ovf:capacity="{}" ovf:format="{STREAM_OPTIMIZED}"/>"#,
            disk.capacity
        );
        drives += &item(&[
            ("AddressOnParent", &index.to_string()),
            ("ElementName", &format!("disk {index}")),
            ("HostResource", &format!("ovf:/disk/disk{index}")),
            ("InstanceID", &(10 + index).to_string()),
            ("Parent", "3"),
            ("ResourceType", "17"),
        ]);
    }
    let items = item(&[
        ("AllocationUnits", "hertz * 10^6"),
        ("ElementName", "processors"),
        ("InstanceID", "1"),
        ("ResourceType", "3"),
        ("VirtualQuantity", "2"),
    ]) + &item(&[
        ("AllocationUnits", "byte * 2^20"),
        ("ElementName", "memory"),
        ("InstanceID", "2"),
        ("ResourceType", "4"),
        ("VirtualQuantity", &memory.to_string()),
    ]) + &item(&[
        ("Address", "0"),
        ("ElementName", "SATA controller"),
        ("InstanceID", "3"),
        ("ResourceSubType", "AHCI"),
        ("ResourceType", "20"),
    ]) + &drives
        + &item(&[
            ("AutomaticAllocation", "true"),
            ("Connection", "NAT"),
            ("ElementName", "network card"),
            ("InstanceID", "4"),
            ("ResourceSubType", "E1000"),
            ("ResourceType", "10"),
        ]);
    let uefi = match firmware {
        ImageFirmware::Uefi => {
            "      <vmw:Config ovf:required=\"false\" vmw:key=\"firmware\" vmw:value=\"efi\"/>\n"
        }
        ImageFirmware::Bios => "",
    };
    let annotation = match manifest.description.as_str() {
        "" => String::new(),
        text => format!(
            "    <AnnotationSection>\n      <Info>What it is</Info>\n      <Annotation>{}</Annotation>\n    \
             </AnnotationSection>\n",
            escape(text)
        ),
    };
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData" xmlns:vmw="http://www.vmware.com/schema/ovf">
  <References>
{files}  </References>
  <DiskSection>
    <Info>Its disks</Info>
{sections}  </DiskSection>
  <NetworkSection>
    <Info>Its network</Info>
    <Network ovf:name="NAT">
      <Description>A way to the outside</Description>
    </Network>
  </NetworkSection>
  <VirtualSystem ovf:id="{name}">
    <Info>A virtual machine</Info>
    <Name>{name}</Name>
{annotation}    <OperatingSystemSection ovf:id="101">
      <Info>Linux, 64 bits</Info>
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>Its hardware</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
        <vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemIdentifier>{name}</vssd:VirtualSystemIdentifier>
        <vssd:VirtualSystemType>vmx-11</vssd:VirtualSystemType>
      </System>
{items}{uefi}    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
"#
    )
}

/// A resource. Its elements stand in the order of their names, as the schema wants it.
fn item(elements: &[(&str, &str)]) -> String {
    let mut text = "      <Item>\n".to_owned();
    for (name, value) in elements {
        let _ = writeln!(text, "        <rasd:{name}>{value}</rasd:{name}>");
    }
    text + "      </Item>\n"
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;
    use crate::files::tests::Folder;
    use crate::ovf::{Appliance, DiskSource};
    use crate::store::tests::add;
    use api::ByteSize;

    #[test]
    fn what_is_written_reads_back() {
        let folder = Folder::new("ovf");
        let store = Store::open(folder.0.join("store")).unwrap();
        let digest = add(&store, "base", "content");
        let mut manifest = store.manifest(digest).unwrap();
        manifest.description = "a \"box\" <&>".into();
        manifest.minimum.memory = Some(ByteSize(256 << 20));
        let disks = [DiskFile { name: "a&b.vmdk".into(), len: 7, capacity: 1 << 30 }];
        for firmware in [ImageFirmware::Bios, ImageFirmware::Uefi] {
            let text = descriptor("box-1", &manifest, firmware, &disks);
            let appliance = Appliance::parse(text.as_bytes()).unwrap();
            assert_eq!(
                appliance,
                Appliance {
                    name: "box-1".into(),
                    description: manifest.description.clone(),
                    memory: Some(256 << 20),
                    firmware,
                    disks: vec![DiskSource::File("a&b.vmdk".into())],
                }
            );
        }
    }
}

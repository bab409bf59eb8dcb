//! The layers of the workspace: which crate may use which. The table is the blueprint's, and a
//! test holds the manifests to it.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use cargo_metadata::{DependencyKind, Package};

/// One crate's place.
struct Layer {
    krate: &'static str,
    /// 0 is the bottom. A crate uses only crates of lower layers.
    level: u8,
    /// The crates of this workspace that its library and programs may use.
    uses: &'static [&'static str],
}

const fn layer(level: u8, krate: &'static str, uses: &'static [&'static str]) -> Layer {
    Layer { krate, level, uses }
}

/// Level of the crates that only test and automate; others may use them in tests alone.
const DEV: u8 = 9;

/// Every crate of the workspace, present or planned. To add one: put it in the lowest layer that
/// serves and name only what it truly needs.
const LAYERS: &[Layer] = &[
    layer(0, "clock", &[]),
    layer(0, "x86", &[]),
    layer(0, "api", &[]),
    layer(1, "agent", &["api"]),
    layer(2, "agent_client", &["api"]),
    layer(1, "memory", &[]),
    layer(2, "cpu", &["clock", "x86", "memory"]),
    layer(2, "device", &["clock", "memory"]),
    layer(2, "disk", &["memory"]),
    layer(2, "net", &[]),
    layer(2, "share", &[]),
    layer(3, "cpu_kvm", &["clock", "cpu", "x86", "memory"]),
    layer(3, "cpu_bt", &["clock", "cpu", "x86", "memory"]),
    layer(3, "platform", &["clock", "device", "memory", "x86"]),
    layer(4, "virtio", &["clock", "device", "memory", "disk", "net", "scsi", "share"]),
    layer(3, "scsi", &["device", "memory", "disk"]),
    layer(3, "boot", &["memory", "x86"]),
    layer(
        5,
        "vmm",
        &[
            "clock", "x86", "api", "memory", "cpu", "device", "disk", "net", "cpu_kvm", "cpu_bt", "platform",
            "virtio", "scsi", "share", "boot",
        ],
    ),
    layer(5, "store", &["api"]),
    layer(6, "cluster", &["api", "store"]),
    layer(5, "client", &["api"]),
    layer(5, "image", &["api", "agent_client", "disk", "net"]),
    layer(7, "daemon", &["api", "agent_client", "client", "image", "store", "cluster", "disk", "net"]),
    layer(8, "cli", &["api", "agent_client", "client", "image", "daemon", "net", "disk", "share"]),
    layer(DEV, "difftest", &["clock", "cpu", "cpu_kvm", "cpu_bt", "x86", "memory"]),
    layer(DEV, "vm_test", &["api", "agent_client", "client", "image"]),
    layer(DEV, "workloads", &[]),
    layer(DEV, "xtask", &[]),
];

/// Fails with a sentence for each dependency that goes against the layers.
pub(crate) fn check() -> Result<()> {
    let metadata = crate::workspace::metadata()?;
    let faults = faults(&metadata.packages);
    if !faults.is_empty() {
        bail!("the crates break their layers (table in xtask/src/layers.rs):\n  {}", faults.join("\n  "));
    }
    Ok(())
}

fn faults(packages: &[Package]) -> Vec<String> {
    let table: BTreeMap<&str, &Layer> = LAYERS.iter().map(|layer| (layer.krate, layer)).collect();
    let mut faults = Vec::new();
    for package in packages {
        let name = package.name.as_str();
        if let Some(krate) = name.strip_suffix("_fuzz") {
            faults.extend(fuzz_faults(package, krate));
            continue;
        }
        let Some(layer) = table.get(name) else {
            faults.push(format!("{name} has no layer: add it to the table"));
            continue;
        };
        let folder = package.manifest_path.parent().and_then(|folder| folder.file_name());
        if folder != Some(name) {
            faults.push(format!("{name} lies in a folder of another name ({})", folder.unwrap_or("none")));
        }
        for dependency in package.dependencies.iter().filter(|dependency| dependency.path.is_some()) {
            let used = dependency.name.as_str();
            if let Some(fault) = fault(layer, &table, used, dependency.kind) {
                faults.push(fault);
            }
        }
    }
    faults
}

/// Fuzz targets of a crate lie in it, and call nothing else of the workspace.
fn fuzz_faults(package: &Package, krate: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if !package.manifest_path.ends_with(format!("crates/{krate}/fuzz/Cargo.toml")) {
        faults.push(format!("{} lies elsewhere than in its crate ({})", package.name, package.manifest_path));
    }
    let own = package.dependencies.iter().filter(|dependency| dependency.path.is_some());
    let others = own.filter(|dependency| dependency.name != krate);
    faults.extend(others.map(|other| format!("{} must not use {}", package.name, other.name)));
    faults
}

/// Says what is wrong with one crate's use of another, if anything is.
fn fault(layer: &Layer, table: &BTreeMap<&str, &Layer>, used: &str, kind: DependencyKind) -> Option<String> {
    let name = layer.krate;
    let Some(other) = table.get(used) else {
        return Some(format!("{name} uses {used}, which has no layer"));
    };
    // Tests of a crate may call on the crates that exist for testing, and on their own layer's
    // foundations; never on something above them.
    let test_aid = kind == DependencyKind::Development && (other.level == DEV || other.level < layer.level);
    (!layer.uses.contains(&used) && !test_aid).then(|| format!("{name} must not use {used}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_keeps_to_its_layers() {
        check().expect("each crate uses only what its layer allows");
    }

    #[test]
    fn the_table_itself_only_points_down() {
        let level = |name: &str| LAYERS.iter().find(|layer| layer.krate == name).map(|layer| layer.level);
        for layer in LAYERS {
            for used in layer.uses {
                let below = level(used).unwrap_or_else(|| panic!("{used} has no layer"));
                assert!(below < layer.level, "{} uses {used}", layer.krate);
            }
        }
    }

    #[test]
    fn upward_and_unnamed_uses_are_faults() {
        use DependencyKind::{Development, Normal};
        let table: BTreeMap<&str, &Layer> = LAYERS.iter().map(|layer| (layer.krate, layer)).collect();
        let cases = [
            ("platform", "device", Normal, true),
            ("platform", "cpu", Normal, false),
            ("device", "cpu_bt", Normal, false),
            ("cpu_bt", "cpu_kvm", Normal, false),
            ("daemon", "vmm", Normal, false),
            ("cpu_bt", "difftest", Normal, false),
            ("cpu_bt", "difftest", Development, true),
            ("disk", "memory", Development, true),
            ("device", "vmm", Development, false),
            ("cpu", "nonsense", Normal, false),
        ];
        for (user, used, kind, allowed) in cases {
            let verdict = fault(table[user], &table, used, kind);
            assert_eq!(verdict.is_none(), allowed, "{user} uses {used} ({kind:?}): {verdict:?}");
        }
    }
}

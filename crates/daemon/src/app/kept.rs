//! Changes of machines that are to go on from a snapshot: what they keep, and what is in force when they go on.

use crate::Error;
use api::v1::error::ErrorCode;
use api::v1::limits::Limits;
use api::v1::network::NicConfig;
use api::v1::vm::VmConfig;
use store::{Records, VmRecord};

/// Writes another name and configuration down, if the machine is still of revision `expected`.
///
/// # Errors
/// When the machine was changed or the name is taken; and for a machine that is to go on from a snapshot when it would be
/// of another size or have other devices: it would go on as it was, and only be recorded otherwise.
pub(super) fn update(
    records: &Records<'_>,
    id: &str,
    expected: i64,
    name: &str,
    config: &VmConfig,
) -> Result<VmRecord, Error> {
    let before = records.vm_by_id(id)?;
    if before.resume.is_none() {
        return Ok(records.vm_update(id, expected, name, config)?);
    }
    check(&before, config)?;
    let after = records.vm_update(id, expected, name, config)?;
    // What else is changed is in force when it goes on.
    if before.running_revision == Some(before.revision) && at_boot(&before.config) == at_boot(config) {
        records.vm_runs_with(id, after.revision)?;
    }
    Ok(records.vm_by_id(id)?)
}

fn check(vm: &VmRecord, config: &VmConfig) -> Result<(), Error> {
    let before = &vm.config;
    let what = if (before.cpus, before.memory) != (config.cpus, config.memory) {
        "processors and memory"
    } else if before.disks != config.disks || cards(before) != cards(config) {
        "disks and network cards"
    } else {
        return Ok(());
    };
    let name = &vm.name;
    let (message, remedy) = match &vm.resume {
        Some(resume) if resume.other => (
            format!("{name:?} goes on from a snapshot when it is started, and keeps the {what} of that"),
            "start it first, then change it".to_owned(),
        ),
        _ => (
            format!("{name:?} is suspended, and its memory believes in the {what} that it has"),
            format!(
                "let it go on with `arnia resume {name}`, or give up what was saved with `arnia stop --force {name}`"
            ),
        ),
    };
    Err(Error::new(ErrorCode::WrongState, message).with_remedy(remedy))
}

/// What a configuration says that is heeded when a machine boots, and not when it goes on.
fn at_boot(config: &VmConfig) -> VmConfig {
    VmConfig {
        description: String::new(),
        labels: Default::default(),
        mounts: Vec::new(),
        limits: Limits::default(),
        on_reset: Default::default(),
        autostart: Default::default(),
        restart: Default::default(),
        nics: cards(config),
        ..config.clone()
    }
}

/// The cards without what the host does behind them.
fn cards(config: &VmConfig) -> Vec<NicConfig> {
    let card = |nic: &NicConfig| NicConfig {
        ports: Vec::new(),
        restrict: false,
        limits: Default::default(),
        ..nic.clone()
    };
    config.nics.iter().map(card).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::{Caller, testing};
    use api::v1::vm::DiskConfig;
    use store::{Resume, Sizes};

    #[tokio::test]
    async fn a_machine_that_goes_on_keeps_its_size_and_devices() {
        let (app, folder) = testing::app("kept");
        let kernel = folder.0.join("kernel");
        std::fs::write(&kernel, "no kernel").expect("a file");
        let mut config = VmConfig::new(kernel.to_str().expect("a path"));
        super::super::networks::complete_cards(&mut config).expect("cards");
        let sizes = Sizes::of(&config);
        let mut vm = VmRecord::new("v".into(), "default", "web".into(), config, 1);
        for other in [false, true] {
            vm.resume = Some(Resume { snapshot: "/s".into(), other });
            (vm.running_revision, vm.running_sizes) = (Some(vm.revision), Some(sizes));
            let insert = |records: &Records<'_>| {
                records.vm_delete("v")?;
                Ok(records.vm_insert(&vm)?)
            };
            app.write(insert).expect("a machine");
            let change = async |change: &dyn Fn(&mut VmConfig)| {
                let now = app.read(|records| Ok(records.vm_by_id("v")?)).expect("a machine");
                let mut config = now.config.clone();
                change(&mut config);
                app.vm_update(&Caller::owner(), &now, config, None).await
            };
            let path = kernel.to_str().map(str::to_owned);
            let disk = DiskConfig { path, read_only: true, ..DiskConfig::default() };
            let refused: [&dyn Fn(&mut VmConfig); 4] = [
                &|config| config.cpus += 1,
                &|config| config.memory.0 *= 2,
                &|config| config.disks.push(disk.clone()),
                &|config| config.nics.clear(),
            ];
            for (index, refused) in refused.iter().enumerate() {
                let error = change(refused).await.expect_err("a refusal");
                assert_eq!(error.code(), ErrorCode::WrongState, "{index}: {error}");
                assert!(error.0.remedy.is_some(), "{index}");
            }
            // What the host does behind a card, and says of the machine, is in force when it goes on; a command line is
            // not.
            let runs_as_recorded = || {
                let now = app.read(|records| Ok(records.vm_by_id("v")?)).expect("a machine");
                now.running_revision == Some(now.revision)
            };
            change(&|config| config.nics[0].ports.push("2222:22".into())).await.expect("a change");
            change(&|config| config.description = "mine".into()).await.expect("a change");
            assert!(runs_as_recorded());
            change(&|config| config.boot.append = "quiet".into()).await.expect("a change");
            assert!(!runs_as_recorded());
        }
    }
}

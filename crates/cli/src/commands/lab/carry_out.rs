//! Doing what was planned.

use super::step::Step;
use crate::progress::shown;
use crate::{Context, Error};
use api::v1::vm::{StopParams, VmParams};
use client::{Client, Created};

/// Does the steps one after the other; the first failure ends it, and applying the file again goes on from there. Machines
/// that run are restarted only if `restart`.
pub(super) async fn carry_out(
    context: &Context,
    client: &Client,
    steps: &[Step],
    restart: bool,
) -> Result<(), Error> {
    for step in steps {
        do_step(client, step, restart).await.map_err(|error| error.about(&step.subject()))?;
    }
    context.output.say("done")
}

async fn do_step(client: &Client, step: &Step, restart: bool) -> Result<(), Error> {
    match step {
        Step::CreateVolume { volume } => drop(client.volume_create(volume).await?),
        Step::CreateNetwork { network } => drop(client.network_create(network).await?),
        Step::ChangeNetwork { network, revision, patch } => {
            client.network_update(network, patch, Some(*revision)).await?;
        }
        Step::CreateVm { vm, config, start } => {
            let params = VmParams { start: *start, ..VmParams::new(vm, (**config).clone()) };
            if let Created::Starting(operation) =
                client.vm_create(&params, &crate::commands::machine::key()).await?
            {
                shown(&format!("starting {vm}"), client.wait(*operation)).await?;
            }
        }
        Step::ChangeVm { vm, revision, patch, .. } => {
            let changed = client.vm_update(vm, patch, Some(*revision)).await?;
            if restart && changed.restart_needed {
                restarted(client, vm).await?;
            }
        }
        Step::RestartVm { vm } if restart => restarted(client, vm).await?,
        Step::RestartVm { .. } => {}
        Step::StartVm { vm } => {
            let operation = client.vm_start(vm).await?;
            shown(&format!("starting {vm}"), client.wait(operation)).await?;
        }
        Step::StopVm { vm } => stop(client, vm).await?,
        Step::RemoveVm { vm } => {
            stop(client, vm).await?;
            client.vm_delete(vm, false).await?;
        }
    }
    Ok(())
}

async fn restarted(client: &Client, vm: &str) -> Result<(), Error> {
    let operation = client.vm_restart(vm, StopParams::default()).await?;
    shown(&format!("restarting {vm}"), client.wait(operation)).await?;
    Ok(())
}

async fn stop(client: &Client, vm: &str) -> Result<(), Error> {
    let operation = client.vm_stop(vm, StopParams::default()).await?;
    shown(&format!("stopping {vm}"), client.wait(operation)).await?;
    Ok(())
}

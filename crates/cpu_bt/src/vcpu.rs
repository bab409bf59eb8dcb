//! [`cpu::Vcpu`] over [`Cpu`].

use crate::cpu::Cpu;
use crate::signals::{Signals, signal};
use cpu::{CpuIo, Error, ErrorKind, Kicker, Vcpu, VmExit};
use std::sync::Arc;
use x86::CpuState;

/// A vCPU of this engine.
pub(crate) struct BtVcpu(pub(crate) Box<Cpu>);

struct SignalKicker(Arc<Signals>);

impl Kicker for SignalKicker {
    fn kick(&self) {
        self.0.raise(signal::KICK);
    }
}

impl Vcpu for BtVcpu {
    fn id(&self) -> u32 {
        self.0.id
    }

    fn run(&mut self, io: &dyn CpuIo) -> Result<VmExit, Error> {
        crate::jit::runtime::use_vcpu(&raw mut *self.0).map_err(|error| {
            let context = "cannot set the GS base of a vCPU's thread, which translated code needs";
            Error::new(ErrorKind::HostRefused, context).with_source(error)
        })?;
        let exit = self.0.with_io(io, Cpu::execute);
        match self.0.failure.take() {
            Some(failure) => Err(Error::new(ErrorKind::Internal, failure)),
            None => Ok(exit),
        }
    }

    fn state(&mut self) -> Result<CpuState, Error> {
        // Messages that came just before the vCPU was stopped have no place in the saved state.
        self.0.take_messages();
        Ok(self.0.save())
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), Error> {
        self.0.restore(state)
    }

    fn kicker(&self) -> Arc<dyn Kicker> {
        Arc::new(SignalKicker(self.0.signals.clone()))
    }
}

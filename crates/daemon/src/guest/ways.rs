//! The agents of a guest: ours, or QEMU's where ours is not.

use super::qemu;
use agent_client::qga::{Qga, QgaFiles};
use agent_client::{Agent, Error, ErrorKind, GuestFiles};
use api::agent::ShutdownMode;
use api::v1::guest::Guest;
use std::path::PathBuf;
use std::time::Duration;

/// When file systems thaw by themselves, whatever becomes of the daemon: our agent's longest time.
const FREEZE_LIMIT: Duration = Duration::from_secs(600);

/// The sockets that lead to the agents of a guest.
#[derive(Clone, Debug)]
pub(crate) struct Ways {
    /// The machine's virtio socket, where ours listens.
    pub(crate) arnia: PathBuf,
    /// The serial port of QEMU's.
    pub(crate) qemu: PathBuf,
}

impl Ways {
    /// Our agent, whether it is there or not.
    pub(crate) fn ours(&self) -> Agent {
        Agent::of_worker(&self.arnia)
    }

    /// Does something by our agent, or by QEMU's if the guest has that one. Without any, the error tells of ours.
    fn either<T>(
        &self,
        ours: impl FnOnce(&Agent) -> Result<T, Error>,
        qemus: impl FnOnce(Qga<std::os::unix::net::UnixStream>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        match ours(&self.ours()) {
            Err(error) if error.kind() == ErrorKind::NotReady => match qemu::connect(&self.qemu) {
                Ok(agent) => qemus(agent),
                Err(_) => Err(error),
            },
            result => result,
        }
    }

    /// What the guest tells of itself.
    pub(crate) fn view(&self) -> Result<Guest, Error> {
        let ours = |agent: &Agent| {
            let info = agent.info()?;
            Ok(super::view(&info, agent.interfaces()?))
        };
        self.either(ours, qemu::view)
    }

    /// Its files.
    pub(crate) fn files(&self) -> Result<Box<dyn GuestFiles>, Error> {
        let ours = |agent: &Agent| {
            agent.answers()?;
            Ok(Box::new(agent.clone()) as Box<dyn GuestFiles>)
        };
        self.either(ours, |_| Ok(Box::new(QgaFiles::new(&self.qemu))))
    }

    /// Freezes its file systems, until [`Ways::thaw`].
    pub(crate) fn freeze(&self) -> Result<(), Error> {
        self.either(
            |agent| agent.freeze(FREEZE_LIMIT).map(drop),
            |mut agent| {
                // By a daemon that was killed then: what was written since is still to be written out.
                if agent.is_frozen()? {
                    agent.thaw()?;
                }
                agent.freeze().map(drop).inspect_err(|_| {
                    // Some of them may be frozen.
                    let _ = agent.thaw();
                })
            },
        )
    }

    /// Thaws them. If they are not frozen, this finds only whether an agent is there.
    pub(crate) fn thaw(&self) -> Result<(), Error> {
        self.either(Agent::thaw, |mut agent| match agent.is_frozen() {
            Ok(true) => agent.thaw().map(drop),
            // One that cannot freeze has frozen nothing.
            Ok(false) => Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::Refused(_)) => Ok(()),
            Err(error) => Err(error),
        })
    }

    /// Asks it to shut down.
    pub(crate) fn shutdown(&self) -> Result<(), Error> {
        let ours = self.ours().shutdown(ShutdownMode::Poweroff, false);
        ours.or_else(|_| qemu::connect(&self.qemu)?.shutdown(ShutdownMode::Poweroff))
    }
}

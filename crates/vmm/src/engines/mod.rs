//! The engines that this program has, and which of them runs a machine.

mod remembered;

use crate::Error;
use crate::bt::bt_options;
use api::worker::config::{EngineChoice, JitConfig};
use cpu::{Engine, Support};
use serde::Serialize;
use std::sync::Arc;
use x86::cpuid::Leaf;

/// All engines, the fastest first. To add one: a line here, and its crate.
///
/// # Errors
/// When the file of the software engine's trace cannot be made.
pub fn all(jit: &JitConfig, nested: bool) -> Result<Vec<Arc<dyn Engine>>, Error> {
    Ok(vec![
        Arc::new(cpu_kvm::KvmEngine::new(cpu_kvm::Options { nested, ..cpu_kvm::Options::default() })),
        Arc::new(cpu_bt::BtEngine::new(bt_options(jit)?)),
    ])
}

/// What is asked of the engines.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Which engine.
    pub engine: EngineChoice,
    /// Whether a named one is taken even if it was found to be of no use here.
    pub force: bool,
    /// Whether the guest shall be able to go on under any engine that works here.
    pub portable: bool,
    /// The frequency of the guest's time-stamp counter in Hz, where that is not the host's.
    pub other_tsc_hz: Option<u64>,
}

/// Chooses among `engines`: the named one, or the first that works on this host. If that is wanted, it offers
/// guests no more than all of those offer that work here.
///
/// # Errors
/// When it does not work here, or is not in this program.
pub fn choose(wanted: Wanted, engines: Vec<Arc<dyn Engine>>) -> Result<Arc<dyn Engine>, Error> {
    let name = match wanted.engine {
        EngineChoice::Auto => None,
        EngineChoice::Kvm => Some("kvm"),
        EngineChoice::Bt => Some("bt"),
    };
    let known: Vec<_> = engines.iter().map(|engine| engine.name()).collect();
    let mut chosen: Option<Arc<dyn Engine>> = None;
    let mut common: Option<Vec<Leaf>> = None;
    let mut why_not = Vec::new();
    let mut remedies = Vec::new();
    for engine in engines {
        let is_candidate = name.is_none_or(|name| engine.name() == name);
        // Neither looked for nor a limit: not worth the time.
        if !wanted.portable && (!is_candidate || chosen.is_some()) {
            continue;
        }
        // Who names an engine wants to know of now.
        let support = match name == Some(engine.name()) {
            true => engine.probe(),
            false => remembered::probe(&*engine),
        };
        log::debug!("engine {}: {support:?}", engine.name());
        if let (Some(hz), true, false) = (wanted.other_tsc_hz, is_candidate, engine.scales_tsc()) {
            let (own, here) = (hz / 1000, clock::host_tsc_hz_roughly() / 1000);
            why_not.push(format!(
                "the machine's time-stamp counter runs at {own} kHz, this host's at {here} kHz, and the engine {} does \
                 not scale it",
                engine.name()
            ));
            continue;
        }
        let forced = wanted.force && name == Some(engine.name());
        if support.usable || forced {
            if let Some(offered) = offered(&*engine) {
                common = Some(match common {
                    None => offered,
                    Some(mut common) => {
                        x86::cpuid::limit(&mut common, &offered);
                        common
                    }
                });
            }
            if is_candidate && chosen.is_none() {
                if !support.usable {
                    log::warn!(
                        "the engine {} is used although {}",
                        engine.name(),
                        support.findings.join(", ")
                    );
                }
                chosen = Some(engine);
            }
        } else if is_candidate {
            why_not.extend(support.findings);
            remedies.extend(support.remedies);
        }
    }
    if let Some(engine) = chosen {
        return Ok(match common.filter(|_| wanted.portable) {
            None => engine,
            Some(offered) => Arc::new(Limited { engine, offered }),
        });
    }
    let error = match name {
        Some(name) if !known.contains(&name) => {
            return Err(Error::bad_input(format!("the engine {name} is not in this program"))
                .with_advice(format!("choose --engine auto or {}", known.join(" or "))));
        }
        Some(name) => {
            Error::bad_input(format!("the engine {name} does not work here: {}", why_not.join(", ")))
        }
        None => Error::host(format!("no engine works here: {}", why_not.join(", "))),
    };
    if name.is_some() {
        remedies.push("choose --engine auto".to_owned());
        // No force makes an engine scale.
        if wanted.other_tsc_hz.is_none() {
            remedies.push("add --force-engine to try all the same".to_owned());
        }
    }
    Err(if remedies.is_empty() { error } else { error.with_advice(remedies.join(", or ")) })
}

fn offered(engine: &dyn Engine) -> Option<Vec<Leaf>> {
    engine.offered_cpuid().unwrap_or_else(|e| {
        log::warn!("the engine {} does not say what it offers: {e}", engine.name());
        None
    })
}

/// What each engine can do here, for people and other programs.
pub fn report(engines: &[Arc<dyn Engine>]) -> Vec<Report> {
    engines.iter().map(|engine| Report { engine: engine.name(), support: engine.probe() }).collect()
}

/// What one engine can do here.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The engine's name.
    pub engine: &'static str,
    /// What was found.
    #[serde(flatten)]
    pub support: Support,
}

/// An engine that offers guests less than it could.
struct Limited {
    engine: Arc<dyn Engine>,
    offered: Vec<Leaf>,
}

impl Engine for Limited {
    fn name(&self) -> &'static str {
        self.engine.name()
    }

    fn probe(&self) -> Support {
        self.engine.probe()
    }

    fn offered_cpuid(&self) -> Result<Option<Vec<Leaf>>, cpu::Error> {
        Ok(Some(self.offered.clone()))
    }

    fn scales_tsc(&self) -> bool {
        self.engine.scales_tsc()
    }

    fn create_vm(&self, config: cpu::VmConfig) -> Result<Arc<dyn cpu::Vm>, cpu::Error> {
        self.engine.create_vm(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use cpu::{Speed, Vm, VmConfig};

    struct Fake(&'static str, bool);

    impl Engine for Fake {
        fn name(&self) -> &'static str {
            self.0
        }
        fn probe(&self) -> Support {
            let findings = vec![format!("{} was looked at", self.0)];
            let remedies = if self.1 { vec![] } else { vec!["load a module".into()] };
            Support { usable: self.1, speed: Speed::None, findings, remedies }
        }
        fn create_vm(&self, _: VmConfig) -> Result<Arc<dyn Vm>, cpu::Error> {
            unreachable!("only chosen, never used")
        }
    }

    #[test]
    fn the_first_that_works_is_taken_unless_one_is_named() {
        let engines = |kvm_works| -> Vec<Arc<dyn Engine>> {
            vec![Arc::new(Fake("kvm", kvm_works)), Arc::new(Fake("bt", true))]
        };
        let choose = |engine, works| {
            choose(Wanted { engine, force: false, portable: true, other_tsc_hz: None }, engines(works))
        };
        let name = |choice, works| choose(choice, works).map(|engine| engine.name());
        assert_eq!(name(EngineChoice::Auto, true).unwrap(), "kvm");
        assert_eq!(name(EngineChoice::Auto, false).unwrap(), "bt");
        assert_eq!(name(EngineChoice::Bt, true).unwrap(), "bt");
        let error = name(EngineChoice::Kvm, false).unwrap_err();
        assert_eq!(
            error.report(),
            "the engine kvm does not work here: kvm was looked at; load a module, or choose --engine auto, \
             or add --force-engine to try all the same"
        );
        assert_eq!(error.kind(), ErrorKind::BadInput);
        let forced = super::choose(
            Wanted { engine: EngineChoice::Kvm, force: true, portable: true, other_tsc_hz: None },
            engines(false),
        );
        assert_eq!(forced.map(|engine| engine.name()).unwrap(), "kvm");
    }

    #[test]
    fn what_works_beside_the_chosen_one_limits_what_guests_see() {
        struct Offers(&'static str, bool, u32);
        impl Engine for Offers {
            fn name(&self) -> &'static str {
                self.0
            }
            fn probe(&self) -> Support {
                Fake(self.0, self.1).probe()
            }
            fn offered_cpuid(&self) -> Result<Option<Vec<Leaf>>, cpu::Error> {
                let leaf = Leaf { function: 1, index: None, eax: 0, ebx: 0, ecx: self.2, edx: 0 };
                Ok((self.2 != 0).then(|| vec![leaf]))
            }
            fn create_vm(&self, _: VmConfig) -> Result<Arc<dyn Vm>, cpu::Error> {
                unreachable!("only chosen, never used")
            }
        }
        const PCID: u32 = 1 << 17;
        let offered = |kvm_works, kvm_offers| {
            let engines: Vec<Arc<dyn Engine>> =
                vec![Arc::new(Offers("kvm", kvm_works, kvm_offers)), Arc::new(Fake("bt", true))];
            let wanted =
                Wanted { engine: EngineChoice::Bt, force: false, portable: true, other_tsc_hz: None };
            choose(wanted, engines).unwrap().offered_cpuid().unwrap().map(|leaves| leaves[0].ecx)
        };
        assert_eq!(offered(true, PCID), Some(PCID));
        assert_eq!(offered(false, PCID), None);
        assert_eq!(offered(true, 0), None);
    }

    #[test]
    fn a_tsc_of_another_frequency_is_for_engines_that_scale() {
        struct Scales;
        impl Engine for Scales {
            fn name(&self) -> &'static str {
                "bt"
            }
            fn probe(&self) -> Support {
                Fake("bt", true).probe()
            }
            fn scales_tsc(&self) -> bool {
                true
            }
            fn create_vm(&self, _: VmConfig) -> Result<Arc<dyn Vm>, cpu::Error> {
                unreachable!("only chosen, never used")
            }
        }
        let choose = |engine, force| {
            let wanted = Wanted { engine, force, portable: true, other_tsc_hz: Some(1_234_000_000) };
            choose(wanted, vec![Arc::new(Fake("kvm", true)), Arc::new(Scales)])
        };
        assert_eq!(choose(EngineChoice::Auto, false).unwrap().name(), "bt");
        assert_eq!(choose(EngineChoice::Bt, false).unwrap().name(), "bt");
        let error = choose(EngineChoice::Kvm, true).err().unwrap().report();
        assert!(error.contains("runs at 1234000 kHz") && error.contains("kvm does not scale it"), "{error}");
    }

    #[test]
    fn an_engine_that_is_not_there_is_named() {
        let error = choose(
            Wanted { engine: EngineChoice::Kvm, force: false, portable: true, other_tsc_hz: None },
            vec![Arc::new(Fake("bt", true))],
        )
        .err()
        .unwrap();
        assert!(
            error.report().contains("not in this program; choose --engine auto or bt"),
            "{}",
            error.report()
        );
        let error = choose(
            Wanted { engine: EngineChoice::Auto, force: false, portable: true, other_tsc_hz: None },
            vec![Arc::new(Fake("bt", false))],
        )
        .err()
        .unwrap();
        assert_eq!(error.kind(), ErrorKind::Host);
    }
}

//! The engines that this program has, and which of them runs a machine.

use crate::Error;
use crate::bt::bt_options;
use api::worker::config::{EngineChoice, JitConfig};
use cpu::Engine;
use std::sync::Arc;

/// All engines, the fastest first. To add one: a line here, and its crate.
///
/// # Errors
/// When the file of the software engine's trace cannot be made.
pub fn all(jit: &JitConfig) -> Result<Vec<Arc<dyn Engine>>, Error> {
    Ok(vec![Arc::new(cpu_bt::BtEngine::new(bt_options(jit)?))])
}

/// Chooses among `engines`: the named one, or the first that works on this host.
///
/// # Errors
/// When it does not work here, or is not in this program.
pub fn choose(choice: EngineChoice, engines: Vec<Arc<dyn Engine>>) -> Result<Arc<dyn Engine>, Error> {
    let name = match choice {
        EngineChoice::Auto => None,
        EngineChoice::Kvm => Some("kvm"),
        EngineChoice::Bt => Some("bt"),
    };
    let known: Vec<_> = engines.iter().map(|engine| engine.name()).collect();
    let candidates = engines.into_iter().filter(|engine| name.is_none_or(|name| engine.name() == name));
    let mut why_not = Vec::new();
    let mut remedies = Vec::new();
    for engine in candidates {
        let support = engine.probe();
        log::debug!("engine {}: {support:?}", engine.name());
        if support.usable {
            return Ok(engine);
        }
        why_not.extend(support.findings);
        remedies.extend(support.remedies);
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
    remedies.extend(name.map(|_| "choose --engine auto".to_owned()));
    Err(if remedies.is_empty() { error } else { error.with_advice(remedies.join(", or ")) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use cpu::{Speed, Support, Vm, VmConfig};

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
        let name = |choice, works| choose(choice, engines(works)).map(|engine| engine.name());
        assert_eq!(name(EngineChoice::Auto, true).unwrap(), "kvm");
        assert_eq!(name(EngineChoice::Auto, false).unwrap(), "bt");
        assert_eq!(name(EngineChoice::Bt, true).unwrap(), "bt");
        let error = name(EngineChoice::Kvm, false).unwrap_err();
        assert_eq!(
            error.report(),
            "the engine kvm does not work here: kvm was looked at; load a module, or choose --engine auto"
        );
        assert_eq!(error.kind(), ErrorKind::BadInput);
    }

    #[test]
    fn an_engine_that_is_not_there_is_named() {
        let error = choose(EngineChoice::Kvm, vec![Arc::new(Fake("bt", true))]).err().unwrap();
        assert!(
            error.report().contains("not in this program; choose --engine auto or bt"),
            "{}",
            error.report()
        );
        let error = choose(EngineChoice::Auto, vec![Arc::new(Fake("bt", false))]).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Host);
    }
}

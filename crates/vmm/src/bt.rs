//! The software engine's options, from the configuration.

use crate::Error;
use api::worker::config::{JitConfig, JitMode, JitStress, TraceConfig, TraceEvents};
use cpu_bt::{CODE_CACHE_SIZE_MIN, Jit, Options, Stress, Trace, TraceFilter};
use std::fs::File;
use std::sync::Arc;

/// The most memory for translated code: its branches reach 2 GiB.
const CACHE_SIZE_MAX: u64 = 1 << 30;

/// The options that `config` asks for. Makes the file of the trace.
///
/// # Errors
/// When a number is out of bounds or that file cannot be made.
pub(crate) fn bt_options(config: &JitConfig) -> Result<Options, Error> {
    let mut options = Options {
        jit: match config.mode {
            JitMode::On => Jit::On,
            JitMode::Off => Jit::Off,
            JitMode::Lockstep => Jit::Lockstep,
        },
        stress: Stress {
            one_tlb_entry: config.stress.contains(&JitStress::Tlb),
            flush_at_switch: config.stress.contains(&JitStress::Flush),
        },
        ..Options::default()
    };
    if let Some(size) = config.cache {
        let least = CODE_CACHE_SIZE_MIN as u64;
        if !(least..=CACHE_SIZE_MAX).contains(&size.0) {
            return Err(Error::bad_input(format!("{} bytes are no size for the code cache", size.0))
                .with_advice(format!(
                    "write --jit-cache with {}K to {}M",
                    least >> 10,
                    CACHE_SIZE_MAX >> 20
                )));
        }
        options.code_cache_size_max = size.0 as usize;
    }
    options.exact_flags = config.exact_flags;
    if let Some(hot) = config.hot {
        options.hot = hot;
    }
    if let Some(trace) = &config.trace {
        options.trace = Some(open_trace(trace)?);
    }
    Ok(options)
}

fn open_trace(config: &TraceConfig) -> Result<Arc<Trace>, Error> {
    let file = File::create(&config.file).map_err(|e| {
        Error::bad_input(format!("the trace {:?} cannot be written", config.file))
            .with_source(e)
            .with_advice("check --trace")
    })?;
    let events = match config.events.is_empty() {
        true => &[TraceEvents::Traces, TraceEvents::Exits][..],
        false => &config.events,
    };
    let has = |event| events.contains(&event);
    let filter = TraceFilter {
        blocks: has(TraceEvents::Blocks),
        traces: has(TraceEvents::Traces) || has(TraceEvents::Host),
        host: has(TraceEvents::Host),
        exits: has(TraceEvents::Exits),
        at: config.at.map_or(0..=u64::MAX, |(first, last)| first..=last),
        vcpu: config.vcpu,
    };
    // Not buffered: what led to a crash is there.
    Ok(Arc::new(Trace::new(Box::new(file), filter)))
}

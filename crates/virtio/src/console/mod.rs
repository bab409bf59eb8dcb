//! The console (virtio 1.2, §5.3): one port, for a terminal.
//!
//! What the guest writes goes to a [`Write`](std::io::Write); what it is to read is put in by
//! [`ConsoleInput::receive`], from any thread, as long as there is [`room`](ConsoleInput::room).

mod work;

pub use work::ConsoleWork;

use crate::device::{Activation, DeviceSaved, Interrupt, VirtioDevice, read_structure};
use crate::queue::Queue;
use crate::worker::Work;
use crate::{Error, ErrorKind, Kick};
use ::device::state::RestoreError;
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Feature bits (§5.3.3), as masks.
pub mod feature {
    /// The terminal's size is in the configuration.
    pub const SIZE: u64 = 1 << 0;
    /// A character can be written through the configuration.
    pub const EMERG_WRITE: u64 = 1 << 2;
}

const QUEUE_SIZE: u16 = 64;
/// How much input waits for the guest at most, in bytes.
const INPUT_MAX: usize = 16 << 10;
/// Offset of `emerg_wr` in `struct virtio_console_config` (§5.3.4).
const EMERG_WR: u64 = 8;

/// A console.
pub struct Console {
    input: ConsoleInput,
    output: Output,
}

/// What the guest writes to; shared by the worker and the emergency register.
pub(crate) type Output = Arc<Mutex<Box<dyn Write + Send>>>;

/// The side of a console where a terminal is.
#[derive(Clone)]
pub struct ConsoleInput {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    state: Mutex<Terminal>,
    kick: Kick,
}

struct Terminal {
    bytes: VecDeque<u8>,
    columns: u16,
    rows: u16,
    interrupt: Option<Arc<dyn Interrupt>>,
}

/// Saved form of [`Console`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleSaved {
    /// Input that the guest has not read yet.
    pub input: Vec<u8>,
    /// Width of the terminal in characters.
    pub columns: u16,
    /// Height of the terminal in characters.
    pub rows: u16,
}

impl Console {
    /// Creates a console whose output goes to `output`. Writing must not block for long: while it does,
    /// the guest's console stands still and the device cannot be paused. What it refuses is lost.
    ///
    /// # Errors
    /// When the process may not open more descriptors.
    pub fn new(output: Box<dyn Write + Send>) -> Result<Console, Error> {
        let terminal = Terminal { bytes: VecDeque::new(), columns: 80, rows: 25, interrupt: None };
        let kick = Kick::new().map_err(|error| {
            let context = "cannot make a console: the host gives no event descriptor";
            Error::new(ErrorKind::HostRefused, context).with_source(error)
        })?;
        let shared = Shared { state: Mutex::new(terminal), kick };
        let input = ConsoleInput { shared: Arc::new(shared) };
        Ok(Console { input, output: Arc::new(Mutex::new(output)) })
    }

    /// The terminal's side, for the thread that reads the keyboard.
    pub fn input(&self) -> ConsoleInput {
        self.input.clone()
    }
}

impl ConsoleInput {
    /// How many bytes [`ConsoleInput::receive`] takes now.
    pub fn room(&self) -> usize {
        INPUT_MAX - self.state().bytes.len()
    }

    /// Gives input to the guest; returns how many bytes were taken, which is less than all only when
    /// there is no more room. Never blocks.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        let mut state = self.state();
        let taken = bytes.len().min(INPUT_MAX - state.bytes.len());
        state.bytes.extend(&bytes[..taken]);
        drop(state);
        self.shared.kick.notify();
        taken
    }

    /// Tells the guest the terminal's size in characters.
    pub fn resize(&self, columns: u16, rows: u16) {
        let mut state = self.state();
        if (state.columns, state.rows) == (columns, rows) {
            return;
        }
        (state.columns, state.rows) = (columns, rows);
        let interrupt = state.interrupt.clone();
        drop(state);
        if let Some(interrupt) = interrupt {
            interrupt.config_changed();
        }
    }

    fn state(&self) -> MutexGuard<'_, Terminal> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn kick(&self) -> &Kick {
        &self.shared.kick
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.state().bytes.is_empty()
    }

    /// Moves input into `buffer`; returns how much.
    pub(crate) fn take(&self, buffer: &mut [u8]) -> usize {
        let mut state = self.state();
        let len = buffer.len().min(state.bytes.len());
        for (to, from) in buffer.iter_mut().zip(state.bytes.drain(..len)) {
            *to = from;
        }
        len
    }
}

/// Writes all to a console's output, as far as it takes it.
pub(crate) fn emit(output: &Output, bytes: &[u8]) {
    let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = output.write_all(bytes).and_then(|()| output.flush());
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u16 {
        crate::spec::device_type::CONSOLE
    }

    fn features(&self) -> u64 {
        feature::SIZE | feature::EMERG_WRITE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let state = self.input.state();
        // struct virtio_console_config: cols, rows, max_nr_ports, emerg_wr.
        let mut bytes = [0; 12];
        bytes[0..2].copy_from_slice(&state.columns.to_le_bytes());
        bytes[2..4].copy_from_slice(&state.rows.to_le_bytes());
        bytes[4..8].copy_from_slice(&1u32.to_le_bytes());
        read_structure(&bytes, offset, data);
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        if offset == EMERG_WR && !data.is_empty() {
            emit(&self.output, &data[..1]);
        }
    }

    fn activate(&mut self, mut activation: Activation) -> Vec<Box<dyn Work>> {
        self.input.state().interrupt = Some(activation.interrupt.clone());
        let (receive, transmit) = (activation.take_queue(0), activation.take_queue(1));
        vec![Box::new(ConsoleWork::new(receive, transmit, self.input.clone(), self.output.clone()))]
    }

    fn deactivate(&mut self, workers: Vec<Box<dyn Work>>) -> Vec<Queue> {
        self.input.state().interrupt = None;
        let works =
            workers.into_iter().filter_map(|work| (work as Box<dyn Any>).downcast::<ConsoleWork>().ok());
        works.flat_map(|work| work.into_queues()).collect()
    }

    fn save(&self) -> DeviceSaved {
        let state = self.input.state();
        let input = state.bytes.iter().copied().collect();
        DeviceSaved::Console(ConsoleSaved { input, columns: state.columns, rows: state.rows })
    }

    fn restore(&mut self, saved: DeviceSaved) -> Result<(), RestoreError> {
        let DeviceSaved::Console(saved) = saved else {
            return Err(RestoreError::new("console", "it is the state of another kind of device"));
        };
        if saved.input.len() > INPUT_MAX {
            return Err(RestoreError::new("console", "more input waits than it has room for"));
        }
        let mut state = self.input.state();
        state.bytes = saved.input.into();
        (state.columns, state.rows) = (saved.columns, saved.rows);
        drop(state);
        self.input.shared.kick.notify();
        Ok(())
    }
}

#[cfg(test)]
mod tests;

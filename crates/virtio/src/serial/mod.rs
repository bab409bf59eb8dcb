//! A serial port with a name (virtio 1.2, §5.3: a console device with several ports), which leads to a Unix socket: for
//! agents in guests that expect one, like QEMU's at `org.qemu.guest_agent.0`.
//!
//! The first port, which would be a console, is never added. The named one is the second, as elsewhere, so that guests
//! find the names that they know. On the host one client at a time is served; others wait.
//!
//! The guest always sees the port open on the host's side. What it writes while nobody is connected is lost; what was on
//! its way when a client leaves, too.

mod line;
mod work;

pub use work::SerialWork;

use crate::device::{Activation, DeviceSaved, VirtioDevice, read_structure};
use crate::queue::Queue;
use crate::worker::Work;
use crate::{Error, ErrorKind};
use ::device::state::RestoreError;
use line::Line;
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::collections::VecDeque;
use std::path::Path;

/// The name of the port that QEMU's guest agent expects.
pub const QEMU_AGENT: &str = "org.qemu.guest_agent.0";

/// Feature bits (§5.3.3), as masks.
pub mod feature {
    /// There are several ports, and two queues for control.
    pub const MULTIPORT: u64 = 1 << 1;
}

/// Numbers of the queues (§5.3.2).
pub mod queue {
    /// Control messages for the driver.
    pub const CONTROL_IN: usize = 2;
    /// Control messages of the driver.
    pub const CONTROL_OUT: usize = 3;
    /// Bytes for the guest, at the named port.
    pub const IN: usize = 4;
    /// Bytes of the guest.
    pub const OUT: usize = 5;
    /// How many there are.
    pub const COUNT: usize = 6;
}

const QUEUE_SIZE: u16 = 64;
/// The named port.
const PORT: u32 = 1;
const PORTS: u32 = 2;
/// Control messages that wait for a driver; what a hostile one asks for beyond is not answered.
const CONTROLS_MAX: usize = 16;

/// `struct virtio_console_control`: id, event, value (§5.3.6.2).
const CONTROL_LEN: usize = 8;
const DEVICE_READY: u16 = 0;
const DEVICE_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// A serial port with a name.
pub struct SerialPort {
    control: Control,
    /// Here while at rest; the worker has it while at work.
    line: Option<Line>,
}

/// What the device has to tell its driver.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    name: String,
    waiting: VecDeque<Message>,
}

/// A control message to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// There is a port.
    Add,
    /// It has this name.
    Name,
    /// It is open on the host's side.
    Open,
}

/// Saved form of [`SerialPort`]. The client of the host is not saved: it sees its connection end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialSaved {
    /// Messages that the driver has not taken yet.
    pub waiting: Vec<Message>,
}

impl SerialPort {
    /// Creates a port of this name that leads to a Unix socket at `path`.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn new(name: &str, path: &Path) -> Result<SerialPort, Error> {
        let line = Line::listen(path).map_err(|error| {
            let kind = match error.kind() {
                std::io::ErrorKind::AddrInUse => ErrorKind::AddressInUse,
                _ => ErrorKind::BadAddress,
            };
            Error::new(kind, format!("cannot listen at {}", path.display())).with_source(error)
        })?;
        let control = Control { name: name.to_owned(), waiting: VecDeque::new() };
        Ok(SerialPort { control, line: Some(line) })
    }
}

impl Control {
    /// Takes a message of the driver.
    pub(crate) fn take(&mut self, message: &[u8; CONTROL_LEN]) {
        let (id, rest) =
            (u32::from_le_bytes([message[0], message[1], message[2], message[3]]), &message[4..]);
        let (event, value) = (u16::from_le_bytes([rest[0], rest[1]]), u16::from_le_bytes([rest[2], rest[3]]));
        let answers: &[Message] = match (event, id, value) {
            (DEVICE_READY, _, 1) => &[Message::Add],
            (PORT_READY, PORT, 1) => &[Message::Name, Message::Open],
            // That a program in the guest has opened the port, and what makes no sense.
            _ => &[],
        };
        if self.waiting.len() + answers.len() <= CONTROLS_MAX {
            self.waiting.extend(answers);
        }
    }

    /// The next message, as bytes.
    pub(crate) fn next(&mut self) -> Option<Vec<u8>> {
        let message = self.waiting.pop_front()?;
        let (event, text) = match message {
            Message::Add => (DEVICE_ADD, ""),
            Message::Name => (PORT_NAME, self.name.as_str()),
            Message::Open => (PORT_OPEN, ""),
        };
        let mut bytes = PORT.to_le_bytes().to_vec();
        bytes.extend(event.to_le_bytes());
        bytes.extend(1u16.to_le_bytes());
        bytes.extend(text.as_bytes());
        Some(bytes)
    }

    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}

impl VirtioDevice for SerialPort {
    fn device_type(&self) -> u16 {
        crate::spec::device_type::CONSOLE
    }

    fn features(&self) -> u64 {
        feature::MULTIPORT
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; queue::COUNT]
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        // struct virtio_console_config: cols, rows, max_nr_ports, emerg_wr.
        let mut bytes = [0; 12];
        bytes[4..8].copy_from_slice(&PORTS.to_le_bytes());
        read_structure(&bytes, offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Vec<Box<dyn Work>> {
        let queues = std::array::from_fn(|index| activation.take_queue(index));
        let control =
            Control { name: self.control.name.clone(), waiting: std::mem::take(&mut self.control.waiting) };
        match self.line.take() {
            Some(line) => vec![Box::new(SerialWork::new(queues, control, line))],
            None => Vec::new(),
        }
    }

    fn deactivate(&mut self, workers: Vec<Box<dyn Work>>) -> Vec<Queue> {
        let mut queues = Vec::new();
        for work in workers {
            if let Ok(work) = (work as Box<dyn Any>).downcast::<SerialWork>() {
                let (given, control, line) = work.into_parts();
                (self.control, self.line) = (control, Some(line));
                queues.extend(given.into_iter().flatten());
            }
        }
        queues
    }

    fn reset(&mut self) {
        self.control.waiting.clear();
        if let Some(line) = &mut self.line {
            line.hang_up();
        }
    }

    fn save(&self) -> DeviceSaved {
        DeviceSaved::Serial(SerialSaved { waiting: self.control.waiting.iter().copied().collect() })
    }

    fn restore(&mut self, saved: DeviceSaved) -> Result<(), RestoreError> {
        let DeviceSaved::Serial(saved) = saved else {
            return Err(RestoreError::new("serial port", "it is the state of another kind of device"));
        };
        if saved.waiting.len() > CONTROLS_MAX {
            return Err(RestoreError::new("serial port", "more messages wait than it has room for"));
        }
        self.control.waiting = saved.waiting.into();
        if let Some(line) = &mut self.line {
            line.hang_up();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

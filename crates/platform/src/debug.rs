//! Two devices for tests and firmware: a port whose value ends the machine, and a port that prints.

use crate::ports::{self, PortDevice};
use crate::sync::lock;
use device::{Bus, Overlap};
use std::io::Write;
use std::sync::{Arc, Mutex};

/// Where [`DebugExit`] is.
pub const EXIT_PORT: u16 = 0xf4;
/// Where [`DebugConsole`] is; firmware built with a debug console may use the second one.
pub const CONSOLE_PORTS: [u16; 2] = [0xe9, 0x402];
/// What [`DebugConsole`] reads as, by which it is found.
const CONSOLE_SIGNATURE: u8 = 0xe9;

/// A byte written to port 0xF4 ends the machine with that byte, as tests that run bare in a guest do.
pub struct DebugExit {
    on_exit: Box<dyn Fn(u8) + Send + Sync>,
}

impl DebugExit {
    /// Creates the port. `on_exit` is called on the thread of the vCPU that wrote.
    pub fn new(on_exit: impl Fn(u8) + Send + Sync + 'static) -> Arc<DebugExit> {
        Arc::new(DebugExit { on_exit: Box::new(on_exit) })
    }

    /// Places the port; wide writes mean their lowest byte.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn attach(self: &Arc<Self>, pio: &Bus) -> Result<(), Overlap> {
        ports::attach(self, pio, &[(EXIT_PORT, 4)])
    }
}

impl PortDevice for DebugExit {
    fn port_read(&self, _port: u16) -> u8 {
        0
    }

    fn port_write(&self, port: u16, value: u8) {
        if port == EXIT_PORT {
            (self.on_exit)(value);
        }
    }
}

/// Bytes written to it are written to a stream. The stream must not block; what it refuses is lost.
pub struct DebugConsole {
    output: Mutex<Box<dyn Write + Send>>,
}

impl DebugConsole {
    /// Creates a console that prints to `output`.
    pub fn new(output: Box<dyn Write + Send>) -> Arc<DebugConsole> {
        Arc::new(DebugConsole { output: Mutex::new(output) })
    }

    /// Places it at both of its ports.
    ///
    /// # Errors
    /// When one is taken.
    pub fn attach(self: &Arc<Self>, pio: &Bus) -> Result<(), Overlap> {
        ports::attach(self, pio, &CONSOLE_PORTS.map(|port| (port, 1)))
    }
}

impl PortDevice for DebugConsole {
    fn port_read(&self, _port: u16) -> u8 {
        CONSOLE_SIGNATURE
    }

    fn port_write(&self, _port: u16, value: u8) {
        let mut output = lock(&self.output);
        let _ = output.write(&[value]);
        let _ = output.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn the_exit_port_reports_the_lowest_byte() {
        let (bus, seen) = (Bus::new(), Arc::new(Mutex::new(Vec::new())));
        let log = seen.clone();
        DebugExit::new(move |value| lock(&log).push(value)).attach(&bus).unwrap();
        bus.write(0xf4, &[7]);
        bus.write(0xf4, &[8, 0, 0, 0]);
        bus.write(0xf5, &[9]);
        assert_eq!(*lock(&seen), [7, 8]);
    }

    #[test]
    fn the_console_prints_and_shows_itself() {
        #[derive(Clone, Default)]
        struct Stream(Arc<Mutex<Vec<u8>>>);
        impl Write for Stream {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                lock(&self.0).extend(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (bus, stream) = (Bus::new(), Stream::default());
        DebugConsole::new(Box::new(stream.clone())).attach(&bus).unwrap();
        bus.write(0xe9, b"a");
        bus.write(0x402, b"b");
        let mut byte = [0];
        bus.read(0xe9, &mut byte);
        assert_eq!((byte, &**lock(&stream.0)), ([0xe9], &b"ab"[..]));
    }
}

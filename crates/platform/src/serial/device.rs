//! The serial port in the machine: ports, interrupt line, output stream, input.

use super::model::{SerialSaved, Uart};
use super::spec;
use crate::ports::{self, PortDevice};
use crate::sync::lock;
use device::state::{RestoreError, SaveRestore};
use device::{Bus, IrqLine, Overlap};
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// A 16550A serial port.
///
/// Output goes to the stream byte by byte, flushed each time. The stream must not block: what it does
/// not take at once ([`io::ErrorKind::WouldBlock`] or any other error) is dropped and counted, as a
/// serial line without flow control loses it. Whoever wants everything puts a buffer behind.
///
/// The interrupt line is set under the port's lock; the way from there (PIC, IOAPIC) never comes back.
pub struct SerialPort {
    inner: Mutex<Inner>,
    irq: IrqLine,
    room_callback: OnceLock<Box<dyn Fn() + Send + Sync>>,
    dropped: AtomicU64,
}

struct Inner {
    uart: Uart,
    output: Box<dyn Write + Send>,
    /// Someone was refused a part of their input and waits for room.
    starved: bool,
}

impl SerialPort {
    /// Creates a port that sends to `output`.
    pub fn new(irq: IrqLine, output: Box<dyn Write + Send>) -> Arc<SerialPort> {
        Arc::new(SerialPort {
            inner: Mutex::new(Inner { uart: Uart::new(), output, starved: false }),
            irq,
            room_callback: OnceLock::new(),
            dropped: AtomicU64::new(0),
        })
    }

    /// Places the port's eight registers at `first_port` (see [`spec::COM_PORTS`]).
    ///
    /// # Errors
    /// When a port is taken.
    pub fn attach(self: &Arc<Self>, pio: &Bus, first_port: u16) -> Result<(), Overlap> {
        ports::attach(self, pio, &[(first_port, spec::PORT_COUNT)])
    }

    /// Gives input to the guest; returns how many bytes were taken. After an incomplete one the room
    /// callback announces when to try again.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        let mut inner = lock(&self.inner);
        let taken = inner.uart.receive(bytes);
        inner.starved |= taken < bytes.len();
        self.irq.set(inner.uart.interrupt());
        taken
    }

    /// How many bytes [`SerialPort::receive`] would take now.
    pub fn room(&self) -> usize {
        lock(&self.inner).uart.room()
    }

    /// Sets who is told when the guest has drained its input after a refusal. Called on a vCPU's thread,
    /// with no lock held; must be short. Can be set once, later calls change nothing.
    pub fn on_room(&self, callback: impl Fn() + Send + Sync + 'static) {
        let _ = self.room_callback.set(Box::new(callback));
    }

    /// How many bytes of output were lost because the stream did not take them.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Puts the port in its state after power-on.
    pub fn reset(&self) {
        self.change(|inner| inner.uart = Uart::new());
    }

    /// The saved form. No vCPU runs.
    pub fn save(&self) -> SerialSaved {
        lock(&self.inner).uart.save()
    }

    /// Takes over a saved state and drives the interrupt line accordingly.
    ///
    /// # Errors
    /// When the state is one that the port can never have.
    pub fn restore(&self, saved: SerialSaved) -> Result<(), RestoreError> {
        self.change(|inner| inner.uart.restore(saved))
    }

    /// Changes the registers, then does what follows for the line and for whoever waits for room.
    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = lock(&self.inner);
        let result = change(&mut inner);
        self.irq.set(inner.uart.interrupt());
        // Only when all is taken: waking for every byte would feed a busy guest byte by byte.
        let wake = inner.starved && inner.uart.is_drained() && inner.uart.room() > 0;
        if wake {
            inner.starved = false;
        }
        drop(inner);
        if wake && let Some(callback) = self.room_callback.get() {
            callback();
        }
        result
    }

    fn send(&self, output: &mut dyn Write, byte: u8) {
        let sent = loop {
            match output.write(&[byte]) {
                Ok(count) => break count == 1,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break false,
            }
        };
        if !sent {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        let _ = output.flush();
    }
}

impl PortDevice for SerialPort {
    fn port_read(&self, port: u16) -> u8 {
        self.change(|inner| inner.uart.read(port as u8 & 7))
    }

    fn port_write(&self, port: u16, value: u8) {
        self.change(|inner| {
            if let Some(byte) = inner.uart.write(port as u8 & 7, value).transmit {
                self.send(&mut *inner.output, byte);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[derive(Clone, Default)]
    struct Stream(Arc<Mutex<Vec<u8>>>);
    impl Write for Stream {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut stream = lock(&self.0);
            if stream.len() >= 4 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            stream.extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn output_reaches_the_stream_and_what_it_refuses_is_dropped() {
        let (bus, stream) = (Bus::new(), Stream::default());
        let port = SerialPort::new(IrqLine::unconnected(), Box::new(stream.clone()));
        port.attach(&bus, 0x3f8).unwrap();
        for byte in b"hello" {
            assert!(bus.write(0x3f8, &[*byte]));
        }
        assert_eq!(*lock(&stream.0), b"hell");
        assert_eq!(port.dropped(), 1);
        assert!(port.attach(&bus, 0x3f0).is_ok() && port.attach(&bus, 0x3f4).is_err());
    }

    #[test]
    fn input_raises_the_line_and_room_is_announced_once_after_a_refusal() {
        let bus = Bus::new();
        let irq = IrqLine::unconnected();
        let port = SerialPort::new(irq.clone(), Box::new(io::sink()));
        port.attach(&bus, 0x3f8).unwrap();
        let woken = Arc::new(AtomicU32::new(0));
        let count = woken.clone();
        port.on_room(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        bus.write(0x3fa, &[1]);
        bus.write(0x3f9, &[1]);
        assert_eq!(port.receive(&[7; 16]), 16);
        assert!(irq.level());
        let mut byte = [0];
        let mut drain = || (0..16).for_each(|_| assert!(bus.read(0x3f8, &mut byte)));
        drain();
        assert!(!irq.level());
        assert_eq!(woken.load(Ordering::Relaxed), 0, "nobody was refused");
        assert_eq!(port.receive(&[7; 20]), 16);
        drain();
        assert_eq!((woken.load(Ordering::Relaxed), port.room()), (1, 16));
    }

    #[test]
    fn restore_drives_the_line() {
        let irq = IrqLine::unconnected();
        let port = SerialPort::new(irq.clone(), Box::new(io::sink()));
        port.port_write(1, spec::IER_RDA);
        port.receive(b"x");
        let saved = port.save();
        port.reset();
        assert!(!irq.level());
        port.restore(saved).unwrap();
        assert!(irq.level());
    }
}

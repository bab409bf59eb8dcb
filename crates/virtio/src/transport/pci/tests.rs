use super::*;
use crate::rng::Rng;
use crate::spec::status;
use crate::test::{Buffer, Driver};
use memory::{Bytes, GuestAddress};

fn driver() -> Driver {
    Driver::new(Box::new(Rng::new()))
}

/// Asks for random bytes at 0x10_0000 and waits for them by interrupt.
fn ask(driver: &mut Driver) -> u32 {
    let before = driver.rings[0].available_index();
    let head = driver.rings[0].add(&[Buffer::In(0x10_0000, 64)]);
    driver.notify_since(0, before);
    let (used, len) = driver.wait_used(0);
    assert_eq!(used, head);
    len
}

#[test]
fn a_driver_finds_starts_and_uses_the_device() {
    for features in [0, feature::RING_EVENT_IDX | feature::RING_INDIRECT_DESC] {
        let mut driver = driver();
        assert_eq!(driver.function.config_read(0), 0x1044_1af4);
        assert_eq!(driver.function.config_read(2) & 0xff, 1, "revision");
        driver.start(8, features);
        assert_eq!(driver.status(), 0xf);
        for _ in 0..50 {
            assert_eq!(ask(&mut driver), 64);
        }
        let mut bytes = [0; 64];
        driver.ram.guest().read_slice(&mut bytes, GuestAddress(0x10_0000)).unwrap();
        assert_ne!(bytes, [0; 64]);
        assert!(driver.interrupts.messages().iter().all(|msi| msi.address == 0xfee0_0000 && msi.data == 1));
        assert_eq!(driver.isr(), 0, "MSI-X leaves the status alone");
        assert_eq!(driver.interrupts.edges(), 0);
    }
}

#[test]
fn without_msix_the_line_interrupts_until_the_status_is_read() {
    let mut driver = driver();
    driver.set_command(reg::COMMAND_MEMORY | reg::COMMAND_BUS_MASTER);
    assert!(driver.negotiate(feature::VERSION_1));
    driver.setup_queues(8, 0);
    driver.add_status(status::DRIVER_OK);
    assert_eq!(ask(&mut driver), 64);
    driver.interrupts.wait(|| driver.interrupts_level().then_some(()));
    assert_ne!(driver.function.config_read(1) & (reg::STATUS_INTERRUPT as u32) << 16, 0);
    driver.set_command(reg::COMMAND_MEMORY | reg::COMMAND_BUS_MASTER | reg::COMMAND_INTX_DISABLE);
    assert!(!driver.interrupts.level());
    driver.set_command(reg::COMMAND_MEMORY | reg::COMMAND_BUS_MASTER);
    assert!(driver.interrupts.level());
    assert_eq!(driver.isr(), 1);
    assert!(!driver.interrupts.level());
    assert_eq!(driver.isr(), 0);
    assert_eq!(driver.function.config_read(1) & (reg::STATUS_INTERRUPT as u32) << 16, 0);
}

impl Driver {
    /// Whether the line is up; not through `interrupts`, whose lock `wait` holds.
    fn interrupts_level(&self) -> bool {
        self.function.outputs.lines().line.level()
    }
}

#[test]
fn without_bus_mastering_the_device_does_nothing() {
    let mut driver = driver();
    driver.start(8, 0);
    ask(&mut driver);
    driver.set_command(reg::COMMAND_MEMORY);
    assert!(driver.function.state().workers.is_none());
    driver.rings[0].add(&[Buffer::In(0x10_0000, 8)]);
    driver.notify(0);
    assert_eq!(driver.rings[0].take_used(), None);
    driver.set_command(reg::COMMAND_MEMORY | reg::COMMAND_BUS_MASTER);
    assert_eq!(driver.wait_used(0).1, 8, "what was asked meanwhile is done then");
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let driver = driver();
    assert!(!driver.negotiate(feature::VERSION_1 | 1 << 40));
    driver.add_status(status::DRIVER_OK);
    assert_eq!(driver.status() & status::DRIVER_OK, 0);
    assert!(driver.function.state().workers.is_none());
}

#[test]
fn a_broken_ring_needs_a_reset_which_helps() {
    let mut driver = driver();
    driver.start(8, feature::RING_EVENT_IDX);
    ask(&mut driver);
    let generation = driver.common_read(spec::common::CONFIG_GENERATION, 1);
    driver.rings[0].publish_index(1000);
    driver.notify(0);
    let function = driver.function.clone();
    driver.interrupts.wait(|| function.live().needs_reset.then_some(()));
    driver.interrupts.wait(|| function.fault());
    assert_eq!(function.fault(), Some((0, RingError::BadIndex)));
    assert_eq!(driver.status(), 0x4f);
    assert_ne!(driver.common_read(spec::common::CONFIG_GENERATION, 1), generation);
    driver.reset();
    assert_eq!(function.fault(), None);
    driver.start(8, feature::RING_EVENT_IDX);
    assert_eq!(ask(&mut driver), 64);
    // The configuration's vector is 0.
    assert!(driver.interrupts.messages().iter().any(|msi| msi.data == 0));
}

#[test]
fn queues_outside_of_ram_break_the_device_and_nothing_else() {
    let mut driver = driver();
    driver.set_command(reg::COMMAND_MEMORY | reg::COMMAND_BUS_MASTER);
    driver.enable_msix();
    driver.negotiate(feature::VERSION_1);
    driver.common_write(spec::common::QUEUE_SELECT, 2, 0);
    driver.common_write(spec::common::QUEUE_DESC, 8, 0xffff_ffff_ffff_fff0);
    driver.common_write(spec::common::QUEUE_ENABLE, 2, 1);
    driver.add_status(status::DRIVER_OK);
    assert_ne!(driver.status() & status::DEVICE_NEEDS_RESET, 0);
    driver.reset();
    driver.start(8, 0);
    assert_eq!(ask(&mut driver), 64);
}

#[test]
fn the_window_in_configuration_space_reaches_the_structures() {
    let driver = driver();
    let function = &driver.function;
    let select = |offset: u64, len: u32| {
        function.config_write(function.window + 4, &[0]);
        function.config_write(function.window + 8, &(offset as u32).to_le_bytes());
        function.config_write(function.window + 12, &len.to_le_bytes());
    };
    let data = function.window + 16;
    select(COMMON + spec::common::NUM_QUEUES, 2);
    assert_eq!(function.config_read(data / 4), 1);
    select(COMMON + spec::common::DEVICE_STATUS, 1);
    function.config_write(data, &[3]);
    assert_eq!(driver.status(), 3);
    assert_eq!(function.config_read(data / 4), 3);
    for (offset, len) in [(COMMON, 3), (1, 4), (BAR_SIZE, 4), (u32::MAX as u64, 1), (0, 0)] {
        select(offset, len);
        function.config_write(data, &[0x55; 4]);
        function.config_read(data / 4);
    }
    assert_eq!(driver.status(), 3);
}

#[test]
fn a_paused_function_is_saved_and_goes_on_in_another() {
    let mut driver = driver();
    driver.start(8, feature::RING_EVENT_IDX);
    for _ in 0..11 {
        ask(&mut driver);
    }
    driver.function.pause();
    driver.rings[0].add(&[Buffer::In(0x10_0000, 32)]);
    driver.notify(0);
    assert_eq!(driver.rings[0].take_used(), None);
    let saved = driver.function.save();
    let text = serde_json::to_string(&saved).unwrap();

    let mut second = Driver::with_ram(Box::new(Rng::new()), driver.ram.clone());
    second.function.pause();
    second.function.restore(serde_json::from_str(&text).unwrap()).unwrap();
    std::mem::swap(&mut second.rings, &mut driver.rings);
    assert_eq!(second.status(), 0xf);
    second.function.resume();
    assert_eq!(second.wait_used(0).1, 32);
    assert_eq!(ask(&mut second), 64);

    let mut console = saved.clone();
    console.device =
        DeviceSaved::Console(crate::console::ConsoleSaved { input: vec![], columns: 0, rows: 0 });
    let mut short = saved.clone();
    short.queues.clear();
    let mut isr = saved.clone();
    isr.isr = 0x80;
    let mut features = saved;
    features.registers.accepted |= 1 << 7;
    let fresh = Driver::new(Box::new(Rng::new()));
    fresh.function.pause();
    for bad in [console, short, isr, features] {
        assert!(fresh.function.restore(bad).is_err());
        assert_eq!(fresh.status(), 0, "as before");
    }
}

#[test]
fn the_machines_reset_leaves_nothing_of_the_driver() {
    let mut driver = driver();
    driver.function.set_bar_base(0xe000_0000);
    driver.start(8, 0);
    ask(&mut driver);
    driver.function.reset();
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.function.config_read(1) & 0xffff, 0);
    assert!(!driver.function.outputs.lines().msix.is_enabled());
    let bar = driver.function.bars()[0];
    assert_eq!((bar.base, bar.enabled, bar.size), (0xe000_0000, false, BAR_SIZE));
    driver.start(8, 0);
    assert_eq!(ask(&mut driver), 64);
}

#[test]
fn accesses_of_any_shape_to_any_place_are_harmless() {
    let mut driver = driver();
    driver.start(8, 0);
    let function = driver.function.clone();
    for bar in 0..7 {
        for offset in (0..BAR_SIZE + 64).step_by(61).chain([u64::MAX]) {
            for len in 1..=8 {
                let mut data = [0xff; 8];
                function.bar_read(bar, offset, &mut data[..len]);
                // Not the registers: they would stop the device.
                if offset >= DEVICE {
                    function.bar_write(bar, offset, &data[..len]);
                }
            }
        }
    }
    for register in 0..=1024 {
        function.config_read(register);
    }
    driver.enable_msix();
    assert_eq!(ask(&mut driver), 64);
}

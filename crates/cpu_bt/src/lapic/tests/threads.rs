//! Delivery from other threads.

use super::*;

#[test]
fn nothing_is_lost_between_threads() {
    const SENDERS: u8 = 4;
    const ROUNDS: u32 = 500;
    let mut machine = Machine::new(2);
    let vm = machine.vm.clone();
    // Each sender has a vector of its own and sends again when the last one was taken.
    let taken: Arc<Vec<AtomicU32>> = Arc::new((0..SENDERS).map(|_| AtomicU32::new(0)).collect());
    std::thread::scope(|scope| {
        for sender in 0..SENDERS {
            let (vm, taken) = (&vm, &taken);
            scope.spawn(move || {
                let data = (0x40 + 0x11 * sender as u32) | if sender & 1 == 1 { 0x8000 } else { 0 };
                for round in 0..ROUNDS {
                    vm.deliver_message(0xfee0_1000, data);
                    let start = Instant::now();
                    while taken[sender as usize].load(SeqCst) == round {
                        assert!(start.elapsed() < PATIENCE, "sender {sender}, round {round}");
                        std::thread::yield_now();
                    }
                }
            });
        }
        let start = Instant::now();
        let mut count = 0;
        while count < SENDERS as u32 * ROUNDS {
            assert!(start.elapsed() < PATIENCE, "{count} interrupts came");
            let ended = machine.vm.lapics[1].sleep_begins();
            assert_eq!(ended, None);
            vm.signals[1].sleep(0, Some(Duration::from_secs(5)));
            machine.vm.lapics[1].sleep_ends();
            while let Some(vector) = machine.next(1) {
                count += 1;
                machine.write(1, reg::EOI, 0);
                taken[((vector - 0x40) / 0x11) as usize].fetch_add(1, SeqCst);
            }
        }
    });
    for sender in 0..SENDERS {
        assert_eq!(taken[sender as usize].load(SeqCst), ROUNDS);
    }
    let ended = machine.io.ended.lock().unwrap();
    assert_eq!(ended.len() as u32, SENDERS as u32 / 2 * ROUNDS);
}

#[test]
fn a_timer_and_messages_do_not_disturb_each_other() {
    let mut machine = Machine::new(1);
    let vm = machine.vm.clone();
    machine.write(0, reg::LVT_TIMER, TIMER_PERIODIC | 0xe0);
    machine.write(0, reg::TIMER_DIVIDE, DIVIDE_BY_1);
    machine.write(0, reg::TIMER_INITIAL, 200_000);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(SeqCst) {
                vm.deliver_message(0xfee0_0000, 0x50);
                std::thread::yield_now();
            }
        });
        let (mut ticks, mut messages) = (0, 0);
        let start = Instant::now();
        while (ticks < 20 || messages < 20) && start.elapsed() < PATIENCE {
            match machine.next(0) {
                Some(0xe0) => ticks += 1,
                Some(0x50) => messages += 1,
                None => {
                    // The way of a vCPU that halts.
                    let timeout = vm.lapics[0].sleep_begins().map(Duration::from_nanos);
                    vm.signals[0].sleep(0, timeout);
                    vm.lapics[0].sleep_ends();
                    continue;
                }
                other => panic!("{other:?}"),
            }
            machine.write(0, reg::EOI, 0);
        }
        stop.store(true, SeqCst);
        assert!(ticks >= 20 && messages >= 20, "{ticks} ticks, {messages} messages");
    });
}

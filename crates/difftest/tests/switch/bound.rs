//! Ends a run of a vCPU that goes on for too long, so that a hang is a failure that tells where the guest was.

use cpu::Kicker;
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// How long a run may take on a host at full speed; `ARNIA_TEST_PATIENCE` multiplies it.
const RUN_MAX: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Watches over one run after the other.
pub(crate) struct Bound(Arc<Mutex<Watch>>);

#[derive(Default)]
struct Watch {
    run: Option<(Instant, Arc<dyn Kicker>)>,
    is_over: bool,
}

impl Bound {
    pub(crate) fn new() -> Bound {
        let patience = std::env::var("ARNIA_TEST_PATIENCE").ok().and_then(|text| text.parse().ok());
        let limit = RUN_MAX * patience.unwrap_or(1);
        let watch = Arc::new(Mutex::new(Watch::default()));
        let watched = Arc::downgrade(&watch);
        thread::spawn(move || watch_over(&watched, limit));
        Bound(watch)
    }

    /// A run begins, which this ends.
    pub(crate) fn begin(&self, kick: Arc<dyn Kicker>) {
        self.0.lock().unwrap().run = Some((Instant::now(), kick));
    }

    /// It has ended; returns whether it was for this reason.
    pub(crate) fn end(&self) -> bool {
        let mut watch = self.0.lock().unwrap();
        watch.run = None;
        std::mem::take(&mut watch.is_over)
    }
}

fn watch_over(watched: &Weak<Mutex<Watch>>, limit: Duration) {
    while let Some(watch) = watched.upgrade() {
        let mut now = watch.lock().unwrap();
        if let Some((begun, kick)) = &now.run
            && begun.elapsed() > limit
        {
            kick.kick();
            now.is_over = true;
        }
        drop(now);
        drop(watch);
        thread::sleep(LOOK_EVERY);
    }
}

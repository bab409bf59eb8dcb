//! What the daemon and the command line cost: the API with many machines, the way from `arnia run` to a command's
//! output, many machines at once, and the network of one guest beside QEMU's.

mod api;
mod many;
mod network;
mod warm;

use std::time::Duration;

use anyhow::Result;

use super::Bed;
use super::report::Report;

/// Who is measured where no engine has a part.
const DAEMON: &str = "daemon";

pub(super) fn measure(bed: &Bed<'_>, report: &mut Report) -> Result<()> {
    api::measure(bed, report)?;
    warm::measure(bed, report)?;
    many::measure(bed, report)?;
    network::measure(bed, report)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// The one of these that so many in a hundred are not above.
fn percentile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    let rank = (times.len() * percent).div_ceil(100).max(1);
    times.get(rank - 1).copied().map_or(f64::NAN, milliseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let mut times: Vec<_> = (1..=200).rev().map(Duration::from_millis).collect();
        assert!((percentile(&mut times, 50) - 100.0).abs() < 1e-9);
        assert!((percentile(&mut times, 99) - 198.0).abs() < 1e-9);
        assert!((percentile(&mut times[..1], 99) - 1.0).abs() < 1e-9);
    }
}

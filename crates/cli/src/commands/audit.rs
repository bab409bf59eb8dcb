//! `arnia audit`.

use super::Run;
use crate::output::Row;
use crate::{Context, Error};
use api::v1::access::AuditEntry;
use std::process::ExitCode;

/// Shows who changed what, or was refused to, the newest first. For admins of the host.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  arnia audit
  arnia audit --limit 1000 --user ann
  arnia audit --refused -o json")]
pub struct Audit {
    /// How many entries are looked at, from the newest on
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    limit: u32,
    /// Only what this user did
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Only this operation of the API, like vm_create
    #[arg(long, value_name = "OPERATION")]
    action: Option<String>,
    /// Only what was refused or failed
    #[arg(long)]
    refused: bool,
}

impl Run for Audit {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        let mut entries = context.with_daemon(async |client| Ok(client.audit(self.limit).await?))?;
        entries.retain(|entry| {
            self.user.as_ref().is_none_or(|user| entry.user.as_ref() == Some(user))
                && self.action.as_ref().is_none_or(|action| entry.action == *action)
                && (!self.refused || entry.status >= 400)
        });
        context.output.list(&entries)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Row for AuditEntry {
    const HEADS: &'static [&'static str] = &["time", "user", "action", "status", "project", "path"];

    fn cells(&self) -> Vec<String> {
        vec![
            utc(self.time),
            self.user.clone().unwrap_or_else(|| "-".into()),
            self.action.clone(),
            self.status.to_string(),
            self.project.clone().unwrap_or_else(|| "-".into()),
            self.path.clone(),
        ]
    }
}

/// A time as `2026-11-28T07:30:00Z` (ISO 8601).
fn utc(time: api::v1::Time) -> String {
    let (days, seconds) = (time.div_euclid(86_400), time.rem_euclid(86_400));
    // Years that begin in March, so that leap days come last; 146097 days in 400 of them.
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + i64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::utc;

    #[test]
    fn times_are_those_of_the_calendar() {
        // As `date -u -d @N` has them.
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_795_851_000), "2026-11-28T07:30:00Z");
        assert_eq!(utc(4_107_542_399), "2100-02-28T23:59:59Z");
    }
}

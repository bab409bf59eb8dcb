//! Names of virtual machines, projects, users, volumes and so on.

use super::error::{ApiError, ErrorCode};

/// Longest name: that of a DNS label, because names become host names.
pub const LEN_MAX: usize = 63;

/// Checks a name: 1 to 63 letters a to z, digits and hyphens, no hyphen at either end. `what` says whose
/// name it is, like `virtual machine`.
///
/// # Errors
/// When it is not a name.
pub fn check(what: &str, name: &str) -> Result<(), ApiError> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let good = (1..=LEN_MAX).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-');
    if good {
        return Ok(());
    }
    let shown: String = name.chars().take(LEN_MAX + 1).collect();
    Err(ApiError::new(ErrorCode::Invalid, format!("{shown:?} is no name for a {what}"))
        .with_remedy("use 1 to 63 of the characters a to z, 0 to 9 and -, with no - at either end"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_those_of_dns_labels() {
        for good in ["a", "web-1", "0", &"x".repeat(63)] {
            assert!(super::check("thing", good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "a b", "ä", "..", &"x".repeat(64)] {
            assert!(super::check("thing", bad).is_err(), "{bad}");
        }
    }
}

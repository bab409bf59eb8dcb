//! Who a machine is: what makes one clone of an image another machine than the next.

use serde::{Deserialize, Serialize};
use std::fmt;

/// All that a guest takes on when it becomes an instance. Given to the agent over the socket, or on the
/// instance's seed disk as `arnia.json` for its first boot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Personality {
    /// Names the instance. A guest that has taken the personality of this instance does not take it again
    /// at its next boot.
    pub instance_id: String,
    /// Who it is.
    pub identity: Identity,
    /// What it is given.
    pub provision: Provision,
}

/// What must differ between two machines.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Identity {
    /// Name for itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// machine-id: 32 hexadecimal digits, not all zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// Whether the SSH server gets new host keys, made in the guest.
    pub ssh_host_keys: bool,
    /// Randomness from the host, in hexadecimal digits, mixed into the guest's generator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub random_seed: Option<String>,
    /// Nanoseconds since 1970 to set the clock to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_ns: Option<u64>,
}

/// What an instance is given at its first boot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Provision {
    /// Users to make, or to change if they are there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<UserAccount>,
    /// Files to write, before commands.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<GuestFile>,
    /// Commands for `sh -c`, one after another.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<String>,
}

/// A user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct UserAccount {
    /// The name.
    pub name: String,
    /// Public SSH keys that may log in, one line each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
    /// The password's hash as in `/etc/shadow`. Default: no password opens the account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_hash: Option<String>,
    /// Whether it may become root without a password.
    pub administrator: bool,
    /// Login shell of a user that is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
}

/// A file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct GuestFile {
    /// Absolute path.
    pub path: String,
    /// Contents as text.
    pub content: String,
    /// Permission bits. Default: 0644.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// `user` or `user:group`. Default: root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// What became of a personality.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersonalityReport {
    /// What was done, a few words each.
    pub done: Vec<String>,
    /// What could not be, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<String>,
}

/// Something in a personality cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PersonalityError(String);

impl fmt::Display for PersonalityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PersonalityError {}

/// Longest instance name in characters.
const INSTANCE_ID_LEN_MAX: usize = 128;
/// Longest random seed in bytes.
const SEED_LEN_MAX: usize = 4096;

impl Personality {
    /// Looks for what cannot be, so that nothing is done by halves.
    ///
    /// # Errors
    /// A sentence about the first thing that is wrong.
    pub fn check(&self) -> Result<(), PersonalityError> {
        let fail = |text: String| Err(PersonalityError(text));
        let id = &self.instance_id;
        let printable = id.bytes().all(|byte| byte.is_ascii_graphic());
        if id.len() > INSTANCE_ID_LEN_MAX || !printable {
            return fail(format!("{id:?} is no instance name: take up to 128 printable characters"));
        }
        self.identity.check()?;
        for user in &self.provision.users {
            user.check()?;
        }
        for file in &self.provision.files {
            if !file.path.starts_with('/') || file.path.contains('\0') {
                return fail(format!("{:?} is no absolute path for a file", file.path));
            }
            if file.mode.is_some_and(|mode| mode > 0o7777) {
                return fail(format!("{} has permission bits that do not exist", file.path));
            }
        }
        if self.provision.commands.iter().any(|command| command.contains('\0')) {
            return fail("a command must not contain a zero byte".to_owned());
        }
        Ok(())
    }
}

impl Provision {
    /// Whether it gives nothing.
    pub fn is_empty(&self) -> bool {
        *self == Provision::default()
    }
}

impl Identity {
    fn check(&self) -> Result<(), PersonalityError> {
        let fail = |text: String| Err(PersonalityError(text));
        if let Some(name) = &self.hostname
            && !is_hostname(name)
        {
            return fail(format!("{name:?} is no host name: letters, digits and hyphens, dots between"));
        }
        if let Some(id) = &self.machine_id {
            let digits = id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
            if id.len() != 32 || !digits || id.bytes().all(|byte| byte == b'0') {
                return fail(format!("{id:?} is no machine-id: 32 hexadecimal digits, not all zero"));
            }
        }
        if let Some(seed) = &self.random_seed {
            let digits = seed.bytes().all(|byte| byte.is_ascii_hexdigit());
            if !digits || !seed.len().is_multiple_of(2) || seed.len() > 2 * SEED_LEN_MAX {
                return fail("the random seed is not hexadecimal, or longer than 4096 bytes".to_owned());
            }
        }
        Ok(())
    }
}

impl UserAccount {
    fn check(&self) -> Result<(), PersonalityError> {
        let fail = |text: String| Err(PersonalityError(text));
        let name = &self.name;
        let good = |(index, byte): (usize, u8)| {
            matches!(byte, b'a'..=b'z' | b'_') || index > 0 && matches!(byte, b'0'..=b'9' | b'-')
        };
        if name.is_empty() || name.len() > 32 || !name.bytes().enumerate().all(good) {
            return fail(format!("{name:?} is no user name: small letters, digits, - and _"));
        }
        let line = |text: &str| !text.contains(['\n', '\r', '\0']);
        if !self.ssh_keys.iter().all(|key| line(key)) {
            return fail(format!("an SSH key of {name} is not one line"));
        }
        let password = self.password_hash.as_deref().unwrap_or_default();
        if !line(password) || password.contains(':') {
            return fail(format!("the password hash of {name} cannot stand in /etc/shadow"));
        }
        let shell = self.shell.as_deref().unwrap_or("/bin/sh");
        if !shell.starts_with('/') || !line(shell) || shell.contains(':') {
            return fail(format!("the shell of {name} is no absolute path"));
        }
        Ok(())
    }
}

/// Whether a text can be a host name (RFC 1123, section 2.1; length as Linux has it).
fn is_hostname(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 64 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_personality_is_good() {
        let personality: Personality = serde_json::from_str(
            r#"{"instance_id": "i-1", "identity": {"hostname": "web-1.lan",
                "machine_id": "0123456789abcdef0123456789abcdef", "ssh_host_keys": true, "random_seed": "00ff"},
                "provision": {"users": [{"name": "ann", "ssh_keys": ["ssh-ed25519 AAAA ann"], "administrator": true}],
                "files": [{"path": "/etc/motd", "content": "hello\n", "mode": 420}], "commands": ["true"]}}"#,
        )
        .unwrap();
        personality.check().unwrap();
        Personality::default().check().unwrap();
    }

    #[test]
    fn what_cannot_be_is_named() {
        let cases: &[(&str, &str)] = &[
            (r#"{"instance_id": "a b"}"#, "instance name"),
            (r#"{"identity": {"hostname": "-x"}}"#, "host name"),
            (r#"{"identity": {"hostname": ""}}"#, "host name"),
            (r#"{"identity": {"hostname": "a..b"}}"#, "host name"),
            (r#"{"identity": {"hostname": "a\nb"}}"#, "host name"),
            (r#"{"identity": {"machine_id": "00000000000000000000000000000000"}}"#, "machine-id"),
            (r#"{"identity": {"machine_id": "0123"}}"#, "machine-id"),
            (r#"{"identity": {"random_seed": "0"}}"#, "random seed"),
            (r#"{"provision": {"users": [{"name": "Ann"}]}}"#, "user name"),
            (r#"{"provision": {"users": [{"name": "a:b"}]}}"#, "user name"),
            (r#"{"provision": {"users": [{"name": "ann", "ssh_keys": ["a\nb"]}]}}"#, "SSH key"),
            (r#"{"provision": {"users": [{"name": "ann", "password_hash": "x:0:0"}]}}"#, "shadow"),
            (r#"{"provision": {"users": [{"name": "ann", "shell": "sh"}]}}"#, "shell"),
            (r#"{"provision": {"files": [{"path": "etc/motd"}]}}"#, "absolute path"),
            (r#"{"provision": {"files": [{"path": "/x", "mode": 65535}]}}"#, "permission bits"),
        ];
        for (text, about) in cases {
            let personality: Personality = serde_json::from_str(text).unwrap();
            let error = personality.check().expect_err(text).to_string();
            assert!(error.contains(about), "{text}: {error}");
        }
    }
}

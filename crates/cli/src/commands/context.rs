//! `arnia context`.

use super::Run;
use crate::contexts::{Contexts, LOCAL, RemoteContext};
use crate::output::Row;
use crate::{Context as Global, Error, ErrorKind};
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Longest token that is read from a file.
const TOKEN_LEN_MAX: u64 = 4096;

/// Commands for contexts.
#[derive(Debug, clap::Subcommand)]
pub enum Context {
    /// Add a daemon of another host
    Add(Add),
    /// List contexts
    #[command(alias = "list", after_help = "Example:\n  arnia context ls")]
    Ls {},
    /// Use a context from now on; `local` is this host's daemon
    #[command(
        after_help = "Examples:\n  arnia context use lab\n  arnia context use local\n  arnia --context lab ls"
    )]
    Use {
        /// The context
        name: String,
    },
    /// Remove contexts
    #[command(alias = "remove", after_help = "Example:\n  arnia context rm lab")]
    Rm {
        /// The contexts
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

/// Adds a daemon of another host, which listens with `arnia daemon --listen`. Its certificate is remembered: a daemon
/// that shows another one later is not talked to.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  arnia context add lab lab.example:8443 --token-file token
  arnia context add lab lab.example:8443 --certificate me.pem --key me.key --fingerprint sha256:4f3a…
The daemon writes the fingerprint of its certificate to its log when it starts. Without --fingerprint it is shown and asked for.")]
pub struct Add {
    /// Its name here
    name: String,
    /// Where the daemon listens
    #[arg(value_name = "HOST:PORT")]
    address: String,
    /// A file with the token by which you are known; - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "certificate")]
    token_file: Option<PathBuf>,
    /// A certificate in PEM by which you are known
    #[arg(long, value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// The certificate's key
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// The fingerprint of the daemon's certificate
    #[arg(long, value_name = "sha256:DIGITS")]
    fingerprint: Option<String>,
}

impl Run for Context {
    fn run(&self, context: &Global) -> Result<ExitCode, Error> {
        match self {
            Context::Add(add) => add.run(context)?,
            Context::Ls {} => list(context)?,
            Context::Use { name } => {
                let mut contexts = Contexts::read()?;
                contexts.choose(Some(name))?;
                contexts.current = (name != LOCAL).then(|| name.clone());
                contexts.write()?;
                context.output.say(&format!("{name} is used from now on"))?;
            }
            Context::Rm { names } => {
                let mut contexts = Contexts::read()?;
                contexts.remove(names)?;
                contexts.write()?;
                names.iter().try_for_each(|name| context.output.say(&format!("{name} is removed")))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Add {
    fn run(&self, context: &Global) -> Result<(), Error> {
        api::v1::name::check("context", &self.name)?;
        let mut contexts = Contexts::read()?;
        if self.name == LOCAL || contexts.contexts.contains_key(&self.name) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("there is a context {:?} already", self.name),
            )
            .with_remedy("choose another name, or remove that one with `arnia context rm`"));
        }
        if self.address.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
            return Err(Error::bad_input(format!("{:?} names no port", self.address))
                .with_remedy("write HOST:PORT, as the daemon was given with --listen"));
        }
        let token = self.token_file.as_deref().map(read_token).transpose()?;
        let absolute = |path: &Option<PathBuf>| path.as_deref().map(std::path::absolute).transpose();
        let bad_path = |e| Error::bad_input("the path cannot be used").with_source(e);
        let (certificate, key) =
            (absolute(&self.certificate).map_err(bad_path)?, absolute(&self.key).map_err(bad_path)?);
        let fingerprint = match &self.fingerprint {
            Some(fingerprint) => fingerprint.to_ascii_lowercase(),
            None => self.ask_for_trust()?,
        };
        let remote = RemoteContext { address: self.address.clone(), fingerprint, token, certificate, key };
        // Whether it works is known before it is kept.
        let identity =
            crate::connect::block_on(async { Ok(remote.client(&context.project)?.identity().await?) })?;
        contexts.contexts.insert(self.name.clone(), remote);
        contexts.write()?;
        context.output.say(&format!(
            "{} is added; there you are {:?}; `arnia context use {}` makes it the usual one",
            self.name, identity.user, self.name
        ))
    }

    /// Shows the certificate's fingerprint to the person, who alone can know whether it is the right one.
    fn ask_for_trust(&self) -> Result<String, Error> {
        let fingerprint =
            crate::connect::block_on(async { Ok(client::fingerprint_of(&self.address).await?) })?;
        if !std::io::stdin().is_terminal() {
            return Err(Error::bad_input(format!("{} shows the certificate {fingerprint}", self.address))
                .with_remedy("compare it with the daemon's log, and give it with --fingerprint"));
        }
        crate::stderr::err!(
            "{} shows the certificate\n  {fingerprint}\nIs it that of the daemon's log? [y/N] ",
            self.address
        );
        let _ = std::io::stderr().flush();
        let mut answer = String::new();
        let read = std::io::stdin().read_line(&mut answer);
        read.map_err(|e| Error::failed("the answer cannot be read").with_source(e))?;
        match answer.trim() {
            "y" | "Y" | "yes" => Ok(fingerprint),
            _ => Err(Error::new(ErrorKind::Denied, "the certificate is not trusted; nothing was added")),
        }
    }
}

fn read_token(path: &Path) -> Result<String, Error> {
    let read = |from: &mut dyn Read| {
        let mut text = String::new();
        from.take(TOKEN_LEN_MAX).read_to_string(&mut text).map(|_| text)
    };
    let text = match path == Path::new("-") {
        true => read(&mut std::io::stdin()),
        false => std::fs::File::open(path).and_then(|mut file| read(&mut file)),
    };
    let text =
        text.map_err(|e| Error::bad_input(format!("the token in {path:?} cannot be read")).with_source(e))?;
    secret_in(&text).map(str::to_owned).ok_or_else(|| {
        Error::bad_input(format!("there is no token in {path:?}"))
            .with_remedy("`arnia token create` on the daemon's host shows one; it begins with arnia_")
    })
}

/// The token in what `arnia token create` writes, in whatever form, or by itself.
fn secret_in(text: &str) -> Option<&str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).find(|word| word.starts_with("arnia_"))
}

/// A context in a table.
#[derive(serde::Serialize)]
struct Line {
    name: String,
    current: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
    /// By what the caller is known there: never the token itself.
    login: &'static str,
}

impl Row for Line {
    const HEADS: &'static [&'static str] = &["name", "used", "address", "login", "certificate"];

    fn cells(&self) -> Vec<String> {
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
        let used = if self.current { "*" } else { "" };
        let fingerprint: String = text(&self.fingerprint).chars().take(23).collect();
        vec![self.name.clone(), used.into(), text(&self.address), self.login.into(), fingerprint]
    }
}

fn list(context: &Global) -> Result<(), Error> {
    let contexts = Contexts::read()?;
    let local = Line {
        name: LOCAL.into(),
        current: contexts.current.is_none(),
        address: None,
        fingerprint: None,
        login: "owner",
    };
    let remote = contexts.contexts.iter().map(|(name, remote)| Line {
        name: name.clone(),
        current: contexts.current.as_ref() == Some(name),
        address: Some(remote.address.clone()),
        fingerprint: Some(remote.fingerprint.clone()),
        login: match (&remote.token, &remote.certificate) {
            (Some(_), _) => "token",
            (None, Some(_)) => "certificate",
            (None, None) => "none",
        },
    });
    context.output.list(&std::iter::once(local).chain(remote).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_in_whatever_form_it_was_written() {
        for text in [
            "arnia_12_ab\n",
            "Token:   12\nSecret:  arnia_12_ab\n",
            "{\n  \"token\": {\"id\": \"12\"},\n  \"secret\": \"arnia_12_ab\"\n}\n",
            "token:\n  id: '12'\nsecret: arnia_12_ab\n",
        ] {
            assert_eq!(secret_in(text), Some("arnia_12_ab"), "{text:?}");
        }
        assert_eq!(secret_in("Token:   12\n"), None);
    }
}

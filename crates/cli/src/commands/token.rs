//! `arnia token`.

use super::Run;
use super::{duration, since};
use crate::output::Row;
use crate::{Context, Error};
use api::v1::access::{Token as View, TokenParams};
use std::process::ExitCode;

/// Commands for tokens.
#[derive(Debug, clap::Subcommand)]
pub enum Token {
    /// Make a token and show its secret, this once
    #[command(
        after_help = "Examples:\n  arnia token create anna --days 30\n  arnia token create anna --certificate anna.pem"
    )]
    Create {
        /// The user that it stands for
        user: String,
        /// Days until it ends [default: never]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        days: Option<u16>,
        /// No secret: whoever has the key of this certificate (PEM) is the user, by TLS
        #[arg(long, value_name = "FILE")]
        certificate: Option<std::path::PathBuf>,
        /// For people
        #[arg(long, value_name = "TEXT", default_value = "")]
        description: String,
    },
    /// List tokens
    #[command(alias = "list", after_help = "Example:\n  arnia token ls")]
    Ls {},
    /// Remove tokens; nobody can use them any more
    #[command(after_help = "Example:\n  arnia token rm 1f0c44a2b97e3d58")]
    Rm {
        /// The tokens
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
}

impl Run for Token {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        context.with_daemon(async |client| {
            match self {
                Token::Create { user, days, certificate, description } => {
                    let (user, description) = (user.clone(), description.clone());
                    let lifetime = days.map(|days| i64::from(days) * 86400);
                    let new = {
                        let certificate = certificate.as_ref().map(|path| {
                            std::fs::read_to_string(path).map_err(|e| {
                                Error::bad_input(format!("the certificate {path:?} cannot be read"))
                                    .with_source(e)
                            })
                        });
                        let certificate = certificate.transpose()?;
                        client.token_create(&TokenParams { user, description, lifetime, certificate }).await?
                    };
                    let mut lines = vec![("Token", new.token.id.clone())];
                    lines.extend(new.secret.clone().map(|secret| ("Secret", secret)));
                    context.output.item(&new, &lines)?;
                }
                Token::Ls {} => context.output.list(&client.tokens().await?)?,
                Token::Rm { ids } => {
                    for id in ids {
                        client.token_delete(id).await?;
                        context.output.say(&format!("{id} is removed"))?;
                    }
                }
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

impl Row for View {
    const HEADS: &'static [&'static str] = &["id", "user", "created", "ends", "description"];

    fn cells(&self) -> Vec<String> {
        let ends = self.expires.map_or("never".into(), |time| {
            // Below zero is past.
            let left = -since_signed(time);
            if left > 0 { format!("in {}", duration(left)) } else { "ended".into() }
        });
        vec![
            self.id.clone(),
            self.user.clone(),
            format!("{} ago", duration(since(self.created))),
            ends,
            self.description.clone(),
        ]
    }
}

fn since_signed(time: api::v1::Time) -> i64 {
    since(0) - time
}

//! `arnia user`.

use super::{Run, remove_each};
use crate::output::Row;
use crate::{Context, Error};
use api::v1::access::{Grant, Role, User as View, UserParams, UserUpdate};
use std::process::ExitCode;

/// Commands for users.
#[derive(Debug, clap::Subcommand)]
pub enum User {
    /// Create a user
    #[command(
        after_help = "Examples:\n  arnia user create anna --role operator:lab\n  arnia user create root2 --role admin"
    )]
    Create {
        /// The name
        name: String,
        /// What the user may do: viewer, operator or admin, in one project or in all; may be repeated
        #[arg(long, value_name = "ROLE[:PROJECT]", value_parser = grant)]
        role: Vec<Grant>,
        /// For people
        #[arg(long, value_name = "TEXT", default_value = "")]
        description: String,
    },
    /// List users
    #[command(alias = "list", after_help = "Example:\n  arnia user ls")]
    Ls {},
    /// Change what a user may do, at once: whatever is open beyond it ends
    #[command(after_help = "Examples:\n  arnia user set anna --role viewer:lab --role operator:shop\n  \
                      arnia user set anna --no-role")]
    Set {
        /// The user
        name: String,
        /// What the user may do instead of all before; may be repeated
        #[arg(long, value_name = "ROLE[:PROJECT]", value_parser = grant)]
        role: Vec<Grant>,
        /// Nothing any more
        #[arg(long, conflicts_with = "role")]
        no_role: bool,
        /// For people
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
    },
    /// Remove users with their tokens
    #[command(after_help = "Example:\n  arnia user rm anna")]
    Rm {
        /// The users
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

impl Run for User {
    fn run(&self, context: &Context) -> Result<ExitCode, Error> {
        context.with_daemon(async |client| {
            match self {
                User::Create { name, role, description } => {
                    let (name, description, grants) = (name.clone(), description.clone(), role.clone());
                    let user = client.user_create(&UserParams { name, description, grants }).await?;
                    context.output.item(&user, &[("User", user.name.clone())])?;
                }
                User::Set { name, role, no_role, description } => {
                    let grants = (*no_role || !role.is_empty()).then(|| role.clone());
                    if grants.is_none() && description.is_none() {
                        return Err(Error::bad_input("there is nothing to change")
                            .with_remedy("name roles with --role, or --no-role, or a --description"));
                    }
                    let update = UserUpdate { description: description.clone(), grants };
                    let user = client.user_update(name, &update).await?;
                    context.output.item(&user, &[("User", user.name.clone())])?;
                }
                User::Ls {} => context.output.list(&client.users().await?)?,
                User::Rm { names } => {
                    remove_each(context, names, async |name| client.user_delete(name).await).await?;
                }
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

fn grant(text: &str) -> Result<Grant, String> {
    let (role, project) = text.split_once(':').map_or((text, None), |(role, project)| (role, Some(project)));
    let role = match role {
        "viewer" => Role::Viewer,
        "operator" => Role::Operator,
        "admin" => Role::Admin,
        _ => return Err("write viewer, operator or admin, and :PROJECT for one project only".into()),
    };
    Ok(Grant { project: project.map(str::to_owned), role })
}

impl Row for View {
    const HEADS: &'static [&'static str] = &["name", "roles", "description"];

    fn cells(&self) -> Vec<String> {
        let roles = self.grants.iter().map(|grant| {
            let role = format!("{:?}", grant.role).to_lowercase();
            match &grant.project {
                Some(project) => format!("{role}:{project}"),
                None => role,
            }
        });
        vec![self.name.clone(), roles.collect::<Vec<_>>().join(" "), self.description.clone()]
    }
}

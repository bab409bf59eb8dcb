//! Who calls, and what they may; users and tokens.

use super::App;
use crate::{Error, util};
use api::v1::access::{Grant, NewToken, Role, Token, TokenParams, User, UserParams, UserUpdate};
use api::v1::error::ErrorCode;
use api::v1::{DEFAULT_PROJECT, Time, name};
use store::TokenRecord;
use tokio::sync::watch;

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) name: String,
    pub(crate) grants: Vec<Grant>,
    /// When the token ends by which they call.
    pub(crate) until: Option<Time>,
}

/// The name of the daemon's owner on its socket. No user can have it.
pub(crate) const LOCAL: &str = "local";
/// Tokens begin with this, so that they are known when they turn up where they should not.
const TOKEN_PREFIX: &str = "arnia_";
/// Longest description.
const DESCRIPTION_LEN_MAX: usize = 1024;
/// Most grants of one user.
const GRANTS_MAX: usize = 100;

impl Caller {
    /// The daemon's owner, who may do everything.
    pub(crate) fn owner() -> Caller {
        Caller { name: LOCAL.into(), grants: vec![Grant { project: None, role: Role::Admin }], until: None }
    }

    /// The highest role in a project.
    pub(crate) fn role(&self, project: &str) -> Option<Role> {
        let here = |grant: &&Grant| grant.project.as_deref().is_none_or(|name| name == project);
        self.grants.iter().filter(here).map(|grant| grant.role).max()
    }

    /// The highest role in all projects, which is what the host needs.
    pub(crate) fn host_role(&self) -> Option<Role> {
        self.grants.iter().filter(|grant| grant.project.is_none()).map(|grant| grant.role).max()
    }

    pub(crate) fn is_admin(&self) -> bool {
        self.host_role() == Some(Role::Admin)
    }
}

pub(super) fn check_description(text: &str) -> Result<(), Error> {
    if text.len() > DESCRIPTION_LEN_MAX || text.contains('\0') {
        let message = format!("a description has at most {DESCRIPTION_LEN_MAX} bytes, and no NUL");
        return Err(Error::new(ErrorCode::Invalid, message));
    }
    Ok(())
}

impl App {
    /// The caller with this token.
    pub(crate) fn caller_by_token(&self, secret: &str) -> Option<Caller> {
        let (id, _) = secret.strip_prefix(TOKEN_PREFIX)?.split_once('_')?;
        let found = self.read(|records| {
            let token = records.token(id)?;
            let user = records.user(&token.token.user)?;
            Ok((token, user))
        });
        let (record, user) = found.ok()?;
        // Digests are compared: how long that takes tells nothing of the secret.
        let valid = record.hash == util::digest(secret.as_bytes());
        let alive = record.token.expires.is_none_or(|end| util::now() < end);
        let until = record.token.expires;
        (valid && alive).then_some(Caller { name: user.name, grants: user.grants, until })
    }

    /// The caller with this certificate (DER), whose key the caller has shown to have.
    pub(crate) fn caller_by_certificate(&self, certificate: &[u8]) -> Option<Caller> {
        let found = self.read(|records| {
            let token = records.token_by_hash(&certificate_hash(certificate))?;
            let user = records.user(&token.token.user)?;
            Ok((token.token, user))
        });
        let (token, user) = found.ok()?;
        let alive = token.expires.is_none_or(|end| util::now() < end);
        alive.then_some(Caller { name: user.name, grants: user.grants, until: token.expires })
    }

    pub(crate) fn token_create(&self, params: TokenParams) -> Result<NewToken, Error> {
        check_description(&params.description)?;
        let now = util::now();
        let expires = match params.lifetime {
            Some(seconds) if seconds < 1 => {
                return Err(Error::new(ErrorCode::Invalid, "a token lives for at least a second"));
            }
            Some(seconds) => Some(now.checked_add(seconds).ok_or_else(|| {
                Error::new(ErrorCode::Invalid, "the token's end is too far away")
                    .with_remedy("leave out `lifetime` for a token without end")
            })?),
            None => None,
        };
        let id = util::hex(&util::random::<8>());
        let (secret, hash) = match &params.certificate {
            Some(pem) => (None, certificate_digest(pem)?),
            None => {
                let secret = format!("{TOKEN_PREFIX}{id}_{}", util::hex(&util::random::<32>()));
                let hash = util::digest(secret.as_bytes());
                (Some(secret), hash)
            }
        };
        let token = Token { id, user: params.user, description: params.description, created: now, expires };
        let record = TokenRecord { token: token.clone(), hash };
        self.write(|records| {
            if records.token_by_hash(&record.hash).is_ok() {
                return Err(Error::new(
                    ErrorCode::AlreadyExists,
                    "the certificate stands for somebody already",
                )
                .with_remedy("remove that token first: see `arnia token ls`"));
            }
            Ok(records.token_insert(&record)?)
        })?;
        Ok(NewToken { token, secret })
    }

    pub(crate) fn user_create(&self, params: UserParams) -> Result<User, Error> {
        name::check("user", &params.name)?;
        if params.name == LOCAL {
            return Err(Error::new(ErrorCode::AlreadyExists, "\"local\" is the daemon's owner")
                .with_remedy("choose another name"));
        }
        check_description(&params.description)?;
        let UserParams { name, description, grants } = params;
        let user = User { name, description, grants, created: util::now(), revision: 1 };
        self.write(|records| {
            check_grants(records, &user.grants)?;
            Ok(records.user_insert(&user)?)
        })?;
        Ok(user)
    }

    pub(crate) fn user_update(
        &self,
        name: &str,
        update: UserUpdate,
        expected: Option<i64>,
    ) -> Result<User, Error> {
        self.write_rights(|records| {
            let mut user = records.user(name)?;
            user.revision = expected.unwrap_or(user.revision);
            if let Some(description) = update.description {
                check_description(&description)?;
                user.description = description;
            }
            if let Some(grants) = update.grants {
                check_grants(records, &grants)?;
                user.grants = grants;
            }
            Ok(records.user_update(&user)?)
        })
    }

    pub(crate) fn user_delete(&self, name: &str) -> Result<(), Error> {
        self.write_rights(|records| Ok(records.user_delete(name)?))
    }

    pub(crate) fn token_delete(&self, id: &str) -> Result<(), Error> {
        self.write_rights(|records| Ok(records.token_delete(id)?))
    }

    /// Changes records after which somebody may do less than before, and tells those who watch their rights.
    pub(super) fn write_rights<T>(
        &self,
        work: impl FnOnce(&store::Records<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let result = self.write(work);
        self.rights.send_replace(());
        result
    }

    /// Notices each change of who may do what.
    pub(crate) fn rights_changed(&self) -> watch::Receiver<()> {
        self.rights.subscribe()
    }
}

/// What is kept of a certificate (DER). A certificate is no secret: the prefix, which no secret of a token has, sees to
/// it that it cannot be sent as one.
fn certificate_hash(certificate: &[u8]) -> Vec<u8> {
    util::digest(&[b"certificate:", certificate].concat())
}

/// What is kept of the first certificate in a text.
fn certificate_digest(pem: &str) -> Result<Vec<u8>, Error> {
    use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject};
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes());
    let certificate = certificate
        .map_err(|e| Error::new(ErrorCode::Invalid, "this is no certificate in PEM").with_cause(e))?;
    Ok(certificate_hash(&certificate))
}

fn check_grants(records: &store::Records<'_>, grants: &[Grant]) -> Result<(), Error> {
    if grants.len() > GRANTS_MAX {
        return Err(Error::new(ErrorCode::Invalid, format!("a user has at most {GRANTS_MAX} grants")));
    }
    for project in grants.iter().filter_map(|grant| grant.project.as_deref()) {
        if project != DEFAULT_PROJECT && records.project(project).is_err() {
            return Err(Error::new(ErrorCode::Invalid, format!("there is no project {project:?}")));
        }
    }
    Ok(())
}

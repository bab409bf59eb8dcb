//! Users and their tokens.

use crate::{Error, ErrorKind, Records};
use api::v1::access::{Token, User};
use rusqlite::{OptionalExtension, Row, params};

/// A token, with the digest of its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRecord {
    /// What may be seen of it.
    pub token: Token,
    /// The digest of its secret.
    pub hash: Vec<u8>,
}

fn user(row: &Row<'_>) -> rusqlite::Result<User> {
    Ok(User {
        name: row.get(0)?,
        description: row.get(1)?,
        grants: crate::json(row, 2)?,
        created: row.get(3)?,
        revision: row.get(4)?,
    })
}

fn token(row: &Row<'_>) -> rusqlite::Result<TokenRecord> {
    let token = Token {
        id: row.get(0)?,
        user: row.get(1)?,
        description: row.get(2)?,
        created: row.get(4)?,
        expires: row.get(5)?,
    };
    Ok(TokenRecord { token, hash: row.get(3)? })
}

impl Records<'_> {
    /// Adds a user.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn user_insert(&self, user: &User) -> Result<(), Error> {
        let grants = crate::to_json(&user.grants);
        self.db
            .prepare_cached("INSERT INTO users VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![user.name, user.description, grants, user.created, user.revision])
            .map_err(|e| Error::or_exists(e, "user", &user.name))?;
        Ok(())
    }

    /// The user of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn user(&self, name: &str) -> Result<User, Error> {
        let found = self
            .db
            .prepare_cached("SELECT * FROM users WHERE name = ?1")?
            .query_row([name], user)
            .optional()?;
        found.ok_or_else(|| Error::not_found("user", name))
    }

    /// All users, by name.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn users(&self) -> Result<Vec<User>, Error> {
        let mut statement = self.db.prepare_cached("SELECT * FROM users ORDER BY name")?;
        let rows = statement.query_map([], user)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Changes a user, if it is still of the revision given, and returns it.
    ///
    /// # Errors
    /// When there is none, or it was changed.
    pub fn user_update(&self, user: &User) -> Result<User, Error> {
        let changed = self
            .db
            .prepare_cached(
                "UPDATE users SET description = ?3, grants = ?4, revision = revision + 1
                 WHERE name = ?1 AND revision = ?2",
            )?
            .execute(params![user.name, user.revision, user.description, crate::to_json(&user.grants)])?;
        let now = self.user(&user.name)?;
        match changed {
            0 => {
                Err(Error::new(ErrorKind::Changed, format!("the user {:?} was changed meanwhile", now.name)))
            }
            _ => Ok(now),
        }
    }

    /// Removes a user with all tokens.
    ///
    /// # Errors
    /// When there is none.
    pub fn user_delete(&self, name: &str) -> Result<(), Error> {
        match self.db.prepare_cached("DELETE FROM users WHERE name = ?1")?.execute([name])? {
            0 => Err(Error::not_found("user", name)),
            _ => Ok(()),
        }
    }

    /// Adds a token.
    ///
    /// # Errors
    /// When its user is not there.
    pub fn token_insert(&self, record: &TokenRecord) -> Result<(), Error> {
        let token = &record.token;
        self.user(&token.user)?;
        self.db.prepare_cached("INSERT INTO tokens VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
            token.id,
            token.user,
            token.description,
            record.hash,
            token.created,
            token.expires
        ])?;
        Ok(())
    }

    /// The token of this identity.
    ///
    /// # Errors
    /// When there is none.
    pub fn token(&self, id: &str) -> Result<TokenRecord, Error> {
        let found = self
            .db
            .prepare_cached("SELECT * FROM tokens WHERE id = ?1")?
            .query_row([id], token)
            .optional()?;
        found.ok_or_else(|| Error::not_found("token", id))
    }

    /// The token whose secret or certificate has this digest.
    ///
    /// # Errors
    /// When there is none.
    pub fn token_by_hash(&self, hash: &[u8]) -> Result<TokenRecord, Error> {
        let found = self
            .db
            .prepare_cached("SELECT * FROM tokens WHERE hash = ?1")?
            .query_row([hash], token)
            .optional()?;
        found.ok_or_else(|| Error::not_found("token", "of this certificate"))
    }

    /// All tokens.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn tokens(&self) -> Result<Vec<Token>, Error> {
        let mut statement = self.db.prepare_cached("SELECT * FROM tokens ORDER BY user, created, id")?;
        let rows = statement.query_map([], token)?;
        Ok(rows.map(|row| row.map(|record| record.token)).collect::<Result<_, _>>()?)
    }

    /// Removes a token.
    ///
    /// # Errors
    /// When there is none.
    pub fn token_delete(&self, id: &str) -> Result<(), Error> {
        match self.db.prepare_cached("DELETE FROM tokens WHERE id = ?1")?.execute([id])? {
            0 => Err(Error::not_found("token", id)),
            _ => Ok(()),
        }
    }
}

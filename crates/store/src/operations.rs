//! Operations, and the keys by which a repeated creation is known.

use crate::{Error, Records};
use api::v1::Time;
use api::v1::operation::{Operation, OperationState};
use rusqlite::{OptionalExtension, Row, params};

/// An operation, with what is needed to carry it on.
#[derive(Clone, Debug, PartialEq)]
pub struct OperationRecord {
    /// What clients see.
    pub view: Operation,
    /// What was asked for, in a form of the daemon's own.
    pub request: serde_json::Value,
}

/// Ended operations that are kept.
const KEPT: i64 = 10_000;

fn state(operation: &Operation) -> &'static str {
    if operation.state == OperationState::Running { "running" } else { "ended" }
}

fn record(row: &Row<'_>) -> rusqlite::Result<OperationRecord> {
    Ok(OperationRecord { view: crate::json(row, 0)?, request: crate::json(row, 1)? })
}

impl Records<'_> {
    /// Adds an operation, and forgets the oldest ended ones when there are very many.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn operation_insert(&self, operation: &OperationRecord) -> Result<(), Error> {
        let view = &operation.view;
        self.db
            .prepare_cached(
                "INSERT INTO operations (id, number, project, state, view, request)
                 VALUES (?1, (SELECT coalesce(max(number), 0) + 1 FROM operations), ?2, ?3, ?4, ?5)",
            )?
            .execute(params![
                view.id,
                view.project,
                state(view),
                crate::to_json(view),
                operation.request.to_string()
            ])?;
        self.db
            .prepare_cached(
                "DELETE FROM operations WHERE state = 'ended'
                 AND number <= (SELECT max(number) FROM operations) - ?1",
            )?
            .execute([KEPT])?;
        Ok(())
    }

    /// Replaces an operation's view and request.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn operation_update(&self, operation: &OperationRecord) -> Result<(), Error> {
        let view = &operation.view;
        self.db
            .prepare_cached("UPDATE operations SET state = ?2, view = ?3, request = ?4 WHERE id = ?1")?
            .execute(params![view.id, state(view), crate::to_json(view), operation.request.to_string()])?;
        Ok(())
    }

    /// The operation of this identity.
    ///
    /// # Errors
    /// When there is none.
    pub fn operation(&self, id: &str) -> Result<OperationRecord, Error> {
        let found = self
            .db
            .prepare_cached("SELECT view, request FROM operations WHERE id = ?1")?
            .query_row([id], record)
            .optional()?;
        found.ok_or_else(|| Error::not_found("operation", id))
    }

    /// Operations of a project, the newest first, older than the one named.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn operations(&self, project: &str, after: &str, limit: u32) -> Result<Vec<Operation>, Error> {
        let mut statement = self.db.prepare_cached(
            "SELECT view, request FROM operations WHERE project = ?1
             AND (?2 = '' OR number < (SELECT number FROM operations WHERE id = ?2))
             ORDER BY number DESC LIMIT ?3",
        )?;
        let rows = statement.query_map(params![project, after, limit], record)?;
        Ok(rows.map(|row| row.map(|record| record.view)).collect::<Result<_, _>>()?)
    }

    /// Operations that have not ended, the oldest first.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn operations_unfinished(&self) -> Result<Vec<OperationRecord>, Error> {
        let mut statement = self
            .db
            .prepare_cached("SELECT view, request FROM operations WHERE state = 'running' ORDER BY number")?;
        let rows = statement.query_map([], record)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// What was answered to the creation with this key of this user: the request's fingerprint and the answer.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn creation(&self, user: &str, key: &str) -> Result<Option<(String, String)>, Error> {
        let found = self
            .db
            .prepare_cached("SELECT fingerprint, answer FROM creation_keys WHERE user = ?1 AND key = ?2")?
            .query_row([user, key], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        Ok(found)
    }

    /// Remembers the answer to a creation, and forgets those from before `oldest`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn creation_insert(
        &self,
        user: &str,
        key: &str,
        (fingerprint, answer): (&str, &str),
        now: Time,
        oldest: Time,
    ) -> Result<(), Error> {
        self.db.prepare_cached("DELETE FROM creation_keys WHERE created < ?1")?.execute([oldest])?;
        self.db
            .prepare_cached("INSERT INTO creation_keys VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![user, key, fingerprint, answer, now])
            .map_err(|e| Error::or_exists(e, "creation with the key", key))?;
        Ok(())
    }
}

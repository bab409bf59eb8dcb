//! Files of guests, as streams.

use crate::{Client, Error, escaped};
use api::agent::{Attributes, Entry};
use api::v1::guest::TAR;
use api::v1::page::Page;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use std::io;
use tokio::sync::mpsc;

/// A file or folder of a guest that is being read.
#[derive(Debug)]
pub struct Download {
    /// Whether it is an archive of a folder.
    pub is_archive: bool,
    body: Incoming,
}

impl Download {
    /// The next piece; nothing when all has come.
    ///
    /// # Errors
    /// When it does not come whole.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(piece) = frame.into_data() {
                        return Ok(Some(piece));
                    }
                }
                Some(Err(error)) => return Err(Error::cut(&error)),
            }
        }
    }
}

impl Client {
    /// What is at a path of a guest.
    ///
    /// # Errors
    /// Of kind `not_found` when there is nothing.
    pub async fn file_view(&self, name: &str, path: &str, follow: bool) -> Result<Attributes, Error> {
        let (name, path) = (escaped(name), escaped(path));
        self.get(&format!("/v1/vms/{name}/files/attributes?path={path}&follow={follow}")).await
    }

    /// What is in a folder of a guest.
    ///
    /// # Errors
    /// When it is none.
    pub async fn file_list(&self, name: &str, path: &str) -> Result<Vec<Entry>, Error> {
        let path = format!("/v1/vms/{}/files/entries?path={}", escaped(name), escaped(path));
        Ok(self.get::<Page<Entry>>(&path).await?.items)
    }

    /// Begins to read a file or folder of a guest.
    ///
    /// # Errors
    /// When there is none at this path.
    pub async fn file_read(&self, name: &str, path: &str) -> Result<Download, Error> {
        let path = self.with_project(&format!("/v1/vms/{}/files?path={}", escaped(name), escaped(path)));
        let response = self.request("GET", &path, &[], crate::full(Vec::new())).await?;
        let (head, body) = response.into_parts();
        if !head.status.is_success() {
            let body = body.collect().await.map_err(|e| Error::cut(&e))?.to_bytes();
            return Err(crate::refusal(head.status.as_u16(), &body));
        }
        let is_archive = head.headers.get("content-type").is_some_and(|kind| kind == TAR);
        Ok(Download { is_archive, body })
    }

    /// Writes a file of a guest, or unpacks an archive into a folder of it. What comes over the channel is sent;
    /// an error there, as when the channel's sender fails, leaves the guest with what it had.
    ///
    /// # Errors
    /// When the guest does not take it.
    pub async fn file_write(
        &self,
        name: &str,
        path: &str,
        mode: Option<u32>,
        archive: bool,
        pieces: mpsc::Receiver<io::Result<Vec<u8>>>,
    ) -> Result<(), Error> {
        let mode = mode.map_or_else(String::new, |mode| format!("&mode={mode}"));
        let path = format!("/v1/vms/{}/files?path={}{mode}", escaped(name), escaped(path));
        let kind = if archive { TAR } else { "application/octet-stream" };
        let frames = futures_util::stream::unfold(pieces, async |mut pieces| {
            let piece = pieces.recv().await?;
            Some((piece.map(|piece| Frame::data(Bytes::from(piece))), pieces))
        });
        let body = BodyExt::boxed_unsync(StreamBody::new(frames));
        let response =
            self.request("PUT", &self.with_project(&path), &[("content-type", kind)], body).await?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|e| Error::cut(&e))?.to_bytes();
        if status.is_success() { Ok(()) } else { Err(crate::refusal(status.as_u16(), &body)) }
    }
}

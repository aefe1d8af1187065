//! Bodies of requests: read whole, for as long and as far as there is room.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::StreamExt as _;

use super::rest::failure;

/// How long a body may take.
const BODY_TIME: Duration = Duration::from_secs(60);
/// Of a body that is too large, what is read all the same: else its sender never hears why.
const DRAIN_MAX: usize = 64 << 20;
/// Bytes that one permit stands for.
const UNIT: usize = 1024;

/// Room for all bodies that are under way on a listener.
pub(super) struct BodyRoom(Arc<Semaphore>);

/// A body, with its room until it is dropped.
pub(super) struct Held {
    pub bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

impl BodyRoom {
    /// Room for `bytes`.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new((bytes / UNIT).clamp(1, Semaphore::MAX_PERMITS))))
    }

    /// Reads a body of at most `most` bytes.
    ///
    /// # Errors
    /// The refusal.
    pub async fn read(&self, headers: &HeaderMap, body: Body, most: usize) -> Result<Held, Response> {
        if let Some(encoding) = headers.get(header::CONTENT_ENCODING).filter(|e| *e != "identity") {
            let message = format!("the content encoding {encoding:?} is not taken");
            let hint = "send the body as it is";
            return Err(failure(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "UNSUPPORTED_MEDIA_TYPE",
                &message,
                hint,
            ));
        }
        let stream = body.into_data_stream();
        tokio::time::timeout(BODY_TIME, self.collect(stream, most)).await.unwrap_or_else(|_| {
            let message = format!("the body has not come to its end in {BODY_TIME:?}");
            Err(failure(StatusCode::REQUEST_TIMEOUT, "TIMEOUT", &message, "send it in parts"))
        })
    }

    async fn collect(&self, mut stream: BodyDataStream, most: usize) -> Result<Held, Response> {
        let (mut body, mut room): (Parts, Option<OwnedSemaphorePermit>) = (Parts::default(), None);
        let mut permits = 0;
        while let Some(part) = stream.next().await {
            let part = part.map_err(|error| {
                let message = format!("the body is broken off or ill-formed: {error}");
                failure(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", &message, "")
            })?;
            if body.length + part.len() > most {
                drain(stream, body.length + part.len()).await;
                let message = format!("the body is over {most} bytes");
                return Err(failure(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "TOO_LARGE",
                    &message,
                    "send it in parts",
                ));
            }
            body.add(part);
            let more = body.length.div_ceil(UNIT).saturating_sub(permits);
            permits += more;
            let Ok(taken) = Arc::clone(&self.0).try_acquire_many_owned(more as u32) else {
                let message = "the bodies under way fill the room that there is for them";
                let hint = "try again after a pause, or send less at once";
                return Err(failure(StatusCode::TOO_MANY_REQUESTS, "RESOURCE_EXHAUSTED", message, hint));
            };
            match &mut room {
                Some(room) => room.merge(taken),
                None => room = Some(taken),
            }
        }
        Ok(Held { bytes: body.whole(), _room: room })
    }
}

/// A body as it comes. Most come in one part, which is not copied.
#[derive(Default)]
struct Parts {
    first: Bytes,
    all: Vec<u8>,
    length: usize,
}

impl Parts {
    fn add(&mut self, part: Bytes) {
        self.length += part.len();
        if self.first.is_empty() {
            self.first = part;
            return;
        }
        if self.all.is_empty() {
            self.all.extend_from_slice(&self.first);
        }
        self.all.extend_from_slice(&part);
    }

    fn whole(self) -> Bytes {
        if self.all.is_empty() { self.first } else { self.all.into() }
    }
}

/// Reads on for a while, so that the sender comes to hear the answer.
async fn drain(mut stream: BodyDataStream, mut read: usize) {
    while let Some(Ok(part)) = stream.next().await {
        read += part.len();
        if read > DRAIN_MAX {
            return;
        }
    }
}

//! A connection of HTTP/2, with all that it asks for, in one task.

use std::io::{self, IoSlice};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::CatchUnwind;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::Sleep;

/// Bytes for what is to be sent that a connection keeps when nothing is.
const KEPT_BYTES: usize = 16 << 10;
/// Bytes that wait to be sent over a connection.
const UNSENT_MAX: usize = 256 << 10;

type Request = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Requests that have come over a connection of HTTP/2 and that nobody works on yet.
#[derive(Clone, Default)]
pub(super) struct Requests(Arc<Mutex<Vec<Request>>>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Requests {
    fn execute(&self, request: F) {
        self.0.lock().push(Box::pin(request));
    }
}

/// What is to be sent over a connection, until its task has nothing else to do: answers are several
/// frames each, and their reader would wake for each that is sent alone.
pub(super) struct Unsent {
    write: OwnedWriteHalf,
    bytes: Vec<u8>,
    sent: usize,
}

impl Unsent {
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.bytes.len() {
            let sent = ready!(Pin::new(&mut self.write).poll_write(context, &self.bytes[self.sent..]))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += sent;
        }
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        self.sent = 0;
        Poll::Ready(Ok(()))
    }
}

/// The two sides of a connection.
pub(super) struct Wire {
    read: OwnedReadHalf,
    unsent: Arc<Mutex<Unsent>>,
}

impl Wire {
    /// Both sides of `stream`, and what is to be sent over it.
    pub fn new(stream: TcpStream) -> (Self, Arc<Mutex<Unsent>>) {
        let (read, write) = stream.into_split();
        let unsent = Arc::new(Mutex::new(Unsent { write, bytes: Vec::new(), sent: 0 }));
        (Self { read, unsent: Arc::clone(&unsent) }, unsent)
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.read).poll_read(context, into)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut unsent = self.unsent.lock();
        if unsent.bytes.len() >= UNSENT_MAX {
            ready!(unsent.poll_send(context))?;
        }
        slices.iter().for_each(|slice| unsent.bytes.extend_from_slice(slice));
        Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// The connection's task does, at the end of its turn.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut unsent = self.unsent.lock();
        ready!(unsent.poll_send(context))?;
        Pin::new(&mut unsent.write).poll_shutdown(context)
    }
}

/// A connection of HTTP/2 and the requests that it brings, in one task: a lookup takes less than to begin
/// another for it. What takes longer waits elsewhere (`grpc::blocking`).
pub(super) struct Connection<C> {
    connection: Pin<Box<C>>,
    requests: Requests,
    under_way: FuturesUnordered<CatchUnwind<AssertUnwindSafe<Request>>>,
    unsent: Arc<Mutex<Unsent>>,
    /// When it is closed if it has brought nothing by then.
    first_until: Option<Pin<Box<Sleep>>>,
}

impl<C> Connection<C> {
    /// Of `connection`, whose requests go to `requests`, and which writes to `unsent`. It is closed when it
    /// has brought no request for `first_max`.
    pub fn new(connection: C, requests: Requests, unsent: Arc<Mutex<Unsent>>, first_max: Duration) -> Self {
        Self {
            connection: Box::pin(connection),
            requests,
            under_way: FuturesUnordered::new(),
            unsent,
            first_until: Some(Box::pin(tokio::time::sleep(first_max))),
        }
    }

    /// Begins with the requests that have come, and goes on with others. Returns whether any was answered.
    fn answer(&mut self, context: &mut Context<'_>) -> bool {
        let new = std::mem::take(&mut *self.requests.0.lock());
        if !new.is_empty() {
            self.first_until = None;
        }
        // One that panics ends alone.
        self.under_way.extend(new.into_iter().map(|request| AssertUnwindSafe(request).catch_unwind()));
        let mut is_any_answered = false;
        while let Poll::Ready(Some(_)) = self.under_way.poll_next_unpin(context) {
            is_any_answered = true;
        }
        is_any_answered
    }
}

impl<C: Future<Output = ()>> Future for Connection<C> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.connection.as_mut().poll(context).is_ready() {
                return Poll::Ready(());
            }
            // There may be more to answer once some are.
            if !self.answer(context) {
                break;
            }
        }
        let is_broken = matches!(self.unsent.lock().poll_send(context), Poll::Ready(Err(_)));
        let is_late = |until: &mut Pin<Box<Sleep>>| until.as_mut().poll(context).is_ready();
        let is_over = is_broken || self.first_until.as_mut().is_some_and(is_late);
        if is_over { Poll::Ready(()) } else { Poll::Pending }
    }
}

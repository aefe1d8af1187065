//! Connections of the listeners: as many as there are files for, and none for nothing.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use futures_util::FutureExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::connection::{Connection, Requests, Wire};
use super::rest::HEADERS_MAX;

/// Distance of questions whether a client of gRPC is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Requests of one connection of gRPC that may be under way.
const STREAMS_MAX: u32 = 1024;
/// Pause after a connection that could not be accepted: for want of files, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Share of the files of this process that connections of one listener may be.
const FILES_SHARE: u64 = 4;

/// What the connections of one listener may take.
pub struct ConnectionLimits {
    /// Connections at a time.
    connections: usize,
    /// How long one of REST may take to send the head of a request, the first or the next.
    head: Duration,
    /// How long one of gRPC may wait with its first request: clients open some ahead.
    first: Duration,
}

impl ConnectionLimits {
    /// Raises the number of files that this process may open to what it is allowed, and leaves some of them
    /// to the connections of a listener.
    pub fn of_process() -> Self {
        // Where it cannot be raised, it is what it was.
        let files = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(1024);
        let connections = usize::try_from(files / FILES_SHARE).unwrap_or(usize::MAX);
        Self {
            connections: connections.clamp(16, Semaphore::MAX_PERMITS),
            head: Duration::from_secs(30),
            first: Duration::from_secs(300),
        }
    }
}

/// Threads that answer, each for connections of its own: what comes over one is read, answered and sent
/// without another thread being woken for it, which would cost more than most answers.
pub struct Threads {
    runtimes: Vec<Handle>,
    next: AtomicUsize,
    /// They end with this.
    _until: Vec<oneshot::Sender<()>>,
}

impl Threads {
    /// Starts `count` threads of this name, beside which at most `blocking_max` each may wait for something.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(count: usize, name: &str, blocking_max: usize) -> io::Result<Self> {
        let (mut runtimes, mut until) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime =
                runtime.max_blocking_threads(blocking_max).thread_name(name).enable_all().build()?;
            runtimes.push(runtime.handle().clone());
            let (end, ended) = oneshot::channel::<()>();
            until.push(end);
            std::thread::Builder::new().name(name.to_owned()).spawn(move || {
                let _ = runtime.block_on(ended);
                runtime.shutdown_background();
            })?;
        }
        Ok(Self { runtimes, next: AtomicUsize::new(0), _until: until })
    }

    /// The one that gets the next connection.
    fn next(&self) -> &Handle {
        &self.runtimes[self.next.fetch_add(1, Ordering::Relaxed) % self.runtimes.len()]
    }
}

/// Answers REST by `routes` until `stopped`, and then what is under way.
pub async fn serve_rest(
    listener: TcpListener,
    routes: Router,
    threads: &Threads,
    limits: &ConnectionLimits,
    stopped: impl Future<Output = ()>,
) {
    // To find out which protocol is spoken it would wait for ever.
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.head);
    serve(listener, threads, limits.connections, stopped, move |stream, graceful| {
        let service = TowerToHyperService::new(routes.clone());
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        graceful.watch(connection.into_owned()).map(drop)
    })
    .await;
}

/// Answers gRPC by `routes` until `stopped`, and then what is under way.
pub async fn serve_grpc(
    listener: TcpListener,
    routes: Router,
    threads: &Threads,
    limits: &ConnectionLimits,
    stopped: impl Future<Output = ()>,
) {
    let first_max = limits.first;
    serve(listener, threads, limits.connections, stopped, move |stream, graceful| {
        let requests = Requests::default();
        let mut builder = Builder::new(requests.clone()).http2_only();
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEADERS_MAX as u32);
        let (wire, unsent) = Wire::new(stream);
        let service = TowerToHyperService::new(routes.clone());
        let connection = builder.serve_connection(TokioIo::new(wire), service);
        let connection = graceful.watch(connection.into_owned()).map(drop);
        Connection::new(connection, requests, unsent, first_max)
    })
    .await;
}

/// Accepts connections until `stopped`, runs each by what `begin` makes of it, and waits for the last.
async fn serve<C: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    threads: &Threads,
    connections_max: usize,
    stopped: impl Future<Output = ()>,
    begin: impl Fn(TcpStream, Watcher) -> C + Clone + Send + 'static,
) {
    let connections = Arc::new(Semaphore::new(connections_max));
    let graceful = GracefulShutdown::new();
    tokio::pin!(stopped);
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &connections) => accepted,
            () = &mut stopped => break,
        };
        let accepted = accepted.and_then(|(stream, permit)| Ok((stream.into_std()?, permit)));
        let (stream, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("a connection could not be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (begin, watcher) = (begin.clone(), graceful.watcher());
        threads.next().spawn(async move {
            let Ok(stream) = TcpStream::from_std(stream) else { return };
            // Answers are small, and wanted at once.
            let _ = stream.set_nodelay(true);
            // One that broke off has nobody to tell.
            begin(stream, watcher).await;
            drop(permit);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

/// The next connection, once there is room for one.
async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = Arc::clone(connections).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// One connection, and little patience.
    const ONE: ConnectionLimits = ConnectionLimits {
        connections: 1,
        head: Duration::from_millis(50),
        first: Duration::from_millis(50),
    };
    const PATIENCE: Duration = Duration::from_secs(20);

    /// The address of a listener that is served so.
    async fn served<S: Future<Output = ()> + Send + 'static>(
        serve: impl FnOnce(TcpListener, Router, Arc<Threads>) -> S,
    ) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let answer = || async { "here" };
        let threads = Arc::new(Threads::start(1, "serving", 1).expect("a thread"));
        tokio::spawn(serve(listener, Router::new().route("/", axum::routing::any(answer)), threads));
        address
    }

    async fn connect(address: std::net::SocketAddr, first: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        stream.write_all(first).await.expect("sent");
        stream
    }

    #[tokio::test]
    async fn connections_of_rest_that_send_no_request_make_room() {
        let serve = |listener, routes, threads: Arc<Threads>| async move {
            serve_rest(listener, routes, &threads, &ONE, std::future::pending()).await;
        };
        let address = served(serve).await;
        let _silent = connect(address, b"GET / HT").await;
        let mut next = connect(address, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        let mut answer = String::new();
        let read = tokio::time::timeout(PATIENCE, next.read_to_string(&mut answer));
        read.await.expect("in time").expect("an answer");
        assert!(answer.ends_with("here"), "{answer}");
    }

    #[tokio::test]
    async fn connections_of_grpc_that_send_no_request_make_room() {
        let serve = |listener, routes, threads: Arc<Threads>| async move {
            serve_grpc(listener, routes, &threads, &ONE, std::future::pending()).await;
        };
        let address = served(serve).await;
        let _silent = connect(address, b"PRI * HT").await;
        // The preface and empty settings are answered with settings.
        let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        let mut answer = [0; 4];
        let mut next = connect(address, hello).await;
        let read = tokio::time::timeout(PATIENCE, next.read_exact(&mut answer));
        read.await.expect("in time").expect("an answer");
        assert_eq!(answer[3], 4, "{answer:?}");
    }
}

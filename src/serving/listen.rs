//! Connections of the REST listeners: as many as there are files for, and none for nothing.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a connection may take to send the head of a request, the first or the next.
const HEAD_MAX: Duration = Duration::from_secs(30);
/// Pause after a connection that could not be accepted: for want of files, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Share of the files of this process that connections of one listener may be.
const FILES_SHARE: u64 = 4;

/// Raises the number of files that this process may open to what it is allowed, and says how many of them
/// the connections of one listener may be.
pub fn connections_max() -> usize {
    // Where it cannot be raised, it is what it was.
    let files = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(1024);
    usize::try_from(files / FILES_SHARE).unwrap_or(usize::MAX).clamp(16, Semaphore::MAX_PERMITS)
}

/// Answers by `routes` until `stopped`, and then what is under way.
pub async fn serve_rest(
    listener: TcpListener,
    routes: Router,
    connections_max: usize,
    stopped: impl Future<Output = ()>,
) {
    // To find out which protocol is spoken it would wait for ever.
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_MAX);
    let connections = Arc::new(Semaphore::new(connections_max));
    let graceful = GracefulShutdown::new();
    tokio::pin!(stopped);
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &connections) => accepted,
            () = &mut stopped => break,
        };
        let (stream, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("REST listener: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Answers are small, and wanted at once.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(routes.clone());
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let connection = graceful.watch(connection.into_owned());
        tokio::spawn(async move {
            // A connection that broke off has nobody to tell.
            let _ = connection.await;
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

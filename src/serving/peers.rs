//! Asking other nodes over gRPC.

use std::collections::HashMap;
use std::time::Duration;

use crossbeam_channel::bounded;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status as Grpc};
use tonic_types::StatusExt as _;

use super::cluster::Peers;
use super::generated::v1 as proto;
use super::generated::v1::feature_service_client::FeatureServiceClient;
use super::grpc_messages::{request_message, response_of};
use super::lookup::{LookupRequest, LookupResponse};
use crate::error::{Error, ErrorKind, Result};

/// Marks a request that another node passes on.
pub(super) const HOP: &str = "thalweg-hop";

const CONNECT_MAX: Duration = Duration::from_secs(1);
/// What an answer may take beyond the wait that the request allows.
const ANSWER_MAX: Duration = Duration::from_secs(2);
const MESSAGE_MAX: usize = 256 << 20;

type Client = FeatureServiceClient<Channel>;

/// Connections to other nodes, by address.
pub struct GrpcPeers {
    runtime: Handle,
    clients: Mutex<HashMap<String, Client>>,
}

impl GrpcPeers {
    /// No connections yet; they live on `runtime`.
    pub fn new(runtime: Handle) -> Self {
        Self { runtime, clients: Mutex::default() }
    }

    fn client(&self, address: &str) -> Result<Client> {
        let mut clients = self.clients.lock();
        if let Some(client) = clients.get(address) {
            return Ok(client.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|e| Error::internal(format!("address `{address}` of a node: {e}")))?;
        // On the runtime: a connection starts a task.
        let _entered = self.runtime.enter();
        let channel = endpoint.connect_timeout(CONNECT_MAX).tcp_nodelay(true).connect_lazy();
        let client = FeatureServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX);
        clients.insert(address.to_owned(), client.clone());
        Ok(client)
    }
}

/// Waits for an answer, also on a thread that serves requests and has a runtime of its own: ownership may
/// move to another node between the look that chose the thread and the lookup.
fn wait<T: Send + 'static>(
    runtime: &Handle,
    answer: impl Future<Output = Result<T, Grpc>> + Send + 'static,
) -> Result<T, Grpc> {
    let (said, heard) = bounded(1);
    runtime.spawn(async move { drop(said.send(answer.await)) });
    heard.recv().unwrap_or_else(|_| Err(Grpc::unavailable("this node is ending")))
}

impl Peers for GrpcPeers {
    fn lookup(&self, address: &str, request: &LookupRequest) -> Result<LookupResponse> {
        let mut client = self.client(address)?;
        let mut message = Request::new(request_message(request));
        message.set_timeout(request.wait.unwrap_or(Duration::from_secs(1)) + ANSWER_MAX);
        message.metadata_mut().insert(HOP, tonic::metadata::MetadataValue::from_static("1"));
        let answer = wait(&self.runtime, async move { client.get_features(message).await });
        let answer = answer.map_err(|s| error_of(address, &s))?;
        response_of(answer.into_inner(), request)
    }

    fn stats(&self, address: &str) -> Result<serde_json::Value> {
        let mut client = self.client(address)?;
        let mut message = Request::new(proto::GetStatsRequest { cluster: false });
        message.set_timeout(ANSWER_MAX);
        let answer = wait(&self.runtime, async move { client.get_stats(message).await });
        let answer = answer.map_err(|s| error_of(address, &s))?;
        serde_json::from_str(&answer.into_inner().json)
            .map_err(|e| Error::internal(format!("counts of the node at {address}: {e}")))
    }
}

fn error_of(address: &str, status: &Grpc) -> Error {
    let details = status.get_error_details();
    let reason = details.error_info().map_or("", |info| info.reason.as_str());
    let kind = match (reason, status.code()) {
        ("NOT_YET_APPLIED", _) => ErrorKind::NotYetApplied,
        ("TOO_LARGE", _) => ErrorKind::TooLarge,
        ("RESOURCE_EXHAUSTED", _) => ErrorKind::Exhausted,
        (_, Code::InvalidArgument) => ErrorKind::Invalid,
        (_, Code::NotFound) => ErrorKind::NotFound,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, format!("the node at {address}: {}", status.message()))
        .with_hint("ask again in a moment")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_waited_for_on_any_thread() {
        let here = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let peers = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
        let handle = peers.handle().clone();
        let answer = async { Ok::<_, Grpc>(7) };
        assert_eq!(here.block_on(async { wait(&handle, answer) }).expect("an answer"), 7);
    }
}

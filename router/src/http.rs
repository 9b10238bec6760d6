//! `/metrics`, `/livez` and `/readyz`.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::shared::{Shared, StartError};

pub(crate) async fn serve(
    _shared: &Arc<Shared>,
    address: SocketAddr,
    _tasks: &mut JoinSet<()>,
) -> Result<SocketAddr, StartError> {
    let failed = |error| StartError::Listen { address: address.to_string(), error };
    TcpListener::bind(address).await.map_err(failed)?.local_addr().map_err(failed)
}

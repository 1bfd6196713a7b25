//! TLS with hosts outside.

use std::io;
use std::sync::Arc;

use runtara_runner::blocking;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use wasmtime_wasi_http::Error;

use super::allowed::Host;

/// How TLS is spoken, found out when it is needed first: the authorities that the system trusts, or those of `SSL_CERT_FILE`.
#[derive(Default)]
pub(super) struct Tls(OnceCell<TlsConnector>);

impl Tls {
    /// Speaks TLS over a connection, with whoever proves to be the host.
    pub(super) async fn connect(
        &self,
        host: &Host,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, Error> {
        let name = match host {
            Host::Name(name) => {
                let name = name.strip_suffix('.').unwrap_or(name);
                ServerName::try_from(name.to_owned()).map_err(|_| Error::HttpRequestUriInvalid)?
            }
            Host::Address(address) => ServerName::from(*address),
        };
        let connector = self.0.get_or_try_init(|| blocking(connector)).await;
        let connector = connector.map_err(|error| {
            tracing::warn!(%error, "guests cannot speak TLS");
            Error::ConfigurationError
        })?;
        connector.connect(name, stream).await.map_err(failure)
    }
}

fn connector() -> io::Result<TlsConnector> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(BuilderVerifierExt::with_platform_verifier)
        .map_err(io::Error::other)?;
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// What a guest is told of a failure.
fn failure(error: io::Error) -> Error {
    let told = error.get_ref().and_then(|inner| inner.downcast_ref());
    match told {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            Error::TlsCertificateError
        }
        Some(rustls::Error::AlertReceived(alert)) => alert_of(*alert),
        Some(_) => Error::TlsProtocolError,
        None => Error::ConnectionTerminated,
    }
}

fn alert_of(alert: AlertDescription) -> Error {
    Error::TlsAlertReceived {
        alert_id: Some(u8::from(alert)),
        alert_message: alert.as_str().map(str::to_owned),
    }
}

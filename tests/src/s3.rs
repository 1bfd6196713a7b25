//! Storage that speaks S3, with one bucket in a directory.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// The name of the bucket.
const BUCKET: &str = "bucket";
/// The id of the key that is let in, which is no secret, and the secret of it.
pub const KEY: [&str; 2] = ["the-id-of-the-key", "the-secret-of-the-key"];

/// A server of it on 127.0.0.1.
pub struct S3Server {
    directory: TempDir,
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl S3Server {
    /// Starts it, with an empty bucket of the name `bucket`.
    ///
    /// # Panics
    /// If the machine does not let us.
    #[must_use]
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory can be made");
        std::fs::create_dir(directory.path().join(BUCKET)).expect("the directory is ours");
        let mut server = Self {
            directory,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            runtime: None,
        };
        server.start_again();
        server
    }

    /// Ends it, and every connection; what is in the bucket stays.
    pub fn stop(&mut self) {
        drop(self.runtime.take());
    }

    /// Starts it where it was before.
    ///
    /// # Panics
    /// If somebody else is there by now.
    pub fn start_again(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a thread can be started");
        let listener = runtime.block_on(TcpListener::bind(self.address));
        let listener = listener.expect("the address is free");
        self.address = listener.local_addr().expect("it is bound");
        let files = s3s_fs::FileSystem::new(self.directory.path());
        let mut service = S3ServiceBuilder::new(files.expect("the directory is there"));
        let [id, secret] = KEY;
        service.set_auth(SimpleAuth::from_single(id, secret));
        runtime.spawn(serve(listener, service.build()));
        self.runtime = Some(runtime);
    }

    /// The variables by which a client finds it, and is let in.
    #[must_use]
    pub fn variables(&self) -> [(&'static str, String); 5] {
        let [id, secret] = KEY;
        [
            ("AWS_ENDPOINT", format!("http://{}", self.address)),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_REGION", "eu-central-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", id.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", secret.to_owned()),
        ]
    }

    /// Where the files of this prefix are.
    #[must_use]
    pub fn path(&self, prefix: &str) -> PathBuf {
        Path::new(self.directory.path()).join(BUCKET).join(prefix)
    }
}

async fn serve(listener: TcpListener, service: S3Service) {
    while let Ok((socket, _)) = listener.accept().await {
        let service = service.clone();
        tokio::spawn(async move {
            let server = Builder::new(TokioExecutor::new());
            let _client_left = server.serve_connection(TokioIo::new(socket), service).await;
        });
    }
}

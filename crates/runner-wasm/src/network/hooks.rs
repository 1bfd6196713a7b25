//! Where the requests of a guest go.

use std::sync::Arc;

use http::uri::Scheme;
use http::{Request, Response};
use runtara_domain::TokenHash;
use runtara_runner::InstanceRoutes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpHooks};

use super::allowed::Reach;
use super::body::Held;
use super::connect::Outside;
use super::core::CoreWay;
use super::exchange::Target;
use super::{CHUNK_BYTES, CORE_ADDR, HEADER_BYTES, REQUESTS};
use crate::drain::Door;

/// What a guest has of `wasi:http`. Little is made until it sends a request.
pub(crate) struct Network {
    pub(crate) context: WasiHttpCtx,
    pub(crate) hooks: Hooks,
}

/// Who a guest is, and by whom its requests are answered.
pub(crate) struct Speaker {
    pub(crate) routes: Arc<dyn InstanceRoutes>,
    pub(crate) run: TokenHash,
    pub(crate) door: Arc<Door>,
    pub(crate) reach: Reach,
    pub(crate) outside: Arc<Outside>,
}

pub(crate) struct Hooks {
    core: CoreWay,
    reach: Reach,
    outside: Arc<Outside>,
    requests: Option<Requests>,
}

/// The open requests of a guest.
struct Requests {
    places: Arc<Semaphore>,
    held: Arc<Held>,
}

impl Network {
    pub(crate) fn new(speaker: Speaker) -> Self {
        let mut context = WasiHttpCtx::new();
        context.set_field_size_limit(HEADER_BYTES);
        Self {
            context,
            hooks: Hooks {
                core: CoreWay {
                    routes: speaker.routes,
                    run: speaker.run,
                    door: speaker.door,
                },
                reach: speaker.reach,
                outside: speaker.outside,
                requests: None,
            },
        }
    }
}

impl Hooks {
    fn begin(&mut self) -> Result<(OwnedSemaphorePermit, Arc<Held>), Error> {
        let requests = self.requests.get_or_insert_with(|| Requests {
            places: Arc::new(Semaphore::new(REQUESTS)),
            held: Arc::default(),
        });
        let place = Arc::clone(&requests.places).try_acquire_owned();
        let place = place.map_err(|_| Error::ConnectionLimitReached)?;
        Ok((place, Arc::clone(&requests.held)))
    }

    fn send(
        &mut self,
        request: Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<Answering, Error> {
        if is_to_core(&request) {
            let (place, held) = self.begin()?;
            let core = self.core.clone();
            return Ok(Box::pin(core.call(request, options, held, place)));
        }
        let Reach::Hosts(allowed) = &self.reach else {
            return Err(Error::HttpRequestDenied);
        };
        let target = Target::of(request.method(), request.uri())?;
        if !target.is_taken(allowed) {
            return Err(Error::HttpRequestDenied);
        }
        let (allowed, outside) = (Arc::clone(allowed), Arc::clone(&self.outside));
        let (place, _held) = self.begin()?;
        Ok(Box::pin(
            target.call(outside, allowed, request, options, place),
        ))
    }
}

type Answering = std::pin::Pin<Box<dyn Future<Output = Result<Response<WasiBody>, Error>> + Send>>;
/// What else is to be done for an exchange while its answer is read.
type Work = Box<dyn Future<Output = Result<(), Error>> + Send>;

fn is_to_core(request: &Request<WasiBody>) -> bool {
    let uri = request.uri();
    let authority = uri.authority().map(http::uri::Authority::as_str);
    authority == Some(CORE_ADDR) && uri.scheme() == Some(&Scheme::HTTP)
}

impl WasiHttpHooks for Hooks {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _failure_of_the_answer: Work,
    ) -> Box<dyn Future<Output = Result<(Response<WasiBody>, Work), Error>> + Send> {
        let sent = self.send(request, options.unwrap_or_default());
        Box::new(async move {
            // Its connection is driven by the answer itself.
            let nothing: Work = Box::new(std::future::ready(Ok(())));
            Ok((sent?.await?, nothing))
        })
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK_BYTES
    }

    // Guests are told of these, and our log is not: they could fill it.

    fn p2_error_from_hyper(&mut self, _error: &hyper::Error) -> ErrorCode {
        ErrorCode::HttpProtocolError
    }

    fn p2_error_from_connect(&mut self, _error: &std::io::Error) -> ErrorCode {
        ErrorCode::ConnectionRefused
    }

    fn p2_error_from_tls(&mut self, _error: &std::io::Error) -> ErrorCode {
        ErrorCode::TlsProtocolError
    }
}

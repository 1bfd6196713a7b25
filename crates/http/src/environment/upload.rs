//! Images: register as a multipart form, whose content streams to its place.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use multer::{Constraints, Field, Multipart, SizeLimit};
use runtara_control::{ImageRegistration, RegisterImage};
use runtara_domain::{ImageDigest, TenantId, limits};
use serde_json::value::RawValue;

use super::EnvironmentState;
use super::feed::Feed;
use super::images::{check_labels, check_name, check_tenant, registered, runner_kind};
use super::settings::{read_flag, settings, split_hosts};
use crate::ApiError;
use crate::body::BodyReader;
use crate::extract::Query;

/// Most parts of a form: those that are known, and some that other clients may add.
const PARTS: usize = 64;
/// Most bytes of all parts that are not known.
const UNKNOWN_BYTES: usize = 1024 * 1024;
/// Most bytes of a form beside the content of its image.
const BESIDE_BYTES: u64 = 8 * 1024 * 1024;

/// Most bytes of the limits of an image: five numbers with their names, written as loosely as one likes.
const LIMITS_BYTES: usize = 4 * 1024;

/// What the parts of a form hold, in whatever order they come.
#[derive(Default)]
struct Form {
    texts: BTreeMap<&'static str, String>,
    has_content: bool,
    content: Option<ImageRegistration>,
}

/// The texts that a form may hold, and their largest sizes.
const TEXTS: [(&str, usize); 12] = [
    ("tenant_id", limits::ID_BYTES),
    ("name", limits::ID_BYTES),
    ("description", limits::DESCRIPTION_BYTES),
    ("runner_type", 64),
    ("metadata", limits::METADATA_BYTES),
    ("labels", limits::METADATA_BYTES),
    ("sha256", 64),
    ("base", limits::ID_BYTES),
    ("limits", LIMITS_BYTES),
    ("network", 64),
    ("allowed_hosts", 2 * limits::ALLOWED_HOSTS_BYTES),
    ("read_only", 64),
];

/// `POST /images/upload`
pub(super) async fn register(
    State(state): State<EnvironmentState>,
    headers: HeaderMap,
    query: Query,
    request: Request,
) -> Result<Response, ApiError> {
    let form = read_form(&state, &headers, request.into_body()).await?;
    let missing = |code: &'static str, part: &str| {
        ApiError::bad_request(code, format!("the form has no part '{part}'"))
    };
    if !form.has_content {
        return Err(missing("MISSING_BINARY", "binary"));
    }
    let text = |part| form.texts.get(part).filter(|text| !text.is_empty());
    let tenant = text("tenant_id").ok_or_else(|| missing("MISSING_TENANT_ID", "tenant_id"))?;
    let name = text("name").ok_or_else(|| missing("MISSING_NAME", "name"))?;
    let content = form
        .content
        .ok_or_else(|| ApiError::bad_request("MISSING_BINARY", "the part 'binary' is empty"))?;
    let metadata = text("metadata").map(|text| {
        serde_json::from_str::<Box<RawValue>>(text)
            .map(|json| json.get().to_owned())
            .map_err(|error| {
                ApiError::bad_request("INVALID_METADATA", format!("metadata is not JSON: {error}"))
            })
    });
    let labels = text("labels").map(|text| {
        serde_json::from_str::<BTreeMap<String, String>>(text).map_err(|error| {
            ApiError::bad_request(
                "INVALID_LABEL",
                format!("labels are not a JSON object of texts: {error}"),
            )
        })
    });
    let limits = text("limits").map(|text| {
        serde_json::from_str::<Box<RawValue>>(text).map_err(|error| {
            ApiError::bad_request(
                "INVALID_SETTINGS",
                format!("limits are not a JSON object: {error}"),
            )
        })
    });
    let hosts = text("allowed_hosts").map(|text| split_hosts(text));
    let expected = text("sha256").map(|hex| {
        ImageDigest::from_hex(hex).map_err(|error| ApiError::bad_request("INVALID_SHA256", error))
    });
    let request = RegisterImage {
        tenant_id: check_tenant(tenant, &headers, &query)?,
        name: check_name(name)?,
        description: text("description").cloned(),
        kind: runner_kind(text("runner_type").map(String::as_str))?,
        base: text("base").cloned(),
        settings: settings(
            limits.transpose()?.as_deref(),
            text("network").map(String::as_str),
            hosts.as_deref(),
            text("read_only").map(|text| read_flag(text)).transpose()?,
        )?,
        metadata: metadata.transpose()?.filter(|json| json != "null"),
        labels: check_labels(labels.transpose()?.unwrap_or_default())?,
        expected: expected.transpose()?,
    };
    let image = content.finish(request).await?;
    Ok(registered(&image))
}

/// Reads a form part by part.
struct FormReader<'a> {
    state: &'a EnvironmentState,
    feed: Feed,
    form: Form,
    /// How long the whole body is, if its sender says so.
    length: Option<u64>,
    /// How much has come of parts that are not known.
    unknown: usize,
}

impl FormReader<'_> {
    fn broken(&self, error: &multer::Error) -> ApiError {
        self.feed.failure().unwrap_or_else(|| unreadable(error))
    }

    async fn chunk(&self, field: &mut Field<'_>) -> Result<Option<Bytes>, ApiError> {
        let chunk = field.chunk().await.map_err(|error| self.broken(&error))?;
        self.feed.parsed();
        Ok(chunk)
    }

    async fn read(mut self, mut multipart: Multipart<'_>) -> Result<Form, ApiError> {
        for _ in 0..PARTS {
            let field = multipart.next_field().await;
            let Some(field) = field.map_err(|error| self.broken(&error))? else {
                return Ok(self.form);
            };
            self.feed.parsed();
            self.read_part(field).await?;
        }
        Err(ApiError::bad_request(
            "UPLOAD_ERROR",
            format!("the form has more than {PARTS} parts"),
        ))
    }

    async fn read_part(&mut self, mut field: Field<'_>) -> Result<(), ApiError> {
        let part = field.name().unwrap_or_default().to_owned();
        if part == "binary" {
            return self.read_content(field).await;
        }
        let Some((known, _)) = TEXTS.iter().find(|(known, _)| *known == part) else {
            // Parts of other clients are read over.
            while let Some(chunk) = self.chunk(&mut field).await? {
                self.unknown += chunk.len();
                if self.unknown > UNKNOWN_BYTES {
                    return Err(ApiError::bad_request(
                        "UPLOAD_ERROR",
                        format!(
                            "the form has more than {UNKNOWN_BYTES} bytes in parts that mean nothing here, such as '{part}'"
                        ),
                    ));
                }
            }
            return Ok(());
        };
        let mut bytes = BytesMut::new();
        while let Some(chunk) = self.chunk(&mut field).await? {
            bytes.extend_from_slice(&chunk);
        }
        let text = String::from_utf8(bytes.to_vec()).map_err(|_| {
            ApiError::bad_request("UPLOAD_ERROR", format!("the part '{part}' is not UTF-8"))
        })?;
        match self.form.texts.insert(known, text) {
            None => Ok(()),
            Some(_) => Err(twice(&part)),
        }
    }

    async fn read_content(&mut self, mut field: Field<'_>) -> Result<(), ApiError> {
        if self.form.has_content {
            return Err(twice("binary"));
        }
        self.form.has_content = true;
        let tenant = self.form.texts.get("tenant_id");
        let tenant = tenant.and_then(|text| TenantId::new(text.as_str()).ok());
        while let Some(piece) = self.chunk(&mut field).await? {
            if piece.is_empty() {
                continue;
            }
            // Begun with the first of the content: a client that sends none yet takes no place of those who do.
            let content = match &mut self.form.content {
                Some(content) => content,
                none => {
                    // What cannot be kept need not be read whole.
                    if let (Some(tenant), Some(length)) = (&tenant, self.length) {
                        let sizes = (length.saturating_sub(BESIDE_BYTES), length);
                        self.state.control.check_image_room(tenant, sizes).await?;
                    }
                    none.insert(self.state.control.begin_image().await?)
                }
            };
            content.write(&piece).await?;
        }
        Ok(())
    }
}

fn unreadable(error: &multer::Error) -> ApiError {
    ApiError::bad_request("UPLOAD_ERROR", format!("the form cannot be read: {error}"))
}

fn twice(part: &str) -> ApiError {
    ApiError::bad_request(
        "UPLOAD_ERROR",
        format!("the form has the part '{part}' twice"),
    )
}

async fn read_form(
    state: &EnvironmentState,
    headers: &HeaderMap,
    body: Body,
) -> Result<Form, ApiError> {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let boundary = multer::parse_boundary(kind).map_err(|error| unreadable(&error))?;
    let sizes = TEXTS.iter().fold(SizeLimit::new(), |limit, (part, size)| {
        limit.for_field(*part, *size as u64)
    });
    let feed = Feed::default();
    let limit = state.control.max_image_bytes().saturating_add(BESIDE_BYTES);
    let parts = feed.stream(BodyReader::new(body), limit);
    let constraints = Constraints::new().size_limit(sizes);
    let multipart = Multipart::with_constraints(parts, boundary, constraints);
    let reader = FormReader {
        state,
        feed,
        form: Form::default(),
        length: headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse().ok()),
        unknown: 0,
    };
    reader.read(multipart).await
}

//! Images: register as JSON, list, look, delete.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, StatusCode};
use runtara_control::RegisterImage;
use runtara_domain::{
    ImageId, ImageName, ImageRecord, Labels, RunSettings, RunnerKind, TenantId, limits,
};
use runtara_store::ImageFilter;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::page::{OrderedBy, PageInfo, labels, page_request};
use super::settings::settings;
use super::{EnvironmentState, scope, tenant_mismatch};
use crate::ApiError;
use crate::body::{BodyReader, too_large};
use crate::extract::{PathId, Query, parse_id};
use crate::json_stream::BinaryField;

#[derive(Deserialize)]
struct RegisterBody {
    tenant_id: String,
    name: String,
    description: Option<String>,
    runner_type: Option<String>,
    metadata: Option<Box<RawValue>>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    base: Option<String>,
    limits: Option<Box<RawValue>>,
    network: Option<String>,
    allowed_hosts: Option<Vec<String>>,
    read_only: Option<bool>,
}

/// Reads a declared runner type. Published clients send words in any case, and the numbers 1 and 2.
pub(super) fn runner_kind(text: Option<&str>) -> Result<Option<RunnerKind>, ApiError> {
    let word = match text {
        None | Some("") => return Ok(None),
        Some("1") => "native".to_owned(),
        Some("2") => "wasm".to_owned(),
        Some(word) => word.to_ascii_lowercase(),
    };
    word.parse()
        .map(Some)
        .map_err(|error| ApiError::bad_request("INVALID_RUNNER_TYPE", error))
}

/// Checks the tenant of a registration against what the caller names elsewhere.
pub(super) fn check_tenant(
    tenant: &str,
    headers: &HeaderMap,
    query: &Query,
) -> Result<TenantId, ApiError> {
    let tenant: TenantId = parse_id(tenant)?;
    match scope(headers, query)? {
        Some(named) if named != tenant => Err(tenant_mismatch()),
        _ => Ok(tenant),
    }
}

pub(super) fn check_name(name: &str) -> Result<ImageName, ApiError> {
    ImageName::new(name).map_err(|error| ApiError::bad_request("INVALID_NAME", error))
}

pub(super) fn check_labels(labels: BTreeMap<String, String>) -> Result<Labels, ApiError> {
    Labels::new(labels).map_err(|error| ApiError::bad_request("INVALID_LABEL", error))
}

/// The answer to a registration.
pub(super) fn registered(image: &ImageRecord) -> Response {
    let body = json!({
        "success": true,
        "image_id": image.image_id,
        "runner_type": image.kind,
        "sha256": image.digest,
    });
    (StatusCode::CREATED, Json(body)).into_response()
}

/// `POST /images`: the content is a base64 text in the body, which is decoded while it streams to its place.
pub(super) async fn register(
    State(state): State<EnvironmentState>,
    headers: HeaderMap,
    query: Query,
    request: Request,
) -> Result<Response, ApiError> {
    let mut body = BodyReader::new(request.into_body());
    // Begun with the first of the content: a client that sends none yet takes no place of those who do.
    let mut registration = None;
    let mut field = BinaryField::new("binary");
    let (mut text, mut received) = (Vec::new(), 0);
    while let Some(part) = body.next().await? {
        received += part.len();
        if received > limits::BODY_BYTES {
            return Err(too_large(limits::BODY_BYTES as u64));
        }
        text.clear();
        field
            .push(&part, &mut text)
            .map_err(|error| ApiError::bad_request("INVALID_JSON", error))?;
        if text.is_empty() {
            continue;
        }
        let under_way = match &mut registration {
            Some(under_way) => under_way,
            none => none.insert(state.control.begin_image().await?),
        };
        under_way.write_base64(&text).await?;
    }
    let rest = field.rest();
    let body: RegisterBody = serde_json::from_slice(rest).map_err(|error| {
        ApiError::bad_request("INVALID_JSON", format!("the body cannot be read: {error}"))
    })?;
    let request = RegisterImage {
        tenant_id: check_tenant(&body.tenant_id, &headers, &query)?,
        name: check_name(&body.name)?,
        description: body.description,
        kind: runner_kind(body.runner_type.as_deref())?,
        base: body.base.filter(|base| !base.is_empty()),
        settings: settings(
            body.limits.as_deref(),
            body.network.as_deref(),
            body.allowed_hosts.as_deref(),
            body.read_only,
        )?,
        metadata: body
            .metadata
            .map(|json| json.get().to_owned())
            .filter(|json| json != "null"),
        labels: check_labels(body.labels.unwrap_or_default())?,
        expected: None,
    };
    let registration =
        registration.ok_or_else(|| ApiError::bad_request("EMPTY_BINARY", "the binary is empty"))?;
    let image = registration.finish(request).await?;
    Ok(registered(&image))
}

#[derive(Serialize)]
struct WireImage {
    image_id: String,
    tenant_id: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    runner_type: RunnerKind,
    created_at_ms: i64,
    sha256: String,
    size_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Value>,
    labels: Labels,
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<String>,
    #[serde(flatten)]
    settings: RunSettings,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<Value>,
    current: bool,
}

impl From<ImageRecord> for WireImage {
    fn from(image: ImageRecord) -> Self {
        let json = |text: Option<String>| serde_json::from_str(&text?).ok();
        Self {
            image_id: image.image_id.to_string(),
            tenant_id: image.tenant_id.to_string(),
            name: image.name.to_string(),
            description: image.description,
            runner_type: image.kind,
            created_at_ms: image.created_at.0,
            sha256: image.digest.to_hex(),
            size_bytes: image.size,
            metadata: json(image.metadata),
            labels: image.labels,
            base: image.base.map(|base| base.to_hex()),
            settings: image.settings,
            container: json(image.container),
            current: image.current,
        }
    }
}

#[derive(Serialize)]
pub(super) struct ListAnswer {
    images: Vec<WireImage>,
    #[serde(flatten)]
    page: PageInfo,
}

/// `GET /images`
pub(super) async fn list(
    State(state): State<EnvironmentState>,
    headers: HeaderMap,
    query: Query,
) -> Result<Json<ListAnswer>, ApiError> {
    let filter = ImageFilter {
        tenant_id: scope(&headers, &query)?,
        name: query.text("name").map(str::to_owned),
        labels: labels(&query)?,
    };
    let request = page_request(&query, OrderedBy::Time)?;
    let page = state.control.list_images(&filter, &request).await?;
    Ok(Json(ListAnswer {
        page: PageInfo::new(&page, &request),
        images: page.rows.into_iter().map(WireImage::from).collect(),
    }))
}

/// `GET /images/{image_id}`
pub(super) async fn get(
    State(state): State<EnvironmentState>,
    PathId(id): PathId<ImageId>,
    headers: HeaderMap,
    query: Query,
) -> Result<Json<Value>, ApiError> {
    let scope = scope(&headers, &query)?;
    Ok(Json(match state.control.image(&scope, &id).await? {
        Some(image) => json!({ "found": true, "image": WireImage::from(image) }),
        None => json!({ "found": false }),
    }))
}

/// `DELETE /images/{image_id}`
///
/// A refusal is a 200 with `success: false`: published clients show its reason then.
pub(super) async fn delete(
    State(state): State<EnvironmentState>,
    PathId(id): PathId<ImageId>,
    headers: HeaderMap,
    query: Query,
) -> Result<Response, ApiError> {
    let scope = scope(&headers, &query)?;
    match state.control.delete_image(&scope, &id).await {
        Ok(()) => Ok(Json(json!({ "success": true })).into_response()),
        Err(error @ runtara_control::ControlError::Refused { .. }) => {
            let error = ApiError::from(error);
            let body = json!({
                "success": false,
                "error": error.message(),
                "code": error.code(),
            });
            Ok(Json(body).into_response())
        }
        Err(error) => Err(error.into()),
    }
}

//! Images: register as a multipart form, whose content streams to its place.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use http::{HeaderMap, header};
use multer::{Constraints, Field, Multipart, SizeLimit};
use runtara_control::{ImageRegistration, RegisterImage};
use runtara_domain::{ImageDigest, limits};
use serde_json::value::RawValue;

use super::EnvironmentState;
use super::images::{check_labels, check_name, check_tenant, registered, runner_kind};
use crate::ApiError;
use crate::extract::{Query, next_part};

/// Most parts of a form: those that are known, and some that other clients may add.
const PARTS: usize = 64;

/// What the parts of a form hold, in whatever order they come.
#[derive(Default)]
struct Form {
    texts: BTreeMap<&'static str, String>,
    content: Option<ImageRegistration>,
}

/// The texts that a form may hold, and their largest sizes.
const TEXTS: [(&str, usize); 7] = [
    ("tenant_id", limits::ID_BYTES),
    ("name", limits::ID_BYTES),
    ("description", limits::DESCRIPTION_BYTES),
    ("runner_type", 64),
    ("metadata", limits::METADATA_BYTES),
    ("labels", limits::METADATA_BYTES),
    ("sha256", 64),
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
    let Some(content) = form.content else {
        return Err(missing("MISSING_BINARY", "binary"));
    };
    let text = |part| form.texts.get(part).filter(|text| !text.is_empty());
    let tenant = text("tenant_id").ok_or_else(|| missing("MISSING_TENANT_ID", "tenant_id"))?;
    let name = text("name").ok_or_else(|| missing("MISSING_NAME", "name"))?;
    if content.received() == 0 {
        return Err(ApiError::bad_request(
            "MISSING_BINARY",
            "the part 'binary' is empty",
        ));
    }
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
    let expected = text("sha256").map(|hex| {
        ImageDigest::from_hex(hex).map_err(|error| ApiError::bad_request("INVALID_SHA256", error))
    });
    let request = RegisterImage {
        tenant_id: check_tenant(tenant, &headers, &query)?,
        name: check_name(name)?,
        description: text("description").cloned(),
        kind: runner_kind(text("runner_type").map(String::as_str))?,
        metadata: metadata.transpose()?.filter(|json| json != "null"),
        labels: check_labels(labels.transpose()?.unwrap_or_default())?,
        expected: expected.transpose()?,
    };
    let image = content.finish(request).await?;
    Ok(registered(&image))
}

fn broken(error: &multer::Error) -> ApiError {
    ApiError::bad_request("UPLOAD_ERROR", format!("the form cannot be read: {error}"))
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
    let boundary = multer::parse_boundary(kind).map_err(|error| broken(&error))?;
    let parts = futures_util::stream::unfold(Some(body), |body| async {
        let mut body = body?;
        match next_part(&mut body).await {
            Ok(Some(part)) => Some((Ok(part), Some(body))),
            Ok(None) => None,
            Err(error) => Some((Err(std::io::Error::other(error.message().to_owned())), None)),
        }
    });
    let constraints = Constraints::new().size_limit(
        TEXTS.iter().fold(SizeLimit::new(), |limit, (part, size)| {
            limit.for_field(*part, *size as u64)
        }),
    );
    let mut multipart = Multipart::with_constraints(parts, boundary, constraints);
    let mut form = Form::default();
    for _ in 0..PARTS {
        let Some(field) = multipart
            .next_field()
            .await
            .map_err(|error| broken(&error))?
        else {
            return Ok(form);
        };
        read_part(state, &mut form, field).await?;
    }
    Err(ApiError::bad_request(
        "UPLOAD_ERROR",
        format!("the form has more than {PARTS} parts"),
    ))
}

async fn read_part(
    state: &EnvironmentState,
    form: &mut Form,
    mut field: Field<'_>,
) -> Result<(), ApiError> {
    let twice = |part: &str| {
        ApiError::bad_request(
            "UPLOAD_ERROR",
            format!("the form has the part '{part}' twice"),
        )
    };
    let part = field.name().unwrap_or_default().to_owned();
    if part == "binary" {
        if form.content.is_some() {
            return Err(twice(&part));
        }
        let mut registration = state.control.begin_image().await?;
        while let Some(piece) = field.chunk().await.map_err(|error| broken(&error))? {
            registration.write(&piece).await?;
        }
        form.content = Some(registration);
        return Ok(());
    }
    let Some((known, _)) = TEXTS.iter().find(|(known, _)| *known == part) else {
        // Parts of other clients are read over; the connection's own bounds hold.
        while field
            .chunk()
            .await
            .map_err(|error| broken(&error))?
            .is_some()
        {}
        return Ok(());
    };
    let bytes = field.bytes().await.map_err(|error| broken(&error))?;
    let text = String::from_utf8(bytes.to_vec()).map_err(|_| {
        ApiError::bad_request("UPLOAD_ERROR", format!("the part '{part}' is not UTF-8"))
    })?;
    match form.texts.insert(known, text) {
        None => Ok(()),
        Some(_) => Err(twice(&part)),
    }
}

//! Images: register, find, list, delete.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::client::{Client, refusal};
use crate::options::options;
use crate::query::{Path, non_empty};
use crate::transport::{Answer, Call};
use crate::{Error, Labels, NetworkMode, NotFound, Page, Pages, ResourceLimits, RunnerKind};

const IMAGES: &str = "/api/v1/images";

/// A registered image.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Image {
    /// Its id.
    pub image_id: String,
    /// Its owner.
    pub tenant_id: String,
    /// Its name, unique for the tenant.
    pub name: String,
    /// What a person wrote about it.
    #[serde(default)]
    pub description: Option<String>,
    /// The isolation it asks for.
    pub runner_type: RunnerKind,
    /// When it was registered.
    pub created_at_ms: i64,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
    /// SHA-256, in hexadecimal, of the container image that its content is laid on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// What its program may take, unless a start says otherwise.
    #[serde(default, skip_serializing_if = "ResourceLimits::is_empty")]
    pub limits: ResourceLimits,
    /// What its program reaches over the network, unless a start says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMode>,
    /// Which hosts its program reaches, of those that it could with its network, unless a start says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_hosts: Option<Vec<String>>,
    /// Whether the root of its program's file system is read-only, unless a start says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// What a container image says of itself: an object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Value>,
    /// Whatever else the server says of it.
    #[serde(flatten)]
    pub more: BTreeMap<String, Value>,
}

/// What is told of an image when it is registered, beside its content.
///
/// ```
/// use runtara_management_sdk::{ImageRegistration, RunnerKind};
///
/// let registration = ImageRegistration::new("orders").runner_type(RunnerKind::Native).label("team", "shop");
/// assert_eq!(registration.labels["team"], "shop");
/// ```
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ImageRegistration {
    /// Its name, unique for the tenant.
    pub name: String,
    /// Its owner; the client's tenant if absent.
    pub tenant_id: Option<String>,
    /// What a person wrote about it.
    pub description: Option<String>,
    /// The isolation it asks for; the server decides by the content if absent.
    pub runner_type: Option<RunnerKind>,
    /// Any JSON that is kept with it.
    pub metadata: Option<Value>,
    /// Its labels.
    pub labels: Labels,
    /// Name or id of the container image that the content, a program or a script, is laid on.
    pub base: Option<String>,
    /// What its program may take, unless a start says otherwise. Only for containers.
    pub limits: ResourceLimits,
    /// What it reaches over the network, unless a start says otherwise. Only for containers.
    pub network: Option<NetworkMode>,
    /// Which hosts it reaches, of those that it could with its network, unless a start says otherwise: `api.example.com`,
    /// `*.example.com:443`. Only for WebAssembly.
    pub allowed_hosts: Option<Vec<String>>,
    /// Whether the root of its file system is read-only, unless a start says otherwise. Its run directory and its places for temporary
    /// files are not. Only for containers.
    pub read_only: Option<bool>,
    /// SHA-256 of the content in hexadecimal. Where it is given, content that differs is refused.
    pub sha256: Option<String>,
}

impl ImageRegistration {
    /// Begins the registration of an image called `name`.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// Names the owner.
    #[must_use]
    pub fn tenant(mut self, tenant: impl Into<String>) -> Self {
        self.tenant_id = Some(tenant.into());
        self
    }

    /// Describes the image.
    #[must_use]
    pub fn description(mut self, description: impl Into<String>) -> Self {
        self.description = Some(description.into());
        self
    }

    /// Demands an isolation.
    #[must_use]
    pub fn runner_type(mut self, kind: RunnerKind) -> Self {
        self.runner_type = Some(kind);
        self
    }

    /// Attaches metadata.
    #[must_use]
    pub fn metadata(mut self, metadata: Value) -> Self {
        self.metadata = Some(metadata);
        self
    }

    /// Attaches a label.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Lays the content on the container image of this name or id.
    #[must_use]
    pub fn base(mut self, name_or_id: impl Into<String>) -> Self {
        self.base = Some(name_or_id.into());
        self
    }

    /// Limits what the program may take, unless a start says otherwise. Only for containers.
    #[must_use]
    pub fn limits(mut self, limits: ResourceLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Says what the program reaches over the network, unless a start says otherwise. Only for containers.
    #[must_use]
    pub fn network(mut self, mode: NetworkMode) -> Self {
        self.network = Some(mode);
        self
    }

    /// Adds a host to those that the program reaches, of those that it could with its network, unless a start says otherwise. Only for
    /// WebAssembly.
    #[must_use]
    pub fn allowed_host(mut self, host: impl Into<String>) -> Self {
        self.allowed_hosts.get_or_insert_default().push(host.into());
        self
    }

    /// Says whether the root of the program's file system is read-only, unless a start says otherwise. Only for containers.
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = Some(read_only);
        self
    }

    /// Announces the digest of the content.
    #[must_use]
    pub fn sha256(mut self, digest: impl Into<String>) -> Self {
        self.sha256 = Some(digest.into());
        self
    }
}

impl ImageRegistration {
    /// Fields that published servers do not know: only those that are set.
    pub(crate) fn extensions(&self) -> impl Iterator<Item = (&'static str, Value)> {
        let limits = (!self.limits.is_empty()).then(|| json!(self.limits));
        let fields = [
            ("base", self.base.as_ref().map(|base| json!(base))),
            ("limits", limits),
            ("network", self.network.as_ref().map(|mode| json!(mode))),
            (
                "allowed_hosts",
                self.allowed_hosts.as_ref().map(|hosts| json!(hosts)),
            ),
            ("read_only", self.read_only.map(Value::from)),
        ];
        fields
            .into_iter()
            .filter_map(|(field, value)| Some((field, value?)))
    }
}

/// The answer to a registration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RegisteredImage {
    /// The new image's id.
    pub image_id: String,
    /// SHA-256 of what was uploaded, in hexadecimal; absent where it was sent as JSON.
    pub sha256: Option<String>,
}

#[derive(Deserialize)]
struct RegisterAnswer {
    success: bool,
    image_id: Option<String>,
    error: Option<String>,
    code: Option<String>,
}

#[derive(Deserialize)]
struct ImageAnswer {
    found: bool,
    image: Option<Image>,
}

#[derive(Deserialize)]
struct SuccessAnswer {
    success: bool,
    error: Option<String>,
}

options! {
    /// Which images are listed.
    ImageFilter {
        text {
            /// Only those of this tenant; the client's tenant if absent.
            tenant_id,
            /// Only the one of this name.
            name,
            /// Where the page begins, from [`Page::next_cursor`].
            cursor,
        }
        plain {
            /// How many at most.
            limit: u32,
            /// How many are left out in front. Not together with a cursor.
            offset: u64,
            /// Only those with all these labels: `key=value`, or `key` for any value.
            labels: Vec<String>,
        }
    }
}

impl Client {
    /// Registers an image whose content is at hand. Up to about 48 MB; use [`Client::upload_image_file`] beyond.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] with the server's reason if the content is not what the registration says.
    pub async fn register_image(
        &self,
        registration: &ImageRegistration,
        content: &[u8],
    ) -> Result<RegisteredImage, Error> {
        let mut body = json!({
            "tenant_id": self.tenant_or(registration.tenant_id.as_deref())?,
            "name": registration.name,
            "description": registration.description,
            "binary": STANDARD.encode(content),
            "runner_type": registration.runner_type,
            "metadata": registration.metadata,
        });
        if let Some(labels) = non_empty(&registration.labels) {
            body["labels"] = json!(labels);
        }
        for (field, value) in registration.extensions() {
            body[field] = value;
        }
        if let Some(digest) = &registration.sha256 {
            body["sha256"] = json!(digest);
        }
        registered(
            self.send(Call::post(Path::new(IMAGES)).json(&body)).await?,
            None,
        )
    }

    /// Lists one page of images, newest first.
    ///
    /// # Errors
    ///
    /// Those of the connection and of the server.
    pub async fn images(&self, filter: &ImageFilter) -> Result<Page<Image>, Error> {
        let path = Path::new(IMAGES)
            .with(
                "tenant_id",
                filter.tenant_id.as_deref().or_else(|| self.tenant()),
            )
            .with("name", filter.name.as_ref())
            .with_labels(filter.labels.as_ref())
            .with("limit", filter.limit)
            .with("offset", filter.offset)
            .with("cursor", filter.cursor.as_ref());
        self.send(Call::get(path)).await?.ok()?.json()
    }

    /// Walks over all images that match, page by page.
    #[must_use]
    pub fn all_images(&self, filter: &ImageFilter) -> Pages<Image> {
        let (client, filter) = (self.clone(), filter.clone());
        Pages::new(move |cursor| {
            let (client, mut filter) = (client.clone(), filter.clone());
            if cursor.is_some() {
                (filter.cursor, filter.offset) = (cursor, None);
            }
            Box::pin(async move { client.images(&filter).await })
        })
    }

    /// Gives the image of an id.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if it is unknown or another tenant's.
    pub async fn image(&self, image_id: &str) -> Result<Image, Error> {
        let path = Path::new(IMAGES)
            .id("image id", image_id)?
            .with("tenant_id", self.tenant());
        let answer: ImageAnswer = self
            .send(Call::get(path))
            .await?
            .ok_or_missing(NotFound::Image, image_id)?
            .json()?;
        answer
            .image
            .filter(|_| answer.found)
            .ok_or_else(|| Error::not_found(NotFound::Image, image_id))
    }

    /// Gives the image that has this name, else the one that has this id.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if there is neither.
    pub async fn find_image(&self, name_or_id: &str) -> Result<Image, Error> {
        let named = self
            .images(&ImageFilter::new().name(name_or_id).limit(1))
            .await?;
        // A server that ignores the filter would answer with any image.
        match named
            .items
            .into_iter()
            .find(|image| image.name == name_or_id)
        {
            Some(image) => Ok(image),
            None => self.image(name_or_id).await,
        }
    }

    /// Deletes an image.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if it is unknown, [`Error::Refused`] while instances need it.
    pub async fn delete_image(&self, image_id: &str) -> Result<(), Error> {
        let path = Path::new(IMAGES)
            .id("image id", image_id)?
            .with("tenant_id", self.tenant());
        let answer = self
            .send(Call::delete(path))
            .await?
            .ok_or_missing(NotFound::Image, image_id)?;
        let told: SuccessAnswer = answer.json()?;
        if told.success {
            return Ok(());
        }
        Err(refusal(
            NotFound::Image,
            image_id,
            answer.status.as_u16(),
            "DELETE_FAILED",
            told.error,
        ))
    }
}

/// Reads the answer to a registration, which is the same for both ways.
pub(crate) fn registered(answer: Answer, sha256: Option<String>) -> Result<RegisteredImage, Error> {
    if !answer.status.is_success() && answer.status != StatusCode::BAD_REQUEST {
        return Err(answer.into_refusal());
    }
    // A 400 of another origin, such as a proxy, has no `success`: its words still count.
    let told: RegisterAnswer = match answer.json() {
        Err(_) if !answer.status.is_success() => return Err(answer.into_refusal()),
        told => told?,
    };
    match told.image_id {
        Some(image_id) if told.success => Ok(RegisteredImage { image_id, sha256 }),
        _ => Err(Error::Refused {
            status: answer.status.as_u16(),
            code: told.code.unwrap_or_else(|| "REGISTER_FAILED".to_owned()),
            message: told
                .error
                .unwrap_or_else(|| "the server gave no reason".to_owned()),
            retry_after: None,
        }),
    }
}

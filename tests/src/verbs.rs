//! What tests do with a server again and again.

use std::fs;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::database::Kind;
use crate::guest;
use crate::http::{Answer, Request};
use crate::image;
use crate::programs::program;
use crate::run::Run;
use crate::server::Server;

/// The tenant of everything that belongs to nobody in particular.
pub const TENANT: &str = "acme";

/// The name of the image that programs in containers are laid on.
const BASE: &str = "base";

/// Where effects are noted: the name of the file, and of the events.
pub(crate) const EFFECTS: &str = "effects";

/// Encodes as the protocol does.
#[must_use]
pub fn base64(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}

/// Decodes what the protocol has encoded.
///
/// # Panics
/// If it is not base64.
#[must_use]
#[track_caller]
pub fn from_base64(value: &Value) -> String {
    let text = value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no base64 text"));
    let bytes = STANDARD
        .decode(text)
        .unwrap_or_else(|error| panic!("{text}: {error}"));
    String::from_utf8(bytes).expect("tests store text")
}

/// Now, in milliseconds since the epoch.
#[must_use]
pub fn milliseconds() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(since.expect("the clock is right").as_millis()).expect("times fit")
}

/// A registered image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image(pub String);

impl Answer {
    /// The image that was registered.
    ///
    /// # Panics
    /// If it was refused.
    #[must_use]
    #[track_caller]
    pub fn image(&self) -> Image {
        let body = self.expect(201);
        let id = body["image_id"].as_str().expect("an id is a text");
        Image(id.to_owned())
    }
}

impl Server {
    /// Registers a program's content under a name, for [`TENANT`].
    #[must_use]
    #[track_caller]
    pub fn register(&self, name: &str, content: &[u8]) -> Image {
        self.register_for(TENANT, name, content)
    }

    /// Registers a program's content under a name.
    ///
    /// # Panics
    /// If it is refused.
    #[must_use]
    #[track_caller]
    pub fn register_for(&self, tenant: &str, name: &str, content: &[u8]) -> Image {
        let how = match self.kind() {
            Kind::Native => ("runner_type", "native"),
            Kind::Containers => ("base", BASE),
            Kind::Wasm => ("runner_type", "wasm"),
        };
        if self.kind() == Kind::Containers {
            self.register_base(tenant);
        }
        let texts = [("tenant_id", tenant), ("name", name), how];
        self.upload(&texts, content).image()
    }

    /// Registers the image that programs in containers are laid on, unless it is there.
    fn register_base(&self, tenant: &str) {
        let mut have_it = self.tenants_with_base();
        if have_it.insert(tenant.to_owned()) {
            let archive = image::archive(&[image::base_layer()], &json!({}));
            let texts = [("tenant_id", tenant), ("name", BASE)];
            let _registered = self.upload(&texts, &archive).image();
        }
    }

    /// Registers the archive of a container image, for [`TENANT`].
    #[must_use]
    #[track_caller]
    pub fn register_archive(&self, archive: &[u8]) -> Image {
        self.try_register_archive(archive).image()
    }

    /// Asks for the registration of the archive of a container image, and gives the answer.
    #[must_use]
    #[track_caller]
    pub fn try_register_archive(&self, archive: &[u8]) -> Answer {
        let texts = [("tenant_id", TENANT), ("name", "image")];
        self.upload(&texts, archive)
    }

    /// What is told of an image.
    #[must_use]
    #[track_caller]
    pub fn image(&self, image: &Image) -> Value {
        let path = format!("/api/v1/images/{}", image.0);
        self.ask(&Request::get(&path)).expect(200)["image"].clone()
    }

    /// Sends the form of a registration.
    #[must_use]
    #[track_caller]
    pub fn upload(&self, texts: &[(&str, &str)], content: &[u8]) -> Answer {
        self.ask(&Request::form(
            "/api/v1/images/upload",
            texts,
            &[("binary", content)],
        ))
    }

    /// Registers a shell script.
    ///
    /// # Panics
    /// If programs are guests here: those are no scripts.
    #[must_use]
    #[track_caller]
    pub fn shell(&self, script: &str) -> Image {
        assert_ne!(self.kind(), Kind::Wasm, "a guest is no script");
        self.register("shell", format!("#!/bin/sh\n{script}\n").as_bytes())
    }

    /// Registers one of the programs of this workspace, or the guest that does the same.
    ///
    /// # Panics
    /// If it was not built.
    #[must_use]
    #[track_caller]
    pub fn program(&self, name: &str) -> Image {
        self.program_for(TENANT, name)
    }

    /// As [`Server::program`], for another tenant.
    #[must_use]
    #[track_caller]
    pub fn program_for(&self, tenant: &str, name: &str) -> Image {
        let content = match self.kind() {
            Kind::Wasm => guest::like(name),
            Kind::Native | Kind::Containers => {
                let path = program(name);
                fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            }
        };
        self.register_for(tenant, name, &content)
    }

    /// Registers the program that does what its input says, as programs with the published blocking client do.
    #[must_use]
    #[track_caller]
    pub fn scripted(&self) -> Image {
        self.program("speaks_the_protocol")
    }

    /// The input of a scripted program that notes its effects, where [`Run::effects`] finds them: in a file, or, as guests have none, as
    /// events.
    #[must_use]
    pub fn noting_effects(&self, mut input: Value) -> Value {
        let (key, place) = match self.kind() {
            Kind::Wasm => ("effects_event", EFFECTS.to_owned()),
            Kind::Native | Kind::Containers => ("effects_file", self.shared().path(EFFECTS)),
        };
        input[key] = json!(place);
        input
    }

    /// The action by which a scripted program dies as suddenly as it can: by SIGKILL, or, as guests take no signals, by a trap.
    #[must_use]
    pub fn death(&self) -> Value {
        match self.kind() {
            Kind::Wasm => json!({ "abort": true }),
            Kind::Native | Kind::Containers => json!({ "die": 9 }),
        }
    }

    /// Starts an instance; `more` has further keys of the request.
    ///
    /// # Panics
    /// If it is refused.
    #[must_use]
    #[track_caller]
    pub fn launch(&self, image: &Image, more: &Value) -> Run<'_> {
        let body = self.try_launch(image, more).expect(201);
        let id = body["instance_id"]
            .as_str()
            .expect("an id is a text")
            .to_owned();
        Run { server: self, id }
    }

    /// Asks for an instance, and gives the answer.
    #[must_use]
    #[track_caller]
    pub fn try_launch(&self, image: &Image, more: &Value) -> Answer {
        let mut body = json!({ "image_id": image.0, "tenant_id": TENANT });
        let fields = body.as_object_mut().expect("it is one");
        fields.extend(more.as_object().cloned().unwrap_or_default());
        self.ask(&Request::post("/api/v1/instances", &body))
    }

    /// Starts an instance of the scripted program.
    #[must_use]
    #[track_caller]
    pub fn follow(&self, image: &Image, actions: &Value) -> Run<'_> {
        self.launch(image, &json!({ "input": { "actions": actions } }))
    }

    /// Starts an instance of the scripted program under an id.
    #[must_use]
    #[track_caller]
    pub fn follow_as(&self, image: &Image, id: &str, actions: &Value) -> Run<'_> {
        self.launch(
            image,
            &json!({ "instance_id": id, "input": { "actions": actions } }),
        )
    }

    /// The verbs of an instance that exists.
    #[must_use]
    pub fn instance(&self, id: &str) -> Run<'_> {
        Run {
            server: self,
            id: id.to_owned(),
        }
    }

    /// Sends JSON to the core for an instance without a token, as one that registered itself does.
    #[must_use]
    #[track_caller]
    pub fn say(&self, id: &str, call: &str, body: &Value) -> Answer {
        self.ask_core(&Request::post(
            &format!("/api/v1/instances/{id}/{call}"),
            body,
        ))
    }

    /// Asks the core for an instance without a token, as one that registered itself does.
    #[must_use]
    #[track_caller]
    pub fn look(&self, id: &str, call: &str) -> Answer {
        self.ask_core(&Request::get(&format!("/api/v1/instances/{id}/{call}")))
    }

    /// Makes an instance that registered itself.
    #[track_caller]
    pub fn self_register(&self, id: &str) {
        let answer = self.say(id, "register", &json!({ "tenant_id": TENANT }));
        assert_eq!(answer.expect(200)["success"], true, "{answer}");
    }
}

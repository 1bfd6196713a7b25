//! The program: what is executed, where, as whom, with what.

use std::collections::{BTreeMap, HashSet};

use oci_spec::runtime::{
    LinuxCapabilities, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, User,
};
use runtara_runner::{LaunchSpec, ProgramPaths, contract_env, forbidden_env_name};

use super::mounts::RUN_DIRECTORY;
use super::{Container, ImageConfig, ImageUser, SpecError};
use crate::id_range::RANGE_SIZE;

/// Where programs are looked for if neither image nor start says: what containers of the field have.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Places of the kernel: `/dev` because of its links into `/proc/self/fd`.
const KERNEL_PLACES: [&str; 3] = ["/proc", "/sys", "/dev"];

pub(super) fn process(container: &Container<'_>) -> Result<Process, SpecError> {
    let args = program_args(container.image, container.args)?;
    let env: Vec<_> = container
        .env
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    for (what, texts) in [("an argument", &args), ("a variable", &env)] {
        if texts.iter().any(|text| text.contains('\0')) {
            return Err(SpecError::Nul { what });
        }
    }
    let mut process = Process::default();
    process
        .set_terminal(Some(false))
        .set_user(user(&container.image.user)?)
        .set_args(Some(args))
        .set_env(Some(env))
        .set_cwd(working_dir(&container.image.working_dir)?.into())
        .set_capabilities(Some(no_capabilities()))
        .set_rlimits(Some(resource_limits(container)))
        .set_no_new_privileges(Some(true))
        .set_oom_score_adj(container.oom_score_adj);
    Ok(process)
}

/// What is executed: the entrypoint of the image with the arguments of the start, or with its command if the start gives none. Without an
/// entrypoint it is the command, with the arguments of the start after it: a start never replaces the program of an image that has one.
///
/// # Errors
/// [`SpecError::NoProgram`] if that is nothing.
pub fn program_args(image: &ImageConfig, start: &[String]) -> Result<Vec<String>, SpecError> {
    let args = match (image.entrypoint.as_slice(), start) {
        ([], start) => [&image.cmd, start].concat(),
        (entrypoint, []) => [entrypoint, &image.cmd].concat(),
        (entrypoint, start) => [entrypoint, start].concat(),
    };
    match args.first() {
        Some(program) if !program.is_empty() => Ok(args),
        _ => Err(SpecError::NoProgram),
    }
}

/// The whole environment of a program in a container: what every program is given, and under it what the image says. The image wins over
/// what is merely usual, the operator over the image, the start over both, and nothing over who the program is. `HOME` is that of the user in the
/// image, where the image has one.
///
/// Values are secrets.
#[must_use]
pub fn container_env(
    image: &ImageConfig,
    spec: &LaunchSpec,
    paths: ProgramPaths<'_>,
) -> BTreeMap<String, String> {
    let mut env = contract_env(spec, paths);
    let given = |name: &str| spec.env.contains_key(name) || spec.passed_env.contains_key(name);
    let home = image.user.home.as_deref().map(|home| ("HOME", home));
    let usual = [("PATH", USUAL_PATH)].into_iter().chain(home);
    let said = image
        .env
        .iter()
        .filter_map(|variable| variable.split_once('='));
    for (name, value) in usual.chain(said) {
        if !given(name) && may_be_said(name) {
            env.insert(name.to_owned(), value.to_owned());
        }
    }
    env
}

/// Whether an image may set a variable. Unlike a start it may tell the loader where its libraries are: they are its own.
fn may_be_said(name: &str) -> bool {
    let is_identity = name.starts_with("RUNTARA_") && forbidden_env_name(name);
    !name.is_empty() && !is_identity
}

/// Where a program starts: where the image says, else in its run directory. Without `.` and `..`, which are resolved as if there were no links.
///
/// # Errors
/// [`SpecError::WorkingDirectory`] if it lies under `/proc`, `/sys` or `/dev`: by a link of the kernel there a program could start outside
/// of its container (CVE-2024-21626). [`SpecError::Nul`] if it holds a NUL.
pub fn working_dir(of_image: &str) -> Result<String, SpecError> {
    if of_image.is_empty() {
        return Ok(RUN_DIRECTORY.to_owned());
    }
    if of_image.contains('\0') {
        return Err(SpecError::Nul {
            what: "the working directory of the image",
        });
    }
    let mut parts = Vec::new();
    for part in of_image.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let path = format!("/{}", parts.join("/"));
    let inside = |place: &&str| {
        let rest = path.strip_prefix(place);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    match KERNEL_PLACES.into_iter().find(inside) {
        Some(place) => Err(SpecError::WorkingDirectory {
            found: of_image.to_owned(),
            place,
        }),
        None => Ok(path),
    }
}

/// Checks what an image says about its program, as far as that does not depend on a start.
///
/// # Errors
/// [`SpecError::WorkingDirectory`], [`SpecError::IdOutOfRange`] and [`SpecError::Nul`], as [`super::configuration`] would say later.
pub fn check_image(image: &ImageConfig) -> Result<(), SpecError> {
    working_dir(&image.working_dir)?;
    user(&image.user).map(drop)
}

fn user(of_image: &ImageUser) -> Result<User, SpecError> {
    let groups = [of_image.gid]
        .into_iter()
        .chain(of_image.additional_gids.iter().copied());
    let ids = [("user", of_image.uid)].into_iter();
    for (what, found) in ids.chain(groups.map(|gid| ("group", gid))) {
        if found >= RANGE_SIZE {
            return Err(SpecError::IdOutOfRange { what, found });
        }
    }
    let mut user = User::default();
    user.set_uid(of_image.uid).set_gid(of_image.gid);
    if !of_image.additional_gids.is_empty() {
        user.set_additional_gids(Some(of_image.additional_gids.clone()));
    }
    Ok(user)
}

/// The default of the type has some capabilities.
fn no_capabilities() -> LinuxCapabilities {
    let mut none = LinuxCapabilities::default();
    none.set_bounding(Some(HashSet::new()))
        .set_effective(Some(HashSet::new()))
        .set_inheritable(Some(HashSet::new()))
        .set_permitted(Some(HashSet::new()))
        .set_ambient(Some(HashSet::new()));
    none
}

fn resource_limits(container: &Container<'_>) -> Vec<PosixRlimit> {
    let limit = |kind: PosixRlimitType, soft: u64, hard: u64| {
        let limit = PosixRlimitBuilder::default()
            .typ(kind)
            .soft(soft)
            .hard(hard);
        limit.build().expect("all fields have defaults")
    };
    let open_files = container.limits.open_files;
    vec![
        limit(
            PosixRlimitType::RlimitNofile,
            open_files.soft,
            open_files.hard,
        ),
        // A core file would be a copy of secrets, and where it goes is for the host to say.
        limit(PosixRlimitType::RlimitCore, 0, 0),
    ]
}

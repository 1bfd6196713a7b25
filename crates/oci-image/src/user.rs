//! The user of an image.

use std::fmt;

use crate::error::Shown;

/// Largest number of a user or group that is taken, which is what runtimes take.
const NUMBER_MAX: u32 = i32::MAX as u32;
/// Most further groups of a user (`NGROUPS_MAX`, limits.h, is 65,536; a process that has so many is slow to make).
const GROUPS: usize = 1_024;

/// Says why the user of an image cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UserProblem {
    /// A name that the image's own file does not have.
    #[error(
        "{what} \"{}\" is not in the image's {}; name one that is, or give a number",
        Shown(name.as_bytes()),
        what.file()
    )]
    Unknown {
        /// User or group.
        what: Whom,
        /// The name.
        name: String,
    },
    /// A number that no user can have.
    #[error("{what} \"{}\" is a number over {NUMBER_MAX}, the most that is possible", Shown(text.as_bytes()))]
    TooLarge {
        /// User or group.
        what: Whom,
        /// The number as it was written.
        text: String,
    },
    /// The file is too large to be one.
    #[error("the image's {} is larger than {limit} bytes, the most that is read", what.file())]
    FileTooLarge {
        /// User or group.
        what: Whom,
        /// The most that is read, in bytes.
        limit: u64,
    },
}

/// A user or a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    /// A user, of `/etc/passwd`.
    User,
    /// A group, of `/etc/group`.
    Group,
}

impl Whom {
    /// The file that lists them.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Self::User => "/etc/passwd",
            Self::Group => "/etc/group",
        }
    }
}

impl fmt::Display for Whom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "user",
            Self::Group => "group",
        })
    }
}

/// A user by numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedUser {
    /// The user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Further groups, ascending; of a user without a group of its own in the text, those that `/etc/group` lists it in.
    pub groups: Vec<u32>,
    /// Its home directory, if `/etc/passwd` has one.
    pub home: Option<String>,
}

/// A line of `/etc/passwd`.
struct User<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

/// A line of `/etc/group`.
struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

/// Resolves `user`, `user:group` or nothing, as Docker does: a name must be in the file, a number need not; the group of a
/// number that is not in the file is 0.
pub(crate) fn resolve(
    text: &str,
    passwd: &[u8],
    group: &[u8],
) -> Result<ResolvedUser, UserProblem> {
    let (user_text, group_text) = match text.split_once(':') {
        Some((user, group)) => (user, group),
        None => (text, ""),
    };
    let user_text = if user_text.is_empty() { "0" } else { user_text };
    let number = number(Whom::User, user_text)?;
    let listed =
        users(passwd).find(|user| user.name == user_text.as_bytes() || Some(user.uid) == number);
    let uid = listed
        .as_ref()
        .map(|user| user.uid)
        .or(number)
        .ok_or_else(|| unknown(Whom::User, user_text))?;
    let (gid, further) = match group_text {
        "" => (
            listed.as_ref().map_or(0, |user| user.gid),
            listed.as_ref().map(|user| further_groups(user, group)),
        ),
        name => (named_group(name, group)?, None),
    };
    Ok(ResolvedUser {
        uid,
        gid,
        groups: further.unwrap_or_default(),
        home: listed
            .and_then(|user| str::from_utf8(user.home).ok())
            .filter(|home| home.starts_with('/') && !home.contains('\0'))
            .map(str::to_owned),
    })
}

fn named_group(text: &str, group: &[u8]) -> Result<u32, UserProblem> {
    let number = number(Whom::Group, text)?;
    groups(group)
        .find(|group| group.name == text.as_bytes() || Some(group.gid) == number)
        .map(|group| group.gid)
        .or(number)
        .ok_or_else(|| unknown(Whom::Group, text))
}

fn further_groups(user: &User<'_>, group: &[u8]) -> Vec<u32> {
    let has = |group: &Group<'_>| {
        group
            .members
            .split(|byte| *byte == b',')
            .any(|member| member == user.name)
    };
    let mut found: Vec<u32> = groups(group)
        .filter(has)
        .map(|group| group.gid)
        .take(GROUPS)
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

fn unknown(what: Whom, name: &str) -> UserProblem {
    UserProblem::Unknown {
        what,
        name: name.to_owned(),
    }
}

/// A text of digits as a number; `None` if it is a name.
fn number(what: Whom, text: &str) -> Result<Option<u32>, UserProblem> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse() {
        Ok(number) if number <= NUMBER_MAX => Ok(Some(number)),
        _ => Err(UserProblem::TooLarge {
            what,
            text: text.to_owned(),
        }),
    }
}

/// Lines that are none are passed over, as the C library does.
fn users(passwd: &[u8]) -> impl Iterator<Item = User<'_>> {
    lines(passwd).filter_map(|mut fields| {
        let name = fields.next()?;
        let uid = field(fields.nth(1)?)?;
        let gid = field(fields.next()?)?;
        let home = fields.nth(1).unwrap_or_default();
        Some(User {
            name,
            uid,
            gid,
            home,
        })
    })
}

fn groups(group: &[u8]) -> impl Iterator<Item = Group<'_>> {
    lines(group).filter_map(|mut fields| {
        let name = fields.next()?;
        let gid = field(fields.nth(1)?)?;
        let members = fields.next().unwrap_or_default();
        Some(Group { name, gid, members })
    })
}

fn lines(text: &[u8]) -> impl Iterator<Item = impl Iterator<Item = &[u8]>> {
    text.split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty() && !line.starts_with(b"#"))
        .map(|line| line.split(|byte| *byte == b':'))
}

fn field(bytes: &[u8]) -> Option<u32> {
    let number = str::from_utf8(bytes).ok()?.parse().ok()?;
    (number <= NUMBER_MAX).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &[u8] =
        b"root:x:0:0:root:/root:/bin/sh\n# remark\nbroken\nbig:x:99999999999:1::/:\n\
        app:x:1000:1001:App:/home/app:/bin/sh\nlast:x:7:8";
    const GROUP: &[u8] = b"root:x:0:\nstaff:x:50:app,other\nwheel:x:10:root,app\napp:x:1001:\n";

    fn numbers(text: &str) -> Result<(u32, u32, Vec<u32>), UserProblem> {
        resolve(text, PASSWD, GROUP).map(|user| (user.uid, user.gid, user.groups))
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        assert_eq!(numbers(""), Ok((0, 0, vec![10])));
        assert_eq!(numbers("app"), Ok((1000, 1001, vec![10, 50])));
        assert_eq!(numbers("1000"), Ok((1000, 1001, vec![10, 50])));
        assert_eq!(numbers("4242"), Ok((4242, 0, vec![])));
        assert_eq!(numbers("app:staff"), Ok((1000, 50, vec![])));
        assert_eq!(numbers("4242:4343"), Ok((4242, 4343, vec![])));
        assert_eq!(numbers(":50"), Ok((0, 50, vec![])));
        assert_eq!(numbers("last"), Ok((7, 8, vec![])));
        assert_eq!(
            resolve("app", PASSWD, b"").unwrap().home.as_deref(),
            Some("/home/app")
        );
        assert_eq!(resolve("4242", b"", b"").unwrap().home, None);
    }

    #[test]
    fn what_cannot_be_found_is_named() {
        let unknown = |what, name: &str| {
            Err(UserProblem::Unknown {
                what,
                name: name.into(),
            })
        };
        assert_eq!(numbers("nobody"), unknown(Whom::User, "nobody"));
        assert_eq!(numbers("app:nogroup"), unknown(Whom::Group, "nogroup"));
        assert_eq!(numbers("big"), unknown(Whom::User, "big"));
        assert!(matches!(
            numbers("2147483648"),
            Err(UserProblem::TooLarge { .. })
        ));
        assert!(matches!(
            numbers("1:99999999999999999999"),
            Err(UserProblem::TooLarge { .. })
        ));
    }

    proptest! {
        #[test]
        fn any_files_are_read(text in ".{0,12}", passwd in any::<Vec<u8>>(), group in any::<Vec<u8>>()) {
            if let Ok(user) = resolve(&text, &passwd, &group) {
                prop_assert!(user.uid <= NUMBER_MAX && user.gid <= NUMBER_MAX);
            }
        }
    }
}

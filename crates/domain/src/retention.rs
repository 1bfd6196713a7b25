//! For how long things are kept.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::{Status, TenantId};

/// The longest time that can be named, in milliseconds: a hundred years.
const LONGEST_MS: u64 = 36_525 * DAY_MS;
const DAY_MS: u64 = 86_400_000;
/// Most rules of a [`Retention`]: each may cost a search of its own.
const RULES: usize = 200;
/// How instances end, in the words of a rule.
const ENDS: [Status; 3] = [Status::Completed, Status::Failed, Status::Cancelled];

/// For how long something is kept: `90s`, `15m`, `36h`, `30d`, `12w`, or `forever`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Keep {
    /// For so many milliseconds.
    For(u64),
    /// Until somebody removes it.
    Forever,
}

impl Keep {
    /// So many days.
    #[must_use]
    pub const fn days(days: u64) -> Self {
        Self::For(days * DAY_MS)
    }

    /// How many milliseconds, unless it is for ever.
    #[must_use]
    pub fn millis(self) -> Option<u64> {
        match self {
            Self::For(millis) => Some(millis),
            Self::Forever => None,
        }
    }
}

const UNITS: [(&str, u64); 5] = [
    ("w", 7 * DAY_MS),
    ("d", DAY_MS),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
];

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::For(millis) = self else {
            return f.write_str("forever");
        };
        // Weeks are read, and said as days.
        let unit = UNITS[1..].iter().find(|(_, unit)| millis % unit == 0);
        match unit {
            Some((name, unit)) => write!(f, "{}{name}", millis / unit),
            None => write!(f, "{millis}ms"),
        }
    }
}

impl FromStr for Keep {
    type Err = RetentionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || RetentionError::Time {
            found: text.to_owned(),
        };
        if text == "forever" {
            return Ok(Self::Forever);
        }
        let (number, unit) = UNITS
            .iter()
            .find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))
            .ok_or_else(refused)?;
        // `parse` would take a sign.
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(refused());
        }
        let millis = number
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(*unit));
        match millis.filter(|millis| (1..=LONGEST_MS).contains(millis)) {
            Some(millis) => Ok(Self::For(millis)),
            None => Err(refused()),
        }
    }
}

/// For how long ended instances are kept: rules with commas between them, of which the most exact holds.
///
/// | rule | is for |
/// |---|---|
/// | `30d` | all instances |
/// | `failed=90d` | those that failed; so for `completed` and `cancelled` |
/// | `@acme=7d` | those of the tenant `acme` |
/// | `failed@acme=forever` | those of the tenant `acme` that failed |
///
/// A rule for tenant and status goes before one for the tenant, that before one for the status, and that before the one for all, which is
/// `30d` if there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention(BTreeMap<(Option<TenantId>, Option<Status>), Keep>);

/// Ended instances that are kept for the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetentionClass {
    /// Those of this tenant; `None` for those of all tenants without rules of their own.
    pub tenant: Option<TenantId>,
    /// How they ended.
    pub statuses: Vec<Status>,
    /// How many milliseconds after their end they are removed.
    pub keep_ms: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self(BTreeMap::from([((None, None), Keep::days(30))]))
    }
}

impl Retention {
    /// For how long an instance of this tenant that ended so is kept.
    #[must_use]
    pub fn keep(&self, tenant: &TenantId, status: Status) -> Keep {
        self.of(Some(tenant), status)
    }

    fn of(&self, tenant: Option<&TenantId>, status: Status) -> Keep {
        let of_tenant = [(tenant.cloned(), Some(status)), (tenant.cloned(), None)];
        let of_all = [(None, Some(status)), (None, None)];
        let rules = of_tenant.into_iter().chain(of_all);
        rules
            .filter_map(|rule| self.0.get(&rule))
            .next()
            .copied()
            .unwrap_or(Keep::days(30))
    }

    /// The tenants that have rules of their own.
    #[must_use]
    pub fn tenants(&self) -> Vec<TenantId> {
        let mut tenants: Vec<_> = self
            .0
            .keys()
            .filter_map(|(tenant, _)| tenant.clone())
            .collect();
        tenants.dedup();
        tenants
    }

    /// All ended instances that are not kept for ever, by how long they are kept.
    #[must_use]
    pub fn classes(&self) -> Vec<RetentionClass> {
        let tenants = self.tenants().into_iter().map(Some);
        let mut classes = Vec::new();
        for tenant in tenants.chain([None]) {
            let mut by_time = BTreeMap::<u64, Vec<Status>>::new();
            for status in ENDS {
                if let Keep::For(millis) = self.of(tenant.as_ref(), status) {
                    by_time.entry(millis).or_default().push(status);
                }
            }
            classes.extend(
                by_time
                    .into_iter()
                    .map(|(keep_ms, statuses)| RetentionClass {
                        tenant: tenant.clone(),
                        statuses,
                        keep_ms,
                    }),
            );
        }
        classes
    }
}

/// Says what is wrong with a text that is to say for how long things are kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RetentionError {
    /// It is no time.
    #[error(
        "{found:?} is no time; a whole number with s, m, h, d or w, such as 30d, or forever is wanted"
    )]
    Time {
        /// The text.
        found: String,
    },
    /// What is before `=` names no instances.
    #[error(
        "{found:?} names no instances; completed, failed, cancelled, @tenant, or both, such as failed@tenant, is wanted before ="
    )]
    Selector {
        /// The text.
        found: String,
    },
    /// Two rules are for the same instances.
    #[error("there are two rules for {rule}; one is wanted")]
    Twice {
        /// What they are for.
        rule: String,
    },
    /// There are too many rules.
    #[error("there are more than {RULES} rules")]
    TooMany,
}

impl FromStr for Retention {
    type Err = RetentionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut rules = BTreeMap::new();
        for rule in text.split(',').map(str::trim) {
            // The name of a tenant may hold an equals sign, a time cannot.
            let (selector, time) = match rule.rsplit_once('=') {
                Some((selector, time)) => (Some(selector.trim()), time.trim()),
                None => (None, rule),
            };
            let selected = selector.map_or(Ok((None, None)), selected)?;
            let keep = time.parse()?;
            if rules.insert(selected, keep).is_some() {
                let rule = selector.unwrap_or("all instances").to_owned();
                return Err(RetentionError::Twice { rule });
            }
            if rules.len() > RULES {
                return Err(RetentionError::TooMany);
            }
        }
        rules.entry((None, None)).or_insert(Keep::days(30));
        Ok(Self(rules))
    }
}

fn selected(selector: &str) -> Result<(Option<TenantId>, Option<Status>), RetentionError> {
    let refused = || RetentionError::Selector {
        found: selector.to_owned(),
    };
    let (status, tenant) = match selector.split_once('@') {
        Some((status, tenant)) => (status.trim(), Some(tenant.trim())),
        None => (selector, None),
    };
    let tenant = tenant
        .map(TenantId::new)
        .transpose()
        .map_err(|_| refused())?;
    let status = match status {
        "" if tenant.is_some() => None,
        word => Some(
            ENDS.into_iter()
                .find(|end| end.as_str() == word)
                .ok_or_else(refused)?,
        ),
    };
    Ok((tenant, status))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(id: &str) -> TenantId {
        TenantId::new(id).unwrap()
    }

    #[test]
    fn times_are_read_and_said() {
        for (text, wanted) in [
            ("90s", Keep::For(90_000)),
            ("15m", Keep::For(900_000)),
            ("36h", Keep::For(36 * 3_600_000)),
            ("30d", Keep::days(30)),
            ("forever", Keep::Forever),
        ] {
            assert_eq!(text.parse(), Ok(wanted));
            assert_eq!(wanted.to_string(), text);
        }
        assert_eq!("2w".parse(), Ok(Keep::days(14)));
        for text in [
            "",
            "30",
            "d",
            "0d",
            "-1d",
            "+1d",
            "1.5d",
            "1 d",
            "30D",
            "36526d",
            "9999999999999999999w",
            "never",
        ] {
            let refused = text.parse::<Keep>();
            assert!(
                matches!(refused, Err(RetentionError::Time { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn the_most_exact_rule_holds() {
        let rules = "14d, failed=90d, @acme=7d, failed@acme=forever, @a=b@c=1h";
        let retention: Retention = rules.parse().unwrap();
        for (id, status, wanted) in [
            ("acme", Status::Completed, "7d"),
            ("acme", Status::Failed, "forever"),
            ("acme", Status::Cancelled, "7d"),
            ("other", Status::Completed, "14d"),
            ("other", Status::Failed, "90d"),
            ("a=b@c", Status::Failed, "1h"),
        ] {
            let kept = retention.keep(&tenant(id), status);
            assert_eq!(kept.to_string(), wanted, "{id} {status}");
        }
        assert_eq!(Retention::default(), "30d".parse().unwrap());
        let some: Retention = "failed=forever".parse().unwrap();
        assert_eq!(some.keep(&tenant("x"), Status::Completed), Keep::days(30));
        assert_eq!(some.keep(&tenant("x"), Status::Failed), Keep::Forever);
    }

    #[test]
    fn classes_cover_everything_that_is_not_kept_for_ever_and_nothing_else() {
        let retention: Retention = "14d, failed=90d, @acme=7d, failed@acme=forever, @kept=forever"
            .parse()
            .unwrap();
        let classes = retention.classes();
        for id in ["acme", "kept", "other"] {
            for status in ENDS {
                let has_rules = retention.tenants().contains(&tenant(id));
                let owner = has_rules.then(|| tenant(id));
                let times: Vec<_> = classes
                    .iter()
                    .filter(|class| class.tenant == owner && class.statuses.contains(&status))
                    .map(|class| class.keep_ms)
                    .collect();
                let wanted = retention.keep(&tenant(id), status).millis();
                assert_eq!(times, Vec::from_iter(wanted), "{id} {status}");
            }
        }
        assert_eq!("forever".parse::<Retention>().unwrap().classes(), []);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (rules, wanted) in [
            ("", "\"\" is no time"),
            ("30d,", "\"\" is no time"),
            ("30d,failed", "\"failed\" is no time"),
            ("failed=30", "\"30\" is no time"),
            ("acme=7d", "\"acme\" names no instances"),
            ("running=7d", "\"running\" names no instances"),
            ("=7d", "\"\" names no instances"),
            ("@=7d", "\"@\" names no instances"),
            ("lost@acme=7d", "\"lost@acme\" names no instances"),
            ("failed=1d,failed=2d", "two rules for failed"),
            ("1d,2d", "two rules for all instances"),
        ] {
            let said = rules.parse::<Retention>().unwrap_err().to_string();
            assert!(said.contains(wanted), "{rules}: {said}");
        }
        let many = (0..=RULES).map(|n| format!("@t{n}=1d")).collect::<Vec<_>>();
        assert_eq!(
            many.join(",").parse::<Retention>(),
            Err(RetentionError::TooMany)
        );
    }
}

//! How a registry says that it wants to know who asks (RFC 9110, 11.3; distribution, "Token Authentication Specification").

use http_auth::parse_challenges;
use reqwest::Url;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// What a registry wants.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A token, which the server at `realm` gives.
    Bearer { realm: Url, service: Option<String> },
    /// User and password.
    Basic,
}

impl Challenge {
    /// The best of those that an answer holds; `None` if there is none that is understood.
    pub(crate) fn best(headers: &HeaderMap) -> Option<Self> {
        let mut best = None;
        for value in headers.get_all(WWW_AUTHENTICATE) {
            let text = value.to_str().unwrap_or_default();
            for challenge in parse_challenges(text).unwrap_or_default() {
                let parameter = |wanted: &str| {
                    let found = challenge
                        .params
                        .iter()
                        .find(|(name, _)| name.eq_ignore_ascii_case(wanted));
                    found.map(|(_, value)| value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("basic") {
                    best.get_or_insert(Self::Basic);
                }
                let realm = parameter("realm").and_then(|realm| realm.parse().ok());
                if let (true, Some(realm)) =
                    (challenge.scheme.eq_ignore_ascii_case("bearer"), realm)
                {
                    let service = parameter("service");
                    return Some(Self::Bearer { realm, service });
                }
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn best(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        Challenge::best(&headers)
    }

    #[test]
    fn a_token_is_preferred_and_what_is_not_understood_passed_over() {
        let bearer =
            r#"Bearer realm="https://auth.example.com/token",service="registry \"1\"",scope="a""#;
        let wanted = Some(Challenge::Bearer {
            realm: "https://auth.example.com/token".parse().unwrap(),
            service: Some("registry \"1\"".to_owned()),
        });
        assert_eq!(best(&[bearer]), wanted);
        assert_eq!(best(&["Basic realm=\"x\"", bearer]), wanted);
        assert_eq!(best(&["basic realm=\"x\""]), Some(Challenge::Basic));
        assert_eq!(
            best(&["Negotiate", "Basic realm=x"]),
            Some(Challenge::Basic)
        );
        for value in [
            "",
            "Bearer",
            "Bearer realm=\"no address\"",
            "Digest realm=x, nonce=y",
            "\"\"\"",
        ] {
            assert_eq!(best(&[value]), None, "{value}");
        }
    }
}

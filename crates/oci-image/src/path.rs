//! Paths as they stand in archives.

use crate::EntryProblem;
use crate::limits::{Limit, NAME_BYTES, PATH_BYTES};

/// A path within an image: components that are names, none of them `.` or `..`. Empty for the root.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ImagePath(Vec<Vec<u8>>);

impl ImagePath {
    /// Reads the name of an entry, or the target of a hard link, for which the rules are the same.
    ///
    /// A path is taken from the root of the image whether it starts with a slash or not, as all readers of images do. A `..` is
    /// refused wherever it is: no tool writes one.
    pub(crate) fn parse(role: &'static str, path: &[u8]) -> Result<Self, EntryProblem> {
        Limit::PathBytes.check(path.len() as u64, PATH_BYTES as u64)?;
        let bad = |what| EntryProblem::BadPath {
            role,
            path: path.to_vec(),
            what,
        };
        if path.is_empty() {
            return Err(bad("it is empty"));
        }
        if path.contains(&0) {
            return Err(bad("it has a NUL in it"));
        }
        let mut components = Vec::new();
        for component in path.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => {
                    return Err(EntryProblem::LeadsOut {
                        role,
                        path: path.to_vec(),
                    });
                }
                component => {
                    Limit::NameBytes.check(component.len() as u64, NAME_BYTES as u64)?;
                    components.push(component.to_vec());
                }
            }
        }
        Ok(Self(components))
    }

    /// The first component; `None` for the root.
    pub(crate) fn first(&self) -> Option<&[u8]> {
        self.0.first().map(Vec::as_slice)
    }

    /// The components of the directory, and the name in it; `None` for the root.
    pub(crate) fn split_last(&self) -> Option<(&[Vec<u8>], &[u8])> {
        let (name, parent) = self.0.split_last()?;
        Some((parent, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(path: &[u8]) -> Result<ImagePath, EntryProblem> {
        ImagePath::parse("its name", path)
    }

    #[test]
    fn a_path_starts_at_the_root_of_the_image() {
        let expected = ImagePath(vec![b"a".to_vec(), b"b".to_vec()]);
        for path in ["a/b", "/a/b", "./a/./b", "//a//b/", "a/b/."] {
            assert_eq!(parse(path.as_bytes()).unwrap(), expected, "{path}");
        }
        for path in ["/", ".", "./", "//"] {
            assert_eq!(parse(path.as_bytes()).unwrap(), ImagePath(vec![]), "{path}");
        }
    }

    #[test]
    fn what_leads_out_or_cannot_be_is_refused() {
        for path in ["..", "a/../b", "/..", "a/..", "../a"] {
            assert!(
                matches!(parse(path.as_bytes()), Err(EntryProblem::LeadsOut { .. })),
                "{path}"
            );
        }
        assert!(parse(b"...").is_ok());
        assert!(matches!(parse(b""), Err(EntryProblem::BadPath { .. })));
        assert!(matches!(parse(b"a\0b"), Err(EntryProblem::BadPath { .. })));
        assert!(matches!(parse(&[b'a'; 256]), Err(EntryProblem::Limit(_))));
        assert!(parse(&[b'a'; 255]).is_ok());
        assert!(matches!(
            parse(&b"a/".repeat(2_048)),
            Err(EntryProblem::Limit(_))
        ));
        assert!(parse(b"caf\xe9").is_ok());
    }

    proptest! {
        #[test]
        fn no_component_is_special(path in proptest::collection::vec(
            prop::sample::select(b"./a\0\xff".to_vec()), 0..12)) {
            if let Ok(ImagePath(components)) = parse(&path) {
                for component in components {
                    prop_assert!(!component.is_empty() && component != b"." && component != b"..");
                    prop_assert!(!component.contains(&b'/') && !component.contains(&0));
                }
            }
        }
    }
}

//! The shape of all filters: optional fields, each with a setter of its name.

macro_rules! options {
    ($(#[$doc:meta])* $name:ident {
        text { $($(#[$text_doc:meta])* $text:ident),* $(,)? }
        plain { $($(#[$plain_doc:meta])* $plain:ident: $ty:ty),* $(,)? }
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct $name {
            $($(#[$text_doc])* pub $text: Option<String>,)*
            $($(#[$plain_doc])* pub $plain: Option<$ty>,)*
        }

        impl $name {
            /// Gives one that asks for nothing in particular.
            #[must_use]
            pub fn new() -> Self {
                Self::default()
            }
            $($(#[$text_doc])* #[must_use] pub fn $text(mut self, value: impl Into<String>) -> Self {
                self.$text = Some(value.into());
                self
            })*
            $($(#[$plain_doc])* #[must_use] pub fn $plain(mut self, value: $ty) -> Self {
                self.$plain = Some(value);
                self
            })*
        }
    };
}
pub(crate) use options;

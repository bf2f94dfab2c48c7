//! Codes: names of causes that programs match, beside sentences that people read.

/// Makes an enum of codes, each with the text that stands for it in JSON. A text that this version does not know is read
/// as `unknown`, so that an older reader understands a newer agent.
macro_rules! codes {
    (
        $(#[$about:meta])*
        $visibility:vis enum $name:ident {
            $($(#[$doc:meta])* $variant:ident = $text:literal,)*
        }
    ) => {
        $(#[$about])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize)]
        $visibility enum $name {
            $($(#[$doc])* #[serde(rename = $text)] $variant,)*
            /// A code of another version, or no code at all.
            #[serde(rename = "unknown", other)]
            Unknown,
        }

        impl $name {
            /// All of them but `Unknown`.
            $visibility const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Its text.
            $visibility fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                    Self::Unknown => "unknown",
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

pub(crate) use codes;

#[cfg(test)]
mod tests {
    codes! {
        /// A code.
        pub(super) enum Code {
            /// The first.
            One = "one",
            /// The second.
            TheOther = "the-other",
        }
    }

    #[test]
    fn a_code_is_its_text() {
        for code in Code::ALL {
            let text = format!("\"{code}\"");
            assert_eq!(serde_json::to_string(code).unwrap(), text);
            assert_eq!(serde_json::from_str::<Code>(&text).unwrap(), *code);
        }
        let of_tomorrow = serde_json::from_str::<Code>("\"a-third\"").unwrap();
        assert_eq!(of_tomorrow, Code::Unknown);
        assert_eq!(Code::TheOther.as_str(), "the-other");
    }
}

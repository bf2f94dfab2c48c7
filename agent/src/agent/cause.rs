//! The codes of the loop's errors.

use super::overlay::{ConnectError, Failed};
use crate::telemetry::status::{Code, Coded};

impl Coded for ConnectError {
    fn code(&self) -> Code {
        match self {
            Self::Underlay(error) => error.code(),
            Self::Config(error) => error.code(),
            Self::Backend(error) => error.code(),
            Self::Privileges(error) => error.code(),
            Self::Renumbers { .. } => Code::SubnetOutsideNetwork,
        }
    }

    fn object(&self) -> Option<String> {
        match self {
            Self::Underlay(error) => error.object(),
            Self::Config(error) => error.object(),
            Self::Backend(error) => error.object(),
            Self::Privileges(error) => error.object(),
            Self::Renumbers { own, .. } => Some(own.to_string()),
        }
    }
}

impl Coded for Failed {
    fn code(&self) -> Code {
        match self {
            Self::Kernel(error) => error.code(),
            Self::Changes { first, .. } => first.code(),
        }
    }

    fn object(&self) -> Option<String> {
        match self {
            Self::Kernel(error) => error.object(),
            Self::Changes { first, .. } => first.object(),
        }
    }

    fn detail(&self) -> Option<String> {
        match self {
            Self::Kernel(error) => error.detail(),
            Self::Changes { first, .. } => first.detail(),
        }
    }
}

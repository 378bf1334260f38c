//! What is wrong with a message, by field.

use std::fmt;

use karst_model::name::NameError;

/// A resource that cannot be used. It harms only itself: the others of its response are applied.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    #[error("not a {message}")]
    Protobuf {
        message: &'static str,
        #[source]
        source: prost::DecodeError,
    },
    #[error("{field}: {problem}")]
    Field { field: String, problem: Problem },
}

/// Why a field was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("missing")]
    Missing,
    #[error("unknown value {0}")]
    UnknownValue(i32),
    #[error("an address of {0} bytes, expected 4 or 16")]
    AddressLength(usize),
    #[error("prefix length {len} is over {max}")]
    PrefixLength { len: u32, max: u8 },
    #[error("{0} is not a port")]
    Port(u32),
    #[error("{0:?} is not of the form <namespace>/<name>")]
    Name(String),
    #[error("{0:?} is not an address range")]
    Range(String),
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    #[error("holds a field that this version does not know")]
    UnknownField,
    #[error("a duration below zero or beyond all bounds")]
    Duration,
    #[error("{0} is not a status of HTTP")]
    Status(u32),
}

impl Problem {
    /// The error for this problem in `field`.
    pub(super) fn at(self, field: impl fmt::Display) -> ConvertError {
        ConvertError::Field {
            field: field.to_string(),
            problem: self,
        }
    }
}

impl From<NameError> for Problem {
    fn from(error: NameError) -> Self {
        Self::Name(error.0)
    }
}

/// Decodes `M`, naming it in the error.
pub(super) fn decode<M: prost::Message + Default>(
    message: &'static str,
    bytes: &[u8],
) -> Result<M, ConvertError> {
    M::decode(bytes).map_err(|source| ConvertError::Protobuf { message, source })
}

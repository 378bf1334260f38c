//! Reading one file: what is used, and what is said about the rest.
use super::*;

//! A directory over time.
use super::*;

//! Tests of authorize.

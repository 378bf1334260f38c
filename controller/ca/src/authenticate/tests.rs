//! Tests of authenticate.

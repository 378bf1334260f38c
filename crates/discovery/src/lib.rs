//! Delta xDS client: a pure session, the store it feeds, and the connection that drives it.

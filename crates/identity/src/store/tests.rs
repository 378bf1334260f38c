//! The store against a scripted signer.

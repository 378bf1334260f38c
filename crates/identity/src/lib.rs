//! Keys, certificates, trust bundles and the only place where rustls is set up.

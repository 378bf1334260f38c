//! Wire types of discovery, certificates and enrolment, and their conversion to and from the model.
//!
//! ```text
//!   controller: model ──convert──► message ──► bytes ──► agent: bytes ──convert──► model
//! ```
//!
//! `proto/` holds the definitions, with the package names, message names and numbers of Envoy and Istio; `src/gen` is
//! generated from them (`KARST_CODEGEN=write cargo test -p karst-proto --test fresh`) and nothing outside this crate
//! includes it. Messages are only seen by [`convert`] and by the ends of a connection; everything else speaks the
//! model.

/// Modules nest like the protobuf packages, because generated code refers to its neighbours by relative path.
#[doc(hidden)]
#[expect(
    unused_qualifications,
    clippy::large_enum_variant,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code is not ours to phrase"
)]
pub mod generated {
    macro_rules! package {
        ($file:literal) => {
            include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/gen/", $file));
        };
    }

    pub mod envoy {
        pub mod config {
            pub mod core {
                pub mod v3 {
                    package!("envoy.config.core.v3.rs");
                }
            }
        }
        pub mod r#type {
            pub mod v3 {
                package!("envoy.r#type.v3.rs");
            }
        }
        pub mod service {
            pub mod auth {
                pub mod v3 {
                    package!("envoy.service.auth.v3.rs");
                }
            }
            pub mod discovery {
                pub mod v3 {
                    package!("envoy.service.discovery.v3.rs");
                }
            }
        }
    }
    pub mod google {
        pub mod rpc {
            package!("google.rpc.rs");
        }
    }
    pub mod istio {
        pub mod security {
            package!("istio.security.rs");
        }
        pub mod v1 {
            pub mod auth {
                package!("istio.v1.auth.rs");
            }
        }
        pub mod workload {
            package!("istio.workload.rs");
        }
    }
    pub mod karst {
        pub mod reads {
            pub mod v1 {
                package!("karst.reads.v1.rs");
            }
        }
        pub mod v1 {
            package!("karst.v1.rs");
        }
    }
    pub mod encoded {
        package!("encoded.rs");
    }
}

pub use generated::{
    encoded,
    envoy::{
        config::core::v3 as core,
        service::{auth::v3 as external_auth, discovery::v3 as discovery},
        r#type::v3 as http_status,
    },
    google::rpc,
    istio::{security, v1::auth as ca, workload},
    karst::{reads::v1 as reads, v1 as karst},
};

pub mod convert;
pub mod dialect;
pub mod fields;
pub mod type_url;

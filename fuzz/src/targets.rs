//! The targets, by the part of Karst that reads the bytes.

pub mod cni;
pub mod discovery;
pub mod dns;
pub mod hbone;
pub mod identity;
pub mod proxy_protocol;
pub mod routing;
pub mod token;
pub mod waypoint;
pub mod yaml;

//! Endpoint choice, pure: locality, health, weights, session affinity.

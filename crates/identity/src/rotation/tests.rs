//! Rotation under a simulated clock.

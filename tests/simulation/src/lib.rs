//! Simulation rung: seeded clock and faults.

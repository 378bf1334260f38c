//! User side of the kernel programs: load, attach, pin, typed maps, self-test.

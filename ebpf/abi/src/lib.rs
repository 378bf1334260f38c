//! Structs shared by kernel programs and user space, sizes asserted.

//! CNI plugin: a pod starts only when it is captured.

fn main() {}

//! karst: the user's command line.

fn main() {}

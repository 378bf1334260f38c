//! Port 15008 between every two nodes.

//! What Karst's controller and agents say to each other in fields that delta xDS leaves free.

/// `Node.user_agent_name` of our agents. They know [`MORE_FOLLOWS`].
pub const USER_AGENT: &str = "karst-agent";
/// `system_version_info` of a response that does not yet complete the first answer of its type. Other clients get the
/// first answer in one message, as they take it for complete.
pub const MORE_FOLLOWS: &str = "more";

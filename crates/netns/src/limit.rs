//! The limit of open files, which bounds how many connections a node can carry.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one; gives the soft limit before and after.
///
/// With `CAP_SYS_RESOURCE` the hard limit is first raised to `wanted`. `u64::MAX` stands for
/// "unlimited".
pub fn raise_nofile_limit(wanted: u64) -> io::Result<(u64, u64)> {
    let before = getrlimit(Resource::Nofile);
    let hard = before.maximum.unwrap_or(u64::MAX);
    let raised = |limit: u64| Rlimit {
        current: Some(limit),
        maximum: Some(limit),
    };
    if hard >= wanted || setrlimit(Resource::Nofile, raised(wanted)).is_err() {
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: before.maximum,
                maximum: before.maximum,
            },
        )?;
    }
    let after = getrlimit(Resource::Nofile);
    Ok((
        before.current.unwrap_or(u64::MAX),
        after.current.unwrap_or(u64::MAX),
    ))
}

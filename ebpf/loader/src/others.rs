//! Programs of other parties on the kinds of hook that we use: they may rewrite a destination before or after us.

use std::collections::BTreeMap;

use aya::programs::loaded_programs;

/// Of `enum bpf_prog_type` in linux/bpf.h.
const SOCK_OPS: u32 = 13;
const CGROUP_SOCK_ADDR: u32 = 18;
const SK_LOOKUP: u32 = 30;
/// Prefix of our programs' names.
const OURS: &str = "karst_";

/// Names of loaded programs that are not ours, with their kind; each name once. Needs CAP_SYS_ADMIN, and sees the
/// whole machine: whether one is attached where pods are, it cannot tell.
pub fn others() -> Result<Vec<(String, &'static str)>, String> {
    let mut found = BTreeMap::new();
    for program in loaded_programs() {
        let program = program.map_err(|error| error.to_string())?;
        let kind = match program.program_type() as u32 {
            SOCK_OPS => "sock_ops",
            CGROUP_SOCK_ADDR => "cgroup/connect, sendmsg or getpeername",
            SK_LOOKUP => "sk_lookup",
            _ => continue,
        };
        let name = program.name_as_str().unwrap_or("without a name");
        if !name.starts_with(OURS) {
            found.insert(name.to_owned(), kind);
        }
    }
    Ok(found.into_iter().collect())
}

//! Builds the kernel programs.

/// Builds `ebpf/programs`.
pub(crate) fn build() -> anyhow::Result<()> {
    anyhow::bail!("the kernel programs cannot be built yet")
}

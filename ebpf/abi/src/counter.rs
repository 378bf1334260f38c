//! What the programs count, per CPU, in the map `COUNTERS`.

/// Declares the counters once: discriminant, and the name that metrics show.
macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal),+ $(,)?) => {
        /// Index into the map `COUNTERS`.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u32)]
        pub enum Counter { $($(#[$doc])* $variant),+ }

        impl Counter {
            /// Every counter, in map order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name that metrics show.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
    };
}

counters! {
    /// Outbound connections rewritten to the agent.
    Captured = "captured",
    /// Connections of enrolled pods left alone.
    Passed = "passed",
    /// Refused at connect: no own address of that family, or a listener dialled directly.
    Refused = "refused",
    /// DNS queries handed to the agent.
    Dns = "dns",
    /// Inbound connections handed to the HBONE listener.
    InboundHbone = "inbound_hbone",
    /// Inbound connections handed to the plaintext listener.
    InboundPlain = "inbound_plain",
    /// Inbound connections approved for the application (kubelet probes).
    InboundApproved = "inbound_approved",
    /// Inbound or outbound connections dropped because the agent's listener was missing.
    ListenerMissing = "listener_missing",
    /// Connections to the outbound listener without a recorded destination.
    OrigDstMissing = "orig_dst_missing",
    /// Pods that dialled one of the agent's listeners.
    ListenerDialled = "listener_dialled",
    /// Connections to an address in the pod's namespace that is not the pod's.
    ForeignLocal = "foreign_local",
    /// Recorded destinations that did not fit.
    OrigDstFull = "orig_dst_full",
    /// Approvals that did not fit.
    ApprovedFull = "approved_full",
    /// Per-socket facts that could not be stored: the connect is refused.
    FactFull = "fact_full",
    /// Guard: foreign source address.
    GuardSource = "guard_source",
    /// Guard: SYN to a mesh destination that nobody approved.
    GuardSyn = "guard_syn",
    /// Guard: TCP fragment, unparsed extension header, VLAN tag or truncated header.
    GuardMalformed = "guard_malformed",
}

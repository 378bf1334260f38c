//! Authorization: policies compiled per workload, decided in under a microsecond, explained on request.

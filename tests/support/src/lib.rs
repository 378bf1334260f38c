//! Clock, certificates, fake controller, fake datapath for tests.

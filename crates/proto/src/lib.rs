//! Wire types of discovery, certificates and enrolment, and their conversion to and from the model.

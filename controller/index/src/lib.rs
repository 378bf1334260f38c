//! Pure index from Kubernetes objects to the model.

//! Certificate authority: root, signing, who may ask for what, tokens.

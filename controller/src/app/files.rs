//! The parts of a controller that reads a directory of files and keeps its state on disk.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context as _;
use karst_ca::{Authority, KeySet, KeySetAuthenticator, Tokens, token::AgentAccount};
use karst_identity::clock::Clock;

use super::{Base, Parts};
use crate::{
    files::FileSource,
    mesh::{CapturedPods, Memory},
};

pub(super) async fn parts(base: &Base, path: PathBuf) -> anyhow::Result<Parts> {
    let (cfg, clock) = (&base.cfg, Clock::system());
    let state_dir = &cfg.state.state_dir;
    let authority = Authority::load_or_create(cfg.authority(&base.outputs.trust), clock.now())?;
    let captured =
        CapturedPods::load(state_dir).context("cannot read the list of captured pods")?;
    let tokens = Arc::new(Tokens::load_or_create(state_dir, AgentAccount::default())?);
    let mut keys = tokens.node_keys();
    if let Some(dir) = &cfg.token_keys {
        keys = keys.merge(KeySet::from_dir(dir)?)?;
    }
    let mut source = FileSource::new(path, base.outputs.problems.clone());
    let notices = source.notices();
    let objects = source.scan().await;
    let follow = source.follow(notices, base.commands.clone(), base.shutdown.clone());
    Ok(Parts {
        authority: Arc::new(authority),
        authenticator: Arc::new(KeySetAuthenticator::new(keys, clock)),
        tokens: Some(tokens),
        memory: Memory::Disk(captured),
        objects,
        follow: Box::pin(follow),
        cluster: None,
        election: None,
    })
}

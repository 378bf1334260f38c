//! A controller of its own process, on a directory of files.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use karst_ca::{Authority, AuthorityConfig, Tokens, token::AgentAccount};
use karst_identity::{
    clock::Clock,
    tls::{Connector, ControlPlaneTrust, control_plane_client_config},
};
use karst_k8s_api::Object;
use karst_model::identity::TrustDomain;
use karst_proto::karst::{JoinRequest, enrollment_client::EnrollmentClient};
use tonic::transport::{Channel, Endpoint};

use crate::objects;

const START_PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Controller {
    dir: tempfile::TempDir,
    binary: PathBuf,
    child: Child,
    addr: SocketAddr,
    trust: ControlPlaneTrust,
}

impl Drop for Controller {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Controller {
    /// Starts one that serves `objects`, and waits until it answers.
    pub(crate) async fn start(
        binary: &Path,
        objects: impl Iterator<Item = Object>,
    ) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        fs::create_dir(dir.path().join("files"))?;
        let documents: Vec<String> = objects
            .map(|object| objects::document(&object))
            .collect::<Result<_>>()?;
        // JSON is YAML; a file of bounded size each, as the directory asks for.
        for (index, part) in documents.chunks(2000).enumerate() {
            fs::write(
                dir.path().join(format!("files/objects-{index}.yaml")),
                part.join("\n---\n"),
            )?;
        }
        let authority = authority(dir.path())?;
        let addr = free_port()?;
        let child = spawn(binary, dir.path(), addr)?;
        let controller = Self {
            binary: binary.to_owned(),
            child,
            addr,
            trust: ControlPlaneTrust::Bundle(authority.bundle()),
            dir,
        };
        controller.wait().await?;
        Ok(controller)
    }

    pub(crate) async fn wait(&self) -> Result<()> {
        let start = Instant::now();
        while let Err(error) = self.channel().await {
            if start.elapsed() > START_PATIENCE {
                return Err(error).context("the controller does not answer");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    pub(crate) fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// Kills it and starts it again at once; returns when the new process runs, not when it answers.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.child = spawn(&self.binary, self.dir.path(), self.addr)?;
        Ok(())
    }

    /// Puts a file into its directory, whole at once.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<()> {
        let aside = self.dir.path().join("aside");
        fs::write(&aside, text)?;
        fs::rename(aside, self.dir.path().join("files").join(name))?;
        Ok(())
    }

    async fn channel(&self) -> Result<Channel> {
        (self.dialler()?)().await
    }

    /// Opens connections to it, after a restart too: address and roots stay.
    pub(crate) fn dialler(
        &self,
    ) -> Result<
        impl Fn() -> Pin<Box<dyn Future<Output = Result<Channel>> + Send>> + Send + Sync + 'static,
    > {
        let config = control_plane_client_config(&self.trust)?;
        let addr = self.addr;
        Ok(move || {
            let connector = Connector::new(config.clone());
            let dial = async move {
                let endpoint = Endpoint::from_shared(format!("http://{addr}"))?;
                Ok(endpoint.connect_with_connector(connector).await?)
            };
            Box::pin(dial) as Pin<Box<dyn Future<Output = Result<Channel>> + Send>>
        })
    }

    /// A node token, by the way that every node takes.
    pub(crate) async fn join(&self, channel: Channel, node: &str) -> Result<String> {
        let tokens = Tokens::load_or_create(&self.state(), AgentAccount::default())?;
        let root = authority(self.dir.path())?.root_fingerprint();
        let join_token =
            tokens.issue_join(node, root, Duration::from_secs(600), Clock::system().now())?;
        let joined = EnrollmentClient::new(channel)
            .join(JoinRequest {
                join_token,
                node: node.to_owned(),
            })
            .await?;
        Ok(joined.into_inner().node_token)
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }
}

fn authority(dir: &Path) -> Result<Authority> {
    let cfg = AuthorityConfig::new(dir.join("state"), TrustDomain::default());
    Ok(Authority::load_or_create(cfg, Clock::system().now())?)
}

fn free_port() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn spawn(binary: &Path, dir: &Path, addr: SocketAddr) -> Result<Child> {
    if !binary.exists() {
        bail!(
            "{} is not there: run `cargo xtask release`",
            binary.display()
        );
    }
    let log = fs::File::create(dir.join("controller.log"))?;
    Command::new(binary)
        .arg("--files")
        .arg(dir.join("files"))
        .arg("--state-dir")
        .arg(dir.join("state"))
        .args(["--listen", &addr.to_string()])
        .args(["--admin", &free_port()?.to_string()])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {}", binary.display()))
}

//! Who is who in the cluster: the API server's certificate, the service accounts' key, tokens and kubeconfigs.
//!
//! Made by openssl for one cluster, and thrown away with it. Components sign in with tokens: nothing to rotate.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::plan::Plan;
use crate::shell;

/// A component, its user name and its groups.
struct User {
    name: String,
    user: String,
    groups: &'static str,
}

fn users(plan: &Plan) -> Vec<User> {
    let component = |name: &str, user: &str, groups| User {
        name: name.to_owned(),
        user: user.to_owned(),
        groups,
    };
    let mut users = vec![
        component("admin", "admin", "system:masters"),
        component("controller-manager", "system:kube-controller-manager", ""),
        component("scheduler", "system:kube-scheduler", ""),
        component("proxy", "system:kube-proxy", ""),
    ];
    users.extend(plan.nodes().iter().map(|node| {
        let name = node.name();
        component(&name, &format!("system:node:{name}"), "system:nodes")
    }));
    users
}

/// The folder of keys and certificates.
pub(super) fn folder(plan: &Plan) -> PathBuf {
    plan.state().join("pki")
}

/// The kubeconfig of a component, a node or `admin`.
pub(crate) fn kubeconfig(plan: &Plan, name: &str) -> PathBuf {
    plan.state().join(format!("{name}.conf"))
}

/// Makes what is not there yet.
pub(super) fn make(plan: &Plan) -> Result<()> {
    let folder = folder(plan);
    if folder.join("api.crt").is_file() {
        return Ok(());
    }
    fs::create_dir_all(&folder)?;
    keys(&folder, plan)?;
    fs::write(folder.join("tokens.csv"), tokens(plan)?)?;
    for user in users(plan) {
        let token = token_of(&folder, &user.name)?;
        fs::write(kubeconfig(plan, &user.name), config(plan, &token))?;
    }
    Ok(())
}

fn keys(folder: &Path, plan: &Plan) -> Result<()> {
    let names = format!(
        "subjectAltName=IP:{},IP:{},IP:127.0.0.1,DNS:kubernetes,DNS:kubernetes.default,\
         DNS:kubernetes.default.svc,DNS:localhost",
        plan.host(),
        plan.api_service()
    );
    let ca = "req -x509 -newkey rsa:2048 -nodes -days 30 -keyout ca.key -out ca.crt -subj /CN=karst-cluster";
    let request = "req -newkey rsa:2048 -nodes -keyout api.key -out api.csr -subj /O=system:masters/CN=kube-apiserver";
    let sign = "x509 -req -days 30 -in api.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile api.ext -out .api.crt";
    fs::write(folder.join("api.ext"), names)?;
    for command in [
        "genrsa -out sa.key 2048",
        "rsa -in sa.key -pubout -out sa.pub",
        ca,
        request,
        sign,
    ] {
        openssl(folder, command)?;
    }
    // Last, and at once: it says that everything is there.
    fs::rename(folder.join(".api.crt"), folder.join("api.crt"))
        .context("the API server's certificate")
}

fn openssl(folder: &Path, words: &str) -> Result<String> {
    shell::capture(
        Command::new("openssl")
            .args(words.split(' '))
            .current_dir(folder),
    )
}

/// The API server's list of tokens: random ones, since the server's port can be reached by whoever is on the machine.
fn tokens(plan: &Plan) -> Result<String> {
    let folder = folder(plan);
    let mut lines = String::new();
    for user in users(plan) {
        let token = openssl(&folder, "rand -hex 16")?;
        fs::write(folder.join(format!("{}.token", user.name)), token.trim())?;
        lines += &format!(
            "{},{},{},\"{}\"\n",
            token.trim(),
            user.user,
            user.name,
            user.groups
        );
    }
    Ok(lines)
}

fn token_of(folder: &Path, name: &str) -> Result<String> {
    fs::read_to_string(folder.join(format!("{name}.token")))
        .with_context(|| format!("the token of {name}"))
}

fn config(plan: &Plan, token: &str) -> String {
    format!(
        "apiVersion: v1\n\
         kind: Config\n\
         clusters: [{{name: karst, cluster: {{server: \"{}\", certificate-authority: {}}}}}]\n\
         users: [{{name: user, user: {{token: \"{token}\"}}}}]\n\
         contexts: [{{name: karst, context: {{cluster: karst, user: user}}}}]\n\
         current-context: karst\n",
        plan.server(),
        folder(plan).join("ca.crt").display(),
    )
}

//! A pod's emptyDir and configMap volumes as folders of the state directory, and where its containers mount them.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use karst_k8s_api::k8s_openapi::api::core::v1::{Container, Volume};

use crate::{LabError, desired::DesiredPod, pod_init::Mount};

/// Makes the folders of all volumes below `dir`. Config files are readable by all; empty folders belong to `uid`.
pub(crate) fn create(pod: &DesiredPod, dir: &Path, uid: u32) -> Result<(), LabError> {
    let doing = || format!("making the volumes of pod {}/{}", pod.namespace, pod.name);
    for volume in pod.spec().volumes.iter().flatten() {
        make(pod, volume, &dir.join(&volume.name), uid).map_err(LabError::io(doing()))?;
    }
    Ok(())
}

fn make(pod: &DesiredPod, volume: &Volume, dir: &Path, uid: u32) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    if let Some(source) = &volume.config_map {
        for (name, text) in pod.config_maps.get(&source.name).into_iter().flatten() {
            fs::write(dir.join(name), text)?;
        }
        return fs::set_permissions(dir, fs::Permissions::from_mode(0o755));
    }
    chown(dir, Some(uid), Some(uid))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
}

/// Where a container mounts what.
pub(crate) fn mounts(container: &Container, dir: &Path) -> Vec<Mount> {
    container
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| Mount {
            source: dir
                .join(&mount.name)
                .join(mount.sub_path.as_deref().unwrap_or_default()),
            target: PathBuf::from(&mount.mount_path),
            read_only: mount.read_only == Some(true),
        })
        .collect()
}

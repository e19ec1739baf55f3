//! The images that unlocks have brought into the engine, and the removal of those that the archive lacks by now
//! (`PRUNE_OLD_IMAGES`).
//!
//! An image was brought by an unlock if the engine lacked it before the load. It is left alone if it has a name that
//! no unlock gave to it, or if a container uses it.

use std::collections::{BTreeMap, BTreeSet};

use super::docker::{Docker, DockerError, NamedImage, bare_id};
use crate::binary_split::{ArchiveIdentity, Loading, UnlockRecord};

/// How an image without a name is listed.
const NO_NAME: &str = "<none>:<none>";

/// Records what the engine has before a load: after a power cut in the middle of it, the rest came with the archive.
pub(super) fn list_before_load(
    docker: &Docker,
    record: &mut UnlockRecord,
    archive: &ArchiveIdentity,
) -> Vec<NamedImage> {
    let interrupted = record.loading.take();
    let Some(images) = list(docker) else { return Vec::new() };
    if record.brought.is_none() {
        record.brought = Some(brought_by_older_version(&record.images, &images));
    }
    let before = match interrupted {
        Some(loading) if loading.archive == *archive => loading.before,
        _ => images.iter().map(|image| image.id.clone()).collect(),
    };
    record.loading = Some(Loading { archive: archive.clone(), before });
    images
}

/// Adds the images that the load has brought, and the names that it has given to images of earlier loads.
pub(super) fn record_load(docker: &Docker, record: &mut UnlockRecord, before: &[NamedImage]) {
    let (Some(Loading { before: ids, .. }), Some(images)) = (record.loading.take(), list(docker)) else { return };
    let brought = record.brought.take().unwrap_or_default();
    let is_new = |id: &String| !ids.contains(id) && record.images.values().any(|other| bare_id(other) == id);
    let was_brought = |id: &String| brought.values().any(|other| other == id);
    let has_own_name = |image: &NamedImage| {
        image.name == NO_NAME || brought.get(&image.name) == Some(&image.id) || !before.contains(image)
    };
    let ours = images.into_iter().filter(|image| is_new(&image.id) || (was_brought(&image.id) && has_own_name(image)));
    record.brought = Some(ours.map(|image| (key(&image).to_owned(), image.id)).collect());
}

/// Removes the images of earlier archives. Those that cannot be removed stay in the record. Returns whether that has changed.
pub(super) fn remove(docker: &Docker, record: &mut UnlockRecord) -> bool {
    let Some(brought) = &mut record.brought else { return false };
    let is_needed = |id: &String| record.images.values().any(|other| bare_id(other) == id);
    let old: BTreeSet<String> = brought.values().filter(|id| !is_needed(id)).cloned().collect();
    if old.is_empty() {
        return false;
    }
    let mut removed = BTreeSet::new();
    for id in old {
        // Again for each, since a removal can take minutes.
        let Some(images) = list(docker) else { break };
        let names: Vec<&str> = images.iter().filter(|image| image.id == id).map(key).collect();
        let Some(name) = names.first().copied() else {
            removed.insert(id);
            continue;
        };
        match remove_image(docker, &id, &names, brought) {
            Ok(None) => {
                log::info!("removed the old image {name}");
                removed.insert(id);
            }
            Ok(Some(reason)) => log::info!("the old image {name} stays: {reason}"),
            Err(error) => {
                log::warn!(
                    "the old image {name} cannot be removed, which is tried again after the next unlock: {error}"
                );
            }
        }
    }
    brought.retain(|_, id| !removed.contains(id));
    !removed.is_empty()
}

/// Returns why the image stays, if it does. The engine itself would refuse to remove an image that a container uses, but only
/// with its last name.
fn remove_image(
    docker: &Docker,
    id: &str,
    names: &[&str],
    brought: &BTreeMap<String, String>,
) -> Result<Option<&'static str>, DockerError> {
    if names.iter().any(|name| *name != id && brought.get(*name).is_none_or(|brought| brought != id)) {
        return Ok(Some("it has a name that no unlock gave to it"));
    }
    if docker.is_used(id)? {
        return Ok(Some("a container uses it"));
    }
    for name in &names[1..] {
        docker.remove_alone(name)?;
    }
    // By its id, since its last name may be another image's by now.
    docker.remove_alone(id)?;
    Ok(None)
}

fn list(docker: &Docker) -> Option<Vec<NamedImage>> {
    let images = docker.images();
    images.inspect_err(|error| log::warn!("old images cannot be told from others: {error}")).ok()
}

/// The key of an image in the record: its name, or its id if it has none.
fn key(image: &NamedImage) -> &str {
    if image.name == NO_NAME { &image.id } else { &image.name }
}

/// What a record of an older version tells: the tags of an image, as the archive writes them. The engine may write them
/// otherwise, but it has no more of them, unless somebody has added one.
fn brought_by_older_version(tags: &BTreeMap<String, String>, images: &[NamedImage]) -> BTreeMap<String, String> {
    let is_whole = |id: &str| {
        let known = tags.values().filter(|other| bare_id(other) == id).count();
        (1..=known).contains(&images.iter().filter(|image| image.id == id).count())
    };
    let whole = images.iter().filter(|image| is_whole(&image.id));
    whole.map(|image| (key(image).to_owned(), image.id.clone())).collect()
}
